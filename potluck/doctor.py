"""What of a member's way to a pool works, in sentences: what does, what does not, and what to do."""

import re
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final, Literal

from potluck.client import ClientFile, Connection, is_loopback
from potluck.credits import rounded
from potluck.errors import NotLoggedIn, PermissionDenied, PotluckError
from potluck.transport import Transport, decoded

if TYPE_CHECKING:
    from potluck.pool import Pool

WAIT_S_MAX: Final = 10.0  # for each answer
SKEW_S_MAX: Final = 120.0  # certificates of workers are backdated by 5 minutes
SOON_S: Final = 14 * 86_400.0  # a certificate or a key that ends so soon is told of
SHOWN_MAX: Final = 5

State = Literal["ok", "advice", "problem"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """`problem`: it does not work until it is mended. `advice`: it works, not as well as it could."""

    topic: str
    state: State = "ok"
    sentence: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """How the coordinator answered. Times in seconds; `skew_s`: how far this machine's clock is ahead."""

    took_s: float
    not_ready: str = ""
    skew_s: float | None = None
    certificate_s: float | None = None  # how long it is good; without TLS none


def examine(connection: Connection, file: ClientFile, now: Callable[[], float]) -> list[Finding]:
    """In the order in which to mend them; what needs something that does not work is left out.

    Raises UsageError for an address that is none.
    """
    found = [*_settings(connection, file)]
    try:
        reached = reach(connection.address, now)
    except PotluckError as error:
        return [*found, _unreachable(error)]
    found += [*_network(connection.address, reached)]
    try:
        key = connection.secret
    except NotLoggedIn as error:
        return [*found, _no_key(error)]
    from potluck.pool import Pool

    with Pool(connection.address, key, timeout_s=WAIT_S_MAX, retries_max=0) as pool:
        for topic, look in (("key", _key), ("pool", _pool), ("models", _models), ("balance", _balance)):
            try:
                found += look(pool, now())
            except NotLoggedIn as error:
                return [*found, _no_key(error)]
            except PermissionDenied as error:
                found.append(Finding(topic=topic, sentence=f"It is not told: {error.message}"))
            except PotluckError as error:
                found.append(Finding(topic=topic, state="problem", sentence=error.message))
    return found


def works(findings: Sequence[Finding]) -> bool:
    return all(finding.state != "problem" for finding in findings)


def reach(url: str, now: Callable[[], float]) -> Reached:
    """Whether the coordinator answers, and what can be seen by that alone. Raises PotluckError."""
    transport = Transport(url, None, timeout_s=WAIT_S_MAX, retries_max=0)
    try:
        began = time.monotonic()
        with transport.looking("/readyz") as response:
            took_s, at = time.monotonic() - began, now()
            tls = response.extensions["network_stream"].get_extra_info("ssl_object")
            until = str((tls.getpeercert() or {}).get("notAfter", "")) if tls is not None else ""
            response.read()
            body = decoded(response)
        skew_s = None
        with suppress(ValueError, TypeError):
            theirs = parsedate_to_datetime(response.headers.get("date", ""))  # RFC 9110, 6.6.1
            skew_s = at - theirs.timestamp()
        status = body.get("status") if isinstance(body, dict) else None
        not_ready = "" if status == "ready" else str(body.get("why", "") if status else "it is no pool")
        left = ssl.cert_time_to_seconds(until) - at if until else None
        return Reached(took_s=took_s, not_ready=not_ready, skew_s=skew_s, certificate_s=left)
    finally:
        transport.close()


def _settings(connection: Connection, file: ClientFile) -> Iterator[Finding]:
    where = f"The pool is at {connection.address} (from {connection.url.origin})."
    yield Finding(topic="settings", sentence=where)
    if file.open_to_others:
        yield Finding(
            topic="settings",
            state="problem",
            sentence=f"Other users of this machine can read {file.path}, which holds your key.",
            remedy=f"chmod 600 {file.path}, and make a new key if somebody may have copied it.",
        )


def _unreachable(error: PotluckError) -> Finding:
    remedy = "Check the address, the network, a firewall on the way, and that the coordinator runs."
    if "not trusted here" in error.message:
        remedy = "If its authority is the pool's own, SSL_CERT_FILE=ca.pem names it; else do not go on."
    return Finding(
        topic="network", state="problem", sentence=error.message.partition(" Is it")[0], remedy=remedy
    )


def _network(url: str, reached: Reached) -> Iterator[Finding]:
    if reached.not_ready:
        yield Finding(
            topic="network",
            state="problem",
            sentence=f"{url} answers, but it is not ready: {reached.not_ready}.",
            remedy="Try again shortly; whoever runs the pool finds the reason in its log.",
        )
    else:
        yield Finding(topic="network", sentence=f"The pool answers in {reached.took_s * 1e3:.0f} ms.")
    if reached.certificate_s is not None:
        days = f"The pool's certificate is good for {reached.certificate_s / 86_400:.0f} more days."
        soon = reached.certificate_s < SOON_S
        remedy = "Tell whoever runs the pool to renew it." if soon else ""
        yield Finding(topic="tls", state="advice" if soon else "ok", sentence=days, remedy=remedy)
    elif is_loopback(url):
        yield Finding(topic="tls", sentence="It is on this machine: nothing needs to be encrypted.")
    else:
        yield Finding(
            topic="tls",
            state="advice",
            sentence=f"{url} is not encrypted: whoever is on the way can read the key and the answers.",
            remedy="Use an address with https://, or a VPN.",
        )
    if reached.skew_s is not None:
        way = "ahead of" if reached.skew_s > 0 else "behind"
        wrong = abs(reached.skew_s) > SKEW_S_MAX
        yield Finding(
            topic="clock",
            state="advice" if wrong else "ok",
            sentence=f"This machine's clock is {abs(reached.skew_s):.0f} s {way} the pool's."
            if wrong
            else "This machine's clock agrees with the pool's.",
            remedy="Set the wrong one by the network (timedatectl set-ntp true)." if wrong else "",
        )


def _no_key(error: NotLoggedIn) -> Finding:
    remedy = "potluck login URL --key file:PATH, or with an invitation: --invite TOKEN --name NAME."
    return Finding(topic="key", state="problem", sentence=error.message, remedy=remedy)


def _key(pool: "Pool", now: float) -> Iterator[Finding]:
    me = pool.me()
    scopes = ", ".join(me.key.scopes) or "everything"
    said = f"The key {me.key.name!r} is {me.member.name}'s ({me.member.role}) in {me.pool}, for {scopes}."
    yield Finding(topic="key", sentence=said)
    if me.key.expires_at is not None:
        left_s = datetime.fromisoformat(me.key.expires_at).astimezone(UTC).timestamp() - now
        if left_s < SOON_S:
            yield Finding(
                topic="key",
                state="advice",
                sentence=f"It ends in {left_s / 86_400:.0f} days, on {me.key.expires_at}.",
                remedy="potluck keys create NAME, then log in with the new one.",
            )


def _pool(pool: "Pool", _now: float) -> Iterator[Finding]:
    from potluck.version import version

    status, here = pool.status(), version()
    same = _release(status.version) == _release(here)
    yield Finding(
        topic="version",
        state="ok" if same else "advice",
        sentence=f"Potluck is {here} here and {status.version} at the pool.",
        remedy="" if same else "Upgrade the older one: pip install --upgrade potluck.",
    )
    if status.ledger_sum:
        yield Finding(
            topic="pool",
            state="problem",
            sentence=f"All balances add up to {status.ledger_sum} microcredits, not to zero.",
            remedy="Tell whoever runs the pool: `potluck coordinator check` says what is wrong.",
        )


def _release(version: str) -> tuple[str, ...]:
    """What two versions share that go together: 1.2 of 1.2.3."""
    return tuple(re.split(r"[.+-]", version)[:2])


def _models(pool: "Pool", _now: float) -> Iterator[Finding]:
    models = pool.models()
    served = [model.name for model in models if model.workers]
    if served:
        more = f" and {len(served) - SHOWN_MAX} more" if len(served) > SHOWN_MAX else ""
        said = f"{len(served)} of {len(models)} models are served now: {', '.join(served[:SHOWN_MAX])}{more}."
        yield Finding(topic="models", sentence=said)
        return
    yield Finding(
        topic="models",
        state="advice",
        sentence=f"No worker serves any of the pool's {len(models)} models now.",
        remedy="`potluck workers` says why; or share a machine: potluck worker --help.",
    )


def _balance(pool: "Pool", _now: float) -> Iterator[Finding]:
    found = pool.balance()
    said = f"You have {rounded(found.balance)} credits and {rounded(found.available)} to spend."
    spent = found.available <= 0
    remedy = (
        "Earn some: share a machine (potluck worker --help), or ask for a longer credit line."
        if spent
        else ""
    )
    yield Finding(topic="balance", state="advice" if spent else "ok", sentence=said, remedy=remedy)
