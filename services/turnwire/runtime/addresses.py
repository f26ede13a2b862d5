"""Which network addresses belong to the public internet, judged by what packets to them would reach."""

from __future__ import annotations

import ipaddress
import re

# Written out, because what `ipaddress` calls global changes with the version of Python.
_NOT_PUBLIC_4 = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network; 0.0.0.0 reaches this machine
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # shared by customers of a carrier; some clouds keep their metadata there
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local; cloud metadata
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # relays of 6to4
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved; broadcast
    )
)
# All of IPv6 that is given out to anybody lies in here: loopback, private, link-local, multicast, the forms that hold
# an IPv4 address (mapped, compatible, NAT64) and what is unassigned do not.
_PUBLIC_6 = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC_6 = tuple(
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments; Teredo, which holds an IPv4 address
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, which holds an IPv4 address
        "3fff::/20",  # documentation
    )
)
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9a-fA-F]*")


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Returns True for an address of the public internet, which is no way into this machine or its network."""
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_4)
    return address in _PUBLIC_6 and not any(address in network for network in _NOT_PUBLIC_6)


def address_in(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Returns the address that a host of a URL is written as; None when it is a name.

    Raises:
        ValueError: it is an address in a form that programs read differently: `127.1`, `2130706433`, `0x7f000001`,
            `0177.0.0.1`, an IPv6 address with a zone.
    """
    if ":" in host:
        if "%" in host:
            raise ValueError("an address with a zone")
        return ipaddress.IPv6Address(host)
    last = host.removesuffix(".").rpartition(".")[2]
    if not _NUMBER.fullmatch(last):
        return None
    # No name ends in a number, so this is an address; only four plain decimal numbers are read alike by everybody.
    return ipaddress.IPv4Address(host)
