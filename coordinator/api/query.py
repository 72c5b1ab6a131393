"""Query parameters, checked one by one: a wrong one is refused by name."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from starlette.requests import Request

from coordinator.api.errors import ApiError
from coordinator.api.schema import NAME_CHARS_SHOWN_MAX
from coordinator.clock import rfc3339

_DAY: Final = re.compile(r"\d{4}-\d\d-\d\d")
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(:\d\d(\.\d{1,6})?)?([Zz]|[+-]\d\d:\d\d)?")


def integer(request: Request, name: str, default: int, largest: int) -> int:
    """Between 1 and `largest`."""
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and 1 <= int(text) <= largest):
        raise _wrong(name, f"an integer between 1 and {largest} is needed")
    return int(text)


def only(request: Request, known: Sequence[str]) -> None:
    """A filter that is spelt wrong would show too much, or sum up too much: it is refused by name."""
    for name in request.query_params:
        if name not in known:
            shown = name[:NAME_CHARS_SHOWN_MAX]
            message = f"{shown}: there is no such parameter; these are known: {', '.join(known)}."
            raise ApiError(400, "unknown_parameter", message, param=shown)


def boolean(request: Request, name: str) -> bool:
    return word(request, name, ["true", "false"]) == "true"


def word(request: Request, name: str, allowed: Sequence[str]) -> str | None:
    text = request.query_params.get(name)
    if text is not None and text not in allowed:
        raise _wrong(name, f"one of {', '.join(allowed)} is needed")
    return text


def span(request: Request) -> tuple[str | None, str | None]:
    """`from` and `to` as moments that the ledger's times compare with; a day as `to` ends with the day."""
    since, until = _moment(request, "from"), _moment(request, "to", end=True)
    if since is not None and until is not None and since > until:
        raise _wrong("from", "it lies after to")
    return since, until


def _moment(request: Request, name: str, *, end: bool = False) -> str | None:
    text = request.query_params.get(name)
    if text is None:
        return None
    try:
        if _DAY.fullmatch(text) and text.isascii():
            day = datetime.fromisoformat(text).replace(tzinfo=UTC)
            return rfc3339((day + timedelta(days=1) if end else day).timestamp())
        if _TIME.fullmatch(text) and text.isascii():
            moment = datetime.fromisoformat(text.upper())
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            return rfc3339(moment.timestamp())
    except (ValueError, OverflowError):
        pass  # a day that no calendar has
    raise _wrong(name, "a day (2026-11-26) or a time (2026-11-26T09:30:00Z) is needed, in UTC")


def _wrong(name: str, problem: str) -> ApiError:
    return ApiError(400, "invalid_value", f"{name}: {problem}.", param=name)
