"""Routes that leave a trace in the audit log: which word it is and what it tells is said once, at the route.

`@audited(Action.KEY_MADE, "id", "name", "scopes")` above an endpoint writes one event after each success: its
subject is the field `id` of the answer, its details are the named fields of what was asked or answered. An
endpoint that found it done already says so by `request.state.unchanged`. What is no endpoint calls `note`. A
test knows all routes that change something, and wants each of them here or among those that need not be.
"""

from collections.abc import Awaitable, Callable, Mapping
from functools import wraps
from typing import Any, Final, Protocol, TypeVar

import orjson
from starlette.requests import Request
from starlette.responses import Response

from coordinator.api.auth import Caller
from coordinator.api.desk import Desk
from coordinator.audit_log.event import Action, AuditEvent
from coordinator.core.jobs import MemberId

SECRET: Final = frozenset({"key", "token", "commands", "csr", "signature", "receipt_key", "confirm"})


class Routes(Protocol):
    """A class of endpoints."""

    _desk: Desk


RoutesT = TypeVar("RoutesT", bound=Routes)
Endpoint = Callable[[RoutesT, Request], Awaitable[Response]]


def audited(
    action: Action, subject: str = "", *told: str
) -> Callable[[Endpoint[RoutesT]], Endpoint[RoutesT]]:
    """`subject` and `told` may lead inwards: `to.id`. What both sides name is told as it was asked."""
    assert not SECRET & {name.rpartition(".")[2] for name in told}, "the audit log holds no secrets"

    def around(endpoint: Endpoint[RoutesT]) -> Endpoint[RoutesT]:
        @wraps(endpoint)
        async def answer(self: RoutesT, request: Request) -> Response:
            response = await endpoint(self, request)
            if getattr(request.state, "unchanged", False):  # asked again: the first answer was lost
                return response
            answered = orjson.loads(response.body)
            asked = getattr(request.state, "asked", {})
            details = {
                name.rpartition(".")[2]: value
                for name in told
                if (value := _at(asked, name)) is not None or (value := _at(answered, name)) is not None
            }
            await note(self._desk, request, action, str(_at(answered, subject) or ""), details)
            return response

        answer.action = action  # type: ignore[attr-defined]  # for the test that knows all routes
        return answer

    return around


async def note(
    desk: Desk,
    request: Request,
    action: Action,
    subject: str = "",
    details: Mapping[str, Any] | None = None,
    *,
    by: MemberId | None = None,
) -> None:
    """Write an event: of whoever asks, or of `by` where nobody has signed in yet. Raises StoreError."""
    caller: Caller | None = getattr(request.state, "by", None)
    event = AuditEvent(
        action=action,
        at=desk.context.clock.now(),
        member=caller.member.id if caller else by,
        key=caller.key.id if caller else "",
        subject=subject,
        details=details or {},
    )
    await desk.context.audit_log.write(event)


def _at(facts: Any, path: str) -> Any:
    """What stands there, or None."""
    for name in path.split(".") if path else ():
        facts = facts.get(name) if isinstance(facts, Mapping) else None
    return facts if path else None
