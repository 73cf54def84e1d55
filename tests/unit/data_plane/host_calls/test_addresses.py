"""What is not certainly public is refused."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_plane.host_calls.addresses import is_allowed, parse_networks

FORBIDDEN = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.255",
    "168.63.129.16", "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1", "192.88.99.1",
    "192.168.0.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1",
    "255.255.255.255", "::", "::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "64:ff9b::7f00:1",
    "64:ff9b:1::1", "100::1", "2001::1", "2001:db8::1", "2002:7f00:1::", "2002:a9fe:a9fe::1", "3fff::1",
    "fc00::1", "fd00:ec2::254", "fe80::1", "fec0::1", "ff02::1", "5f00::1",
]  # fmt: skip


@pytest.mark.parametrize("address", FORBIDDEN)
def test_forbidden(address):
    assert not is_allowed(ip_address(address))


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00::1"]
)
def test_public(address):
    assert is_allowed(ip_address(address))


def test_named_networks_are_allowed_and_nothing_beside_them():
    named = parse_networks(["10.1.0.0/16", "fd00:1::/32"])
    assert is_allowed(ip_address("10.1.2.3"), named)
    assert is_allowed(ip_address("fd00:1::2"), named)
    assert not is_allowed(ip_address("10.2.0.1"), named)
    assert not is_allowed(ip_address("::ffff:10.1.2.3"), named)


@given(st.ip_addresses())
def test_nothing_that_the_standard_library_calls_special_is_public(address):
    if is_allowed(address):
        assert address.is_global
        special = (address.is_multicast, address.is_reserved, address.is_loopback, address.is_link_local)
        assert not any(special)
