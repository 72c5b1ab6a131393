"""Tuned models: private to their owner or shared, asked like any other model, taken along, deleted."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from fixtures_api import MODEL, TEXT, Said, Stand, chat_body, error_of, saying
from fixtures_sessions import House
from openai.types import Batch

from coordinator.api.context import Context
from coordinator.core.jobs import MemberId
from coordinator.tuned.model import TunedModel, kept
from potluck.v1 import session_pb2

NAME = f"{MODEL}:ft-supper"


async def tuned(context: Context, member: MemberId, name: str = NAME, *, shared: bool = False) -> TunedModel:
    """A model whose files are in the pool's store."""
    stored = [
        await context.pool.training_store.put(f"{part} of {name}".encode())
        for part in ("weights", "config", "card")
    ]
    sizes = [(one.sha256, one.size_bytes) for one in stored]
    model = TunedModel(
        name=name,
        base=MODEL,
        member=member,
        finetune="ftjob-1",
        created_at=1.0,
        shared=shared,
        **kept(*sizes),
    )
    await context.tuned.add(model)
    return model


async def asked(stand: Stand, by: str = "alice", model: str = NAME) -> Any:
    messages: Any = [{"role": "user", "content": "a b c"}]
    return await stand.openai(by).chat.completions.create(model=model, messages=messages, max_tokens=8)


async def until(stand: Stand, batch: Batch, state: str) -> Batch:
    async with asyncio.timeout(30):
        while batch.status != state:
            batch = await stand.openai().batches.retrieve(batch.id)
    return batch


async def test_it_is_asked_by_its_name_and_runs_on_its_base(stand: Stand) -> None:
    model = await tuned(stand.context, stand.members["alice"].id)
    answer = await asked(stand, model=NAME.upper())
    assert (answer.model, answer.choices[0].message.content) == (NAME, TEXT)
    (assign,) = stand.bench.assigned
    assert assign.model == MODEL
    assert (assign.adapter.name, assign.adapter.weights_sha256) == (NAME, model.weights.sha256)
    assert assign.adapter.config_bytes == model.config.bytes
    assert not assign.work.HasField("adapter")
    assert stand.context.pool.named_by(stand.worker) == frozenset()
    completed = await stand.openai().completions.create(model=NAME, prompt="x", max_tokens=8)
    embedded = await stand.openai().embeddings.create(model=NAME, input="x")
    assert (completed.model, embedded.model) == (NAME, NAME)
    assert all(one.adapter.name == NAME for one in stand.bench.assigned)


async def test_it_is_its_owners_until_it_is_shared(stand: Stand) -> None:
    await tuned(stand.context, stand.members["alice"].id)
    await asked(stand)
    names = {model.id for model in (await stand.openai().models.list()).data}
    assert names == {MODEL, "smollm2-135m-instruct", NAME}
    with pytest.raises(openai.NotFoundError):
        await asked(stand, "bob")
    with pytest.raises(openai.NotFoundError):
        await stand.openai("bob").models.retrieve(NAME)
    assert NAME not in {model.id for model in (await stand.openai("bob").models.list()).data}
    files = f"/pool/v1/models/{NAME}/files"
    assert (await stand.ask("GET", files, by="bob")).status_code == 404
    share = f"/pool/v1/models/{NAME}/share"
    assert (await stand.ask("POST", share, by="bob", json={"shared": True})).status_code == 404
    shared = await stand.ask("POST", share, json={"shared": True})
    assert shared.json() == {"name": NAME, "shared": True}
    assert (await asked(stand, "bob")).model == NAME
    found = await stand.openai("bob").models.retrieve(NAME)
    assert (found.owned_by, (found.model_extra or {})["potluck"]["base"]) == ("alice", MODEL)
    rows = (await stand.ask("GET", "/pool/v1/models", by="bob")).json()
    (row,) = [one for one in rows if one["name"] == NAME]
    assert (row["base"], row["member"], row["shared"], row["state"]) == (MODEL, "alice", True, "ready")
    refused = await stand.ask("DELETE", f"/v1/models/{NAME}", by="bob")
    assert (refused.status_code, error_of(refused)["code"]) == (403, "not_your_model")
    await stand.ask("POST", share, json={"shared": False})
    with pytest.raises(openai.NotFoundError):
        await asked(stand, "bob")
    await stand.context.tuned.load()
    assert not stand.context.tuned.models[NAME].shared, "it is so on the disk"


async def test_its_files_are_taken_along_whole_or_in_part(stand: Stand) -> None:
    await tuned(stand.context, stand.members["alice"].id)
    files = f"/pool/v1/models/{NAME}/files"
    listed = (await stand.ask("GET", files)).json()
    assert [one["name"] for one in listed] == [
        "adapter_model.safetensors",
        "adapter_config.json",
        "README.md",
    ]
    for one in listed:
        got = await stand.ask("GET", f"{files}/{one['name']}")
        assert (len(got.content), hashlib.sha256(got.content).hexdigest()) == (one["bytes"], one["sha256"])
        assert got.headers["etag"] == f'"{one["sha256"]}"'
    part = await stand.ask("GET", f"{files}/README.md", headers={"range": "bytes=0-3"})
    assert (part.status_code, part.content) == (206, b"card")
    for path, status in ((f"{files}/secrets", 404), (f"/pool/v1/models/{MODEL}/files", 400)):
        assert (await stand.ask("GET", path)).status_code == status


async def test_what_is_in_use_is_not_deleted(stand: Stand) -> None:
    """A job that runs, a batch that is open; then it is gone, its name is free, and so are its files."""
    model = await tuned(stand.context, stand.members["alice"].id)
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def script(assign: session_pb2.Assign) -> AsyncIterator[Said]:
        begun.set()
        await go_on.wait()
        async for said in saying("Hello", " wörld 🎉", "!")(assign):
            yield said

    stand.bench.script = script
    running = asyncio.create_task(asked(stand))
    await asyncio.wait_for(begun.wait(), 30)
    with pytest.raises(openai.ConflictError, match=f"{NAME} is used by the job job_"):
        await stand.openai().models.delete(NAME)
    assert model.weights.sha256 in stand.context.tuned.digests()
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": chat_body(model=NAME)}
    file = await stand.openai().files.create(file=("a.jsonl", json.dumps(line).encode()), purpose="batch")
    batch = await stand.openai().batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    await until(stand, batch, "in_progress")
    with pytest.raises(openai.ConflictError):
        await stand.openai().models.delete(NAME)
    go_on.set()
    await running
    batch = await until(stand, batch, "completed")
    assert (batch.model_extra or {}).get("model", batch.model) == NAME
    assert batch.output_file_id is not None
    answer = json.loads((await stand.openai().files.content(batch.output_file_id)).text)
    assert answer["response"]["body"]["model"] == NAME
    assert stand.bench.assigned[-1].adapter.name == NAME
    assert (await stand.openai().models.delete(NAME)).deleted
    with pytest.raises(openai.NotFoundError, match="no tuned model"):
        await asked(stand)
    assert not stand.context.tuned.digests()
    assert await stand.context.store.tuned_models() == []


async def test_a_key_for_the_base_is_for_what_was_tuned_from_it(stand: Stand) -> None:
    """And one for a tuned model is for that alone."""
    await tuned(stand.context, stand.members["alice"].id)
    for models, base, own in (([MODEL], 200, 200), ([NAME], 403, 200), (["smollm2"], 403, 403)):
        made = (await stand.ask("POST", "/pool/v1/keys", json={"name": str(models), "models": models})).json()
        for model, status in ((MODEL, base), (NAME, own)):
            response = await stand.ask(
                "POST", "/v1/chat/completions", by=made["key"], json=chat_body(model=model, max_tokens=8)
            )
            assert response.status_code == status, response.text
        listed = (await stand.ask("GET", "/v1/models", by=made["key"])).json()["data"]
        assert (NAME in {one["id"] for one in listed}) == (own == 200)


async def test_a_pool_whose_workers_serve_no_adapters_says_so(house: House) -> None:
    await house.honest()
    await tuned(house.running.context, (await house.get("/pool/v1/me", "alice"))["member"]["id"])
    with pytest.raises(openai.BadRequestError, match="have no support for adapters") as refused:
        await house.ask(model=NAME)
    assert refused.value.code == "no_worker_could_serve"
    await house.settled()
