"""The network interface that leads to the other nodes."""

from __future__ import annotations

import contextlib
import socket

_SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface
_ELSEWHERE = "192.0.2.1"  # an address that nobody has (RFC 5737)


def route_interface(address: str, *, beyond: bool) -> str | None:
    """The network interface that leads to ``address``, or that has it; None if it is not found. Linux and IPv4 only.

    Gloo itself binds to the address of the host's name, which on many nodes is 127.0.1.1. With ``beyond`` (there are
    other nodes), an ``address`` of this node alone gives the interface of the default route.
    """
    source = _source_address(address)
    if beyond and source is not None and source.startswith("127."):
        source = _source_address(_ELSEWHERE)
    for _, name in socket.if_nameindex():
        if source is not None and _address_of(name) == source:
            return name
    return None


def _source_address(destination: str) -> str | None:
    """The address of this node from which it reaches ``destination``."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((destination, 9))  # sends nothing: the kernel only looks up the route
        return str(probe.getsockname()[0])
    return None


def _address_of(interface: str) -> str | None:
    import fcntl

    request = interface.encode()[:15].ljust(256, b"\0")
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        return socket.inet_ntoa(fcntl.ioctl(any_socket.fileno(), _SIOCGIFADDR, request)[20:24])
    return None  # the interface has no IPv4 address, or this is not Linux
