"""Errors as the OpenAI API shapes them: {"error": {"message", "type", "code", "param"}}.

The status decides which class the official client raises: 400 BadRequestError, 401 AuthenticationError, 402
APIStatusError, 403 PermissionDeniedError, 404 NotFoundError, 409 ConflictError, 429 RateLimitError, 5xx
InternalServerError. That client tries 408, 409, 429 and 5xx again by itself; where a second try could not
help, or would be charged again, the header `x-should-retry: false` stops it.
"""

import math
from collections.abc import Mapping
from typing import Any

import orjson
from starlette.responses import Response

TYPE_BY_STATUS: Mapping[int, str] = {
    401: "authentication_error",
    402: "insufficient_credits",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}


class ApiError(Exception):
    """An answer that is not a success. `extra` stands beside message and code inside the error object."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        kind: str | None = None,
        retry_after_s: float | None = None,
        retry: bool | None = None,
        close: bool = False,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.kind = kind or TYPE_BY_STATUS.get(
            status, "server_error" if status >= 500 else "invalid_request_error"
        )
        self.retry_after_s, self.retry, self.close = retry_after_s, retry, close
        self.extra = dict(extra or {})

    @property
    def body(self) -> dict[str, Any]:
        error = {"message": self.message, "type": self.kind, "code": self.code, "param": self.param}
        return {"error": {**error, **self.extra}}

    @property
    def headers(self) -> dict[str, str]:
        headers = {}
        if self.retry_after_s is not None:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after_s)))  # RFC 9110: whole seconds
        if self.retry is not None:
            headers["x-should-retry"] = "true" if self.retry else "false"
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        if self.close:
            headers["connection"] = "close"
        return headers

    def response(self) -> Response:
        return Json(self.body, self.status, self.headers)


class Json(Response):
    """A JSON answer through orjson."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
