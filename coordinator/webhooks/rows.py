"""Webhooks in the database."""

import json
from collections.abc import Iterable
from typing import Any

from sqlalchemy import delete, select, update

from coordinator import dialect, tables
from coordinator.core.jobs import AccountId, MemberId
from coordinator.database import Database
from coordinator.table_base import table_of
from coordinator.webhooks.endpoint import Delivery, DeliveryState, Endpoint, EventType

_ENDPOINTS = table_of(tables.WebhookEndpoint)
_DELIVERIES = table_of(tables.WebhookDelivery)


class WebhookRows(Database):
    async def webhook_endpoints(self) -> list[Endpoint]:
        """Everybody's, the oldest first."""
        async with self.reading() as connection:
            found = select(_ENDPOINTS).order_by(_ENDPOINTS.c.created_at, _ENDPOINTS.c.id)
            return [_endpoint_of(row) for row in (await connection.execute(found)).all()]

    async def put_webhook_endpoint(self, endpoint: Endpoint) -> None:
        async with self.writing() as connection:
            await connection.execute(dialect.upsert(connection.dialect, _ENDPOINTS), _values(endpoint))

    async def forget_webhook_endpoint(self, endpoint_id: str) -> None:
        """With all that was on its way to it."""
        async with self.writing() as connection:
            await connection.execute(delete(_DELIVERIES).where(_DELIVERIES.c.endpoint_id == endpoint_id))
            await connection.execute(delete(_ENDPOINTS).where(_ENDPOINTS.c.id == endpoint_id))

    async def add_webhook_deliveries(self, deliveries: Iterable[Delivery]) -> int:
        """Those that are not there yet; how many."""
        added = 0
        async with self.writing() as connection:
            for row in map(_delivery_values, deliveries):
                known = select(_DELIVERIES.c.event_id).where(
                    _DELIVERIES.c.event_id == row["event_id"], _DELIVERIES.c.endpoint_id == row["endpoint_id"]
                )
                if await connection.scalar(known) is None:
                    await connection.execute(_DELIVERIES.insert().values(**row))
                    added += 1
        return added

    async def put_webhook_delivery(self, delivery: Delivery) -> None:
        """After an attempt. One whose endpoint was deleted meanwhile stays deleted."""
        values = _delivery_values(delivery)
        names = {"event_id": values.pop("event_id"), "endpoint_id": values.pop("endpoint_id")}
        changed = update(_DELIVERIES).where(
            _DELIVERIES.c.event_id == names["event_id"], _DELIVERIES.c.endpoint_id == names["endpoint_id"]
        )
        async with self.writing() as connection:
            await connection.execute(changed.values(**values))

    async def due_webhook_deliveries(self, limit: int) -> list[Delivery]:
        """Pending ones, the next first."""
        found = select(_DELIVERIES).where(_DELIVERIES.c.state == DeliveryState.PENDING.value)
        found = found.order_by(_DELIVERIES.c.next_at).limit(limit)
        async with self.reading() as connection:
            return [_delivery_of(row) for row in (await connection.execute(found)).all()]

    async def webhook_deliveries(self, endpoint_id: str, limit: int) -> list[Delivery]:
        """Of one endpoint, the newest first."""
        found = select(_DELIVERIES).where(_DELIVERIES.c.endpoint_id == endpoint_id)
        found = found.order_by(_DELIVERIES.c.created_at.desc(), _DELIVERIES.c.event_id).limit(limit)
        async with self.reading() as connection:
            return [_delivery_of(row) for row in (await connection.execute(found)).all()]

    async def sweep_webhook_deliveries(self, before: float) -> int:
        """Forget those that ended and are older; how many."""
        old = delete(_DELIVERIES).where(
            _DELIVERIES.c.state != DeliveryState.PENDING.value, _DELIVERIES.c.created_at < before
        )
        async with self.writing() as connection:
            return int((await connection.execute(old)).rowcount)


def _values(endpoint: Endpoint) -> dict[str, Any]:
    return {
        "id": endpoint.id,
        "member_id": endpoint.member,
        "account_id": endpoint.account,
        "name": endpoint.name,
        "url": endpoint.url,
        "event_types": json.dumps([event.value for event in endpoint.event_types]),
        "secret": endpoint.secret,
        "old_secret": endpoint.old_secret,
        "old_secret_until": endpoint.old_secret_until,
        "created_at": endpoint.created_at,
        "updated_at": endpoint.updated_at,
        "given_up": endpoint.given_up,
        "why_off": endpoint.why_off,
        "low": endpoint.low,
    }


def _endpoint_of(row: Any) -> Endpoint:
    return Endpoint(
        id=row.id,
        member=MemberId(row.member_id),
        account=AccountId(row.account_id),
        name=row.name,
        url=row.url,
        event_types=tuple(EventType(word) for word in json.loads(row.event_types)),
        secret=row.secret,
        old_secret=row.old_secret,
        old_secret_until=row.old_secret_until,
        created_at=row.created_at,
        updated_at=row.updated_at,
        given_up=row.given_up,
        why_off=row.why_off,
        low=row.low,
    )


def _delivery_values(delivery: Delivery) -> dict[str, Any]:
    return {
        "event_id": delivery.event,
        "endpoint_id": delivery.endpoint,
        "type": delivery.type.value,
        "body": delivery.body,
        "created_at": delivery.created_at,
        "next_at": delivery.next_at,
        "attempts": delivery.attempts,
        "state": delivery.state.value,
        "status": delivery.status,
        "why": delivery.why,
    }


def _delivery_of(row: Any) -> Delivery:
    return Delivery(
        event=row.event_id,
        endpoint=row.endpoint_id,
        type=EventType(row.type),
        body=row.body,
        created_at=row.created_at,
        next_at=row.next_at,
        attempts=row.attempts,
        state=DeliveryState(row.state),
        status=row.status,
        why=row.why,
    )
