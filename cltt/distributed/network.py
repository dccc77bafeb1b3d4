"""Which network interface leads to the other nodes."""

from __future__ import annotations

import contextlib
import socket

_SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface
_ELSEWHERE = "192.0.2.1"  # an address of no one (RFC 5737)


def route_interface(address: str, *, beyond: bool) -> str | None:
    """The network interface through which this node reaches ``address``, or that holds it; None if it cannot be told.

    Gloo would bind to what the host's own name resolves to, which on many nodes is 127.0.1.1. ``beyond``: there are
    other nodes, so if ``address`` leads to this node alone, the interface of the default route. Linux and IPv4 only.
    """
    source = _source_address(address)
    if beyond and source is not None and source.startswith("127."):
        source = _source_address(_ELSEWHERE)
    for _, name in socket.if_nameindex():
        if source is not None and _address_of(name) == source:
            return name
    return None


def _source_address(destination: str) -> str | None:
    """This node's own address on the way to ``destination``."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((destination, 9))  # sends nothing: the kernel looks up the route
        return str(probe.getsockname()[0])
    return None


def _address_of(interface: str) -> str | None:
    import fcntl

    request = interface.encode()[:15].ljust(256, b"\0")
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        return socket.inet_ntoa(fcntl.ioctl(any_socket.fileno(), _SIOCGIFADDR, request)[20:24])
    return None  # it has none, or this is not Linux
