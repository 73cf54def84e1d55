"""A real OpenBao as custodian of key-encryption keys."""

import itertools

import pytest

from control_plane.body_keys.vault import VaultWrapping
from shared.errors import KeyUnavailableError
from tests.contract.body_keys.wrapping_suite import KEY, KEY_ID, NAME, WrappingSuite
from tests.fakes.clock import FakeClock
from tests.fixtures.openbao import running_dev
from tests.fixtures.vault_roles import CUSTODY_POLICY, make_custody_role, make_role, new_client

_numbers = itertools.count()


@pytest.fixture(scope="module")
def dev():
    with running_dev() as bao:
        yield bao


class Advancing(FakeClock):
    """Each look is a minute later: no pause of the client outlasts the next call."""

    def monotonic(self):
        self.at = getattr(self, "at", 0.0) + 60
        return self.at


@pytest.fixture
async def wrapping(dev, tmp_path):
    client = new_client(make_custody_role(dev, tmp_path), Advancing())
    yield VaultWrapping(client, prefix=f"agentfactory-body-{next(_numbers)}")
    await client.close()


class TestVaultWrapping(WrappingSuite):
    async def test_a_role_without_the_right_is_refused(self, dev, wrapping, tmp_path):
        await wrapping.prepare(NAME)
        policy = CUSTODY_POLICY.replace("transit/encrypt", "transit/nothing")
        client = new_client(make_role(dev, "no-encrypt", policy, tmp_path), Advancing())
        refused = VaultWrapping(client, prefix=wrapping._prefix)
        with pytest.raises(KeyUnavailableError, match="refuses"):
            await refused.wrap(NAME, KEY_ID, KEY)
        await client.close()

    async def test_the_key_cannot_be_exported(self, dev, wrapping):
        await wrapping.prepare(NAME)
        read = dev.client().secrets.transit.read_key(f"{wrapping._prefix}-{NAME}")["data"]
        assert (read["exportable"], read["type"]) == (False, "aes256-gcm96")
