"""What the pool will not do, as HTTP says it."""

from typing import Any

from potluck.credits import exact


class Refusal(Exception):  # noqa: N818 -- a result for the member, not a fault
    """A request the pool will not take, as an HTTP status and an OpenAI-shaped error."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        type: str = "invalid_request_error",  # noqa: A002 -- the API's own word
        param: str | None = None,
        retry_after_s: float | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.type, self.code, self.message = status, type, code, message
        self.param, self.retry_after_s, self.extra = param, retry_after_s, extra or {}


def credits_of(amount: int) -> str:
    """Microcredits as credits, for sentences: exactly, since a refusal compares what may differ by one."""
    return exact(amount)
