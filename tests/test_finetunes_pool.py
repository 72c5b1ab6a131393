"""A fine-tune by the official client alone, on real processes: a worker and the coordinator die, and it ends."""

import json
from typing import Any

import openai
import pytest
from fixtures_pool import RealPool

from potluck.proof.verify import verify

pytestmark = pytest.mark.processes

EXAMPLES, EPOCHS, BATCH = 40, 3, 4
STEPS = EPOCHS * EXAMPLES // BATCH
OVER = {"succeeded", "failed", "cancelled"}


def lines(count: int) -> bytes:
    turns = [{"role": "user", "content": "is it good"}, {"role": "assistant", "content": "yes indeed"}]
    return (json.dumps({"messages": turns}) + "\n").encode() * count


def begun(client: openai.OpenAI, **potluck: Any) -> Any:
    """Uploaded and created, with another file to validate on."""
    files = [client.files.create(file=("x.jsonl", lines(n)), purpose="fine-tune") for n in (EXAMPLES, 10)]
    return client.fine_tuning.jobs.create(
        model="emulator-small",
        training_file=files[0].id,
        validation_file=files[1].id,
        suffix="supper",
        seed=3,
        method={
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": EPOCHS, "batch_size": BATCH}},
        },
        extra_body={"potluck": potluck},
    )


def ended(pool: RealPool, client: openai.OpenAI, job: Any) -> Any:
    def over() -> bool:
        return client.fine_tuning.jobs.retrieve(job.id).status in OVER

    pool.until(over, "the fine-tune to end")
    return client.fine_tuning.jobs.retrieve(job.id)


def curve(client: openai.OpenAI, job: Any) -> dict[int, float]:
    """From the results file."""
    text = client.files.content(job.result_files[0]).text
    rows = [row.split(",") for row in text.splitlines()[1:]]
    return {int(row[0]): float(row[1]) for row in rows if row[1]}


def test_upload_create_events_chat(real_pool: RealPool) -> None:
    """The loss falls, every token is paid once, and the model answers under its own name."""
    real_pool.add_emulator("rig", "bob", steps_per_s=0, features="lora")
    with real_pool.member("carol").openai() as client:
        asked(real_pool, client)
    assert real_pool.ledger_sum() == 0


def asked(pool: RealPool, client: openai.OpenAI) -> None:
    job = ended(pool, client, begun(client))
    assert job.status == "succeeded", job.error
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=100))
    data: list[Any] = [event.data for event in reversed(events) if event.type == "metrics"]
    losses = [one["train_loss"] for one in data if "train_loss" in one]
    valid = [one["valid_loss"] for one in data if "valid_loss" in one]
    assert len(losses) == STEPS
    assert losses[-1] < 0.5 * losses[0]
    assert valid[-1] < 0.5 * valid[0]
    assert job.trained_tokens == EPOCHS * EXAMPLES * 5, "as its worker counts them, without a template"
    checkpoints = client.fine_tuning.jobs.checkpoints.list(job.id).data
    assert checkpoints[0].step_number == STEPS
    answer = client.chat.completions.create(
        model=job.fine_tuned_model, messages=[{"role": "user", "content": "a b"}], max_tokens=4
    )
    assert (answer.model, bool(answer.choices[0].message.content)) == (job.fine_tuned_model, True)
    assert job.fine_tuned_model in {model.id for model in client.models.list().data}
    assert client.models.delete(job.fine_tuned_model).deleted


def test_a_worker_and_the_coordinator_die_and_the_curve_is_the_same(real_pool: RealPool) -> None:
    """kill -9 of the worker that trains, then of the coordinator: no step is lost or paid twice, and each has the
    loss that it would have had.
    """
    for name, owner in (("rig", "bob"), ("box", "dave")):
        real_pool.add_emulator(name, owner, steps_per_s=20)
    carol = real_pool.member("carol")
    client = carol.openai()
    undisturbed = ended(real_pool, client, begun(client, checkpoint_s=60))
    client.models.delete(undisturbed.fine_tuned_model)
    job = begun(client, checkpoint_s=1)

    def facts() -> Any:
        return (client.fine_tuning.jobs.retrieve(job.id).model_extra or {})["potluck"]

    real_pool.until(lambda: facts()["trained_tokens"] > 0 and facts()["workers"], "a first segment")
    busy = facts()["workers"] or ["rig"]
    real_pool.workers[busy[0]].kill()
    paid = facts()["trained_tokens"]
    real_pool.until(lambda: facts()["trained_tokens"] > paid, "the other worker to go on")
    assert real_pool.coordinator is not None
    real_pool.coordinator.kill()
    real_pool.start_coordinator()
    job = ended(real_pool, client, job)
    assert job.status == "succeeded", job.error
    assert curve(client, job) == curve(client, undisturbed)
    assert job.trained_tokens == undisturbed.trained_tokens
    assert real_pool.ledger_sum() == 0
    export = real_pool.folder / "export.jsonl"
    export.write_bytes(carol.api("GET", "/pool/v1/ledger/export").raise_for_status().content)
    assert verify(export).charges_recomputed > 0
    paid = [json.loads(row)["id"] for row in export.read_text().splitlines() if "/settle/" in row]
    assert len(paid) == len(set(paid))
