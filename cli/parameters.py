"""Parameters of an agent, as the command line takes them."""

from pathlib import Path

from shared.errors import InvalidInputError

MAX_PARAMETERS_BYTES = 64 * 1024


def read_parameters(text: str) -> bytes:
    """Return the parameters themselves, or those in the file that ``@FILE`` names.

    Raises:
        InvalidInputError: The file cannot be read, or is too large.
    """
    if not text.startswith("@"):
        return text.encode()
    try:
        with Path(text[1:]).open("rb") as file:
            data = file.read(MAX_PARAMETERS_BYTES + 1)
    except OSError as error:
        raise InvalidInputError(f"cannot read parameters {text[1:]}: {error.strerror}") from error
    if len(data) > MAX_PARAMETERS_BYTES:
        raise InvalidInputError(f"parameters {text[1:]} have more than {MAX_PARAMETERS_BYTES} bytes")
    return data
