"""Files as custodian."""

import pytest

from control_plane.keys.files import FileCustody
from shared.errors import KeyUnavailableError
from shared.keyset import KeyPurpose
from tests.contract.keys.custody_suite import CustodySuite


@pytest.fixture
def custody(tmp_path):
    return FileCustody(tmp_path / "keys")


@pytest.fixture
def reopened(tmp_path):
    return lambda: FileCustody(tmp_path / "keys")


class TestFileCustody(CustodySuite):
    async def test_refuses_a_key_that_others_can_read(self, custody, reopened, tmp_path):
        made = await custody.create(KeyPurpose.ORDER)
        (tmp_path / "keys" / "order.key").chmod(0o640)
        with pytest.raises(KeyUnavailableError, match="0640"):
            await reopened().sign(made, b"data")

    async def test_two_processes_that_make_a_key_make_two(self, custody, reopened):
        first, second = await custody.create(KeyPurpose.ORDER), await reopened().create(KeyPurpose.ORDER)
        assert {first.version, second.version} == {1, 2}
