"""Files as custodian of key-encryption keys."""

import pytest

from control_plane.body_keys.files import FileWrapping
from shared.errors import KeyUnavailableError
from tests.contract.body_keys.wrapping_suite import KEY, KEY_ID, NAME, WrappingSuite


@pytest.fixture
def wrapping(tmp_path):
    return FileWrapping(tmp_path / "keys")


class TestFileWrapping(WrappingSuite):
    async def test_refuses_a_key_that_others_can_read(self, wrapping, tmp_path):
        await wrapping.prepare(NAME)
        (tmp_path / "keys" / f"{NAME}.key").chmod(0o640)
        with pytest.raises(KeyUnavailableError, match="0640"):
            await wrapping.wrap(NAME, KEY_ID, KEY)
