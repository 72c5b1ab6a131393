"""Limits in their layers (the pool's defaults, the member's own, the key's own), and what a refusal says.

A member's limits count over all its keys. A key's count that key and whatever keys were made with it, in
addition: a key that could make others with budgets of their own would have no budget.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coordinator.clock import rfc3339
from coordinator.core.budgets import Bound, Exceeded, Limit, Limits
from coordinator.records import Ancestor, ApiKey, Member
from coordinator.refusal import Refusal, credits_of
from coordinator.settings import Settings

NAMES = tuple(limit.value for limit in Limit)
PERIODS = {Limit.DAY: "a day", Limit.MONTH: "a month"}


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose limit it is: `of` is member, key or pool (whose default a member has)."""

    of: str
    name: str

    def __str__(self) -> str:
        return f"{self.of} {self.name}"


def defaults(settings: Settings) -> Limits:
    """What every member has who has no limit of its own; 0 in a setting is none."""
    return Limits(*(getattr(settings, name) or None for name in NAMES))


def bounds_of(member: Member, key: ApiKey | None, settings: Settings) -> tuple[Bound, ...]:
    """All that must be kept: the member's, the key's, and those of the keys that it was made with.

    A member's own limit stands in place of the pool's, and 0 there is none.
    """
    own, pool = member.limits, defaults(settings)
    chosen = (pool.of(limit) if own.of(limit) is None else own.of(limit) or None for limit in Limit)
    bounds = [Bound(member.id, Limits(*chosen))]
    if key is not None:
        bounds.append(Bound(key.id, key.limits))
        bounds.extend(Bound(ancestor.id, ancestor.limits) for ancestor in key.within)
    return tuple(bounds)


def owner_of(bound: Bound, limit: Limit, member: Member, key: ApiKey | None) -> Owner:
    if bound.subject == member.id:
        return Owner("pool" if member.limits.of(limit) is None else "member", member.name)
    names = {} if key is None else {key.id: key.name, **{a.id: a.name for a in key.within}}
    return Owner("key", names[bound.subject])


def too_many_requests(owner: Owner, allowed: int, wait_s: float) -> str:
    """The sentence of 429 rate_limit_exceeded."""
    return (
        f"{_subject(owner)} made {allowed:,} requests within a minute, {_whose(owner)}. "
        f"Try again in {wait_s:.1f} s."
    )


def too_many_jobs(owner: Owner, allowed: int, used: int, wanted: int) -> str:
    """The sentence of 429 too_many_concurrent_jobs."""
    return (
        f"{_subject(owner)} has {used:,} jobs under way and asked for {wanted:,} more; {_whose(owner)} is "
        f"{allowed:,} at once. Wait for one to end, or use stored jobs."
    )


def refusal_of(exceeded: Exceeded, owner: Owner, now: float) -> Refusal:
    """Tokens are a 429 that says when to come back, credits a 402 that says when they renew."""
    renews_at = None if exceeded.renews_at is None else rfc3339(exceeded.renews_at)
    facts = {
        "limit": exceeded.limit.value,
        "of": owner.of,
        "name": owner.name,
        "allowed": exceeded.allowed,
        "used": exceeded.used,
        "wanted": exceeded.wanted,
        "renews_at": renews_at,
    }
    extra = {"potluck": facts}
    if exceeded.limit is Limit.TOKENS:
        wait_s = None if exceeded.renews_at is None else exceeded.renews_at - now
        hint = (
            "That never fits: lower max_tokens or shorten the prompt."
            if wait_s is None
            else f"Try again in {wait_s:.1f} s, or lower max_tokens."
        )
        message = (
            f"{_subject(owner)} has used {exceeded.used:,} tokens within a minute, and this can take up to "
            f"{exceeded.wanted:,} more; {_whose(owner)} is {exceeded.allowed:,}. {hint}"
        )
        code = "tokens_per_minute_exceeded"
        return Refusal(429, code, message, type="rate_limit_error", retry_after_s=wait_s, extra=extra)
    hint = (
        "Lower max_tokens: this alone is more than the whole budget."
        if exceeded.wanted > exceeded.allowed
        else "Lower max_tokens, wait for running jobs, or ask whoever set it for more."
    )
    message = (
        f"This can cost up to {credits_of(exceeded.wanted)} credits. {_subject(owner)} may spend "
        f"{credits_of(exceeded.allowed)} {PERIODS[exceeded.limit]} ({_whose(owner)}), and "
        f"{credits_of(exceeded.used)} are spent or held by running jobs. The budget renews at {renews_at}. "
        f"{hint} Your own workers serve you for free."
    )
    return Refusal(402, "budget_exceeded", message, type="insufficient_credits", extra=extra)


def check_model(key: ApiKey | None, model: str, base: str = "") -> None:
    """Raises Refusal if the key is for neither this model nor the base that it was tuned from."""
    if key is not None and key.models and model not in key.models and base not in key.models:
        message = f"Key {key.name} is not for {model}; it is for {', '.join(key.models)}."
        raise Refusal(403, "model_not_allowed", message, type="permission_error", param="model")


def written(limits: Limits) -> dict[str, int]:
    """As JSON: those that are set."""
    return {name: value for name in NAMES if (value := getattr(limits, name)) is not None}


def read(facts: Mapping[str, Any]) -> Limits:
    return Limits(*(facts.get(name) for name in NAMES))


def limits_text(limits: Limits, within: tuple[Ancestor, ...] = ()) -> str:
    """What a column `limits` holds; `within` are the limited keys with which a key was made."""
    facts: dict[str, Any] = dict(written(limits))
    if within:
        facts["within"] = [{"id": a.id, "name": a.name, **written(a.limits)} for a in within]
    return json.dumps(facts)


def limits_of(text: str) -> tuple[Limits, tuple[Ancestor, ...]]:
    facts = json.loads(text)
    return read(facts), tuple(
        Ancestor(id=a["id"], name=a["name"], limits=read(a)) for a in facts.get("within", ())
    )


def _subject(owner: Owner) -> str:
    return f"Key {owner.name}" if owner.of == "key" else owner.name


def _whose(owner: Owner) -> str:
    return {"pool": "this pool's limit", "member": "the member's own limit", "key": "the key's own limit"}[
        owner.of
    ]
