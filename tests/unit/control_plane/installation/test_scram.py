"""What Postgres keeps of a password, against the example of RFC 7677."""

import base64

import pytest

from control_plane.installation.scram import verifier
from shared.errors import InvalidInputError


def test_the_example_of_the_standard():
    salt = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
    assert verifier("pencil", salt) == (
        "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$"
        "WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
    )


@pytest.mark.parametrize("password", ["", "\u00fcber", "tab\t", "x" * 257])
def test_other_passwords_are_refused(password):
    with pytest.raises(InvalidInputError):
        verifier(password, bytes(16))
