"""The address check on its own, against IANA's registries and every way to write one address inside another."""

import ipaddress
import socket

import pytest

from imagegen.inputs import addresses

#: IANA's IPv4 special-purpose address registry, whole, and multicast.
IPV4 = [
    "0.0.0.0/8", "0.0.0.0/32", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
    "192.0.0.0/24", "192.0.0.0/29", "192.0.0.8/32", "192.0.0.9/32", "192.0.0.10/32", "192.0.0.170/32",
    "192.0.0.171/32", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.88.99.2/32",
    "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4",
    "255.255.255.255/32", "224.0.0.0/4",
]  # fmt: skip
#: Its IPv6 registry, whole, and what is not global unicast.
IPV6 = [
    "::1/128", "::/128", "::ffff:0:0/112", "64:ff9b:1::/48", "100::/64", "100:0:0:1::/64", "2001::/23", "2001::/32",
    "2001:1::1/128", "2001:1::2/128", "2001:1::3/128", "2001:2::/48", "2001:3::/32", "2001:4:112::/48",
    "2001:10::/28", "2001:20::/28", "2001:30::/28", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20",
    "5f00::/16", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8", "::/96", "4000::/3", "6000::/3", "8000::/3",
    "a000::/3", "c000::/3", "e000::/4",
]  # fmt: skip
#: Where clouds keep a machine's secrets: AWS, Google, Azure, Oracle; AWS over IPv6; Alibaba; Azure's own server.
METADATA = ["169.254.169.254", "169.254.170.2", "192.0.0.192", "fd00:ec2::254", "100.100.100.200", "168.63.129.16"]
PUBLIC = [
    "1.1.1.1", "8.8.8.8", "9.9.9.9", "11.0.0.1", "100.63.255.255", "100.128.0.1", "126.255.255.255", "128.0.0.1",
    "151.101.1.69", "168.63.129.15", "169.253.255.255", "172.15.255.255", "172.32.0.1", "185.199.108.133",
    "192.0.1.1", "192.167.255.255", "192.169.0.1", "198.17.255.255", "198.20.0.1", "203.0.112.255", "223.255.255.255",
    "2001:200::1", "2001:4860:4860::8888", "2003::1", "2400:cb00::1", "2606:4700::6810:84e5",
    "2a00:1450:4001:830::200e", "2a04:4e42::645", "2c0f:fb50::1", "3ffe:ffff::1", "64:ff9b::8.8.8.8",
    "::ffff:8.8.8.8",
]  # fmt: skip
PRIVATE_4 = ["10.0.0.1", "127.0.0.1", "169.254.169.254", "192.168.1.1", "168.63.129.16"]


def edges(network):
    """First, last and middle address of a network."""
    network = ipaddress.ip_network(network)
    return {str(network[0]), str(network[-1]), str(network[network.num_addresses // 2])}


def embedded(address):
    """The ways to write an IPv4 address inside an IPv6 one that leads to it."""
    value = int(ipaddress.IPv4Address(address))
    teredo = (0x2001 << 112) | (0x01020304 << 64) | (value ^ 0xFFFFFFFF)
    for number in (
        value,  # compatible
        0xFFFF << 32 | value,  # mapped
        0xFFFF << 48 | value,  # translated (SIIT)
        (0x64FF9B << 96) | value,  # NAT64
        (0x64FF9B0001 << 80) | value,  # NAT64 of a network's own
        (0x2002 << 112) | (value << 80) | 1,  # 6to4
        teredo,
        (0x2001 << 112) | (value << 64),  # Teredo's server
        (0x26064700 << 96) | 0x00005EFE << 32 | value,  # ISATAP in a public network
        (0x26064700 << 96) | 0x02005EFE << 32 | value,
        (0xFE80 << 112) | 0x00005EFE << 32 | value,
    ):
        yield str(ipaddress.IPv6Address(number))


@pytest.mark.parametrize("network", [*IPV4, *IPV6])
def test_no_reserved_address_is_public(network):
    for address in edges(network):
        assert not addresses.is_public(address), address


@pytest.mark.parametrize("address", [*METADATA, *PRIVATE_4])
def test_no_embedding_leads_inside(address):
    written = [address] if ":" in address else [address, *embedded(address)]
    assert [one for one in written if addresses.is_public(one)] == []


@pytest.mark.parametrize(
    "text", ["", "localhost", "127.1", "0x7f.1", "010.0.0.1", "1.1.1.1/32", "fe80::1%lo", "8.8.8.8 "]
)
def test_what_is_no_plain_address_is_not_public(text):
    assert not addresses.is_public(text)


def test_a_zone_makes_a_public_address_none():
    assert addresses.is_public("2606:4700::1") and not addresses.is_public("2606:4700::1%eth0")


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are(address):
    assert addresses.is_public(address)
    addresses.check(address)


def test_a_refused_address_is_a_name_that_leads_nowhere():
    with pytest.raises(socket.gaierror):
        addresses.check("127.0.0.1")
    addresses.check("127.0.0.1", trusted=True)


@pytest.mark.parametrize(
    ("host", "port", "names", "found"),
    [
        ("example.com", 443, "example.com", True),
        ("EXAMPLE.com.", 443, " other.org, Example.COM", True),
        ("a.example.com", 443, "example.com", False),
        ("a.example.com", 443, "*.example.com", True),
        ("example.com", 443, "*.example.com", False),
        ("badexample.com", 443, "*.example.com, example.com", False),
        ("example.com.evil.org", 443, "example.com, *.example.com", False),
        ("minio.internal", 9000, "minio.internal:9000", True),
        ("minio.internal", 9001, "minio.internal:9000", False),
        ("fd00::1", 80, "[fd00::1]:80", True),
        ("fd00::1", 80, "[fd00::1]", True),
        ("fd00::1", 80, "[fd00::2]", False),
        ("example.com", 443, "", False),
        ("", 443, ",,", False),
    ],
)
def test_an_operators_list(host, port, names, found):
    assert addresses.named(host, port, names) == found
