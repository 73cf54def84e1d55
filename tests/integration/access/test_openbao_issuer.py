"""A real OpenID Connect provider: OpenBao issues the tokens, and the verifier gets its keys by discovery."""

import asyncio
import ssl
from contextlib import asynccontextmanager, suppress
from datetime import timedelta

import jwt
import pytest

from control_plane.access import jwks
from control_plane.access.domain import TokenIssuer
from control_plane.access.jwks import IssuerKeys
from control_plane.access.jwks_http import DiscoveredKeys, HttpKeys
from control_plane.access.tokens import JwtVerifier, KnownIssuer
from shared.clock import SystemClock
from shared.errors import UnauthenticatedError, UnavailableError
from tests.fixtures.openbao import BaoServer, running_dev

PASSWORD = "not-a-secret"
KEY = "people"
TRUSTED = ssl.create_default_context()


class Provider:
    """Identity tokens of OpenBao, of two issuers: two keys and audiences below one server."""

    def __init__(self, bao: BaoServer):
        self.bao = bao
        root = bao.client()
        self.issuer = f"{bao.url}/v1/identity/oidc"
        root.secrets.identity.configure_tokens_backend(issuer=bao.url)
        self.audience = self.make_key(root, KEY)
        self.other_audience = self.make_key(root, "others")
        root.sys.enable_auth_method("userpass")
        root.sys.create_or_update_policy(
            "tokens", 'path "identity/oidc/token/*" {\n  capabilities = ["read"]\n}'
        )
        root.auth.userpass.create_or_update_user("alice", PASSWORD, policies=["tokens"])
        self.alice = bao.client("")
        self.alice.auth.userpass.login("alice", PASSWORD)
        self.entity = self.alice.lookup_token()["data"]["entity_id"]
        root.secrets.identity.create_or_update_group(name="staff", member_entity_ids=[self.entity])

    def make_key(self, root, name) -> str:
        root.write(
            f"identity/oidc/key/{name}", allowed_client_ids="*", verification_ttl="1h", algorithm="RS256"
        )
        root.write(
            f"identity/oidc/role/{name}",
            key=name,
            ttl="5m",
            template='{"groups": {{identity.entity.groups.names}}}',
        )
        return root.read(f"identity/oidc/role/{name}")["data"]["client_id"]

    def token(self, role=KEY) -> str:
        return self.alice.read(f"identity/oidc/token/{role}")["data"]["token"]

    def rotate(self):
        self.bao.client().write(f"identity/oidc/key/{KEY}/rotate", verification_ttl="1h")

    def settings(self, **changes) -> TokenIssuer:
        values = {
            "name": "bao",
            "issuer": self.issuer,
            "audience": self.audience,
            "algorithms": frozenset({"RS256"}),
        }
        return TokenIssuer(**(values | changes))


@pytest.fixture(scope="module")
def provider():
    with running_dev() as bao:
        yield Provider(bao)


@asynccontextmanager
async def verifier(provider, *, max_age=timedelta(hours=1), **settings):
    issuer, clock = provider.settings(**settings), SystemClock()
    source = DiscoveredKeys(issuer=issuer.issuer, trusted=TRUSTED)
    keys = IssuerKeys(name=issuer.name, source=source, max_age=max_age, clock=clock)
    reading = asyncio.create_task(keys.run())
    try:
        yield JwtVerifier(issuers=[KnownIssuer(issuer=issuer, keys=keys)], clock=clock)
    finally:
        reading.cancel()
        with suppress(asyncio.CancelledError):
            await reading


async def refused(door, token, match=None):
    with pytest.raises(UnauthenticatedError, match=match):
        await door.verify(token)


async def test_a_token_of_the_provider_names_its_bearer_and_groups(provider):
    async with verifier(provider) as door:
        principal = await door.verify(provider.token())
    assert principal.identity == f"oidc:bao/{provider.entity}"
    assert principal.groups == {"group:bao/staff"}


async def test_rotating_the_signing_key_refuses_nobody(provider):
    async with verifier(provider) as door:
        old = [provider.token()]
        for _ in range(3):
            provider.rotate()
            old.append(provider.token())
            # The newest at once, and all from before.
            for token in reversed(old):
                assert await door.verify(token)
        kids = {jwt.get_unverified_header(token)["kid"] for token in old}
        assert len(kids) == 4


async def test_many_callers_during_a_rotation_are_all_served(provider):
    async with verifier(provider) as door:
        assert await door.verify(provider.token())
        tokens = []
        for number in range(30):
            if number % 10 == 0:
                await asyncio.to_thread(provider.rotate)
            tokens.append(await asyncio.to_thread(provider.token))
        results = await asyncio.gather(*map(door.verify, tokens), return_exceptions=True)
    assert [result for result in results if isinstance(result, Exception)] == []


async def test_a_token_for_another_audience_of_the_same_provider_is_refused(provider):
    async with verifier(provider) as door:
        await refused(door, provider.token("others"), r"check 7")
    # And the other way round, so that the token itself is a good one.
    async with verifier(provider, audience=provider.other_audience) as door:
        assert await door.verify(provider.token("others"))


async def test_a_token_of_the_provider_that_is_not_pinned_to_its_algorithm_is_refused(provider):
    async with verifier(provider, algorithms=frozenset({"ES256"})) as door:
        await refused(door, provider.token(), r"check 3")


async def test_an_issuer_written_in_another_way_is_another_issuer(provider):
    with pytest.raises(UnavailableError, match="another issuer"):
        await DiscoveredKeys(issuer=provider.issuer + "/", trusted=TRUSTED).read()


@pytest.mark.parametrize("path", ["/v1/sys/health", "/v1/identity/oidc/nothing", "/"])
async def test_what_is_no_key_set_is_never_taken_for_one(provider, path):
    keys = IssuerKeys(
        name="bao",
        source=HttpKeys(url=provider.bao.url + path, trusted=TRUSTED),
        max_age=timedelta(hours=1),
        clock=SystemClock(),
    )
    await keys._read()
    assert not keys._keys


async def test_known_keys_count_on_while_the_provider_is_away(monkeypatch):
    monkeypatch.setattr(jwks, "WAIT_FOR_KEY", timedelta(seconds=3))
    with running_dev() as bao:
        provider = Provider(bao)
        first, second = provider.token(), provider.token()
        provider.rotate()
        unknown = provider.token()
        async with verifier(provider) as door:
            # All three keys' names are known from one reading, or from the next.
            assert await door.verify(first)
            bao.kill()
            assert await door.verify(second)
            assert await door.verify(unknown)
            forged = jwt.encode({"iss": provider.issuer}, "x" * 32, "HS256", headers={"kid": "nobody"})
            await refused(door, forged)
