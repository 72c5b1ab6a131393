"""Fine-tunes from their file to their model: settled once, gone on with after whatever happens."""

import asyncio
import csv
import io
import itertools
import json
from typing import Any

import numpy as np
import openai
import pytest
import structlog.testing
from fixtures_api import MODEL, TEXT, Stand, error_of
from fixtures_learner import TOKENS, Learner, Tensors, learner_of
from openai.types.fine_tuning import FineTuningJob
from test_finetunes import EXAMPLES, JOBS, chat, facts, made, pair, text, until, uploaded

from coordinator.artifacts import StoreFull
from coordinator.core import retries
from coordinator.core.fleet import Patience
from coordinator.core.ledger import Code
from coordinator.finetunes import disk, journal
from coordinator.finetunes.curve import Live, Pace
from potluck import deltas, shuffle, tensors
from potluck.v1 import session_pb2, work_pb2

CHECKING = text([chat(n) for n in range(10)])
OVER = ("succeeded", "failed", "cancelled")


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed is tried again without a pause."""
    monkeypatch.setattr(retries, "PAUSE_S", 0.0)


async def settlements(stand: Stand, job: FineTuningJob) -> list[str]:
    """The ids of the entries that paid for parts."""
    name = facts(job)["job"]
    recorded = [record.entry for record in await stand.context.store.recorded()]
    return [entry.id for entry in recorded if entry.job == name and entry.code is Code.SETTLE]


async def messages(stand: Stand, job: FineTuningJob) -> list[str]:
    """Oldest first."""
    events = [e async for e in stand.openai().fine_tuning.jobs.list_events(job.id, limit=100)]
    return [event.message for event in reversed(events)]


async def test_a_chain_of_segments_becomes_a_model(stand: Stand) -> None:
    """Each segment goes on from the one before and is paid once; curve, checkpoints and charge agree."""
    learner = learner_of(stand, steps=7)
    job = await made(
        stand,
        suffix="supper",
        validation_file=await uploaded(stand, CHECKING),
        hyperparameters={"n_epochs": 4, "batch_size": 2},
    )
    job = await until(stand, job, *OVER)
    assert job.status == "succeeded", job.error
    assert job.fine_tuned_model == f"{MODEL}:ft-supper"
    found = facts(job)
    assert (found["steps"], found["steps_done"]) == (24, 24)
    assert job.trained_tokens == 4 * 12 * 7
    works = learner.trained
    assert [work.first_step for work in works] == [0, 7, 14, 21]
    for before, after in itertools.pairwise(works):
        assert before.adapter.sha256 != after.adapter.sha256
        assert after.HasField("state")
    assert not works[0].HasField("state")
    assert len(set(await settlements(stand, job))) == len(learner.seen)
    shown = (await stand.ask("GET", f"/pool/v1/jobs/{found['job']}")).json()
    assert (shown["state"], shown["charge"]) == ("succeeded", found["charge"])
    assert 0 < found["charge"] <= found["quote"]
    assert stand.available()["reserved"] == 0
    events = [e async for e in stand.openai().fine_tuning.jobs.list_events(job.id, limit=20)]
    told: list[Any] = [event.data for event in reversed(events) if event.type == "metrics"]
    assert [data["step"] for data in told if "train_loss" in data] == list(range(1, 25))
    checkpoints = (await stand.openai().fine_tuning.jobs.checkpoints.list(job.id)).data
    assert [one.step_number for one in checkpoints] == [24, 21, 14, 7]
    assert checkpoints[0].metrics.full_valid_loss is not None
    assert checkpoints[0].metrics.train_loss is not None
    content = await stand.openai().files.content(job.result_files[0])
    rows = list(csv.DictReader(io.StringIO(content.text)))
    assert [row["step"] for row in rows if row["train_loss"]] == [str(n) for n in range(1, 25)]
    assert rows[-1]["full_valid_loss"]
    refused = await stand.ask("GET", f"/pool/v1/jobs/{found['job']}/result")
    assert "finetune.result_files" in error_of(refused)["message"]


async def test_the_model_is_asked_and_taken_along_at_once(stand: Stand) -> None:
    """By the official client alone; its folder is what peft reads, with a card."""
    learner = learner_of(stand)
    client = stand.openai()
    job = await until(stand, await made(stand, suffix="supper", seed=5), *OVER)
    assert job.fine_tuned_model is not None
    answer = await client.chat.completions.create(
        model=job.fine_tuned_model, messages=[{"role": "user", "content": "a b c"}], max_tokens=8
    )
    assert (answer.model, answer.choices[0].message.content) == (job.fine_tuned_model, TEXT)
    adapter = stand.bench.assigned[-1].adapter
    store = stand.context.pool.training_store
    assert store.path(adapter.weights_sha256).stat().st_size == adapter.weights_bytes
    files = f"/pool/v1/models/{job.fine_tuned_model}/files"
    config = (await stand.ask("GET", f"{files}/adapter_config.json")).json()
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (16, 32, "LORA")
    card = (await stand.ask("GET", f"{files}/README.md")).text
    head = card.split("---")[1]
    assert f"base_model: {MODEL}" in head
    assert "library_name: peft" in head
    assert "license: apache-2.0" in head
    training = learner.trained[0].examples.sha256
    for fact in (training, "| rig | 1 | 756 |", "| seed | 5 |", "credits for 756 tokens", "| 108 |"):
        assert fact in card
    shared = await stand.ask("POST", f"/pool/v1/models/{job.fine_tuned_model}/share", json={"shared": True})
    assert shared.json()["shared"]
    assert stand.context.tuned.checkpoints
    assert (await client.models.delete(job.fine_tuned_model)).deleted
    assert not stand.context.tuned.digests(), "its checkpoints go with it"


async def test_preference_pairs_are_trained_on_both_answers(stand: Stand) -> None:
    learner = learner_of(stand)
    file = await uploaded(stand, text([pair(n) for n in range(10)]))
    job = await made(stand, training_file=file, method={"type": "dpo"})
    job = await until(stand, job, *OVER)
    assert job.status == "succeeded", job.error
    plan = learner.trained[0].plan
    assert (plan.method, plan.dpo_beta) == ("dpo", 0.1)
    assert plan.learning_rate == pytest.approx(2e-5)


def not_a_number(made: Tensors) -> Tensors:
    return {name: array * float("nan") for name, array in made.items()}


def huge(made: Tensors) -> Tensors:
    return {name: array + 1e6 for name, array in made.items()}


def cut(made: Tensors) -> Tensors:
    return {name: array[:-1] for name, array in made.items()}


def of_another_base(made: Tensors) -> Tensors:
    return {name.replace("layers.", "blocks."): array for name, array in made.items()}


def of_less(made: Tensors) -> Tensors:
    return dict(list(made.items())[1:])


def halved(made: Tensors) -> Tensors:
    return {name: array.astype("<f2") for name, array in made.items()}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (not_a_number, "not all finite"),
        (huge, "at the most"),
        (cut, "is needed"),
        (of_another_base, "no adapter of this model"),
        (of_less, "is missing"),
        (halved, "F32"),
        (lambda made: b"nonsense" * 100, "no adapter of this model"),
        (lambda made: tensors.write(made)[:-9], "no adapter of this model"),
    ],
)
async def test_what_no_training_could_have_made_is_not_taken_and_not_paid(
    stand: Stand, spoil: Any, said: str
) -> None:
    """The worker is blamed, the part is done again under another number, and only that one is paid."""
    learner = learner_of(stand, steps=60, spoil=spoil)

    async def heal(assign: session_pb2.Assign) -> None:
        if len(learner.seen) > 1:
            learner.spoil = lambda made: made

    learner.before = heal
    job = await until(stand, await made(stand), *OVER)
    assert job.status == "succeeded", job.error
    (first, again, *_) = learner.trained
    assert (first.first_step, again.first_step) == (0, 0)
    store, name = stand.context.store, facts(job)["job"]
    parts = await store.parts(name)
    assert [part.state.value for part in parts] == ["failed", "succeeded", "succeeded"]
    attempt = parts[0].attempt
    assert attempt is not None
    assert (said in attempt.why, attempt.paid) == (True, 0), attempt.why
    assert stand.context.pool.engine.fleet.workers[stand.worker].faults == 1
    assert await settlements(stand, job) == [f"{name}/settle/2", f"{name}/settle/3"]
    assert job.trained_tokens == 9 * 12 * 7


async def test_nothing_new_and_what_was_there_before_are_no_training(stand: Stand) -> None:
    """An unchanged adapter, then a copy of an older one, then a state that is none."""
    kept: list[bytes] = []
    learner = learner_of(stand, steps=30)
    store = stand.context.pool.training_store

    def spoil(made: Tensors) -> Tensors | bytes:
        number = len(learner.seen)
        adapter = store.path(learner.seen[-1].work.training.adapter.sha256).read_bytes()
        if number == 1:
            return adapter
        if number == 4:
            return kept[0]
        if number == 2:
            kept.append(adapter)
        return made

    def spoil_state(made: Tensors) -> Tensors:
        return not_a_number(made) if len(learner.seen) == 5 else made

    learner.spoil, learner.spoil_state = spoil, spoil_state
    job = await until(stand, await made(stand), *OVER)
    assert job.status == "succeeded", job.error
    parts = await stand.context.store.parts(facts(job)["job"])
    why = {part.part: part.attempt.why for part in parts if part.attempt and part.state.value == "failed"}
    assert list(why) == [1, 4, 5]
    assert "copy" in why[1]
    assert "copy" in why[4]
    assert "not finite" in why[5]
    assert job.trained_tokens == 9 * 12 * 7


def cut_idle(stand: Stand, short: set[int], **more: Any) -> Learner:
    """Learns from the examples `short` only, a step a segment; of all others the answers are cut away."""
    learner = learner_of(stand, steps=1, **more)
    store = stand.context.pool.training_store

    def idle() -> bool:
        work = learner.seen[-1].work.training
        lines = work.leased or shuffle.examples_of(
            work.plan.seed, work.plan.examples, work.plan.batch_size, work.first_step
        )
        return not short.intersection(lines)

    def spoil(made: Tensors) -> Tensors | bytes:
        work = learner.seen[-1].work.training
        if not idle():
            return made
        if work.delta:
            return {name: np.zeros_like(array) for name, array in made.items()}
        return store.path(work.adapter.sha256).read_bytes()

    def end(trained: work_pb2.Trained) -> work_pb2.Trained:
        if idle():
            trained.tokens = trained.square_tokens = 0
        return trained

    learner.spoil, learner.end = spoil, end
    return learner


def long_ones(count: int, *, short: set[int]) -> bytes:
    examples: list[Any] = [chat(n) for n in range(count)]
    for number, example in enumerate(examples):
        if number not in short:
            example["messages"][0]["content"] = "word " * 40
    return text(examples)


@pytest.mark.parametrize("workers", [1, 2])
async def test_who_had_nothing_to_learn_because_all_was_cut_is_not_blamed(stand: Stand, workers: int) -> None:
    """Where answers begin behind the cut, the adapter stays as it is: that is true, and is paid nothing."""
    short = {0, 1, 2, 3, 4, 5}
    cut_idle(stand, short)
    file = await uploaded(stand, long_ones(12, short=short))
    how = {"n_epochs": 1, "batch_size": 1}
    options = {"sequence_tokens": 16, "workers": workers, "local_steps": 1}
    job = await made(stand, training_file=file, hyperparameters=how, extra_body={"potluck": options})
    job = await until(stand, job, *OVER)
    assert job.status == "succeeded", job.error
    assert job.trained_tokens == len(short) * TOKENS
    assert stand.context.pool.engine.fleet.workers[stand.worker].faults == 0


async def test_where_all_is_cut_away_it_fails_with_what_would_help_and_costs_nothing(stand: Stand) -> None:
    cut_idle(stand, set())
    file = await uploaded(stand, long_ones(12, short=set()))
    job = await made(stand, training_file=file, extra_body={"potluck": {"sequence_tokens": 16}})
    job = await until(stand, job, *OVER)
    assert job.error is not None
    assert (job.status, job.error.code) == ("failed", "nothing_learned")
    assert "more than 16 sequence_tokens" in job.error.message
    assert (facts(job)["charge"], stand.available()["reserved"]) == (0, 0)
    assert stand.context.pool.engine.fleet.workers[stand.worker].faults == 0


async def test_who_says_that_whole_examples_taught_nothing_is_not_believed(stand: Stand) -> None:
    learner = cut_idle(stand, set())

    async def heal(assign: session_pb2.Assign) -> None:
        if len(learner.seen) > 1:
            learner_of(stand)

    learner.before = heal
    job = await until(stand, await made(stand), *OVER)
    parts = await stand.context.store.parts(facts(job)["job"])
    assert parts[0].attempt is not None
    assert "copy" in parts[0].attempt.why


async def test_a_worker_is_paid_by_the_coordinators_count(stand: Stand) -> None:
    """It says ten times as many tokens as the examples of its steps have."""

    def boast(trained: work_pb2.Trained) -> work_pb2.Trained:
        trained.tokens *= 10
        trained.square_tokens *= 10
        return trained

    learner_of(stand, steps=10, end=boast)
    boasting = await until(stand, await made(stand), *OVER)
    learner_of(stand, steps=10)
    honest = await until(stand, await made(stand), *OVER)
    assert boasting.trained_tokens == honest.trained_tokens == 9 * 12 * 7
    assert facts(boasting)["charge"] == facts(honest)["charge"]


async def test_a_loss_that_is_no_number_ends_it_with_the_reason(stand: Stand) -> None:
    """The last good checkpoint is kept, what was trained until then is paid, and there is no model."""
    learner = learner_of(stand, steps=40)

    async def burst(assign: session_pb2.Assign) -> work_pb2.Failure | None:
        if assign.work.training.first_step < 80:
            return None
        said = "the loss of step 81 is not finite"
        return work_pb2.Failure(fault=work_pb2.FAULT_JOB, code="loss_not_finite", message=said)

    learner.before = burst
    job = await until(stand, await made(stand, suffix="supper"), *OVER)
    assert job.status == "failed"
    assert job.error is not None
    assert (job.error.code, "step 81" in job.error.message) == ("loss_not_finite", True)
    assert job.fine_tuned_model is None
    assert len(await settlements(stand, job)) == 2
    checkpoints = (await stand.openai().fine_tuning.jobs.checkpoints.list(job.id)).data
    assert [one.step_number for one in checkpoints] == [80, 40]
    last = checkpoints[0].fine_tuned_model_checkpoint
    assert last == f"{MODEL}:ft-supper.step-80"
    answer = await stand.openai().chat.completions.create(
        model=last, messages=[{"role": "user", "content": "a b c"}], max_tokens=8
    )
    assert answer.model == last
    kept = (await stand.ask("GET", f"/pool/v1/models/{last}/files")).json()
    assert kept[0]["sha256"] in await stand.context.store.checkpoint_digests()
    card = (await stand.ask("GET", f"/pool/v1/models/{last}/files/README.md")).text
    assert "after step 80 of 108" in card
    for method, path in (("DELETE", f"/v1/models/{last}"), ("POST", f"/pool/v1/models/{last}/share")):
        refused = await stand.ask(method, path, json={"shared": True})
        assert (refused.status_code, "goes with its fine-tune" in error_of(refused)["message"]) == (400, True)
    assert len(job.result_files) == 1
    assert stand.available()["reserved"] == 0


async def begun(stand: Stand, **more: Any) -> tuple[FineTuningJob, Learner, asyncio.Event]:
    """One whose second segment hangs until the event is set."""
    hangs, go_on = asyncio.Event(), asyncio.Event()
    stand.context.pool.engine.fleet.patience = Patience(lease_s=600.0)  # it says nothing while it hangs

    async def hang(assign: session_pb2.Assign) -> None:
        if assign.work.training.first_step:
            hangs.set()
            await go_on.wait()

    learner = learner_of(stand, steps=40, before=hang)
    job = await made(stand, **more)
    await asyncio.wait_for(hangs.wait(), 30)
    return job, learner, go_on


async def test_at_the_begin_of_a_segment_it_is_as_fast_as_in_the_one_before(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left is reckoned in steps: workers and coordinator do not count the same tokens."""
    monkeypatch.setattr(Live, "pace", Pace(tokens=70.0, steps=2.0, at=0.0))
    job, _, go_on = await begun(stand)
    job = await until(stand, job, "running")
    found = facts(job)
    assert (found["steps"], found["steps_done"]) == (108, 40)
    assert (found["tokens_per_second"], found["eta_s"]) == (70.0, 34.0)
    paused = facts(await stand.openai().fine_tuning.jobs.pause(job.id))
    assert (paused["tokens_per_second"], paused["eta_s"]) == (None, None)
    go_on.set()


async def test_paused_it_stops_and_resumed_it_goes_on_from_its_checkpoint(stand: Stand) -> None:
    job, learner, go_on = await begun(stand)
    jobs = stand.openai().fine_tuning.jobs
    paused = await jobs.pause(job.id)
    assert str(paused.status) == "paused"
    assert facts(paused)["stage"] == "paused"
    shown = (await stand.ask("GET", f"/pool/v1/jobs/{facts(job)['job']}")).json()
    assert shown["state"] == "paused"
    with pytest.raises(openai.ConflictError, match="it is not queued or running"):
        await jobs.pause(job.id)
    assert len(learner.seen) == 2
    go_on.set()
    resumed = await jobs.resume(job.id)
    assert resumed.status in {"queued", "running"}
    job = await until(stand, job, *OVER)
    assert job.status == "succeeded", job.error
    assert [work.first_step for work in learner.trained] == [0, 40, 40, 80]
    assert job.trained_tokens == 9 * 12 * 7
    assert len(await settlements(stand, job)) == 3
    with pytest.raises(openai.ConflictError, match="has ended: it has succeeded"):
        await jobs.resume(job.id)


async def test_whenever_it_is_cancelled_nothing_stays_reserved(stand: Stand) -> None:
    """Right after it was made, and later by more and more turns of the loop: in every state there is."""
    learner_of(stand, steps=9)
    file, states = await uploaded(stand), set()
    for turns in (*range(0, 60, 4), 100, 200, 400, 800):
        job = await made(stand, training_file=file)
        for _ in range(turns):
            await asyncio.sleep(0)
        try:
            cancelled = await stand.openai().fine_tuning.jobs.cancel(job.id)
        except openai.ConflictError:
            cancelled = await until(stand, job, *OVER)
        states.add(cancelled.status)
        assert cancelled.status in {"cancelled", "succeeded"}
        if cancelled.status == "succeeded":
            await stand.openai().models.delete(cancelled.fine_tuned_model or "")
    assert "cancelled" in states
    assert not stand.context.pool.engine.wholes
    assert stand.available()["reserved"] == 0


async def test_cancelled_while_it_runs_or_is_paused_what_was_trained_stays_paid(stand: Stand) -> None:
    for pause in (False, True):
        job, _, _ = await begun(stand)
        if pause:
            await stand.openai().fine_tuning.jobs.pause(job.id)
        job = await stand.openai().fine_tuning.jobs.cancel(job.id)
        assert job.status == "cancelled"
        assert len(await settlements(stand, job)) == 1
        assert job.trained_tokens == facts(job)["trained_tokens"] == 40 * 7
        assert facts(job)["charge"] > 0
        with pytest.raises(openai.ConflictError, match="has ended"):
            await stand.openai().fine_tuning.jobs.cancel(job.id)
    assert stand.available()["reserved"] == 0


async def test_cancelled_as_a_job_of_the_pool_it_is_cancelled_too(stand: Stand) -> None:
    job, _, _ = await begun(stand)
    answer = await stand.ask("POST", f"/pool/v1/jobs/{facts(job)['job']}/cancel")
    assert answer.json()["cancelled"]
    job = await until(stand, job, *OVER)
    assert job.status == "cancelled"


async def test_a_full_disk_is_waited_for_and_nothing_is_lost(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The adapter that it begins with, a snapshot, the results: each is refused a few times."""
    monkeypatch.setattr(disk, "PAUSE_S", 0.0)
    refusals: dict[str, int] = {}

    def refusing(owner: Any, name: str) -> None:
        really = getattr(owner, name)

        async def sometimes(*arguments: Any, **more: Any) -> Any:
            refusals[name] = refusals.get(name, 0) + 1
            if refusals[name] % 3:
                raise StoreFull("The coordinator's disk is full.")
            return await really(*arguments, **more)

        monkeypatch.setattr(owner, name, sometimes)

    store, training = stand.context.store, await uploaded(stand)
    refusing(stand.context.pool.training_store.artifacts.__class__, "put")
    for name in ("put_finetune_snapshot", "put_finetune_lengths", "add_finetune_events", "add_tuned"):
        refusing(store, name)
    learner_of(stand, steps=40)
    job = await until(stand, await made(stand, training_file=training), *OVER)
    assert job.status == "succeeded", job.error
    assert job.trained_tokens == 9 * 12 * 7
    assert min(refusals.values()) >= 3
    assert len(await settlements(stand, job)) == 3


async def test_events_are_streamed_until_it_ends(stand: Stand) -> None:
    """As they happen, in their order, none twice; who comes later begins behind what is known already."""
    job, _, go_on = await begun(stand)
    headers = {"authorization": f"Bearer {stand.keys['alice']}"}
    url = f"{stand.url}{JOBS}/{job.id}/events?stream=true"
    seen: list[dict[str, Any]] = []
    async with stand.http.stream("GET", url, headers=headers) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                break
            if line.startswith("data: "):
                seen.append(json.loads(line.removeprefix("data: ")))
                if (seen[-1]["data"] or {}).get("step") == 40:
                    go_on.set()
    steps = [event["data"]["step"] for event in seen if event["type"] == "metrics"]
    assert steps == list(range(1, 109))
    assert seen[-1]["message"] == "The job has successfully completed"
    late = await stand.http.get(f"{url}&after={seen[-3]['id']}", headers=headers)
    assert late.text.count("data: {") == 2
    assert late.text.endswith("data: [DONE]\n\n")
    listed = (await stand.ask("GET", f"{JOBS}/{job.id}/events?limit=2&after={seen[-1]['id']}")).json()
    assert [event["id"] for event in listed["data"]] == [seen[-2]["id"], seen[-3]["id"]]
    wrong = await stand.ask("GET", f"{JOBS}/{job.id}/events?after=ftevent-x-1")
    assert (wrong.status_code, error_of(wrong)["param"]) == (400, "after")


async def test_of_events_so_many_are_kept(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "KEPT_MAX", 20)
    learner_of(stand, steps=9)
    job = await until(stand, await made(stand), *OVER)
    said = await messages(stand, job)
    assert len(said) == 20
    assert said[-1] == "The job has successfully completed"
    content = await stand.openai().files.content(job.result_files[0])
    assert len(content.text.splitlines()) == 109, "the curve is whole: it comes from what was paid"


async def test_thousands_of_events_are_listed_page_by_page(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.api.finetunes.EVENTS_MAX", 40)
    monkeypatch.setattr("coordinator.finetunes.rows.EVENTS_READ_MAX", 40)
    learner_of(stand, steps=60)
    job = await until(stand, await made(stand), *OVER)
    pages = [e async for e in stand.openai().fine_tuning.jobs.list_events(job.id, limit=40)]
    numbers = [int(event.id.rsplit("-", 1)[1]) for event in pages]
    assert numbers == list(range(len(numbers), 0, -1))
    assert len(numbers) > 108


async def test_too_poor_for_others_machines_the_own_ones_train_for_free(stand: Stand) -> None:
    """Bob owns the worker."""
    learner_of(stand)
    data = text([chat(n, words=2_000) for n in range(400)])
    file = await uploaded(stand, data, by="bob")
    client = stand.openai("bob").fine_tuning.jobs
    job = await client.create(model=MODEL, training_file=file, hyperparameters={"n_epochs": 50})
    job = await until(stand, job, *OVER, by="bob")
    assert job.status == "succeeded", job.error
    assert facts(job)["charge"] == 0


async def test_a_frozen_account_trains_no_further_until_it_is_active(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.finetunes.run.LOOK_S", 0.0)
    job, learner, go_on = await begun(stand)
    frozen = await stand.ask(
        "POST", "/pool/v1/members/alice/freeze", by="admin", json={"reason": "a quarrel"}
    )
    assert frozen.status_code == 200, frozen.text
    go_on.set()
    run = stand.context.finetunes.runs[job.id]
    while run.finetune.steps_done < 80 and run.now.steps_done < 80:
        job = await stand.openai().fine_tuning.jobs.retrieve(job.id)
    assert len(learner.seen) == 2
    waiting = facts(await stand.openai().fine_tuning.jobs.retrieve(job.id))
    assert (waiting["stage"], waiting["why"]) == ("waiting", "the account of its member is frozen")
    thawed = await stand.ask("POST", "/pool/v1/members/alice/unfreeze", by="admin", json={"reason": "over"})
    assert thawed.status_code == 200, thawed.text
    job = await until(stand, job, *OVER)
    assert job.status == "succeeded", job.error


async def test_examples_that_are_too_long_are_cut_and_said(stand: Stand) -> None:
    learner = learner_of(stand)
    data = text([chat(n, words=200 if n == 3 else 3) for n in range(12)])
    file = await uploaded(stand, data)
    job = await made(stand, training_file=file, extra_body={"potluck": {"sequence_tokens": 64}})
    job = await until(stand, job, *OVER)
    assert job.status == "succeeded", job.error
    assert "1 examples are longer than 64 tokens and are cut." in await messages(stand, job)
    assert learner.trained[0].plan.sequence_tokens == 64


async def test_the_same_bytes_uploaded_twice_are_one_and_prove_nothing(stand: Stand) -> None:
    first, second = await uploaded(stand), await uploaded(stand)
    assert first != second
    with pytest.raises(openai.BadRequestError, match="would prove nothing"):
        await made(stand, training_file=first, validation_file=second)
    learner_of(stand)
    job = await until(stand, await made(stand, training_file=first), *OVER)
    assert job.status == "succeeded", job.error
    assert (await stand.openai().files.delete(first)).deleted
    assert (await stand.openai().files.content(second)).read() == EXAMPLES


async def in_rounds(stand: Stand, **options: Any) -> FineTuningJob:
    """Three workers' shares of three steps each, side by side, by one that does all of them; what is of no more
    use goes at once.
    """
    stand.context.finetunes.resumed = True
    return await made(
        stand,
        training_file=await uploaded(stand, text([chat(n) for n in range(36)])),
        validation_file=await uploaded(stand, CHECKING),
        hyperparameters={"n_epochs": 2, "batch_size": 2},
        extra_body={"potluck": {"workers": 3, "local_steps": 3, **options}},
    )


async def test_rounds_lease_each_example_once_an_epoch_and_are_put_together(stand: Stand) -> None:
    learner = learner_of(stand)
    job = await until(stand, await in_rounds(stand), *OVER)
    assert job.status == "succeeded", job.error
    shares = learner.trained
    assert all(work.delta and work.leased and not work.HasField("state") for work in shares)
    leased = sorted(line for work in shares for line in work.leased)
    assert leased == sorted([*range(36), *range(36)])
    assert len({work.adapter.sha256 for work in shares}) == 4, "2 rounds an epoch"
    sent = stand.context.pool.training_store.path(shares[0].adapter.sha256).read_bytes()
    assert set(tensors.read(sent)[1].values()) == {"BF16"}
    assert job.trained_tokens == 2 * 36 * TOKENS
    assert len(set(await settlements(stand, job))) == len(learner.seen)
    said = await messages(stand, job)
    assert "Round 4: 3 shares were put together, of rig." in said
    assert stand.available()["reserved"] == 0
    events = [e async for e in stand.openai().fine_tuning.jobs.list_events(job.id, limit=100)]
    steps: list[Any] = [e.data for e in reversed(events) if e.type == "metrics"]
    assert [data["step"] for data in steps if "train_loss" in data] == list(range(1, 13))


async def test_a_round_that_worsens_the_held_out_loss_is_rolled_back(stand: Stand) -> None:
    """The second round's adapter is not gone on from; two in succession end it with the last good one."""
    losses = {1: 2.0, 2: 1.0, 3: 9.0, 4: 9.0}

    def valid_loss(number: int) -> float:
        return losses[-(-number // 3)]  # three workers read it

    learner = learner_of(stand, valid_loss=valid_loss)
    job = await until(stand, await in_rounds(stand), *OVER)
    assert job.status == "failed"
    assert job.error is not None
    assert job.error.code == "diverged"
    adapters = [work.adapter.sha256 for work in learner.trained]
    assert len(set(adapters)) == 2
    assert adapters[3] == adapters[6]
    checkpoints = (await stand.openai().fine_tuning.jobs.checkpoints.list(job.id)).data
    assert [one.metrics.valid_loss for one in checkpoints] == [1.0]


async def test_an_update_that_is_another_ones_copy_does_not_count(stand: Stand) -> None:
    """The same bytes are not taken; nearly the same are left out when the round is put together."""
    firsts: list[Tensors] = []

    def spoil(made: Tensors) -> Tensors:
        firsts.append(made)
        if len(firsts) == 2:
            return firsts[0]
        return {name: array * 1.01 for name, array in firsts[0].items()} if len(firsts) == 3 else made

    learner = learner_of(stand, spoil=spoil)
    job = await until(stand, await in_rounds(stand), *OVER)
    assert job.status == "succeeded", job.error
    parts = await stand.context.store.parts(facts(job)["job"])
    (refused,) = [part for part in parts if part.state.value == "failed"]
    assert "copy" in refused.why
    said = await messages(stand, job)
    assert "Round 1: what rig sent changes the same as another share, and did not count." in said
    assert len(learner.trained) > 12
    assert job.trained_tokens == 2 * 36 * TOKENS


def without_size(made: Tensors) -> bytes:
    """An update whose tensors are as large as no number says."""
    arrays, _ = tensors.read(deltas.encode(made))
    peaks = {name: np.full_like(arrays[name], np.nan) for name in arrays if name.endswith(deltas.PEAK)}
    return tensors.write(arrays | peaks)


def untouched(made: Tensors) -> Tensors:
    return {name: np.zeros_like(array) for name, array in made.items()}


@pytest.mark.parametrize("spoil", [without_size, huge, cut, of_less, untouched])
async def test_updates_that_are_none_are_not_taken_and_their_examples_leased_again(
    stand: Stand, spoil: Any
) -> None:
    learner = learner_of(stand, spoil=spoil)

    async def heal(assign: session_pb2.Assign) -> None:
        if len(learner.trained) > 1:
            learner.spoil = lambda made: made

    learner.before = heal
    job = await until(stand, await in_rounds(stand), *OVER)
    assert job.status == "succeeded", job.error
    first = learner.trained[0]
    assert set(first.leased) <= {line for work in learner.trained[3:6] for line in work.leased}
    assert job.trained_tokens == 2 * 36 * TOKENS


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        (
            "UPDATE jobs SET state = 'running', ended_at = NULL WHERE kind = 'finetune' AND part = 0",
            "is still open",
        ),
        ("UPDATE jobs SET state = 'running', ended_at = NULL WHERE part = 1", "but its whole has ended"),
        ("UPDATE finetunes SET charge = charge - 1", "it says that it cost"),
    ],
)
async def test_the_check_of_the_books_knows_fine_tunes(stand: Stand, statement: str, found: str) -> None:
    learner_of(stand, steps=40)
    await until(stand, await made(stand), *OVER)
    store = stand.context.store
    assert await store.verify() == []
    async with store.writing() as connection:
        await connection.exec_driver_sql(statement)
    assert found in "; ".join(finding.message for finding in await store.verify())


async def test_what_nobody_needs_any_more_goes_at_once_and_all_else_stays(stand: Stand) -> None:
    """States and adapters in between go with the step after them; refused ones are swept; checkpoints, the
    model, and what an open one goes on from stay.
    """
    training, finetunes = stand.context.pool.training_store, stand.context.finetunes
    assert await finetunes.sweep() == 0, "before it has looked at what is open, it touches nothing"
    finetunes.resumed = True
    learner = learner_of(stand, steps=10)
    done = await until(stand, await made(stand), *OVER)
    model = stand.context.tuned.models[done.fine_tuned_model or ""]
    listed = await stand.context.store.finetune_checkpoints(done.id)
    kept = {file.sha256 for file in model.files} | {one.sha256 for one in listed}
    there = set(training.artifacts.names())
    assert kept <= there
    states = {work.state.sha256 for work in learner.trained if work.HasField("state")}
    assert not states & there
    assert len(there - kept) < 20, "cards of checkpoints, and what the last step was for"
    job, learner, go_on = await begun(stand)
    made_lately = training.now
    training.now = lambda: made_lately() + 2 * 3_600
    await finetunes.sweep()
    going_on = learner.trained[-1]
    kept |= {going_on.adapter.sha256, going_on.state.sha256, learner.trained[0].adapter.sha256}
    there = set(training.artifacts.names())
    assert kept <= there
    go_on.set()
    job = await until(stand, job, *OVER)
    assert job.status == "succeeded", job.error


async def test_a_member_has_so_many_models_and_so_many_bytes_of_them(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner_of(stand)
    monkeypatch.setattr("coordinator.tuned.registry.MODELS_MAX", 1)
    await until(stand, await made(stand), *OVER)
    with pytest.raises(openai.PermissionDeniedError, match="may have 1"):
        await made(stand)
    monkeypatch.setattr("coordinator.tuned.registry.MODELS_MAX", 100)
    roomless = stand.context.settings.model_copy(update={"files_bytes_max": 100_000})
    file = await uploaded(stand)
    monkeypatch.setattr(stand.context.pool, "settings", roomless)
    with pytest.raises(openai.PermissionDeniedError, match="more than 100,000 bytes together"):
        await made(stand, training_file=file)


async def test_a_stream_that_a_stopping_coordinator_cuts_off_does_not_say_done(stand: Stand) -> None:
    """Who reads it knows that there is more, and asks again."""
    job, _, _ = await begun(stand)
    headers = {"authorization": f"Bearer {stand.keys['alice']}"}
    url = f"{stand.url}{JOBS}/{job.id}/events?stream=true"
    lines = []
    async with stand.http.stream("GET", url, headers=headers) as response:
        async for line in response.aiter_lines():
            lines.append(line)
            if "Step 40/" in line:
                await stand.context.finetunes.close()
    assert "data: [DONE]" not in lines
    assert len(lines) > 40


async def test_a_bug_in_one_ends_that_one_with_its_parts_paid(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("a bug")

    job, _, _ = await begun(stand)
    monkeypatch.setattr("coordinator.finetunes.driver.Driver.open_waiting", broken)
    with structlog.testing.capture_logs() as logs:  # written for people, the traceback takes minutes
        job = await until(stand, job, *OVER)
    assert "finetune_broke" in {log.get("action") for log in logs}
    assert job.status == "failed"
    assert job.error is not None
    assert job.error.code == "server_error"
    assert len(await settlements(stand, job)) == 1
    assert stand.available()["reserved"] == 0
    assert await stand.context.store.verify() == []


async def test_a_key_for_another_model_trains_nothing(stand: Stand) -> None:
    made_key = (await stand.ask("POST", "/pool/v1/keys", json={"name": "k", "models": ["smollm2"]})).json()
    body = {"model": MODEL, "training_file": await uploaded(stand)}
    refused = await stand.ask("POST", JOBS, by=made_key["key"], json=body)
    assert (refused.status_code, error_of(refused)["code"]) == (403, "model_not_allowed")


async def test_only_some_workers_may_see_the_examples(stand: Stand) -> None:
    """Alice has none of her own and names one that is not there; bob's train for him, for free."""
    for only, why in (("mine", "you have no worker of your own"), (["nobody"], "you named")):
        body = {"model": MODEL, "training_file": await uploaded(stand), "potluck": {"only": only}}
        refused = await stand.ask("POST", JOBS, json=body)
        assert (refused.status_code, why in error_of(refused)["message"]) == (400, True)
    learner_of(stand)
    named = await made(stand, extra_body={"potluck": {"only": ["rig"]}})
    job = await until(stand, named, *OVER)
    assert job.status == "succeeded", job.error
    file = await uploaded(stand, by="bob")
    own = await stand.openai("bob").fine_tuning.jobs.create(
        model=MODEL, training_file=file, extra_body={"potluck": {"only": "mine"}}
    )
    own = await until(stand, own, *OVER, by="bob")
    assert own.status == "succeeded", own.error
    assert (facts(own)["charge"], stand.available("bob")["reserved"]) == (0, 0)
