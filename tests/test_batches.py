"""Batches through the official client: lines in, answers out, each once, and what is wrong is said by its line."""

import asyncio
import errno
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import openai
import pytest
from fixtures_api import MODEL, Said, Stand, chat_body, error_of, saying
from openai.types import Batch

from coordinator import artifacts
from coordinator.batches import outputs
from coordinator.batches.batch import BatchState
from coordinator.core.jobs import JobId
from coordinator.core.ledger import Code
from coordinator.store import Store
from coordinator.store_errors import StoreFull
from potluck.v1 import session_pb2, work_pb2

ENDED = {"completed", "failed", "expired", "cancelled"}


def line(number: int, **more: Any) -> dict[str, Any]:
    body = chat_body(max_tokens=8)
    wanted = {"custom_id": f"line-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
    return {**wanted, **more}


def text(lines: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(one) + "\n" for one in lines).encode()


async def uploaded(stand: Stand, data: bytes, by: str = "alice") -> str:
    file = await stand.openai(by).files.create(file=("lines.jsonl", data), purpose="batch")
    return file.id


async def made(stand: Stand, lines: list[dict[str, Any]], **more: Any) -> Batch:
    wanted = {"endpoint": "/v1/chat/completions", "completion_window": "24h", **more}
    return await stand.openai().batches.create(input_file_id=await uploaded(stand, text(lines)), **wanted)


async def ended(stand: Stand, batch: Batch) -> Batch:
    async with asyncio.timeout(30):
        while batch.status not in ENDED:
            batch = await stand.openai().batches.retrieve(batch.id)
    return batch


async def lines_of(stand: Stand, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    content = await stand.openai().files.content(file_id)
    return [json.loads(one) for one in content.text.splitlines()]


def failing(word: str) -> Any:
    """Whoever asks with this word gets no answer, and all others one."""

    async def script(assign: session_pb2.Assign) -> AsyncIterator[Said]:
        if assign.work.chat.messages[0].content == word:
            yield work_pb2.Failure(fault=work_pb2.FAULT_JOB, code="no_such_thing", message="it cannot be")
            return
        async for said in saying("Hello", "!")(assign):
            yield said

    return script


async def test_every_line_is_answered_once_and_charged_once(stand: Stand) -> None:
    batch = await made(stand, [line(n) for n in range(5)], metadata={"what": "supper"})
    assert batch.status in {"validating", "in_progress"}
    batch = await ended(stand, batch)
    assert batch.status == "completed"
    assert batch.metadata == {"what": "supper"}
    assert batch.request_counts is not None
    assert batch.request_counts.model_dump() == {"total": 5, "completed": 5, "failed": 0}
    assert batch.error_file_id is None
    answers = await lines_of(stand, batch.output_file_id)
    assert [answer["custom_id"] for answer in answers] == [f"line-{n}" for n in range(5)]
    for answer in answers:
        assert answer["error"] is None
        assert answer["response"]["status_code"] == 200
        assert answer["response"]["body"]["choices"][0]["message"]["content"] == "Hello wörld 🎉!"
    assert len(stand.bench.assigned) == 5
    job_id = (batch.model_extra or {})["potluck"]["job_id"]
    whole = (await stand.ask("GET", f"/pool/v1/jobs/{job_id}")).json()
    assert (whole["kind"], whole["state"]) == ("batch", "succeeded")
    assert whole["batch"]["id"] == batch.id
    charges = [answer["response"]["body"]["usage"]["potluck"]["charge"] for answer in answers]
    assert whole["charge"] == sum(charges) > 0
    wrote = [answer["response"]["body"]["usage"]["completion_tokens"] for answer in answers]
    assert whole["output_tokens"] == sum(wrote) > 0
    assert (await stand.ask("GET", "/pool/v1/community")).json()["done"]["output_tokens"] == sum(wrote)
    by_minute = await stand.context.store.tokens_by_minute(0.0)
    assert sum(tokens for _, tokens in by_minute) == sum(wrote), "a part's tokens are counted once"
    entries = [r.entry for r in await stand.context.store.recorded() if r.entry.job == job_id]
    assert sorted(entry.id.removeprefix(f"{job_id}/") for entry in entries) == [
        "close", "hold", *(f"settle/{n}" for n in range(1, 6)),
    ]  # fmt: skip
    assert sum(entry.code is Code.SETTLE for entry in entries) == 5
    assert stand.available()["reserved"] == 0
    listed = (await stand.ask("GET", "/pool/v1/jobs")).json()["data"]
    assert [job["id"] for job in listed] == [job_id], "a part is no job of its own in the list"


async def test_a_line_that_fails_is_told_in_the_error_file_and_costs_nothing(stand: Stand) -> None:
    stand.bench.script = failing("boom")
    bad = line(1, body=chat_body(max_tokens=8, messages=[{"role": "user", "content": "boom"}]))
    batch = await ended(stand, await made(stand, [line(0), bad, line(2)]))
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert batch.request_counts.model_dump() == {"total": 3, "completed": 2, "failed": 1}
    (error,) = await lines_of(stand, batch.error_file_id)
    assert error["custom_id"] == "line-1"
    assert error["response"]["status_code"] == 503
    assert error["response"]["body"]["error"]["code"] == "no_such_thing"
    assert len(await lines_of(stand, batch.output_file_id)) == 2


@pytest.mark.parametrize(
    ("data", "code", "at"),
    [
        (b'{"custom_id": \n', "invalid_json", 1),
        (text([line(0), line(0)]), "duplicate_custom_id", 2),
        (text([line(0), line(1, url="/v1/embeddings")]), "mismatched_endpoint", 2),
        (text([line(0, method="GET")]), "invalid_value", 1),
        (text([line(0, custom_id="")]), "invalid_value", 1),
        (text([line(0, body=chat_body(model="nobody-has-it"))]), "model_not_found", 1),
        (text([line(0, body=chat_body(stream=True))]), "unsupported_parameter", 1),
        (text([line(0, body=chat_body(max_tokens=10**6))]), "context_length_exceeded", 1),
        (b"\n\n", "empty_file", None),
        (b"[" * 100_000 + b"\n", "invalid_json", 1),
        (b'{"custom_id": "\xff"}\n', "invalid_json", 1),
    ],
)
async def test_a_file_that_cannot_be_taken_names_the_line(
    stand: Stand, data: bytes, code: str, at: int | None
) -> None:
    """Nothing is done then, and nothing is held."""
    batch = await stand.openai().batches.create(
        input_file_id=await uploaded(stand, data),
        endpoint="/v1/chat/completions",
        completion_window="24h",
    )
    batch = await ended(stand, batch)
    assert batch.status == "failed"
    assert batch.errors is not None
    assert batch.errors.data
    assert (batch.errors.data[0].code, batch.errors.data[0].line) == (code, at)
    assert not stand.bench.assigned
    assert stand.available()["reserved"] == 0


async def test_who_cannot_pay_is_told_what_it_costs(stand: Stand) -> None:
    """Alice's credit line is lower than what so many lines may cost at the most."""
    lines = [line(n, body=chat_body(max_tokens=4_000, n=8)) for n in range(200)]
    batch = await ended(stand, await made(stand, lines))
    assert batch.status == "failed"
    assert batch.errors is not None
    assert batch.errors.data
    (fault,) = batch.errors.data
    assert fault.code == "insufficient_credits"
    assert "available" in (fault.message or "")
    assert stand.available()["reserved"] == 0


async def test_a_cancelled_batch_keeps_what_it_had(stand: Stand) -> None:
    """The first line is answered; the second hangs until the batch is cancelled; the third waits for it."""
    hangs = asyncio.Event()

    async def script(assign: session_pb2.Assign) -> AsyncIterator[Said]:
        if assign.attempt.job_id.endswith(".1"):
            async for said in saying("Hello", "!")(assign):
                yield said
            return
        hangs.set()
        await asyncio.Event().wait()

    stand.bench.script = script
    batch = await made(stand, [line(n) for n in range(3)])
    async with asyncio.timeout(30):
        await hangs.wait()
        while (batch.request_counts or batch).model_dump().get("completed") != 1:
            batch = await stand.openai().batches.retrieve(batch.id)
    cancelling = await stand.openai().batches.cancel(batch.id)
    assert cancelling.status == "cancelling"
    batch = await ended(stand, batch)
    assert batch.status == "cancelled"
    assert [one["custom_id"] for one in await lines_of(stand, batch.output_file_id)] == ["line-0"]
    errors = await lines_of(stand, batch.error_file_id)
    assert {one["error"]["code"] for one in errors} == {"batch_cancelled"}
    assert stand.available()["reserved"] == 0
    with pytest.raises(openai.ConflictError, match="has ended"):
        await stand.openai().batches.cancel(batch.id)


async def test_a_line_that_is_cancelled_by_itself_says_so(stand: Stand) -> None:
    """The others go on, and the batch is no cancelled one."""
    hangs = asyncio.Event()

    async def script(assign: session_pb2.Assign) -> AsyncIterator[Said]:
        if not assign.attempt.job_id.endswith(".2"):
            async for said in saying("Hello", "!")(assign):
                yield said
            return
        hangs.set()
        await asyncio.Event().wait()

    stand.bench.script = script
    batch = await made(stand, [line(n) for n in range(3)])
    async with asyncio.timeout(30):
        await hangs.wait()
    job_id = (batch.model_extra or {})["potluck"]["job_id"]
    answer = await stand.ask("POST", f"/pool/v1/jobs/{job_id}.2/cancel")
    assert answer.json()["cancelled"]
    batch = await ended(stand, batch)
    assert batch.status == "completed"
    (error,) = await lines_of(stand, batch.error_file_id)
    assert (error["custom_id"], error["error"]["code"]) == ("line-1", "line_cancelled")
    assert len(await lines_of(stand, batch.output_file_id)) == 2


async def test_files_that_are_written_down_again_after_a_crash_are_there_once(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator died between the output file and the batch's last state, with the texts still there."""

    async def never(_store: Store, _job: JobId) -> None: ...

    monkeypatch.setattr(Store, "forget_texts", never)
    batch = await ended(stand, await made(stand, [line(0)]))
    kept = await stand.context.store.batch(batch.id)
    assert kept is not None
    await stand.context.store.put_batch(replace(kept, state=BatchState.FINALIZING, output_file=None))
    await stand.context.batches.resume()
    again = await ended(stand, await stand.openai().batches.retrieve(batch.id))
    assert again.output_file_id == batch.output_file_id
    outputs = await stand.openai().files.list(purpose="batch_output")
    assert [file.id for file in outputs.data] == [batch.output_file_id]


async def test_a_file_that_the_disk_does_not_take_is_written_when_it_does(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if what is full is the file: under a `ulimit`, or at the file system's largest size."""
    errors, append = (
        [OSError(errno.EFBIG, "File too large"), OSError(errno.ENOSPC, "No space")],
        artifacts._append,
    )

    def full(*asked: Any) -> None:
        if errors:
            raise errors.pop()
        append(*asked)

    file_id = await uploaded(stand, text([line(0)]))
    monkeypatch.setattr(artifacts, "_append", full)
    batch = await stand.openai().batches.create(
        input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    batch = await ended(stand, batch)
    assert not errors
    assert (batch.status, len(await lines_of(stand, batch.output_file_id))) == ("completed", 1)


async def test_a_batch_that_breaks_on_a_full_disk_has_failed_when_there_is_room(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not to say so would leave it `finalizing` until the next start."""
    put, refusals = Store.put_batch, [StoreFull("full")]

    def bug(*_: Any) -> None:
        raise ZeroDivisionError

    async def full(store: Store, batch: Any) -> None:
        if batch.state is BatchState.FAILED and refusals:
            raise refusals.pop()
        await put(store, batch)

    monkeypatch.setattr(Store, "put_batch", full)
    monkeypatch.setattr(outputs, "in_pieces", bug)
    batch = await ended(stand, await made(stand, [line(0)]))
    assert (batch.status, refusals) == ("failed", [])


async def test_short_lines_that_end_together_are_all_counted(stand: Stand) -> None:
    """What ends in the same tick as the last line is counted before the batch is judged."""
    batches = [await made(stand, [line(n) for n in range(16)]) for _ in range(3)]
    for begun in batches:
        batch = await ended(stand, begun)
        assert batch.status == "completed"
        assert batch.request_counts is not None
        assert batch.request_counts.completed == 16


async def test_whenever_a_batch_is_cancelled_nothing_stays_reserved(stand: Stand) -> None:
    """Right after it was made, and later by more and more turns of the loop: in every state there is."""
    file_id = await uploaded(stand, text([line(0), line(1)]))
    for turns in range(0, 60, 2):
        batch = await stand.openai().batches.create(
            input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        for _ in range(turns):
            await asyncio.sleep(0)
        try:
            cancelled = await stand.openai().batches.cancel(batch.id)
        except openai.ConflictError:
            assert (await ended(stand, batch)).status == "completed"
            continue
        assert cancelled.status in {"cancelling", "cancelled"}
        assert (await ended(stand, batch)).status == "cancelled"
    assert not stand.context.pool.engine.wholes
    assert stand.available()["reserved"] == 0


async def test_one_idempotency_key_at_the_same_moment_is_one_batch(stand: Stand) -> None:
    file_id = await uploaded(stand, text([line(n) for n in range(3)]))
    body = {"input_file_id": file_id, "endpoint": "/v1/chat/completions"}
    headers = {"idempotency-key": "at once"}
    asked = [stand.ask("POST", "/v1/batches", json=body, headers=headers) for _ in range(8)]
    answers = [response.json() for response in await asyncio.gather(*asked)]
    assert len({answer["id"] for answer in answers}) == 1
    batch = await ended(stand, await stand.openai().batches.retrieve(answers[0]["id"]))
    assert batch.status == "completed"
    assert len(stand.bench.assigned) == 3


async def test_a_file_of_windows_and_a_line_without_end(stand: Stand) -> None:
    """A byte order mark and CRLF are no part of the requests; an endless line is refused piece by piece."""
    data = b"\xef\xbb\xbf" + text([line(0), line(1)]).replace(b"\n", b"\r\n")
    file_id = await uploaded(stand, data)
    batch = await stand.openai().batches.create(
        input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    assert (await ended(stand, batch)).status == "completed"
    file_id = await uploaded(stand, b"[" * (stand.context.settings.body_bytes_max + 9))
    batch = await stand.openai().batches.create(
        input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    batch = await ended(stand, batch)
    assert batch.errors is not None
    assert batch.errors.data
    assert (batch.errors.data[0].code, batch.errors.data[0].line) == ("line_too_large", 1)


async def test_lines_for_own_workers_set_nothing_aside(stand: Stand) -> None:
    """Bob owns the worker: his lines are done by it, and cost nothing."""
    mine = line(0, body=chat_body(max_tokens=8, potluck={"workers": "mine"}))
    file_id = await uploaded(stand, text([mine]), by="bob")
    batch = await stand.openai("bob").batches.create(
        input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    async with asyncio.timeout(30):
        while batch.status not in ENDED:
            batch = await stand.openai("bob").batches.retrieve(batch.id)
    assert batch.status == "completed"
    job_id = (batch.model_extra or {})["potluck"]["job_id"]
    whole = (await stand.ask("GET", f"/pool/v1/jobs/{job_id}", by="bob")).json()
    assert (whole["quote"], whole["charge"]) == (0, 0)


async def test_a_frozen_account_begins_no_batch(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen while its lines are checked: what it is is asked just before the hold."""
    file_id = await uploaded(stand, text([line(0)]))
    hangs, go_on = asyncio.Event(), asyncio.Event()
    really = stand.context.store.member

    async def slowly(member_id: Any) -> Any:
        hangs.set()
        await go_on.wait()
        return await really(member_id)

    with monkeypatch.context() as patched:
        patched.setattr(stand.context.store, "member", slowly)
        batch = await stand.openai().batches.create(
            input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        await asyncio.wait_for(hangs.wait(), 30)
    response = await stand.ask(
        "POST", "/pool/v1/members/alice/freeze", by="admin", json={"reason": "a quarrel"}
    )
    assert response.status_code == 200, response.text
    go_on.set()
    batch = await ended(stand, batch)
    assert batch.errors is not None
    assert batch.errors.data
    assert [fault.code for fault in batch.errors.data] == ["account_frozen"]
    assert stand.available()["reserved"] == 0


async def test_others_batches_are_not_there(stand: Stand) -> None:
    batch = await ended(stand, await made(stand, [line(0)]))
    with pytest.raises(openai.NotFoundError):
        await stand.openai("bob").batches.retrieve(batch.id)
    response = await stand.ask(
        "POST",
        "/v1/batches",
        by="bob",
        json={"input_file_id": batch.input_file_id, "endpoint": "/v1/chat/completions"},
    )
    assert (response.status_code, error_of(response)["code"]) == (404, "file_not_found")


async def test_the_parts_of_a_batch_are_listed_the_last_first(stand: Stand) -> None:
    """In pages; each names its whole, and together they cost what it does. Others' are not there."""
    batch = await ended(stand, await made(stand, [line(n) for n in range(3)]))
    job_id = (batch.model_extra or {})["potluck"]["job_id"]
    path = f"/pool/v1/jobs/{job_id}/parts"
    first = (await stand.ask("GET", path, params={"limit": 2})).json()
    assert ([part["part"] for part in first["data"]], first["has_more"]) == ([3, 2], True)
    rest = (await stand.ask("GET", path, params={"before": 2})).json()
    assert ([part["id"] for part in rest["data"]], rest["has_more"]) == ([f"{job_id}.1"], False)
    parts = [*first["data"], *rest["data"]]
    assert {part["whole"] for part in parts} == {job_id}
    whole = (await stand.ask("GET", f"/pool/v1/jobs/{job_id}")).json()
    assert sum(part["charge"] for part in parts) == whole["charge"] > 0
    assert (await stand.ask("GET", path, by="bob")).status_code == 404
    wrong = await stand.ask("GET", path, params={"before": "x"})
    assert (wrong.status_code, error_of(wrong)["param"]) == (400, "before")


async def test_the_same_idempotency_key_is_the_same_batch(stand: Stand) -> None:
    body = {
        "input_file_id": await uploaded(stand, text([line(0)])),
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
    headers = {"idempotency-key": "once"}
    first = (await stand.ask("POST", "/v1/batches", json=body, headers=headers)).json()
    again = (await stand.ask("POST", "/v1/batches", json=body, headers=headers)).json()
    assert first["id"] == again["id"]
    await ended(stand, await stand.openai().batches.retrieve(first["id"]))
    other = {**body, "endpoint": "/v1/completions"}
    response = await stand.ask("POST", "/v1/batches", json=other, headers=headers)
    assert (response.status_code, error_of(response)["code"]) == (409, "idempotency_conflict")
    assert len(stand.bench.assigned) == 1


async def test_embeddings_and_completions_have_batches_too(stand: Stand) -> None:
    wanted = {"custom_id": "e", "method": "POST", "url": "/v1/embeddings"}
    batch = await made(
        stand, [{**wanted, "body": {"model": MODEL, "input": ["a", "b"]}}], endpoint="/v1/embeddings"
    )
    batch = await ended(stand, batch)
    (answer,) = await lines_of(stand, batch.output_file_id)
    assert [item["index"] for item in answer["response"]["body"]["data"]] == [0, 1]
    wanted = {"custom_id": "c", "method": "POST", "url": "/v1/completions"}
    asked = {"model": MODEL, "prompt": "once", "max_tokens": 8}
    batch = await ended(stand, await made(stand, [{**wanted, "body": asked}], endpoint="/v1/completions"))
    (answer,) = await lines_of(stand, batch.output_file_id)
    assert answer["response"]["body"]["choices"][0]["text"] == "Hello wörld 🎉!"


async def test_the_newest_are_listed_first_page_by_page(stand: Stand) -> None:
    batches = [await ended(stand, await made(stand, [line(0)])) for _ in range(3)]
    page = await stand.openai().batches.list(limit=2)
    assert [batch.id for batch in page.data] == [batches[2].id, batches[1].id]
    assert page.has_more
    rest = await page.get_next_page()
    assert [batch.id for batch in rest.data] == [batches[0].id]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"endpoint": "/v1/images"}, "endpoint"),
        ({"completion_window": "1d"}, "completion_window"),
        ({"completion_window": "999h"}, "completion_window"),
        ({"input_file_id": 5}, "input_file_id"),
        ({"metadata": {"k": 5}}, "metadata.k"),
        ({"surprise": 1}, "surprise"),
    ],
)
async def test_senseless_requests_are_refused_by_name(
    stand: Stand, change: dict[str, Any], param: str
) -> None:
    body = {"input_file_id": "file-x", "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    response = await stand.ask("POST", "/v1/batches", json={**body, **change})
    assert response.status_code == 400
    assert error_of(response)["param"] == param
