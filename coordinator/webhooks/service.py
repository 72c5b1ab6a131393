"""All webhooks of the pool: who wants to hear what, what is on its way, and the task that brings it.

What happened is told (`tell`) by whoever knows; it becomes a delivery on the disk for each endpoint that
wants it, and is then tried until it is taken. An event that a crash kept from being told is found again at
the start, among what ended within a day; its id follows from what it is about, so nobody hears of it twice.
"""

import asyncio
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import structlog

from coordinator.batches.batch import Batch, BatchState
from coordinator.core.jobs import WHOLES, AccountId, Job, JobState, MemberId
from coordinator.core.ledger import Recorded
from coordinator.finetunes.finetune import Finetune, FinetuneState
from coordinator.ids import new_id
from coordinator.pool import Pool
from coordinator.records import Member
from coordinator.refusal import Refusal
from coordinator.store import Store
from coordinator.store_errors import StoreError
from coordinator.webhooks import target
from coordinator.webhooks.endpoint import (
    GIVEN_UP_MAX,
    ROTATION_S,
    SWITCHED_OFF,
    Delivery,
    DeliveryState,
    Endpoint,
    Event,
    EventType,
    after,
    headers,
    new_secret,
)

ENDPOINTS_MAX: Final = 10  # of one member
AT_ONCE: Final = 8
LOOK_S: Final = 5.0  # between two looks at balances, and at what is due
KEPT_S: Final = 7 * 86_400.0
RECALLED_S: Final = 86_400.0
RECALLED_MAX: Final = 100
LOW_PERMILLE: Final = 100  # of the credit line
_GONE: Final = 410  # the receiver wants no more (Standard Webhooks)

_BATCHES: Final = {
    BatchState.COMPLETED: EventType.BATCH_COMPLETED,
    BatchState.FAILED: EventType.BATCH_FAILED,
    BatchState.EXPIRED: EventType.BATCH_EXPIRED,
    BatchState.CANCELLED: EventType.BATCH_CANCELLED,
}
_FINETUNES: Final = {
    FinetuneState.SUCCEEDED: EventType.FINE_TUNING_SUCCEEDED,
    FinetuneState.FAILED: EventType.FINE_TUNING_FAILED,
    FinetuneState.CANCELLED: EventType.FINE_TUNING_CANCELLED,
}
_JOBS: Final = {
    JobState.SUCCEEDED: EventType.JOB_SUCCEEDED,
    JobState.FAILED: EventType.JOB_FAILED,
    JobState.CANCELLED: EventType.JOB_CANCELLED,
    JobState.EXPIRED: EventType.JOB_EXPIRED,
}

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Webhooks:
    pool: Pool
    store: Store
    post: Callable[..., Awaitable[target.Answer]] = target.post
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    endpoints: dict[str, Endpoint] = field(default_factory=dict)
    versions: Counter[MemberId] = field(default_factory=Counter)  # another one: something is new to see
    _told: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _trusted: ssl.SSLContext | None = None

    # -- what members ask ------------------------------------------------------------------------

    def of(self, member: MemberId) -> list[Endpoint]:
        return [endpoint for endpoint in self.endpoints.values() if endpoint.member == member]

    def get(self, member: MemberId, endpoint_id: str) -> Endpoint:
        """Raises Refusal 404."""
        endpoint = self.endpoints.get(endpoint_id)
        if endpoint is None or endpoint.member != member:
            raise Refusal(404, "webhook_not_found", f"You have no webhook endpoint {endpoint_id[:64]}.")
        return endpoint

    async def create(self, member: Member, name: str, url: str, event_types: Sequence[EventType]) -> Endpoint:
        """Raises Refusal 400 for an address that is not called, 409 at the limit."""
        self._check(url)
        if len(self.of(member.id)) >= ENDPOINTS_MAX:
            message = f"You have {ENDPOINTS_MAX} webhook endpoints, the most. Delete one first."
            raise Refusal(409, "too_many_webhooks", message)
        now = self.pool.now()
        endpoint = Endpoint(
            id=new_id("whe"),
            member=member.id,
            account=member.account,
            name=name,
            url=url,
            event_types=tuple(event_types),
            secret=new_secret(),
            created_at=now,
            updated_at=now,
            low=self._low(member.account),
        )
        await self._keep(endpoint)
        return endpoint

    async def change(self, endpoint: Endpoint, *, on: bool | None = None, **changes: Any) -> Endpoint:
        """`name`, `url`, `event_types`, or whether it is `on`. Raises Refusal 400.

        One that failed too often is tried again; one that its member switched off stays so until it is on.
        """
        if "url" in changes:
            self._check(changes["url"])
        off = endpoint.why_off == SWITCHED_OFF if on is None else not on
        why_off = SWITCHED_OFF if off else ""
        changed = replace(endpoint, **changes, updated_at=self.pool.now(), given_up=0, why_off=why_off)
        await self._keep(changed)
        return changed

    async def rotate(self, endpoint: Endpoint, *, keep_old: bool) -> Endpoint:
        """A new secret; the old one signs beside it for a day, or never again."""
        now = self.pool.now()
        old = (endpoint.secret, now + ROTATION_S) if keep_old else ("", 0.0)
        rotated = replace(
            endpoint, secret=new_secret(), old_secret=old[0], old_secret_until=old[1], updated_at=now
        )
        await self._keep(rotated)
        return rotated

    async def delete(self, endpoint: Endpoint) -> None:
        self.endpoints.pop(endpoint.id, None)
        await self.store.forget_webhook_endpoint(endpoint.id)
        self.versions[endpoint.member] += 1

    async def test(self, endpoint: Endpoint, event_type: EventType) -> target.Answer:
        """Send an example now, once, and say what came back."""
        now = self.pool.now()
        example = Event(
            type=event_type,
            member=endpoint.member,
            subject=f"example/{now}",
            at=now,
            data={"id": "example_123"},
        )
        return await self._try(endpoint, example.id, example.body)

    # -- what happens in the pool ----------------------------------------------------------------

    def tell(self, event: Event) -> None:
        """Something happened. Returns at once."""
        if any(event.type in endpoint.event_types for endpoint in self.of(event.member)):
            self._told.put_nowait(event)
            self._news.set()

    def job_ended(self, job: Job) -> None:
        """For the pool's followers: interactive answers were heard by whoever asked, parts by their whole."""
        if job.stored and job.whole is None and job.kind not in WHOLES and job.state in _JOBS:
            data = {"id": job.id, "kind": job.kind.value, "charge": job.charge}
            self._tell(_JOBS[job.state], job.member, job.id, data)

    def batch_ended(self, batch: Batch) -> None:
        self._tell(_BATCHES[batch.state], batch.member, batch.id, {"id": batch.id})

    def finetune_ended(self, finetune: Finetune) -> None:
        self._tell(_FINETUNES[finetune.state], finetune.member, finetune.id, {"id": finetune.id})

    def received(self, to: Member, amount: int, recorded: Recorded) -> None:
        """Microcredits."""
        data = {"entry": recorded.number, "code": recorded.entry.code.value, "amount": amount}
        self._tell(EventType.BALANCE_RECEIVED, to.id, recorded.entry.id, data)

    def _tell(self, event_type: EventType, member: MemberId, subject: str, data: Mapping[str, Any]) -> None:
        self.tell(Event(type=event_type, member=member, subject=subject, at=self.pool.now(), data=data))

    # -- the main flow ---------------------------------------------------------------------------

    async def load(self) -> None:
        """For the start. What ended while nobody could tell it is told now."""
        self.endpoints = {endpoint.id: endpoint for endpoint in await self.store.webhook_endpoints()}
        since = self.pool.now() - RECALLED_S
        for member in {endpoint.member for endpoint in self.endpoints.values()}:
            for batch in await self.store.batches(member, limit=RECALLED_MAX):
                if batch.ended and max(batch.moments.values(), default=0.0) > since:
                    self.batch_ended(batch)
            for finetune in await self.store.finetunes(member, limit=RECALLED_MAX):
                if finetune.state in _FINETUNES and max(finetune.moments.values(), default=0.0) > since:
                    self.finetune_ended(finetune)
            for job in await self.store.jobs(member=member, limit=RECALLED_MAX):
                if job.ended_at is not None and job.ended_at > since:
                    self.job_ended(job)

    async def run(self) -> None:
        """Until cancelled. What the disk refuses now is done the next time."""
        while True:
            try:
                await self._look_at_balances()
                await self._write_down()
                await self._deliver()
            except StoreError as trouble:
                log.warning("webhooks wait for the disk", action="webhooks_wait", why=str(trouble))
            except Exception:  # a mistake here is no reason to stop a pool
                log.exception("webhooks broke", action="webhooks_broke")
            await self._wait()

    async def sweep(self) -> int:
        """For the chores."""
        return await self.store.sweep_webhook_deliveries(self.pool.now() - KEPT_S)

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(LOOK_S):
                await self._news.wait()
        except TimeoutError:
            pass
        self._news.clear()

    async def _look_at_balances(self) -> None:
        """Whoever has little left is told once, until there is more again."""
        for endpoint in list(self.endpoints.values()):
            if EventType.BALANCE_LOW not in endpoint.event_types:
                continue
            if (low := self._low(endpoint.account)) == endpoint.low:
                continue
            await self._keep(replace(endpoint, low=low))
            if low:
                now, balance = self.pool.now(), self.pool.accounts.balance(endpoint.account)
                event = Event(
                    type=EventType.BALANCE_LOW,
                    member=endpoint.member,
                    subject=f"{endpoint.id}/{now}",
                    at=now,
                    data={name: balance[name] for name in ("balance", "available", "credit_line")},
                )
                await self.store.add_webhook_deliveries([_delivery(event, endpoint)])
                self.versions[endpoint.member] += 1

    async def _write_down(self) -> None:
        while not self._told.empty():
            event = self._told.get_nowait()
            wanted = [e for e in self.of(event.member) if event.type in e.event_types and not e.why_off]
            try:
                await self.store.add_webhook_deliveries(_delivery(event, endpoint) for endpoint in wanted)
            except StoreError:
                self._told.put_nowait(event)
                raise
            self.versions[event.member] += 1

    async def _deliver(self) -> None:
        """All that is due, a few at once, and none that waits for another endpoint's answer."""
        while due := self._due(await self.store.due_webhook_deliveries(AT_ONCE * ENDPOINTS_MAX)):
            await asyncio.gather(*(self._bring(delivery) for delivery in due[:AT_ONCE]))

    def _due(self, pending: Iterable[Delivery]) -> list[Delivery]:
        now = self.pool.now()
        return [delivery for delivery in pending if delivery.next_at <= now]

    async def _bring(self, delivery: Delivery) -> None:
        endpoint = self.endpoints.get(delivery.endpoint)
        if endpoint is None or endpoint.why_off:
            why = "the endpoint was switched off"
            await self.store.put_webhook_delivery(replace(delivery, state=DeliveryState.FAILED, why=why))
            return
        answer = await self._try(endpoint, delivery.event, delivery.body)
        tried = after(delivery, answer.status, answer.why, self.pool.now())
        await self.store.put_webhook_delivery(tried)
        self.versions[endpoint.member] += 1
        await self._remember(endpoint.id, tried)
        log.info(
            "webhook",
            action="webhook_tried",
            endpoint=endpoint.id,
            sent=delivery.event,
            state=tried.state.value,
            status=tried.status,
        )

    async def _remember(self, endpoint_id: str, tried: Delivery) -> None:
        """An endpoint that takes nothing for days, or says that it is gone, is switched off."""
        endpoint = self.endpoints.get(endpoint_id)
        if endpoint is None or (tried.state is DeliveryState.PENDING and tried.status != _GONE):
            return
        given_up = 0 if tried.state is DeliveryState.DELIVERED else endpoint.given_up + 1
        why = endpoint.why_off
        if tried.status == _GONE:
            why = "it answered 410: it wants no more"
        elif given_up >= GIVEN_UP_MAX:
            why = f"{given_up} events in a row could not be delivered; the last: {tried.why}"
        if (given_up, why) != (endpoint.given_up, endpoint.why_off):
            await self._keep(replace(endpoint, given_up=given_up, why_off=why))

    async def _try(self, endpoint: Endpoint, event_id: str, body: str) -> target.Answer:
        if self._trusted is None:
            self._trusted = await asyncio.to_thread(ssl.create_default_context)
        now = self.pool.now()
        signed = headers(endpoint.secrets(now), event_id, int(now), body)
        private = self.pool.settings.webhooks_private
        return await self.post(endpoint.url, signed, body, self._trusted, private=private)

    # -- helpers ---------------------------------------------------------------------------------

    async def _keep(self, endpoint: Endpoint) -> None:
        await self.store.put_webhook_endpoint(endpoint)
        self.endpoints[endpoint.id] = endpoint
        self.versions[endpoint.member] += 1

    def _check(self, url: str) -> None:
        try:
            target.check(url, private=self.pool.settings.webhooks_private)
        except target.TargetRefused as refused:
            raise Refusal(400, "invalid_url", f"url: {refused}.", param="url") from None

    def _low(self, account: AccountId) -> bool:
        have = self.pool.accounts.balance(account)
        return bool(have["available"] * 1_000 <= have["credit_line"] * LOW_PERMILLE)


def _delivery(event: Event, endpoint: Endpoint) -> Delivery:
    return Delivery(
        event=event.id,
        endpoint=endpoint.id,
        type=event.type,
        body=event.body,
        created_at=event.at,
        next_at=event.at,
    )
