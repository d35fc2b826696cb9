"""Where a caller's URL may lead: to addresses of the public internet and ports of web servers, or to the hosts that
the operator trusts.

The tables are IANA's special-purpose registries for IPv4 and IPv6 as of November 2026, written out, since those in
Python's `ipaddress` differ from version to version and let embedded addresses pass. Of IPv6 only what IANA gives out as
global unicast is public. An address is looked at when a socket is opened for it, so that what a name meant a moment
before does not matter.
"""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

#: RFC 6890 and its successors; the last is Azure's own server, which hands out a machine's secrets.
_RESERVED_4 = [
    IPv4Network(network)
    for network in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24",
        "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4", "168.63.129.16/32",
    )
]  # fmt: skip
_GLOBAL_6 = IPv6Network("2000::/3")
#: Inside of it: protocols (Teredo and ORCHID too), documentation, 6to4, AS112.
_RESERVED_6 = [
    IPv6Network(network)
    for network in ("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20")
]  # fmt: skip
#: Addresses that mean the IPv4 address in their last 32 bits: mapped ones, and NAT64's well-known prefix.
_EMBEDDING = [IPv6Network("::ffff:0:0/96"), IPv6Network("64:ff9b::/96")]
#: The bits before an IPv4 address in ISATAP's interface identifiers (RFC 5214), whatever the network.
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)

#: Below 1024, the ports of web servers; from there on, all but those of the Fetch standard's list of bad ports
#: (https://fetch.spec.whatwg.org/#port-blocking, November 2026): SIP, NFS, X11, IRC and their like.
_WEB_PORTS = frozenset({80, 443})
_BAD_PORTS = frozenset({
    1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060, 5061, 6000, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080
})  # fmt: skip


class NotPublic(socket.gaierror):
    """A host's address is none that a caller may reach. To callers it is a name that leads nowhere."""


def is_public(address: str) -> bool:
    """Whether an address belongs to the public internet. False for what is no address, or has a zone."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, IPv6Address):
        if parsed.scope_id is not None:
            return False
        if not any(parsed in network for network in _EMBEDDING):
            isatap = int(parsed) >> 32 & 0xFFFF_FFFF in _ISATAP
            return parsed in _GLOBAL_6 and not isatap and not any(parsed in network for network in _RESERVED_6)
        parsed = IPv4Address(int(parsed) & 0xFFFF_FFFF)
    return not any(parsed in network for network in _RESERVED_4)


def check(address: str, trusted: bool = False) -> None:
    """Refuses an address before a socket is opened for it.

    Args:
        trusted: the operator said that the host may be anywhere.

    Raises:
        NotPublic: it is not public.
    """
    if not trusted and not is_public(address):
        raise NotPublic(socket.EAI_NONAME, "no public address")


def is_web_port(port: int) -> bool:
    """Whether a caller's URL may name this port."""
    return port in _WEB_PORTS or (1024 <= port <= 65535 and port not in _BAD_PORTS)


def named(host: str, port: int | None, names: str) -> bool:
    """Whether a host is in an operator's list.

    Args:
        names: separated by commas: "example.com", "*.example.com" for what is under it; with ":PORT", for one port.
    """
    host = host.lower().rstrip(".")
    for entry in names.lower().replace(" ", "").split(","):
        name, colon, wanted = entry.rpartition(":") if entry.rpartition(":")[2].isdigit() else (entry, "", "")
        if colon and wanted != str(port):
            continue
        if name and (name.strip("[]") == host or (name.startswith("*.") and host.endswith(name[1:]))):
            return True
    return False
