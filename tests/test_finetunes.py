"""Fine-tunes through the official client: what is asked for, what it would cost, and what is refused, by name."""

import asyncio
import json
from typing import Any

import openai
import pytest
from fixtures_api import MODEL, Stand, error_of, open_stand
from fixtures_sessions import House
from openai.types.fine_tuning import FineTuningJob

JOBS = "/v1/fine_tuning/jobs"


def chat(number: int, words: int = 3) -> dict[str, Any]:
    asked = " ".join(["word"] * words)
    return {
        "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": f"answer {number}"}]
    }


def pair(number: int) -> dict[str, Any]:
    answers = {
        "preferred_output": [{"role": "assistant", "content": f"yes {number}"}],
        "non_preferred_output": [{"role": "assistant", "content": "no"}],
    }
    return {"input": {"messages": [{"role": "user", "content": "well?"}]}, **answers}


def text(lines: list[Any]) -> bytes:
    return "".join(json.dumps(one) + "\n" for one in lines).encode()


EXAMPLES = text([chat(n) for n in range(12)])


async def uploaded(
    stand: Stand, data: bytes = EXAMPLES, by: str = "alice", purpose: Any = "fine-tune"
) -> str:
    file = await stand.openai(by).files.create(file=("examples.jsonl", data), purpose=purpose)
    return file.id


async def made(stand: Stand, **more: Any) -> FineTuningJob:
    wanted = {"model": MODEL, **more}
    if "training_file" not in wanted:
        wanted["training_file"] = await uploaded(stand)
    return await stand.openai().fine_tuning.jobs.create(**wanted)


async def until(stand: Stand, job: FineTuningJob, *states: str, by: str = "alice") -> FineTuningJob:
    async with asyncio.timeout(30):
        while job.status not in states:
            job = await stand.openai(by).fine_tuning.jobs.retrieve(job.id)
    return job


def facts(job: FineTuningJob) -> dict[str, Any]:
    found: dict[str, Any] = (job.model_extra or {})["potluck"]
    return found


@pytest.mark.usefixtures("on_both")
async def test_auto_becomes_numbers_and_the_worst_case_is_set_aside(stand: Stand) -> None:
    job = await made(stand, suffix="supper", metadata={"what": "supper"}, seed=7)
    assert job.id.startswith("ftjob-")
    assert job.status == "validating_files"
    assert job.hyperparameters.n_epochs == "auto"
    job = await until(stand, job, "queued", "running")
    numbers = job.hyperparameters.model_dump()
    assert numbers == {"n_epochs": 9, "batch_size": 1, "learning_rate_multiplier": 1.0}
    assert (job.seed, job.metadata, job.fine_tuned_model) == (7, {"what": "supper"}, None)
    assert job.method is not None
    assert job.method.type == "supervised"
    found = facts(job)
    # By words, as the emulator counts: two roles, three words, "answer N".
    assert (found["examples"], found["tokens_per_epoch"], found["steps"]) == (12, 12 * 7, 9 * 12)
    assert found["result"] == f"{MODEL}:ft-supper"
    assert found["lora"]["targets"] == ["q_proj", "v_proj"]
    assert (found["lora"]["rank"], found["lora"]["alpha"]) == (16, 32.0)
    assert stand.available()["reserved"] == found["quote"] > 0
    shown = (await stand.ask("GET", f"/pool/v1/jobs/{found['job']}")).json()
    assert (shown["kind"], shown["finetune"]["id"]) == ("finetune", job.id)
    await stand.openai().fine_tuning.jobs.cancel(job.id)


async def test_a_dry_run_says_what_it_would_cost_and_makes_nothing(stand: Stand) -> None:
    data = text([chat(n, words=200 if n == 3 else 3) for n in range(12)])
    checking = text([chat(n) for n in range(10)])
    body = {
        "model": MODEL,
        "training_file": await uploaded(stand, data),
        "validation_file": await uploaded(stand, checking),
        "hyperparameters": {"n_epochs": 2, "batch_size": 4},
        "potluck": {"dry_run": True, "sequence_tokens": 64, "rank": 4},
    }
    said = (await stand.ask("POST", JOBS, json=body)).raise_for_status().json()
    assert said["object"] == "fine_tuning.quote"
    assert (said["examples"], said["cut"], said["epochs"], said["steps"]) == (12, 1, 2, 6)
    assert said["tokens_per_epoch"] == 11 * 7 + 64
    assert said["tokens"] == 2 * said["tokens_per_epoch"]
    assert (said["validation_examples"], said["exact"]) == (10, True)
    assert said["quote"] > 0
    assert (await stand.ask("GET", JOBS)).json()["data"] == []
    assert stand.available()["reserved"] == 0
    double = {**body, "hyperparameters": {"n_epochs": 4, "batch_size": 4}}
    twice = (await stand.ask("POST", JOBS, json=double)).raise_for_status().json()
    assert (twice["tokens"], twice["quote"] > said["quote"]) == (2 * said["tokens"], True)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"potluck": {"rank": 10_000}}, "potluck.rank"),
        ({"potluck": {"rank": 0}}, "potluck.rank"),
        ({"potluck": {"targets": ["gate"]}}, "potluck.targets"),
        ({"potluck": {"targets": []}}, "potluck.targets"),
        ({"potluck": {"sequence_tokens": 8_193}}, "potluck.sequence_tokens"),
        ({"potluck": {"workers": 65}}, "potluck.workers"),
        ({"potluck": {"warmup": 5}}, "potluck.warmup"),
        ({"potluck": {"learning_rate": 1.0}}, "potluck.learning_rate"),
        ({"hyperparameters": {"dropout": 0.1}}, "hyperparameters.dropout"),
        ({"hyperparameters": {"n_epochs": 51}}, "hyperparameters.n_epochs"),
        ({"hyperparameters": {"n_epochs": "many"}}, "hyperparameters.n_epochs"),
        (
            {"hyperparameters": {"learning_rate_multiplier": 1e-320}},
            "hyperparameters.learning_rate_multiplier",
        ),
        ({"potluck": {"learning_rate": 1e-300}}, "potluck.learning_rate"),
        ({"potluck": {"alpha": 1e-300}}, "potluck.alpha"),
        (
            {"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 1e-300}}}},
            "method.dpo.hyperparameters.beta",
        ),
        ({"hyperparameters": {"batch_size": 0}}, "hyperparameters.batch_size"),
        ({"hyperparameters": {}, "method": {"type": "supervised"}}, "hyperparameters"),
        ({"method": {"type": "reinforcement"}}, "method.type"),
        ({"method": {"type": "supervised", "dpo": {}}}, "method.dpo"),
        ({"suffix": "Not This"}, "suffix"),
        ({"suffix": "x" * 41}, "suffix"),
        ({"seed": -1}, "seed"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "x"}}]}, "integrations"),
        ({"n_epochs": 3}, "n_epochs"),
        ({"metadata": {"k": 5}}, "metadata.k"),
        ({"training_file": "file-none"}, "training_file"),
        ({"validation_file": "file-none"}, "validation_file"),
        ({"model": "nobody-has-it"}, "model"),
    ],
)
async def test_senseless_requests_are_refused_by_name(
    stand: Stand, change: dict[str, Any], param: str
) -> None:
    body = {"model": MODEL, "training_file": await uploaded(stand)}
    response = await stand.ask("POST", JOBS, json={**body, **change})
    assert response.status_code in (400, 404), response.text
    assert (error_of(response)["param"] or "").startswith(param)
    assert stand.available()["reserved"] == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs: input should be greater than or"),
        ({"hyperparameters": {"n_epochs": 51}}, "hyperparameters.n_epochs: input should be less than or"),
        ({"hyperparameters": {"n_epochs": 1e308}}, "hyperparameters.n_epochs: an integer"),
        ({"hyperparameters": {"n_epochs": "3"}}, 'hyperparameters.n_epochs: a number or "auto" is needed'),
        (
            {"hyperparameters": {"batch_size": True}},
            'hyperparameters.batch_size: a number or "auto" is needed',
        ),
        ({"suffix": "Sunday Roast"}, "suffix: 1 to 40 small letters (a-z), digits and hyphens are needed"),
        ({"suffix": "supper\n"}, "suffix: 1 to 40 small letters (a-z), digits and hyphens are needed"),
    ],
)
async def test_what_is_wrong_with_a_value_is_said_in_words(
    stand: Stand, change: dict[str, Any], said: str
) -> None:
    body = {"model": MODEL, "training_file": await uploaded(stand)}
    assert error_of(await stand.ask("POST", JOBS, json={**body, **change}))["message"].startswith(said)


@pytest.mark.parametrize(
    ("data", "line", "said"),
    [
        (text([chat(n) for n in range(6)]) + b'{"messages": [\n' + EXAMPLES, 7, "not JSON"),
        (
            text([chat(n) for n in range(10)] + [{"messages": [{"role": "user", "content": "x"}]}]),
            11,
            "no turn",
        ),
        (text([chat(n) for n in range(3)]), None, "at least 10 examples"),
    ],
)
async def test_a_file_that_teaches_nothing_is_refused_at_its_upload(
    stand: Stand, data: bytes, line: int | None, said: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=said) as refused:
        await uploaded(stand, data)
    body: Any = refused.value.body
    assert body["potluck"]["problems"][0]["line"] == (line or 0)


async def test_files_must_be_of_the_purpose_and_kind_that_the_method_reads(stand: Stand) -> None:
    pairs, chats = await uploaded(stand, text([pair(n) for n in range(10)])), await uploaded(stand)
    batch = await uploaded(stand, b'{"custom_id": "a"}\n', purpose="batch")
    dpo = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2}}}
    for body, code in (
        ({"training_file": batch}, "wrong_purpose"),
        ({"training_file": pairs}, "wrong_file_kind"),
        ({"training_file": chats, "method": dpo}, "wrong_file_kind"),
        ({"training_file": chats, "validation_file": pairs}, "wrong_file_kind"),
        ({"training_file": chats, "validation_file": chats}, "invalid_value"),
    ):
        response = await stand.ask("POST", JOBS, json={"model": MODEL, **body})
        assert (response.status_code, error_of(response)["code"]) == (400, code)
    job = await until(stand, await made(stand, training_file=pairs, method=dpo), "queued", "running")
    assert job.method is not None
    assert job.method.dpo is not None
    assert job.method.dpo.hyperparameters is not None
    assert job.method.dpo.hyperparameters.beta == 0.2
    assert facts(job)["tokens_per_epoch"] == 10 * (2 + 3 + 2 + 2)  # both answers, each with what was asked
    await stand.openai().fine_tuning.jobs.cancel(job.id)


async def test_who_cannot_pay_is_told_what_it_costs(stand: Stand) -> None:
    data = text([chat(n, words=2_000) for n in range(400)])
    job = await made(stand, training_file=await uploaded(stand, data), hyperparameters={"n_epochs": 50})
    job = await until(stand, job, "failed")
    assert job.error is not None
    assert job.error.code == "insufficient_credits"
    assert "available" in job.error.message
    assert stand.available()["reserved"] == 0
    events = (await stand.openai().fine_tuning.jobs.list_events(job.id)).data
    assert events[0].level == "error"


async def test_a_model_that_no_worker_trains_is_refused_at_once(house: House) -> None:
    """Its workers serve it, and that is all they do."""
    await house.honest()
    client = house.openai()
    file = await client.files.create(file=("examples.jsonl", EXAMPLES), purpose="fine-tune")
    with pytest.raises(
        openai.BadRequestError, match="the workers that serve emulator-small do no fine-tuning"
    ):
        await client.fine_tuning.jobs.create(model=MODEL, training_file=file.id)


async def test_the_same_idempotency_key_is_the_same_fine_tune(stand: Stand) -> None:
    body = {"model": MODEL, "training_file": await uploaded(stand)}
    headers = {"idempotency-key": "at once"}
    asked = [stand.ask("POST", JOBS, json=body, headers=headers) for _ in range(8)]
    answers = [response.json() for response in await asyncio.gather(*asked)]
    assert len({answer["id"] for answer in answers}) == 1
    assert len({answer["seed"] for answer in answers}) == 1
    response = await stand.ask("POST", JOBS, json={**body, "seed": 3}, headers=headers)
    assert (response.status_code, error_of(response)["code"]) == (409, "idempotency_conflict")
    await stand.openai().fine_tuning.jobs.cancel(answers[0]["id"])


async def test_a_name_is_given_once(stand: Stand) -> None:
    job = await made(stand, suffix="supper")
    with pytest.raises(openai.ConflictError, match=f"{MODEL}:ft-supper is taken"):
        await made(stand, suffix="supper")
    await stand.openai().fine_tuning.jobs.cancel(job.id)
    await until(stand, job, "cancelled")
    again = await made(stand, suffix="supper")
    await stand.openai().fine_tuning.jobs.cancel(again.id)


async def test_others_fine_tunes_are_not_there(stand: Stand) -> None:
    job = await made(stand)
    for act in ("retrieve", "cancel", "pause", "resume"):
        with pytest.raises(openai.NotFoundError):
            await getattr(stand.openai("bob").fine_tuning.jobs, act)(job.id)
    response = await stand.ask(
        "POST", JOBS, by="bob", json={"model": MODEL, "training_file": job.training_file}
    )
    assert (response.status_code, error_of(response)["code"]) == (404, "file_not_found")
    await stand.openai().fine_tuning.jobs.cancel(job.id)


async def test_a_file_stays_while_a_fine_tune_reads_it(stand: Stand) -> None:
    job = await made(stand)
    with pytest.raises(openai.ConflictError, match=f"used by the fine-tune {job.id}"):
        await stand.openai().files.delete(job.training_file)
    await stand.openai().fine_tuning.jobs.cancel(job.id)
    await until(stand, job, "cancelled")
    assert (await stand.openai().files.delete(job.training_file)).deleted


async def test_a_member_has_so_many_open_at_once(stand: Stand) -> None:
    file = await uploaded(stand)
    jobs = [await made(stand, training_file=file) for _ in range(8)]
    with pytest.raises(openai.RateLimitError, match="8 open fine-tunes"):
        await made(stand, training_file=file)
    page = await stand.openai().fine_tuning.jobs.list(limit=5)
    assert [job.id for job in page.data] == [job.id for job in reversed(jobs[3:])]
    rest = await page.get_next_page()
    assert [job.id for job in rest.data] == [job.id for job in reversed(jobs[:3])]
    for job in jobs:
        await stand.openai().fine_tuning.jobs.cancel(job.id)
        await until(stand, job, "cancelled")
    assert stand.available()["reserved"] == 0


async def test_a_frozen_account_begins_nothing(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frozen while its files are read: what it is is asked just before the hold."""
    async with open_stand(tmp_path) as stand:
        hangs, go_on = asyncio.Event(), asyncio.Event()
        really = stand.context.store.member

        async def slowly(member_id: Any) -> Any:
            hangs.set()
            await go_on.wait()
            return await really(member_id)

        with monkeypatch.context() as patched:
            patched.setattr(stand.context.store, "member", slowly)
            job = await made(stand)
            await asyncio.wait_for(hangs.wait(), 30)
        response = await stand.ask(
            "POST", "/pool/v1/members/alice/freeze", by="admin", json={"reason": "a quarrel"}
        )
        assert response.status_code == 200, response.text
        go_on.set()
        job = await until(stand, job, "failed")
        assert job.error is not None
        assert job.error.code == "account_frozen"
        assert stand.available()["reserved"] == 0
