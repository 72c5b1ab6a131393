"""A member's webhooks, on the page of the account: by the routes of `/v1/webhook_endpoints`."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any, Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from coordinator.api.auth import Caller
from coordinator.api.webhooks import WebhookRoutes, delivery_body, endpoint_body
from coordinator.dashboard.asking import Fields, add_form
from coordinator.dashboard.form import filled, text_in
from coordinator.dashboard.live import Fragment
from coordinator.dashboard.page import Site

SHOWN: Final = 5  # deliveries of each endpoint
_EVENT: Final = "event_"  # what the names of their boxes begin with


def add_webhooks(site: Site, router: APIRouter) -> None:
    parts, routes = WebhookParts(site), WebhookRoutes(site.desk)
    site.live.add(Fragment("webhooks", parts.version, parts.show))
    path = "/account/webhooks"
    one = path + "/{endpoint_id}"
    add_form(site, router, path, routes.create, parts.made, new_webhook)
    add_form(site, router, one + "/off", routes.change, switched_off, switched(on=False))
    add_form(site, router, one + "/on", routes.change, switched_on, switched(on=True))
    add_form(site, router, one + "/rotate", routes.rotate, parts.made, keeping)
    add_form(site, router, one + "/test", routes.test, parts.tested, example)
    add_form(site, router, one + "/delete", routes.delete, deleted)


class WebhookParts:
    def __init__(self, site: Site) -> None:
        self._site, self._webhooks = site, site.desk.context.webhooks
        self._store = site.desk.context.store

    def version(self, caller: Caller, _argument: str) -> Hashable:
        return self._webhooks.versions[caller.member.id]

    async def show(self, caller: Caller, _argument: str) -> str:
        endpoints = sorted(self._webhooks.of(caller.member.id), key=lambda e: (-e.created_at, e.id))
        shown = [
            {
                **endpoint_body(endpoint),
                "deliveries": [
                    delivery_body(delivery)
                    for delivery in await self._store.webhook_deliveries(endpoint.id, SHOWN)
                ],
            }
            for endpoint in endpoints
        ]
        return self._site.text("fragments/webhooks.html", endpoints=shown)

    def made(self, _request: Request, made: Any) -> Response:
        return self._site.html("fragments/new_webhook.html", {"endpoint": made})

    def tested(self, _request: Request, done: Any) -> Response:
        status = done["status_code"]
        said = f"It was sent, and answered with {status}"
        taken = 200 <= status < 300
        words = {"good": f"{said}."} if taken else {"bad": f"{said}: only 2xx says that it was taken."}
        return self._site.html("notice.html", words)


def new_webhook(fields: Fields) -> Mapping[str, Any]:
    types = [name.removeprefix(_EVENT) for name in fields if name.startswith(_EVENT)]
    return {"event_types": types, **filled(fields, name=text_in, url=text_in)}


def switched(*, on: bool) -> Callable[[Fields], Mapping[str, Any]]:
    return lambda _fields: {"potluck": {"on": on}}


def keeping(_fields: Fields) -> Mapping[str, Any]:
    """Both secrets sign for a day, so that nothing is lost while the receiver learns the new one."""
    return {"keep_old_secret_active_for_24_hours": True}


def example(fields: Fields) -> Mapping[str, Any]:
    return filled(fields, event_type=text_in)


def switched_off(_request: Request, done: Any) -> str:
    return f"{done['name']} is told nothing any more, until you switch it on."


def switched_on(_request: Request, done: Any) -> str:
    return f"{done['name']} is told what happens from now on."


def deleted(_request: Request, _done: Any) -> str:
    return "The webhook was deleted, with all that was on its way."
