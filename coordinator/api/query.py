"""Query parameters, checked one by one: a wrong one is refused by name."""

from collections.abc import Sequence

from starlette.requests import Request

from coordinator.api.errors import ApiError


def integer(request: Request, name: str, default: int, largest: int) -> int:
    """Between 1 and `largest`."""
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and 1 <= int(text) <= largest):
        raise _wrong(name, f"an integer between 1 and {largest} is needed")
    return int(text)


def boolean(request: Request, name: str) -> bool:
    return word(request, name, ["true", "false"]) == "true"


def word(request: Request, name: str, allowed: Sequence[str]) -> str | None:
    text = request.query_params.get(name)
    if text is not None and text not in allowed:
        raise _wrong(name, f"one of {', '.join(allowed)} is needed")
    return text


def _wrong(name: str, problem: str) -> ApiError:
    return ApiError(400, "invalid_value", f"{name}: {problem}.", param=name)
