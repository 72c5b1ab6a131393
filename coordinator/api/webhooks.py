"""`/v1/webhook_endpoints` as the OpenAI API has it, and what became of the deliveries."""

from typing import Annotated, Any, Final

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from coordinator.api import contract
from coordinator.api.answers import models, webhooks
from coordinator.api.audited import audited
from coordinator.api.auth import Caller
from coordinator.api.desk import Desk
from coordinator.api.errors import ApiError, Json
from coordinator.api.pool_members import Name
from coordinator.api.query import integer, only
from coordinator.api.routing import add, new_router
from coordinator.api.schema import Schema
from coordinator.api.shapes import when
from coordinator.audit_log.event import Action
from coordinator.webhooks.endpoint import Delivery, Endpoint, EventType
from coordinator.webhooks.target import URL_CHARS_MAX

LISTED: Final = 20
LISTED_MAX: Final = 100

Url = Annotated[str, Field(min_length=1, max_length=URL_CHARS_MAX)]
Word = Annotated[EventType, Field(strict=False)]
Words = Annotated[list[Word], Field(min_length=1, max_length=len(EventType))]


class EndpointRequest(Schema):
    """`event_types`: what is told to the HTTPS address `url`."""

    name: Name
    url: Url
    event_types: Words


class Switch(Schema):
    on: bool


class EndpointChange(Schema):
    """What is left out stays. `potluck.on`: whether it is told anything."""

    name: Name | None = None
    url: Url | None = None
    event_types: Words | None = None
    potluck: Switch | None = None


class RotateRequest(Schema):
    keep_old_secret_active_for_24_hours: bool = False


class TestRequest(Schema):
    event_type: Word


def webhooks_router(desk: Desk) -> APIRouter:
    routes, router = WebhookRoutes(desk), new_router("Webhooks")
    path = "/v1/webhook_endpoints"
    add(router, "GET", "/v1/webhook_event_types", routes.event_types, answer=webhooks.EventTypes)
    add(
        router,
        "GET",
        path,
        routes.list,
        answer=contract.page_of(webhooks.EndpointBody),
        query=(
            contract.limit(LISTED, LISTED_MAX),
            contract.text("after", "The last one of the page before."),
        ),
    )
    add(
        router, "POST", path, routes.create, answer=webhooks.EndpointBody, body=EndpointRequest, errors=(409,)
    )
    add(router, "GET", path + "/{endpoint_id}", routes.show, answer=webhooks.EndpointBody)
    add(
        router,
        "POST",
        path + "/{endpoint_id}",
        routes.change,
        answer=webhooks.EndpointBody,
        body=EndpointChange,
    )
    add(router, "DELETE", path + "/{endpoint_id}", routes.delete, answer=models.Deleted)
    add(
        router,
        "POST",
        path + "/{endpoint_id}/rotate_secret",
        routes.rotate,
        answer=webhooks.EndpointBody,
        body=RotateRequest,
    )
    add(
        router,
        "POST",
        path + "/{endpoint_id}/test",
        routes.test,
        answer=webhooks.EndpointTested,
        body=TestRequest,
        errors=(424,),
    )
    add(
        router,
        "GET",
        path + "/{endpoint_id}/deliveries",
        routes.deliveries,
        answer=webhooks.DeliveryList,
        query=(contract.limit(LISTED, LISTED_MAX),),
    )
    return router


class WebhookRoutes:
    def __init__(self, desk: Desk) -> None:
        self._desk, self._webhooks = desk, desk.context.webhooks

    async def event_types(self, request: Request) -> Response:
        """The events that can be told: `{object: "list", data: [TYPE]}`."""
        await self._desk.auth.look(request)
        return Json({"object": "list", "data": [event.value for event in EventType]})

    async def list(self, request: Request) -> Response:
        """The caller's endpoints, the newest first. `?limit&after`."""
        caller = await self._desk.auth.look(request)
        only(request, ("limit", "after"))
        limit = integer(request, "limit", LISTED, LISTED_MAX)
        found = sorted(self._webhooks.of(caller.member.id), key=lambda e: (-e.created_at, e.id))
        if after := request.query_params.get("after"):
            ids = [endpoint.id for endpoint in found]
            found = found[ids.index(after) + 1 :] if after in ids else []
        page = [endpoint_body(endpoint) for endpoint in found[:limit]]
        first, last = (page[0]["id"], page[-1]["id"]) if page else (None, None)
        more = len(found) > limit
        return Json({"object": "list", "data": page, "first_id": first, "last_id": last, "has_more": more})

    @audited(Action.WEBHOOK_MADE, "id", "name", "url", "event_types")
    async def create(self, request: Request) -> Response:
        """Tell an HTTPS address what happens: the answer has the `signing_secret`, shown this once.

        Messages are signed as the Standard Webhooks specification says, so that
        `client.webhooks.unwrap(body, headers)` of the official client checks and reads them. One that is not
        answered with 2xx comes again after 5 s, 5 and 30 minutes, 2, 5, 10 and 14 hours.
        """
        caller = await self._desk.auth.act(request)
        wanted = await self._desk.read(request, EndpointRequest)
        endpoint = await self._webhooks.create(caller.member, wanted.name, wanted.url, wanted.event_types)
        return Json({**endpoint_body(endpoint), "signing_secret": endpoint.secret})

    async def show(self, request: Request) -> Response:
        """An endpoint of the caller; `potluck.why_off` says why it is told nothing any more."""
        caller = await self._desk.auth.look(request)
        return Json(endpoint_body(self._find(caller, request)))

    @audited(Action.WEBHOOK_CHANGED, "id", "name", "url", "event_types", "potluck.on")
    async def change(self, request: Request) -> Response:
        """Change its name, address or events, with which one that failed is tried again; or switch it."""
        caller = await self._desk.auth.act(request)
        wanted = await self._desk.read(request, EndpointChange)
        changes: dict[str, Any] = wanted.model_dump(exclude_none=True, exclude={"potluck"})
        if "event_types" in changes:
            changes["event_types"] = tuple(changes["event_types"])
        on = None if wanted.potluck is None else wanted.potluck.on
        changed = await self._webhooks.change(self._find(caller, request), on=on, **changes)
        return Json(endpoint_body(changed))

    @audited(Action.WEBHOOK_DELETED, "id")
    async def delete(self, request: Request) -> Response:
        """Delete an endpoint; what is on its way is dropped."""
        caller = await self._desk.auth.look(request)
        endpoint = self._find(caller, request)
        await self._webhooks.delete(endpoint)
        return Json({"id": endpoint.id, "object": "webhook_endpoint.deleted", "deleted": True})

    @audited(Action.WEBHOOK_CHANGED, "id")
    async def rotate(self, request: Request) -> Response:
        """Make a new signing secret: `signing_secret`, shown this once."""
        caller = await self._desk.auth.act(request)
        wanted = await self._desk.read(request, RotateRequest)
        keep_old = wanted.keep_old_secret_active_for_24_hours
        endpoint = await self._webhooks.rotate(self._find(caller, request), keep_old=keep_old)
        return Json({**endpoint_body(endpoint), "signing_secret": endpoint.secret})

    async def test(self, request: Request) -> Response:
        """Send an endpoint an example now, once: `{status_code, success}`. Raises 424 if nobody answers."""
        caller = await self._desk.auth.work(request)
        wanted = await self._desk.read(request, TestRequest)
        endpoint = self._find(caller, request)
        answer = await self._webhooks.test(endpoint, wanted.event_type)
        if not answer.status:
            message = f"Nothing was delivered: {answer.why}."
            raise ApiError(424, "webhook_unreachable", message, retry=False)
        return Json(
            {
                "object": "webhook_endpoint.test",
                "webhook_endpoint_id": endpoint.id,
                "event_type": wanted.event_type.value,
                "status_code": answer.status,
                "success": True,
            }
        )

    async def deliveries(self, request: Request) -> Response:
        """What it got lately, newest first: `{data: [{event, type, state, attempts, status, why}]}`."""
        caller = await self._desk.auth.look(request)
        only(request, ("limit",))
        limit = integer(request, "limit", LISTED, LISTED_MAX)
        endpoint = self._find(caller, request)
        found = await self._desk.context.store.webhook_deliveries(endpoint.id, limit)
        return Json({"object": "list", "data": [delivery_body(delivery) for delivery in found]})

    def _find(self, caller: Caller, request: Request) -> Endpoint:
        return self._webhooks.get(caller.member.id, request.path_params["endpoint_id"])


def endpoint_body(endpoint: Endpoint) -> dict[str, Any]:
    return {
        "id": endpoint.id,
        "object": "webhook_endpoint",
        "created_at": int(endpoint.created_at),
        "updated_at": int(endpoint.updated_at),
        "name": endpoint.name,
        "url": endpoint.url,
        "event_types": [event.value for event in endpoint.event_types],
        "signing_secret_hint": endpoint.hint,
        "potluck": {"why_off": endpoint.why_off or None},
    }


def delivery_body(delivery: Delivery) -> dict[str, Any]:
    pending = delivery.state == "pending"
    return {
        "event": delivery.event,
        "type": delivery.type.value,
        "state": delivery.state.value,
        "attempts": delivery.attempts,
        "status": delivery.status or None,
        "why": delivery.why or None,
        "created_at": when(delivery.created_at),
        "next_at": when(delivery.next_at) if pending else None,
    }
