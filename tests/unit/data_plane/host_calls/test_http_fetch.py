"""Every check of `http.fetch`, hop by hop; for what is forbidden no connection is tried."""

import asyncio
import base64
import hashlib

import pytest

from data_plane.host_calls.addresses import parse_networks
from data_plane.host_calls.http_fetch import AllowedHttp, HttpPolicy
from data_plane.host_calls.ports import HttpResponse
from data_plane.host_calls.secrets import Scrubber, Secret
from shared.errors import HostCallRefusedError, UnavailableError
from shared.manifest import Capabilities
from shared.urls import parse_url
from tests.fakes.host_calls import FakeResolver
from tests.unit.data_plane.host_calls.builders import API, ATTEMPT, TENANT, World, get

PUBLIC = "93.184.216.34"
ANY = HttpPolicy(allowed=tuple(AllowedHttp.parse(f"* {scheme}://{host}/") for scheme in ("http", "https") for host in ("api.test", "other.test", "127.0.0.1", "[::1]")))  # fmt: skip
TOKEN = "s3cr3t/t0ken+value="
API_SECRET = Capabilities(http=(get(), get("https://other.test/")), secrets=("api",))


def granted(*capabilities, **changes) -> World:
    return World(capabilities=Capabilities(http=capabilities or (get(),)), **{"policy": ANY} | changes)


def redirect(location: str, status: int = 302) -> HttpResponse:
    return HttpResponse(status=status, headers=(("Location", location),), body=b"")


def script(world: World, *responses: HttpResponse) -> None:
    rest = list(responses)
    world.transport.answer = lambda _: rest.pop(0)


def body_of(answer: dict) -> bytes:
    return base64.b64decode(answer["body_base64"])


async def test_response_is_shown_by_allow_list():
    world = granted()
    script(
        world,
        HttpResponse(
            status=404,
            headers=(
                ("Content-Type", "text/plain"),
                ("Set-Cookie", "a=b"),
                ("X-Internal", "1"),
                ("ETag", "x"),
            ),
            body=b"none",
        ),
    )
    answer = await world.fetch()
    assert (answer["status"], body_of(answer), answer["url"]) == (404, b"none", API)
    assert answer["headers"] == {"content-type": "text/plain", "etag": "x"}


@pytest.mark.parametrize(
    "url",
    [
        "https://api.test/v2/",
        "https://api.test/v1/../v2",
        "https://api.test/v1/%2e%2e/v2",
        "http://api.test/v1/",
        "https://api.test:8443/v1/",
        "https://other.test/v1/",
    ],
)
async def test_url_that_no_capability_holds(url):
    world = granted()
    assert await world.fetch_refused(url) == "NOT_GRANTED"
    assert (world.transport.tried, world.resolver.asked) == ([], {})
    assert world.denials == {("http.fetch", "not_granted"): 1}


async def test_method_that_no_capability_names():
    world = granted()
    assert await world.fetch_refused(method="POST") == "NOT_GRANTED"
    assert await world.fetch_refused(method="HEAD") == "NOT_GRANTED"
    assert await world.fetch_refused(method="TRACE") == "INVALID_REQUEST"
    assert world.transport.tried == []


async def test_operator_allows_nothing_by_default():
    world = granted(policy=HttpPolicy())
    assert await world.fetch_refused() == "NOT_ALLOWED_HERE"
    assert (world.transport.tried, world.resolver.asked) == ([], {})


@pytest.mark.parametrize(
    "entry", ["GET", "GET  https://a.test/", "get https://a.test/", "GET a.test", "GET https://a.test/x/%2f"]
)
def test_entry_of_the_operator_that_is_none(entry):
    with pytest.raises((ValueError, HostCallRefusedError)):
        AllowedHttp.parse(entry)


async def test_operator_allows_by_method_and_prefix():
    world = granted(policy=HttpPolicy(allowed=(AllowedHttp.parse("GET https://api.test/v1/open"),)))
    assert await world.fetch_refused() == "NOT_ALLOWED_HERE"
    await world.fetch(API + "open/x")


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "::ffff:93.184.216.34", "fd00:ec2::254"]
)
async def test_name_of_a_forbidden_address(address):
    world = granted(resolver=FakeResolver(api_test=address))
    assert await world.fetch_refused() == "ADDRESS_FORBIDDEN"
    assert world.transport.tried == []
    assert world.denials == {("http.fetch", "address_forbidden"): 1}


async def test_one_forbidden_address_among_public_ones_refuses_all():
    world = granted(resolver=FakeResolver(api_test=f"{PUBLIC} 127.0.0.1"))
    assert await world.fetch_refused() == "ADDRESS_FORBIDDEN"
    assert world.transport.tried == []


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
async def test_address_in_place_of_a_name(host):
    world = granted(get(f"http://{host}/"))
    assert await world.fetch_refused(f"http://{host}/") == "ADDRESS_FORBIDDEN"
    assert world.transport.tried == []


async def test_rebinding_the_connection_is_made_to_the_address_that_was_checked():
    world = granted()
    world.resolver.name("api.test", PUBLIC, "127.0.0.1")
    await world.fetch()
    assert list(map(str, world.transport.tried)) == [PUBLIC]
    assert world.resolver.asked["api.test"] == 1
    # The next call resolves anew, and is refused.
    assert await world.fetch_refused() == "ADDRESS_FORBIDDEN"
    assert len(world.transport.tried) == 1


async def test_private_network_needs_both_the_template_and_the_operator():
    names = FakeResolver(api_test="10.1.2.3")
    template, operator = get(addresses=("10.1.0.0/16",)), parse_networks(["10.0.0.0/8"])
    both = HttpPolicy(allowed=ANY.allowed, networks=operator)
    assert await granted(template, resolver=names).fetch_refused() == "ADDRESS_FORBIDDEN"
    assert await granted(get(), policy=both, resolver=names).fetch_refused() == "ADDRESS_FORBIDDEN"
    wide = get(addresses=("0.0.0.0/0",))
    assert await granted(wide, policy=both, resolver=names).fetch_refused() == "ADDRESS_FORBIDDEN"
    await granted(template, policy=both, resolver=names).fetch()


async def test_name_that_is_not_resolved_is_no_denial():
    world = granted(resolver=FakeResolver())
    assert await world.fetch_refused() == "NAME_NOT_RESOLVED"
    assert world.denials == {}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirect_is_followed_within_the_grants(status):
    world = granted()
    script(world, redirect("moved", status), HttpResponse(status=200, headers=(), body=b"there"))
    answer = await world.fetch()
    assert (answer["url"], body_of(answer)) == (API + "moved", b"there")


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("https://evil.test/", "NOT_GRANTED"),
        ("/v2/", "NOT_GRANTED"),
        ("../v2/", "NOT_GRANTED"),
        ("http://api.test/v1/", "NOT_GRANTED"),
        ("//api.test:444/v1/", "NOT_GRANTED"),
        ("http://169.254.169.254/latest/", "NOT_GRANTED"),
        ("https://user@api.test/v1/", "URL_INVALID"),
        ("https://api.test/v1/..%2f", "URL_INVALID"),
        ("file:///etc/passwd", "URL_INVALID"),
    ],
)
async def test_redirect_is_checked_anew(location, reason):
    world = granted()
    script(world, redirect(location))
    assert await world.fetch_refused() == reason
    assert len(world.transport.tried) == 1


async def test_redirect_to_a_granted_name_of_a_private_address():
    world = granted(get(), get("https://other.test/"))
    world.resolver.name("other.test", "192.168.0.1")
    script(world, redirect("https://other.test/"))
    assert await world.fetch_refused() == "ADDRESS_FORBIDDEN"
    assert list(map(str, world.transport.tried)) == [PUBLIC]


async def test_redirects_that_go_in_a_circle():
    world = granted()
    world.transport.answer = lambda _: redirect(API)
    assert await world.fetch_refused() == "TOO_MANY_REDIRECTS"
    assert len(world.transport.tried) == 4


async def test_two_locations_are_none():
    world = granted()
    script(world, HttpResponse(status=302, headers=(("location", API), ("Location", "/x")), body=b""))
    assert await world.fetch_refused() == "HTTP_INVALID"


@pytest.mark.parametrize(
    ("status", "method", "body"),
    [(303, "GET", b""), (302, "GET", b""), (307, "POST", b"x"), (308, "POST", b"x")],
)
async def test_method_and_body_of_a_redirected_post(status, method, body):
    world = granted(get(), get(method="POST"))
    script(world, redirect("next", status), HttpResponse(status=200, headers=(), body=b""))
    await world.fetch(method="POST", body="x", headers={"Content-Type": "text/plain"})
    last = world.transport.requests[-1]
    assert (last.method, last.body) == (method, body)
    assert (("content-type", "text/plain") in last.headers) is (method == "POST")


async def test_authorization_of_the_guest_does_not_go_to_another_origin():
    world = granted(get(), get("https://other.test/"))
    world.resolver.name("other.test", PUBLIC)
    script(
        world, redirect("x"), redirect("https://other.test/"), HttpResponse(status=200, headers=(), body=b"")
    )
    await world.fetch(headers={"Authorization": "Basic x", "Accept": "*/*"})
    sent = [dict(request.headers) for request in world.transport.requests]
    assert [("authorization" in headers, headers["accept"]) for headers in sent] == [(True, "*/*"), (True, "*/*"), (False, "*/*")]  # fmt: skip


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.test"},
        {"Connection": "keep-alive"},
        {"Transfer-Encoding": "chunked"},
        {"Content-Length": "3"},
        {"TE": "trailers"},
        {"Upgrade": "h2c"},
        {"Proxy-Authorization": "x"},
        {"Idempotency-Key": "mine"},
        {"Accept-Encoding": "gzip"},
        {"Expect": "100-continue"},
        {"Proxy": "http://evil.test/"},
        {"X-HTTP-Method-Override": "DELETE"},
        {"X-Original-URL": "/admin"},
        {"X_Rewrite_Url": "/admin"},
        {"idempotency_key": "mine"},
        {"X_Forwarded_For": "127.0.0.1"},
        {"X": "a\r\nhost: evil.test"},
        {"X": "a\nb"},
        {"X": "a\0"},
        {"X": "ü"},
        {"X": " a"},
        {"X": "x" * 8193},
        {"a b": "x"},
        {"a:": "x"},
        {"a\r\nb": "x"},
        {"": "x"},
        {"X": 1},
        {str(index): "x" * 8000 for index in range(5)},
        {"X": {"secret": "s", "prefix": "a\r\nb"}},
    ],
)
async def test_header_that_is_not_the_guests_to_set(headers):
    world = granted()
    assert await world.fetch_refused(headers=headers) == "HEADER_FORBIDDEN"
    assert world.transport.tried == []


@pytest.mark.parametrize(
    "params",
    [
        {"headers": []},
        {"headers": {"A": "x", "a": "y"}},
        {"headers": {str(index): "x" for index in range(65)}},
        {"headers": {"a": {"secret": 1}}},
        {"headers": {"a": {"secret": "x", "more": 1}}},
        {"body": "x", "body_base64": "eA=="},
        {"body_base64": "x"},
        {"body": 1},
        {"timeout_ms": 0},
        {"timeout_ms": 60_001},
        {"timeout_ms": True},
        {"follow": True},
    ],
)
async def test_request_that_is_none(params):
    assert await granted().fetch_refused(**params) == "INVALID_REQUEST"


async def test_capability_has_so_many_calls():
    world = granted(get(max_calls=2), get(API + "x/"))
    await world.fetch()
    await world.fetch()
    assert await world.fetch_refused() == "QUOTA_EXHAUSTED"
    await world.fetch(API + "x/")
    assert world.denials == {("http.fetch", "quota_exhausted"): 1}


async def test_redirects_count_as_calls():
    world = granted(get(max_calls=2))
    world.transport.answer = lambda _: redirect(API)
    assert await world.fetch_refused() == "QUOTA_EXHAUSTED"


async def test_capability_has_so_many_bytes_both_ways():
    world = granted(get(method="PUT", max_bytes=20))
    await world.fetch(method="PUT", body="x" * 5)  # and 5 come back
    assert await world.fetch_refused(method="PUT", body="x" * 10) == "QUOTA_EXHAUSTED"
    assert await world.fetch_refused(method="PUT", body="x" * 6) == "RESPONSE_TOO_LARGE"
    assert await world.fetch_refused(method="PUT") == "QUOTA_EXHAUSTED"


async def test_rule_6_unsafe_call_is_on_record_before_it_leaves_and_only_once():
    world = granted(get(), get(method="POST"))
    world.resolver.name("other.test", PUBLIC)
    await world.fetch()
    assert world.control_plane.declared == []
    world.control_plane.error = UnavailableError("away")
    assert await world.fetch_refused(method="POST") == "UNAVAILABLE"
    assert len(world.transport.tried) == 1
    world.control_plane.error = None
    for _ in range(3):
        await world.fetch(method="POST")
    assert world.control_plane.declared == [ATTEMPT]


async def test_rule_6_idempotency_key_is_that_of_execution_index_and_request():
    def key(world, number=-1):
        return dict(world.transport.requests[number].headers)["idempotency-key"]

    first, second, third = granted(get()), granted(get()), granted(get())
    await first.fetch()
    await second.fetch()
    await third.call("budget.left")
    await third.fetch()
    assert key(first) == key(second) != key(third)
    await first.fetch()
    assert key(first, 0) != key(first, 1)
    await second.fetch(API + "x")
    assert key(second) != key(first)
    assert len(key(first)) == len(hashlib.sha256().hexdigest())


async def test_rule_6_no_call_leaves_after_the_lease_has_run_out():
    world = granted()

    class Slow(FakeResolver):
        async def resolve(self, host):
            world.is_live = False
            return await super().resolve(host)

    slow = granted(resolver=Slow(api_test=PUBLIC))
    slow.calls._http._is_lease_live = lambda: world.is_live
    assert await slow.fetch_refused() == "LEASE_NOT_HELD"
    assert slow.transport.tried == []


async def test_call_has_a_deadline_for_all_of_it():
    world = granted()
    world.transport.gate.clear()
    async with asyncio.timeout(5):
        assert await world.fetch_refused(timeout_ms=20) == "TIMEOUT"


def with_secret(**changes) -> World:
    world = World(capabilities=API_SECRET, policy=ANY, **changes)
    world.secrets.secrets[TENANT, "api"] = Secret(value=TOKEN, urls=(parse_url(API),))
    world.resolver.name("other.test", PUBLIC)
    return world


async def use(world: World) -> dict:
    handle = (await world.ok("secret.ref", name="api"))["handle"]
    return {"authorization": {"secret": handle, "prefix": "Bearer "}}


async def test_rule_17_secret_goes_into_the_header_and_nowhere_else():
    world = with_secret()
    headers = await use(world)
    await world.fetch(headers=headers)
    (request,) = world.transport.requests
    assert dict(request.headers)["authorization"] == f"Bearer {TOKEN}"
    assert TOKEN not in repr(request)
    assert TOKEN not in repr(world.secrets.secrets)
    assert TOKEN.encode() not in world.calls.conclude().recording
    assert TOKEN not in str(headers)


async def test_handle_is_the_same_in_each_attempt():
    assert await use(with_secret()) == await use(with_secret())


async def test_secret_that_is_not_granted_not_there_or_not_referred_to():
    world = with_secret()
    assert await world.refusal("secret.ref", name="other") == "NOT_GRANTED"
    headers = await use(world)
    assert await with_secret().fetch_refused(headers=headers) == "SECRET_UNKNOWN"
    world.secrets.secrets.clear()
    assert await world.refusal("secret.ref", name="api") == "SECRET_UNKNOWN"


async def test_secret_goes_only_where_its_owner_says():
    world = with_secret()
    headers = await use(world)
    assert await world.fetch_refused("https://other.test/", headers=headers) == "SECRET_NOT_FOR_URL"
    assert world.transport.tried == []
    script(world, redirect("https://other.test/"), HttpResponse(status=200, headers=(), body=b""))
    await world.fetch(headers=headers)
    assert "authorization" not in dict(world.transport.requests[-1].headers)


@pytest.mark.parametrize(
    "echo",
    [
        TOKEN,
        f'{{"token": "{TOKEN}"}}',
        "s3cr3t%2Ft0ken%2Bvalue%3D",
        "s3cr3t%2ft0ken%2bvalue%3d",
        base64.b64encode(TOKEN.encode()).decode(),
        base64.b64encode(f"Bearer {TOKEN}".encode()).decode(),
        base64.b64encode(f"x{TOKEN}y".encode()).decode(),
        base64.urlsafe_b64encode(f"xx{TOKEN}y".encode()).decode(),
        TOKEN.encode().hex(),
        TOKEN.upper(),
    ],
)
async def test_rule_17_echo_of_a_secret_is_scrubbed_and_the_run_marked(echo):
    world = with_secret()
    headers = await use(world)
    script(world, HttpResponse(status=200, headers=(("etag", echo),), body=f"<{echo}>".encode()))
    answer = await world.fetch(headers=headers)
    shown = str(answer) + body_of(answer).decode()
    assert "[secret]" in shown
    assert echo not in shown
    assert world.recording[-1]["scrubbed"] is True
    assert "scrubbed" not in world.recording[0]


async def test_echo_in_a_redirect_that_is_refused_is_scrubbed():
    world = with_secret()
    script(world, redirect(f"https://evil.test/?{TOKEN}"))
    answer = await world.call("http.fetch", method="GET", url=API, headers=await use(world))
    assert TOKEN not in str(answer)


async def test_compressed_echo_cannot_be_scrubbed_and_is_not_given():
    world = with_secret()
    script(world, HttpResponse(status=200, headers=(("content-encoding", "gzip"),), body=b"x"))
    assert await world.fetch_refused(headers=await use(world)) == "HTTP_INVALID"


def test_scrubber_takes_the_longest_form_first():
    scrubber = Scrubber()
    scrubber.add("abcdefgh")
    scrubber.add("abcdefgh-and-more")
    assert scrubber.scrub(b"abcdefgh-and-more abcdefgh") == b"[secret] [secret]"
