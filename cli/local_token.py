"""Tokens signed with the key in the data folder. Prints nothing; asks no control plane."""

from datetime import timedelta

from shared.canonical import parse_strict
from shared.clock import SystemClock
from shared.errors import InvalidInputError, NotFoundError
from shared.ids import InstallationId
from shared.key_files import read_private_key
from shared.local_tokens import (
    MAX_BREAK_GLASS_LIFE,
    MAX_LIFE,
    MAX_REASON_CHARS,
    MIN_REASON_CHARS,
    TokenRequest,
    sign_token,
)
from shared.paths import InstallationPaths


def make_token(paths: InstallationPaths, *, subject: str, life: timedelta, tenant: str = "") -> str:
    """Return a token of the local issuer.

    Raises:
        NotFoundError: There is no installation in the data folder, or its key is kept elsewhere.
        KeyFileModeError: The key may be read by others.
        InvalidInputError: The life is none, or longer than the control plane accepts.
    """
    if not timedelta(0) < life <= MAX_LIFE:
        raise InvalidInputError(f"a token lives up to {MAX_LIFE}, not {life}")
    key = read_private_key(paths.token_key)
    request = TokenRequest(
        installation=read_installation(paths),
        subject=subject,
        tenant=tenant,
        issued_at=SystemClock().now(),
        life=life,
    )
    return sign_token(key, request)


def make_break_glass_token(
    paths: InstallationPaths, *, subject: str, life: timedelta, reason: str, tenant: str = ""
) -> str:
    """Return a token for an emergency: administrator for up to an hour, recorded at every use.

    Raises:
        NotFoundError: There is no installation in the data folder, or its key is kept elsewhere.
        KeyFileModeError: The key may be read by others.
        InvalidInputError: The life is none or longer than an hour; the reason says too little or too much.
    """
    if not timedelta(0) < life <= MAX_BREAK_GLASS_LIFE:
        raise InvalidInputError(f"a break-glass token lives up to {MAX_BREAK_GLASS_LIFE}, not {life}")
    if not MIN_REASON_CHARS <= len(reason) <= MAX_REASON_CHARS:
        raise InvalidInputError(
            f"the reason needs {MIN_REASON_CHARS} to {MAX_REASON_CHARS} characters, it has {len(reason)}"
        )
    request = TokenRequest(
        installation=read_installation(paths),
        subject=subject,
        tenant=tenant,
        break_glass=reason,
        issued_at=SystemClock().now(),
        life=life,
    )
    return sign_token(read_private_key(paths.token_key), request)


def read_installation(paths: InstallationPaths) -> InstallationId:
    """Return the name of the installation in a data folder.

    Raises:
        NotFoundError: There is none.
    """
    try:
        document = parse_strict(paths.description.read_bytes())
    except OSError as error:
        raise NotFoundError(
            f"there is no installation in {paths.data_dir}",
            hint="run 'agentfactory init', or name another --data-dir",
        ) from error
    return InstallationId(str(document.get("installation")))
