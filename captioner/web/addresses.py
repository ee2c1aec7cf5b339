"""Addresses that a stranger names: only public ones are connected to, each at the very address that was checked.

A name is resolved once a connection, redirects included; if any of its addresses is private, loopback, link-local or
reserved the connection is refused. No proxy is used: it would resolve the name anew.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import urllib.request
from typing import Any

NAT64 = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))
"""Behind these prefixes any IPv4 address may stand, private ones too."""


def is_public(address: str) -> bool:
    """Whether this IP address is one of the public internet."""
    try:
        ip = ipaddress.ip_address(address.split("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if ip.sixtofour is not None or ip.teredo is not None or any(ip in network for network in NAT64):
            return False
        if int(ip) >> 32 == 0:  # ::a.b.c.d
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_link_local or ip.is_loopback)


def connect(address: tuple[str, int], timeout: float | None = None, source: Any = None) -> socket.socket:
    """As `socket.create_connection`, to public addresses alone."""
    host, port = address
    resolved = [info[4][0] for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if not resolved or not all(is_public(str(ip)) for ip in resolved):
        raise OSError(None, "it is not a public address")
    problem: OSError | None = None
    for ip in resolved[:4]:
        try:
            return socket.create_connection((str(ip), port), timeout, source)
        except OSError as error:
            problem = error
    raise problem or OSError(None, "it has no address")


class _Http(http.client.HTTPConnection):
    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.__dict__["_create_connection"] = connect


class _Https(_Http, http.client.HTTPSConnection):
    """The same, encrypted."""


class PublicHttp(urllib.request.HTTPHandler):
    """http:// to public addresses."""

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Http, req)


class PublicHttps(urllib.request.HTTPSHandler):
    """https:// to public addresses."""

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Https, req)


class NoProxy(urllib.request.ProxyHandler):
    """Whatever the environment says."""

    def __init__(self) -> None:
        super().__init__({})


PUBLIC_ONLY = (PublicHttp, PublicHttps, NoProxy)
"""For `fetch_image`."""
