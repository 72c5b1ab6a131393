"""What the pool answers, as values with names. Amounts are integer microcredits, times RFC 3339 in UTC.

A newer coordinator may send more than is named here: that is left out. What is named and has no default must
be there, or `read` raises UnexpectedAnswer.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

from potluck.errors import UnexpectedAnswer
from potluck.signed import Receipt

JOB_ENDED = frozenset({"succeeded", "failed", "cancelled", "expired"})

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberRef:
    id: str
    name: str
    role: str = "member"
    state: str = "active"
    why: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """None: not limited here. Credits are microcredits."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_jobs: int | None = None
    credits_per_day: int | None = None
    credits_per_month: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """`limits` are the member's own; those of the pool hold beside them."""

    id: str
    name: str
    role: str = "member"
    state: str = "active"
    account: str | None = None
    credit_line: int | None = None
    created_at: str | None = None
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """An API key without its secret; `prefix` is its beginning. No `models` are all models."""

    id: str
    name: str
    prefix: str = ""
    created_at: str | None = None
    expires_at: str | None = None
    revoked_at: str | None = None
    scopes: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """A new API key with its secret, which is shown this once."""

    id: str
    name: str
    key: str = field(repr=False)
    expires_at: str | None = None
    scopes: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewMember:
    """A new member with the first key, which is shown this once."""

    id: str
    name: str
    key: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinToken:
    token: str = field(repr=False)
    expires_at: str
    commands: tuple[str, ...] = field(default=(), repr=False)  # they hold the token


@dataclass(frozen=True, slots=True, kw_only=True)
class Me:
    member: MemberRef
    account: str
    key: Key
    pool: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    account: str
    balance: int
    reserved: int
    held: int
    credit_line: int
    available: int
    held_why: str | None = None  # what frees the held part


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """The most that a request can cost."""

    quote: int
    prompt_tokens: int
    max_tokens: int = 0
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    number: int
    worker: str
    state: str
    tokens: int = 0
    paid: int = 0
    why: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """Where a job stands among those that wait for the same; `expected_start_s` is None if nobody can say."""

    place: int
    of: int
    expected_start_s: float | None = None
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds that a job waited for its first worker, from then until its first output, from then until its
    end or now, and all together. None: it is not so far, or not known any more.
    """

    waited_s: float
    prefill_s: float | None = None
    decode_s: float | None = None
    total_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    id: str
    kind: str
    state: str
    model: str
    member: str
    quote: int = 0
    hold: int = 0
    charge: int | None = None
    prompt_tokens: int = 0
    output_tokens: int = 0
    stored: bool = False
    created_at: str | None = None
    started_at: str | None = None
    ended_at: str | None = None
    code: str | None = None
    why: str | None = None
    attempts: tuple[Attempt, ...] = ()
    receipts: tuple[Receipt, ...] = ()  # where one job is shown, not in lists
    queue: Queue | None = None  # while it waits
    timing: Timing | None = None  # where one job is shown
    finetune: Mapping[str, Any] | None = None  # of a fine-tune's job: `potluck.finetune.FineTune` reads it

    @property
    def ended(self) -> bool:
        return self.state in JOB_ENDED


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPage:
    data: tuple[Job, ...]
    has_more: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerModel:
    """One model as one worker serves it. `bytes_done` of `bytes_total` are here while it loads."""

    name: str
    engine: str = ""
    state: str = ""
    features: tuple[str, ...] = ()
    bytes_done: int = 0
    bytes_total: int = 0
    why: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    id: str
    name: str
    member: str
    state: str
    why: str | None = None
    next_change: str | None = None  # RFC 3339: when its state changes by itself
    models: tuple[WorkerModel, ...] = ()
    engines: tuple[str, ...] = ()
    hardware: Mapping[str, Any] = field(default_factory=dict)
    load: Mapping[str, Any] = field(default_factory=dict)
    speed: Mapping[str, Any] = field(default_factory=dict)
    running: int = 0
    reliability: float | None = None
    earned: int = 0  # microcredits, in all
    pause: Mapping[str, Any] | None = None  # asked for from afar: `by`, `owner`, `until`, `why`


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Microcredits for a thousand tokens at the start of a context."""

    prompt_1000_tokens: int = 0
    output_1000_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    name: str
    kinds: tuple[str, ...] = ()
    state: str = ""
    why: str | None = None
    workers: int = 0
    aliases: tuple[str, ...] = ()
    family: str | None = None
    licence: str | None = None
    context_tokens: int | None = None
    parameters: int | None = None
    engines: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    decode_tokens_per_s: float = 0.0
    price: Price | None = None
    base: str | None = None  # of a tuned model, with whose it is
    member: str | None = None
    shared: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    pool: str
    version: str
    workers: Any
    jobs: Any
    models: Any
    ledger_sum: int
    coordinator_public_key: str = ""


def plain(value: Any) -> Any:
    """The value as JSON knows it: results as objects, tuples as lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def read(kind: type[Result], data: Any) -> Result:
    """The result from its JSON. Raises UnexpectedAnswer if it has another shape."""
    result: Result = _read(kind, data, kind.__name__)
    return result


def read_all(kind: type[Result], data: Any) -> list[Result]:
    """The results from a JSON list."""
    if not isinstance(data, list):
        raise _strange(kind.__name__, "a list")
    return [read(kind, item) for item in data]


def read_listed(kind: type[Result], answer: Any) -> list[Result]:
    """The results from `{"data": [...]}`."""
    return read_all(kind, answer.get("data") if isinstance(answer, dict) else None)


@cache
def _fields(kind: type) -> tuple[tuple[str, Any, bool], ...]:
    hints = typing.get_type_hints(kind)
    required = dataclasses.MISSING
    return tuple(
        (item.name, hints[item.name], item.default is required and item.default_factory is required)
        for item in dataclasses.fields(kind)
    )


def _read(kind: Any, data: Any, where: str) -> Any:
    if kind is Any:
        return data
    if dataclasses.is_dataclass(kind):
        return _read_object(typing.cast("type", kind), data, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        wanted = next(argument for argument in arguments if argument is not type(None))
        return None if data is None else _read(wanted, data, where)
    if origin is tuple:
        if not isinstance(data, list):
            raise _strange(where, "a list")
        return tuple(_read(arguments[0], item, where) for item in data)
    if origin is Mapping:
        if not isinstance(data, dict):
            raise _strange(where, "an object")
        return data
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if not isinstance(data, kind) or (kind is int and isinstance(data, bool)):
        raise _strange(where, f"of type {kind.__name__}")
    return data


def _read_object(kind: type, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise _strange(where, "an object")
    values = {}
    for name, hint, required in _fields(kind):
        if name not in data:
            if required:
                raise _strange(f"{where}.{name}", "there")
        elif data[name] is not None or required or types.NoneType in typing.get_args(hint):
            values[name] = _read(hint, data[name], f"{where}.{name}")
    return kind(**values)


def _strange(where: str, wanted: str) -> UnexpectedAnswer:
    return UnexpectedAnswer(
        f"The answer is not what this client knows: {where} should be {wanted}. Is the address that of a"
        " Potluck pool, and of a version that fits this one (`potluck --version`)?"
    )
