"""Requests to URLs that clients name: https, public addresses only, limited in time and size.

The name is resolved once; the connection goes to that address, and TLS checks the certificate of the name.
Redirects and proxies are not used, because they could choose another address.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from clipsynth.schemas.prompts import MAX_URL

if TYPE_CHECKING:
    import httpx

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
# Own threads: a silent name server blocks one for half a minute, and a loop that ends waits for its own.
_RESOLVERS = ThreadPoolExecutor(16, thread_name_prefix="resolve")
# IANA's special-purpose registries; `is_global` of `ipaddress` differs between versions of Python.
# 2001::/23 has Teredo and 2002::/16 is 6to4: a gateway would connect to the IPv4 address in them.
_SPECIAL = tuple(
    map(
        ipaddress.ip_network,
        [
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",
            "127.0.0.0/8",
            "169.254.0.0/16",
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.88.99.0/24",
            "192.168.0.0/16",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/3",
            "2001::/23",
            "2001:db8::/32",
            "2002::/16",
            "3fff::/20",
        ],
    )
)
_UNICAST = ipaddress.IPv6Network("2000::/3")


class UrlRefused(ValueError):
    """The URL is not allowed; the message is for the client."""


class HostUnreachable(Exception):
    """The other host did not answer correctly; the message says why."""


@dataclass(frozen=True)
class HostAnswer:
    """Status and, if requested, body."""

    status: int
    body: bytes


def is_public(address: Address) -> bool:
    """Return whether an address belongs to the public internet, in any notation."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address not in _UNICAST:
            return False
    return not any(address in network for network in _SPECIAL)


def check_url(url: str, *, allow_loopback: bool = False) -> SplitResult:
    """Return the parts of an allowed URL; its name is not resolved yet.

    Args:
        allow_loopback: also allow http and this machine's own addresses, for development.

    Raises:
        UrlRefused: it is not allowed.
    """
    if len(url) > MAX_URL or not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise UrlRefused(f"not a plain URL of at most {MAX_URL} ASCII characters")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise UrlRefused("not a URL") from None
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise UrlRefused("not an https URL")
    if parts.username is not None or parts.password is not None or parts.fragment or port == 0:
        raise UrlRefused("a URL here has no user, password or fragment")
    literal = _literal(parts.hostname)
    if parts.scheme == "http" and not (
        allow_loopback and (parts.hostname == "localhost" or (literal is not None and literal.is_loopback))
    ):
        raise UrlRefused("not an https URL")
    if literal is not None:
        _check_address(literal, allow_loopback)
    return parts


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _check_address(address: Address, allow_loopback: bool) -> None:
    if not is_public(address) and not (allow_loopback and address.is_loopback):
        raise UrlRefused("the address is not of the public internet")


async def _resolve(host: str, port: int, allow_loopback: bool, plain: bool) -> Address:
    """Return the address to connect to; every address of the name must be allowed."""
    try:
        lookup = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(_RESOLVERS, lookup)
        addresses = [ipaddress.ip_address(info[4][0]) for info in found]
    except (OSError, ValueError, UnicodeError):
        raise HostUnreachable("the name does not resolve") from None
    for address in addresses:
        _check_address(address, allow_loopback)
        if plain and not address.is_loopback:
            raise UrlRefused("not an https URL")
    if not addresses:
        raise HostUnreachable("the name does not resolve")
    return addresses[0]


async def ask(
    method: str,
    url: str,
    *,
    headers: Mapping[str, str],
    content: bytes = b"",
    timeout_s: float,
    max_bytes: int = 0,
    allow_loopback: bool = False,
    tls: ssl.SSLContext | None = None,
) -> HostAnswer:
    """Send one request and return the answer, with the body if `max_bytes` is not 0.

    Args:
        timeout_s: for everything, with the resolution of the name.

    Raises:
        UrlRefused: the URL is not allowed.
        HostUnreachable: no answer in time, or one that is too large.
    """
    import httpx

    parts = check_url(url, allow_loopback=allow_loopback)
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        async with asyncio.timeout(timeout_s):
            address = await _resolve(host, port, allow_loopback, parts.scheme == "http")
            shown = f"[{address}]" if address.version == 6 else str(address)
            target = f"{parts.scheme}://{shown}:{port}{parts.path or '/'}" + (
                f"?{parts.query}" if parts.query else ""
            )
            async with (
                httpx.AsyncClient(
                    trust_env=False, follow_redirects=False, verify=tls or True, timeout=timeout_s
                ) as client,
                client.stream(
                    method,
                    target,
                    content=content,
                    headers={"Accept-Encoding": "identity", **headers, "Host": parts.netloc},
                    extensions={"sni_hostname": host},
                ) as response,
            ):
                return HostAnswer(response.status_code, await _read(response, max_bytes))
    except TimeoutError:
        raise HostUnreachable(f"no answer within {timeout_s:g} s") from None
    except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError, OSError) as error:
        raise HostUnreachable(f"not reached: {type(error).__name__}") from None


async def _read(response: httpx.Response, max_bytes: int) -> bytes:
    body = b""
    if max_bytes:
        async for part in response.aiter_raw():
            body += part
            if len(body) > max_bytes:
                raise HostUnreachable(f"the answer is larger than {max_bytes} bytes")
    return body
