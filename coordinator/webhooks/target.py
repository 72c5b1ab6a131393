"""A member's address for webhooks, and one attempt to reach it.

Whoever names an address that the pool then calls could reach what only the pool's machine reaches (OWASP,
Server-Side Request Forgery). So: HTTPS, only addresses of the public internet, connected to as they were
looked up (a name cannot change its mind in between), no redirects, a time limit, and nothing of the answer is
shown but its status. An operator may allow private addresses, for a pool within one network.
"""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, urlsplit

import httpx2

URL_CHARS_MAX: Final = 2_048
ATTEMPT_S_MAX: Final = 15.0
UNREACHED: Final = 0


class TargetRefused(Exception):  # noqa: N818 -- named for what happened
    """The address is none that the pool calls; the message says why."""


@dataclass(frozen=True, slots=True)
class Answer:
    """`status` is UNREACHED where nobody answered; `why` says what went wrong."""

    status: int
    why: str = ""


def check(url: str, *, private: bool) -> SplitResult:
    """What can be seen without asking anybody. Raises TargetRefused."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise TargetRefused("this is no URL") from None
    if len(url) > URL_CHARS_MAX or not url.isascii() or not url.isprintable() or " " in url:
        raise TargetRefused(f"a URL has at most {URL_CHARS_MAX} printable ASCII characters and no blanks")
    if parts.scheme not in (("https", "http") if private else ("https",)):
        raise TargetRefused("it begins with https://")
    if not host or parts.username is not None or parts.password is not None:
        raise TargetRefused("it names a host, and neither a user nor a password")
    if parts.fragment:
        raise TargetRefused("what stands behind a # is never sent; leave it out")
    literal = _literal(host)
    if literal is not None and not private and not literal.is_global:
        raise TargetRefused(f"{host} is no address of the public internet")
    return parts


async def post(
    url: str, headers: Mapping[str, str], body: str, trusted: ssl.SSLContext, *, private: bool
) -> Answer:
    """One attempt. `trusted`: whose certificates count."""
    try:
        async with asyncio.timeout(ATTEMPT_S_MAX):
            parts = check(url, private=private)
            address = await _looked_up(parts, private=private)
            return await _sent(parts, address, headers, body, trusted)
    except TargetRefused as refused:
        return Answer(UNREACHED, str(refused))
    except TimeoutError:
        return Answer(UNREACHED, f"no answer within {ATTEMPT_S_MAX:.0f} s")
    except (OSError, httpx2.HTTPError, ssl.SSLError) as error:
        return Answer(UNREACHED, _shortly(error))


async def _looked_up(parts: SplitResult, *, private: bool) -> str:
    """One of the host's addresses, all of which are allowed. Raises TargetRefused or OSError."""
    assert parts.hostname is not None
    port = parts.port or (443 if parts.scheme == "https" else 80)
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except socket.gaierror:
        raise TargetRefused(f"no name server knows {parts.hostname}") from None
    addresses = [str(info[4][0]) for info in found]
    if not private and not all(ipaddress.ip_address(a.partition("%")[0]).is_global for a in addresses):
        raise TargetRefused(f"{parts.hostname} is no host of the public internet")
    return addresses[0]


async def _sent(
    parts: SplitResult, address: str, headers: Mapping[str, str], body: str, trusted: ssl.SSLContext
) -> Answer:
    """To this address, under the host's own name."""
    host = f"[{address}]" if ":" in address else address
    port = f":{parts.port}" if parts.port else ""
    where = parts._replace(netloc=f"{host}{port}").geturl()
    sent = {**headers, "host": parts.netloc, "user-agent": "Potluck-Webhooks/1"}
    client = httpx2.AsyncClient(
        timeout=ATTEMPT_S_MAX, follow_redirects=False, trust_env=False, verify=trusted
    )
    async with (
        client,
        client.stream(
            "POST", where, headers=sent, content=body.encode(), extensions={"sni_hostname": parts.hostname}
        ) as answer,
    ):
        status = answer.status_code
        why = "" if answer.is_success else f"it answered {status}"
        return Answer(status, why)


def _literal(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _shortly(error: Exception) -> str:
    """Without what the answer said: that is nobody's to see."""
    if isinstance(error, httpx2.ConnectError):
        return "it cannot be connected to"
    return f"the connection failed ({type(error).__name__})"
