"""Which addresses a host call may connect to. No I/O.

What is not known to be public is refused: of IPv6 only global unicast, without its tunnels and examples.
Source: the IANA special-purpose registries for IPv4 and IPv6, and what clouds use for metadata.
"""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_network
from typing import Final

from shared.urls import IpAddress

IpNetwork = IPv4Network | IPv6Network

_FORBIDDEN_4: Final = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",  # this network; unspecified
            "10.0.0.0/8",
            "100.64.0.0/10",  # carrier-grade NAT; metadata of some clouds
            "127.0.0.0/8",
            "168.63.129.16/32",  # the platform of one cloud, on a public number
            "169.254.0.0/16",  # link-local; metadata of most clouds
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.88.99.0/24",  # 6to4 relays
            "192.168.0.0/16",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved; broadcast
        ),
    )
)
_GLOBAL_UNICAST_6: Final = IPv6Network("2000::/3")
"""Outside are loopback, unique local (fd00:ec2::254 too), link-local, multicast, IPv4-mapped and NAT64."""
_FORBIDDEN_6: Final = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # protocols, Teredo among them
            "2001:db8::/32",
            "2002::/16",  # 6to4: an IPv4 address in disguise
            "3fff::/20",
        ),
    )
)


def parse_networks(texts: Iterable[str]) -> tuple[IpNetwork, ...]:
    """Return networks in CIDR notation.

    Raises:
        ValueError: One is none.
    """
    return tuple(ip_network(text) for text in texts)


def is_allowed(address: IpAddress, named: Iterable[IpNetwork] = ()) -> bool:
    """Whether a call may connect there: a public address, or one of the networks named for it."""
    if any(address in network for network in named):
        return True
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _FORBIDDEN_4)
    return address in _GLOBAL_UNICAST_6 and not any(address in network for network in _FORBIDDEN_6)


def is_part_of(network: IpNetwork, whole: IpNetwork) -> bool:
    """Whether all addresses of `network` are in `whole`."""
    if isinstance(network, IPv4Network):
        return isinstance(whole, IPv4Network) and network.subnet_of(whole)
    return isinstance(whole, IPv6Network) and network.subnet_of(whole)
