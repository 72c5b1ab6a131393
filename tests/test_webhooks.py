"""Webhooks: signed so that the official client reads them, tried until they are taken, told once, and never sent to
where only the pool's own machine reaches."""

import asyncio
import contextlib
import threading
from dataclasses import replace
from typing import Any

import openai
import pytest
from fixtures_api import MODEL, Stand, error_of, open_stand
from fixtures_webhooks import Receiver, telling
from hypothesis import given
from hypothesis import strategies as st

from coordinator.core import entries
from coordinator.core.ledger import LINES
from coordinator.webhooks import target
from coordinator.webhooks.endpoint import (
    GIVEN_UP_MAX,
    RETRY_S,
    Delivery,
    DeliveryState,
    EventType,
    after,
    headers,
    new_secret,
)
from coordinator.webhooks.target import TargetRefused, check

NOW = 1_790_000_000.0


async def made(stand: Stand, receiver: Receiver, *types: str, by: str = "alice") -> Any:
    return await stand.openai(by).webhooks.create(name="mine", url=receiver.url, event_types=list(types))  # type: ignore[arg-type]  # ours are more


async def test_a_stored_job_that_ends_is_told_and_the_official_client_reads_it(
    tmp_path: Any, receiver: Receiver
) -> None:
    """Only what was asked for, to nobody else's endpoint; the signature holds, and not for another body."""
    async with telling(tmp_path) as stand:
        endpoint = await made(stand, receiver, "job.succeeded", "batch.completed")
        await made(stand, receiver, "job.succeeded", by="bob")
        (await stand.chat()).raise_for_status()  # heard by whoever asked: no event
        body = {"kind": "chat", "request": {"model": MODEL, "messages": [{"role": "user", "content": "a"}]}}
        job = (await stand.ask("POST", "/pool/v1/jobs", json=body)).raise_for_status().json()["id"]
        await receiver.until(1)
        [(sent, text)] = receiver.got
        event: Any = openai.OpenAI(api_key="x", webhook_secret=endpoint.signing_secret).webhooks.unwrap(
            text, sent
        )
        assert (event.type, event.object, event.data.id) == ("job.succeeded", "event", job)
        with pytest.raises(openai.InvalidWebhookSignatureError):
            openai.OpenAI(api_key="x").webhooks.verify_signature(
                text.replace("job", "bob"), sent, secret=endpoint.signing_secret
            )
        await _tried(stand, endpoint.id, 1)
        listed = (await stand.ask("GET", f"/v1/webhook_endpoints/{endpoint.id}/deliveries")).json()["data"]
        assert [(d["state"], d["attempts"], d["status"]) for d in listed] == [("delivered", 1, 204)]


@pytest.mark.usefixtures("on_both")
async def test_what_is_not_taken_comes_again_and_then_no_more(tmp_path: Any, receiver: Receiver) -> None:
    """A receiver that fails at first hears the same event again under the same id; a redirect is not followed; one
    that says that it is gone is told nothing more, until its address is changed."""
    async with telling(tmp_path) as stand:
        webhooks = stand.context.webhooks
        endpoint = await made(stand, receiver, "balance.received")
        receiver.statuses = [500, 302]
        admin = {"member": "alice", "amount": 5, "reason": "thanks"}

        async def granted() -> None:
            (await stand.ask("POST", "/pool/v1/grants", by="admin", json=admin)).raise_for_status()

        await granted()
        for attempt, pause_s in enumerate(RETRY_S[:3], start=1):
            await receiver.until(attempt)
            await _tried(stand, endpoint.id, attempt)
            _later(stand, pause_s)
        ids = {sent["webhook-id"] for sent, _ in receiver.got}
        assert (len(receiver.got), len(ids)) == (3, 1)
        assert receiver.events()[0]["data"]["amount"] == 5
        receiver.statuses = [410]
        await granted()
        webhooks._news.set()
        await receiver.until(4)
        shown = await _until_off(stand, endpoint.id)
        assert "410" in shown
        await granted()
        changed = await stand.openai().webhooks.update(endpoint.id, url=receiver.url)
        assert changed.model_extra is not None
        assert changed.model_extra["potluck"]["why_off"] is None
        await granted()
        webhooks._news.set()
        await receiver.until(5)


def _later(stand: Stand, seconds: float) -> None:
    """So much later for the pool; the task that delivers looks again."""
    webhooks = stand.context.webhooks
    now = webhooks.pool.now
    webhooks.pool.now = lambda: now() + seconds
    webhooks._news.set()


async def _tried(stand: Stand, endpoint_id: str, attempts: int) -> None:
    """Until the disk knows of so many."""
    async with asyncio.timeout(60):
        while (await stand.context.store.webhook_deliveries(endpoint_id, 1))[0].attempts < attempts:
            await asyncio.to_thread(threading.Event().wait, 0.01)


async def _until_off(stand: Stand, endpoint_id: str) -> str:
    async with asyncio.timeout(60):
        while not (why := stand.context.webhooks.endpoints[endpoint_id].why_off):
            await asyncio.to_thread(threading.Event().wait, 0.01)
    return why


@pytest.mark.usefixtures("on_both")
async def test_little_left_is_told_once_until_there_is_more(tmp_path: Any, receiver: Receiver) -> None:
    async with telling(tmp_path) as stand:
        await made(stand, receiver, "balance.low")
        account, line = stand.members["alice"].account, stand.available()["credit_line"]

        async def change(cause: str, amount: int) -> None:
            await stand.context.pool.accounts.record(entries.line(cause, LINES, account, amount))
            stand.context.webhooks._news.set()

        grant = {"member": "alice", "amount": 1_000, "reason": "a start"}
        (await stand.ask("POST", "/pool/v1/grants", by="admin", json=grant)).raise_for_status()
        owed = {"to": "bob", "amount": 1_000}
        (await stand.ask("POST", "/pool/v1/transfers", json=owed)).raise_for_status()
        assert receiver.got == []
        await change("lin_a", -line)
        await receiver.until(1)
        assert receiver.events()[0]["data"] == {"balance": 0, "available": 0, "credit_line": 0}


async def test_what_ended_unheard_is_told_after_the_start(tmp_path: Any, receiver: Receiver) -> None:
    """As after a crash between a job's end and its telling; what was told before is not told again."""
    async with open_stand(tmp_path, webhooks_private=True) as stand:
        webhooks = stand.context.webhooks
        await made(stand, receiver, "job.succeeded")
        stand.context.pool.followers.remove(webhooks.job_ended)
        body = {"kind": "chat", "request": {"model": MODEL, "messages": [{"role": "user", "content": "a"}]}}
        job = (await stand.ask("POST", "/pool/v1/jobs", json=body)).json()["id"]
        while (await stand.ask("GET", f"/pool/v1/jobs/{job}")).json()["state"] != "succeeded":
            await asyncio.to_thread(threading.Event().wait, 0.01)
        for _ in range(2):
            await webhooks.load()
            await webhooks._write_down()
            await webhooks._deliver()
        assert [event["data"]["id"] for event in receiver.events()] == [job]


@pytest.mark.usefixtures("on_both")
async def test_the_routes_are_those_of_the_official_client(tmp_path: Any, receiver: Receiver) -> None:
    async with telling(tmp_path) as stand:
        client = stand.openai().webhooks
        endpoint = await made(stand, receiver, "batch.completed")
        assert (
            await client.retrieve(endpoint.id)
        ).signing_secret_hint == f"whsec_…{endpoint.signing_secret[-4:]}"
        assert [e.id async for e in client.list()] == [endpoint.id]
        assert "batch.completed" in (await client.event_types.list()).data
        rotated = await client.rotate_secret(endpoint.id, keep_old_secret_active_for_24_hours=True)
        assert rotated.signing_secret != endpoint.signing_secret
        tested = await client.test(endpoint.id, event_type="batch.completed")
        assert (tested.status_code, tested.success) == (204, True)
        [(sent, text)] = receiver.got
        for secret in (endpoint.signing_secret, rotated.signing_secret):  # both sign for a day
            openai.OpenAI(api_key="x").webhooks.verify_signature(text, sent, secret=secret)
        other = await stand.ask("GET", f"/v1/webhook_endpoints/{endpoint.id}", by="bob")
        assert (other.status_code, error_of(other)["code"]) == (404, "webhook_not_found")
        assert (await client.delete(endpoint.id)).deleted
        assert [e.id async for e in client.list()] == []


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/hook",
        "https://127.0.0.1/hook",
        "https://[::1]/",
        "https://10.1.2.3/",
        "https://169.254.169.254/latest/meta-data",
        "https://[fd00::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://0.0.0.0/",
        "https://user:secret@example.org/",
        "https:///path",
        "ftp://example.org/",
        "file:///etc/passwd",
        "https://example.org:99999/",
        "https://exa mple.org/",
        "https://example.org/#x",
        "not a url",
        "",
    ],
)
async def test_an_address_that_only_the_pool_reaches_is_refused(stand: Stand, url: str) -> None:
    body = {"name": "x", "url": url, "event_types": ["batch.completed"]}
    refused = await stand.ask("POST", "/v1/webhook_endpoints", json=body)
    assert refused.status_code == 400, refused.text
    assert error_of(refused)["param"] == "url"


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.8", "::1", "169.254.169.254"])
async def test_a_name_that_leads_inside_is_not_called(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Whatever the name said when the endpoint was made: what counts is where it leads at the moment of the call."""

    async def found(*_: Any, **__: Any) -> list[Any]:
        return [(0, 0, 0, "", ("93.184.216.34", 443)), (0, 0, 0, "", (address, 443))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", found, raising=False)
    context: Any = None
    answer = await target.post("https://rebound.example/", {}, "{}", context, private=False)
    assert (answer.status, "no host of the public internet" in answer.why) == (0, True)


@given(st.text(max_size=80) | st.from_regex(r"https?://[^\s]{0,40}", fullmatch=True))
def test_no_text_is_taken_for_an_address_without_a_host(text: str) -> None:
    with contextlib.suppress(TargetRefused):
        parts = check(text, private=False)
        assert parts.scheme == "https"
        assert parts.hostname


def test_a_delivery_is_tried_for_a_day_and_then_given_up() -> None:
    delivery = Delivery(
        event="evt_1",
        endpoint="whe_1",
        type=EventType.BATCH_COMPLETED,
        body="{}",
        created_at=NOW,
        next_at=NOW,
    )
    now = NOW
    for pause_s in RETRY_S:
        delivery = after(delivery, 503, "it answered 503", now)
        assert (delivery.state, delivery.next_at - now) == (DeliveryState.PENDING, pause_s)
        now = delivery.next_at
    assert 86_400 < now - NOW < 2 * 86_400
    assert after(delivery, 0, "nobody", now).state is DeliveryState.FAILED
    assert after(delivery, 202, "", now).state is DeliveryState.DELIVERED


async def test_one_that_takes_nothing_for_days_is_switched_off(tmp_path: Any, receiver: Receiver) -> None:
    async with open_stand(tmp_path, webhooks_private=True) as stand:
        webhooks = stand.context.webhooks
        endpoint = await made(stand, receiver, "batch.completed")
        for number in range(GIVEN_UP_MAX):
            assert not webhooks.endpoints[endpoint.id].why_off
            given_up = Delivery(
                event=f"evt_{number}",
                endpoint=endpoint.id,
                type=EventType.BATCH_COMPLETED,
                body="{}",
                created_at=NOW,
                next_at=NOW,
                attempts=8,
                state=DeliveryState.FAILED,
                why="it answered 500",
            )
            await webhooks._remember(endpoint.id, given_up)
        assert "5 events in a row" in webhooks.endpoints[endpoint.id].why_off
        assert replace(webhooks.endpoints[endpoint.id], why_off="") != webhooks.endpoints[endpoint.id]


@given(st.text(max_size=200), st.integers(0, 2**40))
def test_signatures_are_those_of_the_specification(body: str, at: int) -> None:
    """Against the official client's own check, for any body."""
    from openai.lib._webhooks import webhook_signature_matches

    secret = new_secret()
    sent = headers([secret], "evt_1", at, body)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.time", lambda: at)
        assert webhook_signature_matches(body, sent, secret=secret, tolerance=300)
