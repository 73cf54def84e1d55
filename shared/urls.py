"""The one reading of URLs: what is compared with a grant is exactly what is sent. No I/O.

Strict where parsers differ (RFC 3986, and not what browsers make of it): a URL that any server could read in
two ways is refused, not repaired.
"""

import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Final

from shared.errors import HostCallRefusedError

URL_INVALID: Final = "URL_INVALID"
"""What a guest reads whose URL has no reading, or several."""
MAX_URL_CHARS: Final = 8192
IpAddress = IPv4Address | IPv6Address

_PORTS: Final = {"http": 80, "https": 443}
_PCHAR: Final = r"A-Za-z0-9\-._~!$&'()*+,;=:@%"
_URL = re.compile(
    r"(?P<scheme>https?)://"
    r"(?:\[(?P<ip6>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._-]+))"
    r"(?::(?P<port>[1-9][0-9]{0,4}))?"
    rf"(?P<path>/[{_PCHAR}/]*)?"
    rf"(?:\?(?P<query>[{_PCHAR}/?]*))?",
    re.ASCII,
)
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)", re.ASCII)
_NUMERIC = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)
_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_DOTS: Final = frozenset({".", ".."})
_MAX_PORT: Final = 65535
_MAX_HOST_CHARS: Final = 253


@dataclass(frozen=True, slots=True, kw_only=True)
class Url:
    """A URL in its one normal form: made by `parse_url` only."""

    scheme: str
    host: str
    """A lower-case name, or an address in its canonical form, without brackets."""
    port: int
    path: str
    """Absolute, without dot segments; only what must be percent-encoded is, in upper case."""
    query: str | None = None

    @property
    def address(self) -> IpAddress | None:
        """The address that the host is, if it is one."""
        return _address_of(self.host)

    @property
    def origin(self) -> tuple[str, str, int]:
        return self.scheme, self.host, self.port

    @property
    def authority(self) -> str:
        """As in the Host header: the port only when it is not the scheme's."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def target(self) -> str:
        """What stands in the request line."""
        return self.path if self.query is None else f"{self.path}?{self.query}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.target}"

    def is_within(self, prefix: "Url") -> bool:
        """Whether it is at or below `prefix`: same origin, and the path goes on at the end of a segment."""
        if self.origin != prefix.origin or prefix.query is not None:
            return False
        folder = prefix.path if prefix.path.endswith("/") else prefix.path + "/"
        return self.path == prefix.path or self.path.startswith(folder)


def parse_url(text: str) -> Url:
    """Return the URL in its normal form.

    Raises:
        HostCallRefusedError: Not http(s), or with user info, fragment, backslash, control or non-ASCII
            character; a host that is no name and no canonical address (numbers in decimal, hexadecimal or
            octal included); an encoded slash, backslash, control character or percent sign in the path, or a
            segment that some servers take for a dot segment.
    """
    if len(text) > MAX_URL_CHARS:
        raise HostCallRefusedError(f"URL has more than {MAX_URL_CHARS} characters", refusal=URL_INVALID)
    match = _URL.fullmatch(text)
    if match is None:
        raise _invalid(text, "is not http(s)://host[:port]/path[?query] in its plain form")
    scheme = match["scheme"]
    port = int(match["port"] or _PORTS[scheme])
    if port > _MAX_PORT:
        raise _invalid(text, "has a port above 65535")
    query = match["query"]
    if query is not None and _BROKEN_ESCAPE.search(query):
        raise _invalid(text, "has a percent sign without two hexadecimal digits")
    return Url(
        scheme=scheme,
        host=_ip6(text, match["ip6"]) if match["ip6"] else _host(text, match["name"]),
        port=port,
        path=_path(text, match["path"] or "/"),
        query=query,
    )


def redirected(base: Url, location: str) -> Url:
    """Return where a Location leads from `base`; a fragment, which is the reader's own business, is left out.

    Raises:
        HostCallRefusedError: As `parse_url`.
    """
    location, _, _ = location.strip(" \t").partition("#")
    if location.startswith(("http://", "https://")):
        return parse_url(location)
    if location.startswith("//"):
        return parse_url(f"{base.scheme}:{location}")
    origin = f"{base.scheme}://{base.authority}"
    if location.startswith("/"):
        return parse_url(origin + location)
    if location.startswith("?"):
        return parse_url(origin + base.path + location)
    if ":" in location.partition("/")[0]:
        raise _invalid(location, "redirects to another scheme")
    folder = base.path.rpartition("/")[0]
    return parse_url(f"{origin}{folder}/{location}")


def _ip6(text: str, literal: str) -> str:
    try:
        return str(IPv6Address(literal))
    except AddressValueError as error:
        raise _invalid(text, "has no IPv6 address between the brackets") from error


def _host(text: str, name: str) -> str:
    host = name.lower()
    labels = host.split(".")
    if len(host) > _MAX_HOST_CHARS or not all(_LABEL.fullmatch(label) for label in labels):
        raise _invalid(text, "has a host that is no name")
    if not _NUMERIC.fullmatch(labels[-1]):
        return host
    # Some readers take 0x7f.1, 2130706433 or 0177.0.0.1 for addresses: only the dotted form is one.
    try:
        return str(IPv4Address(host))
    except AddressValueError as error:
        raise _invalid(text, "has a number for a host that is no dotted IPv4 address") from error


def _address_of(host: str) -> IpAddress | None:
    if ":" in host:
        return IPv6Address(host)
    try:
        return IPv4Address(host)
    except AddressValueError:
        return None


def _path(text: str, path: str) -> str:
    if _BROKEN_ESCAPE.search(path):
        raise _invalid(text, "has a percent sign without two hexadecimal digits")

    def decoded(match: re.Match[str]) -> str:
        char = chr(int(match[1], 16))
        if char in _UNRESERVED:
            return char
        if char in "/\\%" or char < " " or char == "\x7f":
            raise _invalid(text, f"has an encoded {char!r} in its path, which servers read differently")
        return match[0].upper()

    kept: list[str] = []
    segments = _ESCAPE.sub(decoded, path).split("/")[1:]
    for segment in segments:
        plain = re.split(r";|%3B", segment)[0]
        if segment not in _DOTS and plain in _DOTS:
            raise _invalid(text, "has a dot segment with parameters, which servers read differently")
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in _DOTS:
        kept.append("")
    return "/" + "/".join(kept)


def _invalid(text: str, problem: str) -> Exception:
    return HostCallRefusedError(f"{text[:200]!r} {problem}", refusal=URL_INVALID)
