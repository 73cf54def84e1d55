"""One reading of every URL, or none."""

import posixpath
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import HostCallRefusedError
from shared.urls import parse_url, redirected

PREFIX = parse_url("https://api.example.test/v1/")


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("https://API.Example.test", "https://api.example.test/"),
        ("https://a.test:443/x", "https://a.test/x"),
        ("http://a.test:443/x", "http://a.test:443/x"),
        ("https://a.test/%7euser/%2A", "https://a.test/~user/%2A"),
        ("https://a.test/a/./b/../c", "https://a.test/a/c"),
        ("https://a.test/a/%2E%2e/c", "https://a.test/c"),
        ("https://a.test/a/..", "https://a.test/"),
        ("https://a.test/../../x", "https://a.test/x"),
        ("https://a.test/x?y=/../%2F", "https://a.test/x?y=/../%2F"),
        ("https://[2001:DB8:0::1]:8443/", "https://[2001:db8::1]:8443/"),
        ("https://192.0.2.1/", "https://192.0.2.1/"),
    ],
)
def test_normal_form(text, normal):
    assert str(parse_url(text)) == normal


@pytest.mark.parametrize(
    "text",
    [
        "ftp://a.test/",
        "HTTPS://a.test/",
        "https:/a.test/",
        "https:///x",
        "//a.test/",
        "https://user@a.test/",
        "https://a.test@evil.test/",
        "https://user:word@a.test/",
        "https://a.test\\@evil.test/",
        "https://a.test\\.evil.test/",
        "https://a.test/x#y",
        "https://a.test/\r\nhost: evil.test",
        "https://a.test/x y",
        "https://a.test/\tx",
        "https://a.test/\0",
        " https://a.test/",
        "https://a.test/ü",
        "https://ä.test/",
        "https://a.test./",
        "https://a..test/",
        "https://.a.test/",
        "https://-a.test/",
        "https://" + "a" * 64 + ".test/",
        "https://a.test:0/",
        "https://a.test:65536/",
        "https://a.test:080/",
        "https://a.test:/",
        "https://a.test:8e1/",
        # Numbers that some readers take for addresses.
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0x7f.1/",
        "http://127.1/",
        "http://0177.0.0.1/",
        "http://127.0.0.01/",
        "http://127.0.0.1.0x0/",
        "http://1.2.3.4.5/",
        "http://127.0.0.256/",
        "http://[::1%25eth0]/",
        "http://[::1%eth0]/",
        "http://[::1/",
        "http://::1/",
        "http://[127.0.0.1]/",
        "http://[::ffff:127.0.0.1.1]/",
        # Escapes and segments that servers read differently.
        "https://a.test/v1/..%2fadmin",
        "https://a.test/v1/%2e%2e%2fadmin",
        "https://a.test/v1/..%5cadmin",
        "https://a.test/v1/%252e%252e/admin",
        "https://a.test/v1/%00",
        "https://a.test/v1/%0d%0a",
        "https://a.test/v1/..;/admin",
        "https://a.test/v1/%2e%2e;x=y/admin",
        "https://a.test/v1/..%3b/admin",
        "https://a.test/v1/%2",
        "https://a.test/v1/%zz",
        "https://a.test/x?%2",
        "https://a.test/" + "x" * 8192,
    ],
)
def test_refused(text):
    with pytest.raises(HostCallRefusedError) as error:
        parse_url(text)
    assert error.value.refusal == "URL_INVALID"


@pytest.mark.parametrize(
    ("text", "within"),
    [
        ("https://api.example.test/v1/", True),
        ("https://api.example.test/v1/x?y", True),
        ("https://API.example.test:443/v1/x", True),
        ("https://api.example.test/v1", False),
        ("https://api.example.test/v10/", False),
        ("https://api.example.test/v1/../admin", False),
        ("https://api.example.test/v1/%2e%2e/admin", False),
        ("https://api.example.test/v1/%2E./v1/../admin", False),
        ("https://api.example.test//v1/", False),
        ("http://api.example.test/v1/", False),
        ("https://api.example.test:444/v1/", False),
        ("https://api.example.test.evil.test/v1/", False),
        ("https://example.test/v1/", False),
    ],
)
def test_within_a_prefix(text, within):
    assert parse_url(text).is_within(PREFIX) is within


def test_prefix_without_a_slash_ends_with_a_segment():
    prefix = parse_url("https://a.test/v1")
    assert parse_url("https://a.test/v1").is_within(prefix)
    assert parse_url("https://a.test/v1/x").is_within(prefix)
    assert not parse_url("https://a.test/v1x").is_within(prefix)


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("https://b.test/x", "https://b.test/x"),
        ("//b.test/x", "http://b.test/x"),
        ("/x#part", "http://a.test:81/x"),
        ("x", "http://a.test:81/folder/x"),
        ("../x", "http://a.test:81/x"),
        ("?q=1", "http://a.test:81/folder/file?q=1"),
    ],
)
def test_redirects(location, target):
    assert str(redirected(parse_url("http://a.test:81/folder/file?old"), location)) == target


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "gopher://a.test", "javascript:1", "///x", "\\\\b.test", "http:/b"]
)
def test_redirects_that_lead_nowhere(location):
    with pytest.raises(HostCallRefusedError):
        redirected(parse_url("http://a.test/folder/file"), location)


# Of pieces that parsers disagree about, so that nearly every example is a trap.
_PIECES = st.sampled_from(
    ["/", "//", ".", "..", "%2e", "%2E", "%2f", "%5c", "\\", ";", "%3b", ":", "@", "#", "?", "%", "%25", "v1", "admin", "x", "%00", "ü", " ", "\r\n"]
)  # fmt: skip
_PATHS = st.lists(_PIECES, max_size=12).map("".join)
_HOSTS = st.sampled_from(["api.example.test", "API.EXAMPLE.TEST", "api.example.test:443", "api.example.test:80", "evil.test", "x@api.example.test"])  # fmt: skip


@given(host=_HOSTS, path=_PATHS)
def test_whatever_is_within_the_prefix_stays_there_for_every_reader(host, path):
    try:
        url = parse_url(f"https://{host}/{path}")
    except HostCallRefusedError:
        return
    assert parse_url(str(url)) == url
    if not url.is_within(PREFIX):
        return
    # As another parser sees what is sent: decoded once more, and with dot segments removed.
    seen = urlsplit(str(url))
    assert (seen.scheme, seen.hostname, seen.port, seen.username) == ("https", "api.example.test", None, None)
    decoded = unquote(unquote(seen.path))
    assert posixpath.normpath(decoded.partition(";")[0]).startswith("/v1")
    assert ".." not in decoded.replace(";", "/").split("/")
    assert "\\" not in decoded
