"""Secrets of a real OpenBao, as a node asks for them."""

import asyncio
from datetime import timedelta

import pytest

from data_plane.host_calls.secrets_vault import REMEMBERED_FOR, VaultSecrets
from shared.errors import KeyUnavailableError, UnavailableError
from shared.ids import TenantId
from shared.urls import parse_url
from tests.fakes.clock import FakeClock
from tests.fixtures.openbao import running_dev
from tests.fixtures.vault_roles import SECRETS_POLICY, make_role, new_client

DEFAULT, OTHER = TenantId("default"), TenantId("other")
VALUE = "a-token-that-nobody-sees"
TICK = timedelta(milliseconds=1)


@pytest.fixture(scope="module")
def bao():
    with running_dev() as server:
        yield server


class Vault:
    def __init__(self, bao, folder):
        self.bao, self.clock = bao, FakeClock()
        self.access = make_role(bao, "node", SECRETS_POLICY, folder)
        self.client = new_client(self.access, self.clock)
        self.secrets = VaultSecrets(self.client, clock=self.clock)

    def put(self, path, **fields):
        self.bao.client().secrets.kv.v2.create_or_update_secret(path, secret=fields, mount_point="secret")


@pytest.fixture
async def vault(bao, tmp_path):
    vault = Vault(bao, tmp_path)
    vault.put("agentfactory/default/api-token", value=VALUE, urls="https://a.test/v1/ https://b.test/")
    yield vault
    await vault.client.close()


async def test_a_secret_and_where_it_may_go(vault):
    secret = await vault.secrets.find(DEFAULT, "api-token")
    assert secret.value == VALUE
    assert secret.may_go_to(parse_url("https://a.test/v1/x"))
    assert secret.may_go_to(parse_url("https://b.test/"))
    assert not secret.may_go_to(parse_url("https://a.test/v2/"))
    assert VALUE not in repr(secret)


async def test_another_tenant_has_none_of_it(vault):
    assert await vault.secrets.find(OTHER, "api-token") is None


@pytest.mark.parametrize(
    "tenant", ["", "..", "../default", "other/../default", "default/", ".default", "default%2f", "a\nb"]
)
async def test_a_tenant_in_the_path_of_another_reaches_nothing(vault, tenant):
    assert await vault.secrets.find(TenantId(tenant), "api-token") is None


@pytest.mark.parametrize("name", ["", "..", "a/b", "../default/api-token", "API"])
async def test_a_name_that_is_a_path_reaches_nothing(vault, name):
    assert await vault.secrets.find(DEFAULT, name) is None


async def test_a_new_value_counts_after_some_seconds_and_a_removed_one_no_more(vault):
    await vault.secrets.find(DEFAULT, "api-token")
    vault.put("agentfactory/default/api-token", value="another-value", urls="https://a.test/")
    vault.clock.advance(REMEMBERED_FOR - TICK)
    assert (await vault.secrets.find(DEFAULT, "api-token")).value == VALUE
    vault.clock.advance(TICK)
    assert (await vault.secrets.find(DEFAULT, "api-token")).value == "another-value"
    vault.bao.client().secrets.kv.v2.delete_latest_version_of_secret(
        "agentfactory/default/api-token", mount_point="secret"
    )
    vault.clock.advance(REMEMBERED_FOR)
    assert await vault.secrets.find(DEFAULT, "api-token") is None


async def test_many_that_ask_at_once_are_one_question(vault):
    asked = 0
    call = vault.client.call

    async def counted(work):
        nonlocal asked
        asked += 1
        return await call(work)

    vault.client.call = counted
    found = await asyncio.gather(*(vault.secrets.find(DEFAULT, "api-token") for _ in range(100)))
    assert {secret.value for secret in found} == {VALUE}
    assert asked == 1


async def test_one_that_asks_and_goes_away_takes_nothing_from_the_others(vault):
    first = asyncio.ensure_future(vault.secrets.find(DEFAULT, "api-token"))
    second = asyncio.ensure_future(vault.secrets.find(DEFAULT, "api-token"))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).value == VALUE


@pytest.mark.parametrize(
    "fields",
    [
        {"value": VALUE},
        {"urls": "https://a.test/"},
        {"value": "short", "urls": "https://a.test/"},
        {"value": "x" * 9000, "urls": "https://a.test/"},
        {"value": "with\nline-break", "urls": "https://a.test/"},
        {"value": 12345678, "urls": "https://a.test/"},
        {"value": VALUE, "urls": ""},
        {"value": VALUE, "urls": ["https://a.test/"]},
        {"value": VALUE, "urls": "https://user@a.test/"},
        {"value": VALUE, "urls": " ".join(f"https://a.test/{number}" for number in range(17))},
    ],
    ids=["no urls", "no value", "short", "long", "lines", "number", "nowhere", "list", "user", "many"],
)
async def test_what_cannot_be_used_fails_and_is_not_told(vault, fields, caplog):
    vault.put("agentfactory/default/broken", **fields)
    with pytest.raises(UnavailableError) as refused:
        await vault.secrets.find(DEFAULT, "broken")
    assert str(fields.get("value", "-none-")) not in str(refused.value) + caplog.text


async def test_a_role_that_may_not_read_is_told_and_nothing_is_given(vault):
    vault.bao.client().sys.create_or_update_policy("node", 'path "x" {\n capabilities = ["deny"]\n}')
    with pytest.raises(KeyUnavailableError, match="may not do this"):
        await vault.secrets.find(DEFAULT, "api-token")
