"""Headers that say how much of a limit is left, in the OpenAI API's names; of several limits the tightest.

`x-ratelimit-limit-requests`, `-remaining-requests`, `-reset-requests` (a span such as `12.500s`, after which
all of it is free again), and the same for tokens. They are sent where a limit applies, and with each 429 of a
route that costs work.
"""

from collections.abc import Iterable

from coordinator.api.auth import Auth, Caller
from coordinator.core.budgets import Budgets, Limit


def headers(
    auth: Auth, budgets: Budgets, caller: Caller, request_at: float, pool_at: float
) -> dict[str, str]:
    """`request_at` and `pool_at`: now, by the clock of requests and by that of jobs."""
    requests: list[tuple[int, int, float]] = []
    tokens: list[tuple[int, int, float]] = []
    for bound in caller.bounds:
        if (allowed := bound.limits.of(Limit.REQUESTS)) is not None:
            used, empty_at = auth.requests(bound.subject)
            requests.append((max(0, allowed - used), allowed, empty_at - request_at))
        if (allowed := bound.limits.of(Limit.TOKENS)) is not None:
            used, empty_at = budgets.tokens(bound.subject, pool_at)
            tokens.append((max(0, allowed - used), allowed, empty_at - pool_at))
    return {**_named("requests", requests), **_named("tokens", tokens)}


def _named(what: str, found: Iterable[tuple[int, int, float]]) -> dict[str, str]:
    tightest = min(found, default=None)
    if tightest is None:
        return {}
    remaining, allowed, reset_s = tightest
    return {
        f"x-ratelimit-limit-{what}": str(allowed),
        f"x-ratelimit-remaining-{what}": str(remaining),
        f"x-ratelimit-reset-{what}": f"{max(0.0, reset_s):.3f}s",
    }
