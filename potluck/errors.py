# ruff: noqa: N818 -- named for what happened, so that an except clause reads as a sentence
"""What can go wrong for a client: one class for each thing that a caller would do something else about.

Each class has the exit code that the command ends with. The coordinator's errors have the OpenAI API's shape,
`{"error": {"message", "type", "code", "param"}}`; `error_from` turns one into its class.
"""

from collections.abc import Mapping
from enum import IntEnum
from typing import Any, ClassVar, Self


class ExitCode(IntEnum):
    """What the command ends with. `meaning`: the same in words."""

    meaning: str

    def __new__(cls, code: int, meaning: str) -> Self:
        member = int.__new__(cls, code)
        member._value_, member.meaning = code, meaning
        return member

    OK = 0, "done"
    ERROR = 1, "an error, or something is not as it should be"
    USAGE = 2, "the command was called in a way that makes no sense"
    NOT_LOGGED_IN = 3, "no key, or one that the pool does not know"
    NOT_FOUND = 4, "there is no such thing, in the pool or on this machine"
    INVALID = 5, "refused as it is: invalid, or in conflict with what is there"
    NO_CREDIT = 6, "not enough credits"
    LIMIT = 7, "a limit is reached; it says when it renews"
    UNREACHABLE = 8, "the coordinator cannot be reached or did not answer in time, or no worker was free"
    JOB_FAILED = 100, "the job failed or expired"
    JOB_NOT_FINISHED = 101, "the job has not finished in the time given; it goes on"
    JOB_CANCELLED = 103, "the job was cancelled"
    INTERRUPTED = 130, "Ctrl-C"  # 128 + SIGINT, as shells count


class PotluckError(Exception):
    """The message says what happened and what to do. `extra` is what else the error object carried."""

    exit_code: ClassVar[ExitCode] = ExitCode.ERROR
    default_code: ClassVar[str] = "error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        kind: str | None = None,
        param: str | None = None,
        status: int | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.param, self.status = message, param, status
        self.code = code or self.default_code
        self.kind = kind or "client_error"
        self.request_id, self.retry_after_s = request_id, retry_after_s
        self.extra = dict(extra or {})

    @property
    def body(self) -> dict[str, Any]:
        """The OpenAI API's shape, as the command prints it in JSON mode."""
        error: dict[str, Any] = {
            "message": self.message,
            "type": self.kind,
            "code": self.code,
            "param": self.param,
            **self.extra,
        }
        if self.request_id:
            error["request_id"] = self.request_id
        return {"error": {**error, "exit_code": int(self.exit_code)}}


class UsageError(PotluckError):
    """The command was called in a way that makes no sense, whatever the pool would say."""

    exit_code = ExitCode.USAGE
    default_code = "usage"


class NotLoggedIn(PotluckError):
    """No key, or one that the pool does not know (401)."""

    exit_code = ExitCode.NOT_LOGGED_IN
    default_code = "not_logged_in"


class PermissionDenied(PotluckError):
    """The key is good and this is not for it (403)."""

    default_code = "permission_denied"


class NotFound(PotluckError):
    exit_code = ExitCode.NOT_FOUND
    default_code = "not_found"


class InvalidRequest(PotluckError):
    """The request cannot be served as it is: wrong, too long, in conflict (400, 409, 413, 415, 422)."""

    exit_code = ExitCode.INVALID
    default_code = "invalid_request"


class InsufficientCredits(PotluckError):
    exit_code = ExitCode.NO_CREDIT
    default_code = "insufficient_credits"


class LimitReached(PotluckError):
    """Too many requests or too many at once (429); `retry_after_s` says when to come back."""

    exit_code = ExitCode.LIMIT
    default_code = "rate_limit_exceeded"


class Unreachable(PotluckError):
    """No answer from the coordinator, or none in time."""

    exit_code = ExitCode.UNREACHABLE
    default_code = "unreachable"


class Unavailable(PotluckError):
    """The coordinator answers, but the pool cannot serve this now (502, 503, 504): later it may."""

    exit_code = ExitCode.UNREACHABLE
    default_code = "unavailable"

    @property
    def loading(self) -> Mapping[str, Any] | None:
        """How far the model's loading is, if that is the reason."""
        found = self.extra.get("loading")
        return found if isinstance(found, dict) else None


class UnexpectedAnswer(PotluckError):
    """What answered is no pool, or one of another version."""

    default_code = "unexpected_answer"


class JobFailed(PotluckError):
    exit_code = ExitCode.JOB_FAILED
    default_code = "job_failed"


class JobNotFinished(PotluckError):
    exit_code = ExitCode.JOB_NOT_FINISHED
    default_code = "job_not_finished"


class JobCancelled(PotluckError):
    exit_code = ExitCode.JOB_CANCELLED
    default_code = "job_cancelled"


_BY_STATUS: Mapping[int, type[PotluckError]] = {
    400: InvalidRequest,
    401: NotLoggedIn,
    402: InsufficientCredits,
    403: PermissionDenied,
    404: NotFound,
    405: InvalidRequest,
    408: Unreachable,
    409: InvalidRequest,
    413: InvalidRequest,
    415: InvalidRequest,
    422: InvalidRequest,
    429: LimitReached,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}
# A job's own end has a code of its own, whatever status carried it.
_BY_CODE: Mapping[str, type[PotluckError]] = {
    kind.default_code: kind for kind in (JobFailed, JobNotFinished, JobCancelled)
}
# Inside a stream there is no status any more: the error's type says as much.
_BY_TYPE: Mapping[str, type[PotluckError]] = {
    "authentication_error": NotLoggedIn,
    "insufficient_credits": InsufficientCredits,
    "permission_error": PermissionDenied,
    "not_found_error": NotFound,
    "conflict_error": InvalidRequest,
    "invalid_request_error": InvalidRequest,
    "rate_limit_error": LimitReached,
}
_NAMED = ("message", "type", "code", "param")


def error_from(
    body: object,
    *,
    status: int | None = None,
    request_id: str | None = None,
    retry_after_s: float | None = None,
) -> PotluckError:
    """The error that an answer means. `status` is None for one inside a stream."""
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        what = f"HTTP status {status}" if status else "an error without a description"
        message = f"The coordinator answered with {what}. Is this the address of a Potluck pool?"
        kind = _BY_STATUS.get(status or 0, UnexpectedAnswer)
        return kind(message, status=status, request_id=request_id, retry_after_s=retry_after_s)
    code, type_ = error.get("code"), str(error.get("type") or "")
    fallback: type[PotluckError] = PotluckError if status else JobFailed
    by_place = _BY_STATUS.get(status) if status else _BY_TYPE.get(type_)
    kind = _BY_CODE.get(str(code)) or by_place or fallback
    return kind(
        str(error.get("message") or "The coordinator gave no reason."),
        code=str(code) if code else None,
        kind=type_ or None,
        param=str(error["param"]) if error.get("param") else None,
        status=status,
        request_id=request_id,
        retry_after_s=retry_after_s,
        extra={name: value for name, value in error.items() if name not in _NAMED},
    )
