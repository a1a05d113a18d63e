"""Which addresses may be asked for a picture: URLs by one strict grammar, hosts by all of their addresses.

A table of a training set may have been written by anybody. The URL is taken apart once, here, and the request is made
from these parts alone: no second parser can read another host into it. What is looked up and connected to is decided
by the numbers of the addresses, never by how they are written.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from urllib.parse import quote, urlsplit

from audit.errors import InputError

Address = IPv4Address | IPv6Address
Allowed = frozenset[tuple[Address, int]]
"""Addresses and ports that are asked although they are not public."""

DEFAULT_PORTS = {"http": 80, "https": 443}
PORTS = (80, 443, 8080, 8443)
"""Ports of web servers; at any other one something else may listen that takes a request for a command."""
MAX_URL = 4096
PRIVATE_NAMES = ("localhost", "local", "internal", "home.arpa", "onion")
"""Endings that never lead to a public host (RFC 6761, 6762, 7686, 8375; ICANN's reserved ``internal``)."""
NOT_PUBLIC_IPV4 = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",  # this network
            "10.0.0.0/8",  # private
            "100.64.0.0/10",  # carrier-grade NAT
            "127.0.0.0/8",  # loopback
            "168.63.129.16/32",  # Azure's host, in the middle of public space
            "169.254.0.0/16",  # link-local, and the metadata services of clouds
            "172.16.0.0/12",  # private
            "192.0.0.0/24",  # protocol assignments
            "192.0.2.0/24",  # documentation
            "192.88.99.0/24",  # 6to4 relays
            "192.168.0.0/16",  # private
            "198.18.0.0/15",  # measurements
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, broadcast
        ),
    )
)
"""IANA's registry of IPv4 addresses for special purposes (RFC 6890), without those that are globally reachable."""
PUBLIC_IPV6 = IPv6Network("2000::/3")
"""Outside of it lie ``::``, ``::1``, mapped IPv4, link-local, unique local, site-local and multicast addresses."""
NOT_PUBLIC_IPV6 = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # protocol assignments, Teredo among them
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4
            "3fff::/20",  # documentation
        ),
    )
)
NAT64 = IPv6Network("64:ff9b::/96")
"""How a network that has IPv6 only reaches IPv4: the last 32 bits are the address (RFC 6052)."""

NETLOC = re.compile(
    r"(?:\[(?P<ipv6>[0-9a-f:.]+)\]|(?P<name>[^\[\]:]+))(?::(?P<port>[1-9][0-9]{0,4}))?",
    re.ASCII | re.IGNORECASE,
)
LABEL = re.compile(r"[a-z0-9_-]{1,63}", re.ASCII)
NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)


class Blocked(ValueError):
    """Why an address is not asked, in one sentence without any part of it."""


@dataclass(frozen=True)
class Target:
    """Whom to ask for what: the parts of a URL that may be looked up."""

    scheme: str
    """``http`` or ``https``."""
    host: str
    """Name in lower-case ASCII, or an address in its shortest form (IPv6 without brackets)."""
    port: int
    path: str
    """Path and query, percent-encoded ASCII; begins with a slash."""
    address: Address | None = None
    """The host, where the URL names it by its address."""


def target(url: str, allowed: Allowed = frozenset()) -> Target:
    """Take a URL apart; nothing is looked up.

    Raises
    ------
    Blocked
        If its scheme is neither http nor https, its port none of `PORTS` (nor of `allowed`), its host an address that
        is not public or a name that cannot be, or if it is written so that two readers could see different hosts.
    """
    if len(url) > MAX_URL:
        raise Blocked(f"The address is longer than {MAX_URL:,} characters.")
    if "\\" in url or any(unicodedata.category(character)[0] in "CZ" for character in url):
        raise Blocked("The address holds a space, a backslash or an invisible character.")
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise Blocked("The address is not well-formed.") from error
    if parts.scheme not in DEFAULT_PORTS:
        raise Blocked("Only http and https addresses are fetched.")
    if "@" in parts.netloc:
        raise Blocked("The address holds a user name or a password.")
    found = NETLOC.fullmatch(parts.netloc)
    if found is None:
        raise Blocked("The address names no host, or not in a well-formed way.")
    port = int(found["port"] or DEFAULT_PORTS[parts.scheme])
    if port not in PORTS and port not in {port for _, port in allowed}:
        raise Blocked(f"The address has another port than {', '.join(map(str, PORTS))}.")
    address = _ipv6(found["ipv6"]) if found["ipv6"] else None
    host = str(address) if address else _name(found["name"])
    if address is None and NUMBER.fullmatch(host.rpartition(".")[2]):
        address = _ipv4(host)
    if address is not None:
        check([address], port, allowed)
    query = f"?{parts.query}" if parts.query else ""
    return Target(parts.scheme, host, port, quote((parts.path or "/") + query, string.punctuation), address)


def check(addresses: Iterable[Address], port: int, allowed: Allowed = frozenset()) -> None:
    """Raise Blocked unless every one of a host's addresses is public at a port of `PORTS`, or `allowed`."""
    for address in addresses:
        if (address, port) not in allowed and not (port in PORTS and is_public(address)):
            raise Blocked("The host lies in a private, loopback or otherwise reserved network.")


def is_public(address: Address) -> bool:
    """Whether an address belongs to some host of the internet, and to no network that only we can reach."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in NOT_PUBLIC_IPV4)
    if address.scope_id:
        return False
    if address in NAT64:
        return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
    return address in PUBLIC_IPV6 and not any(address in network for network in NOT_PUBLIC_IPV6)


def allow_list(entries: Iterable[str]) -> Allowed:
    """Entries such as ``127.0.0.1:8000`` or ``[::1]:8000`` as addresses with ports."""
    allowed = set()
    for entry in entries:
        host, _, port = entry.rpartition(":")
        try:
            allowed.add((ip_address(host.removeprefix("[").removesuffix("]")), int(port)))
        except ValueError as error:
            raise InputError(
                f"{entry!r} is no address with a port; write it as 127.0.0.1:8000 or [::1]:8000."
            ) from error
    return frozenset(allowed)


def _ipv6(text: str) -> IPv6Address:
    try:
        return IPv6Address(text)
    except ValueError as error:
        raise Blocked("The address names its host by a malformed IPv6 address.") from error


def _ipv4(text: str) -> IPv4Address:
    """Four decimal numbers; the shorter, octal and hexadecimal forms mean different hosts to different readers."""
    try:
        return IPv4Address(text)
    except ValueError as error:
        raise Blocked("The address writes its host as a number that is no plain IPv4 address.") from error


def _name(text: str) -> str:
    name = text.lower() if text.isascii() else _idna(text.lower())
    labels = name.split(".")
    if len(name) > 253 or not all(map(LABEL.fullmatch, labels)):
        raise Blocked("The address names its host in a way that is not well-formed.")
    if not NUMBER.fullmatch(labels[-1]) and (
        len(labels) == 1 or any(f".{name}".endswith(f".{ending}") for ending in PRIVATE_NAMES)
    ):
        raise Blocked("The address names a host that only a private network can know.")
    return name


def _idna(name: str) -> str:
    """An international name in ASCII; one that this would change is refused, full-width digits and dots among them."""
    try:
        encoded = name.encode("idna") if len(name) <= 253 else b""
        if encoded.decode("idna") == name:
            return encoded.decode("ascii")
    except UnicodeError:
        pass
    raise Blocked("The address names its host with characters that can be taken for others.")
