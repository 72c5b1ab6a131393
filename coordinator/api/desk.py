"""What every route has at hand: the context, who may ask, and how a request becomes running jobs."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from starlette.requests import Request

from coordinator.api import rates
from coordinator.api.auth import Auth, Caller
from coordinator.api.body import read_json
from coordinator.api.context import Context
from coordinator.api.errors import ApiError
from coordinator.api.limits import Gauge
from coordinator.api.running import Running
from coordinator.api.schema import Schema, validated
from coordinator.core.jobs import MemberId
from coordinator.naming import CHARS_MAX as NAME_CHARS_MAX
from coordinator.records import Member
from coordinator.submission import Submission

IDEMPOTENCY_KEY_CHARS_MAX = 255
RETRIES = "x-stainless-retry-count"  # OpenAI's clients count in it how often they came back

SchemaT = TypeVar("SchemaT", bound=Schema)


@dataclass(frozen=True, slots=True)
class Desk:
    context: Context
    auth: Auth
    gauge: Gauge  # interactive jobs under way, by member and by key

    async def read(self, request: Request, schema: type[SchemaT]) -> SchemaT:
        """The request's body as the schema. Raises ApiError 400, 408, 413 or 415."""
        return validated(schema, await self.read_object(request))

    async def read_object(self, request: Request) -> dict[str, Any]:
        """It stays in the request's state, for whoever tells what was asked."""
        asked = request.state.asked = await read_json(request, self.context.settings.body_bytes_max)
        return asked

    async def member(self, request: Request) -> Member:
        """Whom the path names. Raises ApiError 404."""
        return await self.member_named(request.path_params["member"])

    async def member_named(self, named: str, param: str | None = None) -> Member:
        """By id or by name, an id first. Raises ApiError 404."""
        store = self.context.store
        found = await store.member(MemberId(named)) if named.startswith("mem_") else None
        found = found or await store.member_by_name(named)
        if found is None:
            message = f"This pool has no member {named[:NAME_CHARS_MAX]!r}. Give a name or an id."
            raise ApiError(404, "member_not_found", message, param=param)
        return found

    async def run(self, request: Request, caller: Caller, submissions: Sequence[Submission]) -> Running:
        """Submit under the request's Idempotency-Key, if it has one."""
        keyed = with_idempotency_key(submissions, idempotency_key(request))
        if request.headers.get(RETRIES, "0") != "0":
            keyed = [replace(submission, back=True) for submission in keyed]
        running = await Running.start(self.context, self.gauge, caller, keyed, request.state.received_at)
        running.rates = self.rates(caller)
        return running

    def rates(self, caller: Caller) -> dict[str, str]:
        """Headers that say how much of the limits is left."""
        pool = self.context.pool
        return rates.headers(self.auth, pool.budgets, caller, self.context.clock.now(), pool.now())


def idempotency_key(request: Request) -> str | None:
    """The header's value (IETF draft httpapi-idempotency-key-header). Raises ApiError 400."""
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    if not 0 < len(key) <= IDEMPOTENCY_KEY_CHARS_MAX or not (key.isascii() and key.isprintable()):
        message = f"Idempotency-Key must have 1 to {IDEMPOTENCY_KEY_CHARS_MAX} printable ASCII characters."
        raise ApiError(400, "invalid_idempotency_key", message, param="Idempotency-Key")
    return key


def with_idempotency_key(submissions: Sequence[Submission], key: str | None) -> list[Submission]:
    """Several jobs of one request get keys of their own, which no client can send (they are longer)."""
    if key is None:
        return list(submissions)
    if len(submissions) == 1:
        return [replace(submission, idempotency_key=key) for submission in submissions]
    digest = hashlib.sha256(key.encode()).hexdigest()
    padding = "." * IDEMPOTENCY_KEY_CHARS_MAX
    return [
        replace(submission, idempotency_key=f"{digest}{padding}{index}")
        for index, submission in enumerate(submissions)
    ]
