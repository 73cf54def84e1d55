"""Tokens that are accepted, and one by one the attacks that are not."""

import asyncio
import hashlib
import hmac
import json
from contextlib import asynccontextmanager, suppress
from datetime import timedelta

import pytest

from control_plane.access import jwks
from control_plane.access.domain import CLOCK_LEEWAY, TokenIssuer, is_trusted_url
from control_plane.access.jwks import IssuerKeys, parse_keys
from control_plane.access.tokens import MAX_GROUPS, VERIFIED_LIFE, JwtVerifier, KnownIssuer
from shared.errors import MalformedError, UnauthenticatedError, UnavailableError
from shared.rpc.credentials import MAX_TOKEN_CHARS
from tests.fakes.clock import START, FakeClock
from tests.fixtures.tokens import AUDIENCE, LIFE, NAME, Issuer, b64, by_hand

TICK = timedelta(seconds=1)
HOUR = timedelta(hours=1)


class Source:
    """What an issuer publishes."""

    def __init__(self, issuer):
        self.issuer, self.away, self.reads = issuer, False, 0
        self.gate = None

    async def read(self):
        self.reads += 1
        if self.away:
            raise UnavailableError("the issuer is away")
        document = self.issuer.document()
        if self.gate is not None:
            await self.gate.wait()
        return document


class Desk:
    def __init__(self, *issuers, **settings):
        self.clock = FakeClock()
        self.issuers = issuers or (Issuer(),)
        self.sources = [Source(issuer) for issuer in self.issuers]
        self.keyrings = [
            IssuerKeys(name=source.issuer.name, source=source, max_age=HOUR, clock=self.clock)
            for source in self.sources
        ]
        self.verifier = JwtVerifier(
            issuers=[
                KnownIssuer(issuer=issuer.settings(**settings), keys=keys)
                for issuer, keys in zip(self.issuers, self.keyrings, strict=True)
            ],
            clock=self.clock,
        )

    @property
    def issuer(self):
        return self.issuers[0]

    @asynccontextmanager
    async def reading(self):
        tasks = [asyncio.create_task(keys.run()) for keys in self.keyrings]
        try:
            for keys in self.keyrings:
                async with asyncio.timeout(10):
                    while not keys._finished:
                        await asyncio.sleep(0)
            yield self
        finally:
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def refused(self, token, check=None):
        with pytest.raises(UnauthenticatedError) as caught:
            await self.verifier.verify(token)
        assert check is None or f"(check {check})" in str(caught.value)
        assert token not in str(caught.value)
        return str(caught.value)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(jwks, "MIN_INTERVAL", timedelta(milliseconds=20))
    monkeypatch.setattr(jwks, "WAIT_FOR_KEY", timedelta(milliseconds=200))


@pytest.fixture
async def desk():
    async with Desk().reading() as opened:
        yield opened


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
async def test_a_good_token_names_its_bearer(algorithm):
    async with Desk(Issuer(algorithm=algorithm)).reading() as desk:
        principal = await desk.verifier.verify(
            desk.issuer.token(groups=["staff", "Domain Admins"], af_tenant="red")
        )
    assert principal.identity == f"oidc:{NAME}/alice"
    assert principal.groups == {f"group:{NAME}/staff", f"group:{NAME}/Domain Admins"}
    assert (principal.issuer, principal.tenant, principal.expires_at) == (NAME, "red", START + LIFE)


async def test_one_of_several_audiences_is_enough(desk):
    assert await desk.verifier.verify(desk.issuer.token(aud=["other", AUDIENCE]))


@pytest.mark.parametrize("audience", ["other", ["other"], AUDIENCE + "x", "", [], 7, None])
async def test_a_token_for_somebody_else_is_refused(desk, audience):
    await desk.refused(desk.issuer.token(aud=audience))


async def test_a_token_ends_with_its_time_and_the_leeway(desk):
    token = desk.issuer.token()
    desk.clock.advance(LIFE + CLOCK_LEEWAY - TICK)
    assert await desk.verifier.verify(token)
    desk.clock.advance(TICK)
    await desk.refused(token, 6)


async def test_a_verified_token_is_not_remembered_beyond_its_end(desk):
    desk.clock.advance(LIFE + CLOCK_LEEWAY - TICK)
    token = desk.issuer.token()
    await desk.verifier.verify(token)
    assert VERIFIED_LIFE > TICK
    desk.clock.advance(TICK)
    await desk.refused(token, 6)


@pytest.mark.parametrize(
    "times",
    [
        {"iat": START.timestamp() + 31},
        {"nbf": START.timestamp() + 31},
        {"exp": START.timestamp() + 24 * 3600 + 1},
        {"exp": START.timestamp() - 1, "iat": START.timestamp()},
        {"exp": 10**15},
        {"exp": "tomorrow"},
        {"exp": True},
        {"iat": -1},
        {"nbf": "now"},
    ],
    ids=lambda times: "-".join(f"{name}" for name in times) + str(len(str(times))),
)
async def test_times_that_cannot_be_are_refused(desk, times):
    await desk.refused(desk.issuer.token(**times), 6)


@pytest.mark.parametrize("claim", ["exp", "iat", "aud", "iss", "sub"])
async def test_every_claim_that_is_needed_is_needed(desk, claim):
    await desk.refused(desk.issuer.token(**{claim: None}))


async def test_alg_none_is_refused(desk):
    for name in ("none", "None", "NONE", "nOnE"):
        await desk.refused(by_hand({"alg": name, "kid": "k1"}, desk.issuer.claims()))
        await desk.refused(by_hand({"alg": name, "kid": "k1"}, desk.issuer.claims(), b"x"), 3)


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
async def test_hs256_with_the_public_key_as_secret_is_refused(algorithm):
    async with Desk(Issuer(algorithm=algorithm)).reading() as desk:
        for name in ("HS256", algorithm):
            header = {"alg": name, "kid": "k1", "typ": "JWT"}
            unsigned = by_hand(header, desk.issuer.claims()).rpartition(".")[0]
            mac = hmac.new(desk.issuer.public_pem, unsigned.encode(), hashlib.sha256).digest()
            await desk.refused(f"{unsigned}.{b64(mac)}")


async def test_an_algorithm_that_the_issuer_is_not_pinned_to_is_refused():
    async with Desk(Issuer(algorithm="RS256"), algorithms=frozenset({"ES256"})).reading() as desk:
        await desk.refused(desk.issuer.token(), 3)


async def test_a_key_made_for_another_algorithm_is_refused():
    issuer = Issuer(algorithm="RS256")
    async with Desk(issuer, algorithms=frozenset({"ES256", "RS256"})).reading() as desk:
        header = {"alg": "ES256", "kid": "k1"}
        await desk.refused(by_hand(header, issuer.claims(), b"x" * 64), 4)


async def test_the_key_of_another_issuer_signs_nothing_here():
    mine, theirs = Issuer(), Issuer(name="other", issuer="https://other.test")
    theirs.rotate("theirs")
    async with Desk(mine, theirs).reading() as desk:
        await desk.refused(theirs.token(iss=mine.issuer))
        # Nor under the name of a key of the right issuer.
        await desk.refused(theirs.token(iss=mine.issuer, headers={"kid": "k1"}), 5)
        assert (await desk.verifier.verify(theirs.token())).identity == "oidc:other/alice"


@pytest.mark.parametrize("issuer", ["https://evil.test", "https://login.corp.test/", "", 7])
async def test_an_issuer_that_is_not_known_to_the_letter_is_refused(desk, issuer):
    claims = desk.issuer.claims() | {"iss": issuer}
    await desk.refused(by_hand({"alg": "ES256", "kid": "k1"}, claims, b"x" * 64), 3)


async def test_altered_claims_are_refused(desk):
    header, _, signature = desk.issuer.token().split(".")
    claims = b64(json.dumps(desk.issuer.claims(sub="root")).encode())
    await desk.refused(f"{header}.{claims}.{signature}", 5)


@pytest.mark.parametrize(
    "headers", [{"crit": ["exp"]}, {"b64": False}, {"crit": []}, {"kid": ""}, {"kid": 7}, {"jku": "x"}]
)
async def test_header_tricks_are_refused(desk, headers):
    token = desk.issuer.token(headers={"x": 1})
    claims, signature = token.split(".")[1:]
    header = b64(json.dumps({"alg": "ES256", "kid": "k1"} | headers).encode())
    await desk.refused(f"{header}.{claims}.{signature}")


@pytest.mark.parametrize(
    "token",
    [
        "",
        "x",
        "a.b",
        "a.b.c.d",
        "..",
        "a..c",
        "é.é.é",
        "\ud800.a.b",
        "e30.e30.e30",
        "[" * 8000,
        b64(b"[" * 3000) + "." + b64(b"[" * 3000) + ".x",
        b64(b'{"a":1,"a":2}') + "." + b64(b"{}") + ".x",
        "e30 .e30.e30",
        "x" * (MAX_TOKEN_CHARS + 1),
    ],
    ids=range(14),
)
async def test_what_is_no_token_is_refused(desk, token):
    with pytest.raises(UnauthenticatedError):
        await desk.verifier.verify(token)


@pytest.mark.parametrize("subject", ["", "a b", "a\n", "ü", "x" * 256, 7, "a\x00b"])
async def test_a_subject_that_cannot_be_shown_is_refused(desk, subject):
    await desk.refused(desk.issuer.token(sub=subject) if isinstance(subject, str) else "x", None)


async def test_groups_are_a_bounded_list_of_texts(desk):
    for groups in ("staff", ["g"] * (MAX_GROUPS + 1), [7], {"a": 1}):
        await desk.refused(desk.issuer.token(groups=groups), 9)
    # Names that no binding could have are left out.
    principal = await desk.verifier.verify(desk.issuer.token(groups=["", " a", "b\n", "x" * 256, "ok"]))
    assert principal.groups == {f"group:{NAME}/ok"}


async def test_a_known_token_costs_no_second_verification(desk):
    token = desk.issuer.token()
    first = await desk.verifier.verify(token)
    assert await desk.verifier.verify(token) is first


async def test_a_key_published_a_moment_ago_is_found_without_a_refusal(desk):
    for number in range(5):
        desk.issuer.rotate(f"new{number}")
        assert await desk.verifier.verify(desk.issuer.token())


async def test_a_key_published_during_a_reading_is_found_by_the_next():
    desk = Desk()
    desk.sources[0].gate = asyncio.Event()
    task = asyncio.create_task(desk.keyrings[0].run())
    async with asyncio.timeout(10):
        while not desk.sources[0].reads:
            await asyncio.sleep(0)
        # The reading under way has its answer already.
        desk.issuer.rotate("late")
        asking = asyncio.create_task(desk.verifier.verify(desk.issuer.token()))
        await asyncio.sleep(0)
        desk.sources[0].gate.set()
        assert await asking
    task.cancel()


async def test_unknown_keys_cost_the_issuer_few_readings(desk, monkeypatch):
    monkeypatch.setattr(jwks, "MIN_INTERVAL", HOUR)
    desk.issuer.rotate("unpublished", publish=False)
    before = desk.sources[0].reads
    tokens = [desk.issuer.token(sub=f"u{number}") for number in range(50)]
    results = await asyncio.gather(*map(desk.verifier.verify, tokens), return_exceptions=True)
    assert all(isinstance(result, UnauthenticatedError) for result in results)
    assert desk.sources[0].reads <= before + 2


async def test_only_so_many_wait_for_a_key(desk, monkeypatch):
    monkeypatch.setattr(jwks, "MAX_WAITING", 3)
    monkeypatch.setattr(jwks, "MIN_INTERVAL", HOUR)
    desk.issuer.rotate("unpublished", publish=False)
    tokens = [desk.issuer.token(sub=f"u{number}") for number in range(5)]
    results = await asyncio.gather(*map(desk.verifier.verify, tokens), return_exceptions=True)
    assert sum("too many" in str(result) for result in results) == 2


async def test_known_keys_count_while_the_issuer_is_away_until_the_stated_age(desk):
    desk.sources[0].away = True
    desk.clock.advance(HOUR)
    assert await desk.verifier.verify(desk.issuer.token(now=desk.clock.now()))
    desk.clock.advance(TICK)
    await desk.refused(desk.issuer.token(now=desk.clock.now(), sub="bob"))


async def test_a_key_that_the_issuer_took_back_is_refused_after_the_next_reading(desk):
    old = desk.issuer.token(sub="bob")
    desk.issuer.rotate("k2")
    del desk.issuer.published["k1"]
    await desk.verifier.verify(desk.issuer.token())
    await desk.refused(old)


async def test_an_answer_without_a_usable_key_changes_nothing(desk):
    published = dict(desk.issuer.published)
    desk.issuer.published.clear()
    desk.issuer.rotate("k2", publish=False)
    await desk.refused(desk.issuer.token())
    desk.issuer.kid = "k1"
    assert await desk.verifier.verify(desk.issuer.token())
    assert published


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"{}",
        b'{"keys":{}}',
        b'{"keys":[]}',
        b'{"keys":[7]}',
        b"[" * 10_000,
        json.dumps({"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "k1", "alg": "HS256"}]}).encode(),
        json.dumps({"keys": [{"kty": "RSA", "n": "AQAB", "e": "AQAB", "kid": "k1"}]}).encode(),
        json.dumps({"keys": [{"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA", "kid": "k1"}]}).encode(),
        json.dumps({"keys": [{}] * 65}).encode(),
    ],
    ids=range(11),
)
def test_what_is_no_key_set_is_refused(document):
    with pytest.raises(MalformedError):
        parse_keys(document)


def test_keys_that_are_not_for_signing_are_left_out():
    issuer = Issuer()
    issuer.rotate("k2")
    issuer.published["k2"]["use"] = "enc"
    assert set(parse_keys(issuer.document())) == {"k1"}


@pytest.mark.parametrize(
    ("url", "trusted"),
    [
        ("https://a.test/x", True),
        ("http://127.0.0.1:8200/x", True),
        ("http://localhost/x", True),
        ("http://a.test/x", False),
        ("http://127.0.0.1.evil.test/", False),
        ("https://user:pw@a.test/", False),
        ("file:///etc/passwd", False),
        ("https://", False),
        ("http://[", False),
    ],
)
def test_keys_are_read_by_https_or_from_this_machine(url, trusted):
    assert is_trusted_url(url) is trusted


def test_an_issuer_is_a_value():
    assert isinstance(Issuer().settings(), TokenIssuer)


REASON = "the identity provider is down"


async def test_a_token_for_emergencies_shows_in_its_identity():
    async with Desk(max_break_glass_life=HOUR).reading() as desk:
        principal = await desk.verifier.verify(desk.issuer.token(af_break_glass=REASON))
    assert principal.break_glass == REASON
    assert principal.identity == f"oidc:{NAME}/break-glass/alice"


async def test_an_issuer_that_may_not_break_glass_cannot(desk):
    await desk.refused(desk.issuer.token(af_break_glass=REASON), 10)


@pytest.mark.parametrize(
    "claims",
    [
        {"af_break_glass": ""},
        {"af_break_glass": "short"},
        {"af_break_glass": "x" * 257},
        {"af_break_glass": True},
        {"af_break_glass": REASON, "exp": START.timestamp() + 3601},
    ],
    ids=range(5),
)
async def test_a_token_for_emergencies_has_a_reason_and_a_short_life(claims):
    async with Desk(max_break_glass_life=HOUR).reading() as desk:
        await desk.refused(desk.issuer.token(**claims), 10)
