"""Fine-tunes, their events and checkpoints as JSON: the OpenAI API's objects with the pool's facts."""

from typing import Any, Final

from coordinator.finetunes.check import Checked
from coordinator.finetunes.ending import checkpoint_name
from coordinator.finetunes.finetune import Checkpoint, Event, Finetune, FinetuneState
from coordinator.finetunes.plan import Plan, Wanted
from coordinator.finetunes.progress import Progress
from potluck import pricing

METHODS: Final = {"sft": "supervised", pricing.DPO: "dpo"}  # the OpenAI API's names


def job_body(finetune: Finetune, progress: Progress, organization: str) -> dict[str, Any]:
    """The OpenAI API's FineTuningJob, times in seconds; amounts under `potluck` in microcredits."""
    moments, fault = finetune.moments, finetune.fault
    finished = moments.get(finetune.state.value) if finetune.ended else None
    hyperparameters = _hyperparameters(finetune.wanted, finetune.plan)
    method = METHODS[finetune.wanted.method]
    done = finetune.state is FinetuneState.SUCCEEDED
    return {
        "id": finetune.id,
        "object": "fine_tuning.job",
        "created_at": int(finetune.created_at),
        "finished_at": None if finished is None else int(finished),
        "model": finetune.model,
        "fine_tuned_model": finetune.result if done else None,
        "organization_id": organization,
        "status": finetune.state.value,
        "training_file": finetune.training.file,
        "validation_file": None if finetune.validation is None else finetune.validation.file,
        "hyperparameters": {k: v for k, v in hyperparameters.items() if k != "beta"},
        "method": {"type": method, method: {"hyperparameters": hyperparameters}},
        "result_files": list(finetune.result_files),
        "trained_tokens": finetune.trained_tokens if finetune.ended else None,
        "error": None
        if fault is None
        else {"code": fault.code, "message": fault.message, "param": fault.param},
        "seed": finetune.wanted.seed,
        "estimated_finish": progress.estimated_finish,
        "integrations": [],
        "metadata": dict(finetune.metadata) or None,
        "potluck": _facts(finetune, progress),
    }


def _facts(finetune: Finetune, progress: Progress) -> dict[str, Any]:
    plan = finetune.plan
    return {
        "job": finetune.job,
        "quote": finetune.quote,
        "charge": finetune.charge,
        "result": finetune.result,
        "expires_at": int(finetune.expires_at),
        "lora": _lora(finetune.wanted, plan),
        "sequence_tokens": finetune.wanted.sequence_tokens if plan is None else plan.sequence_tokens,
        "examples": 0 if plan is None else plan.examples,
        "tokens_per_epoch": 0 if plan is None else plan.tokens,
        "trained_tokens": finetune.trained_tokens,
        "workers_wanted": finetune.wanted.workers,
        "steps": 0 if plan is None else plan.steps,
        "steps_done": progress.steps_done,
        "tokens_per_second": progress.tokens_per_second,
        "workers": list(progress.workers),
        "eta_s": progress.eta_s,
        "stage": progress.stage,
        "why": progress.why,
        "curve_tail": [dict(point) for point in progress.curve_tail],
    }


def _lora(wanted: Wanted, plan: Plan | None) -> dict[str, Any]:
    if plan is None:
        return {"rank": wanted.rank, "alpha": wanted.alpha, "targets": list(wanted.targets) or None}
    return {
        "rank": plan.rank,
        "alpha": plan.alpha,
        "targets": list(plan.targets),
        "parameters": plan.parameters,
        "learning_rate": plan.learning_rate,
    }


def _hyperparameters(wanted: Wanted, plan: Plan | None) -> dict[str, Any]:
    """As numbers once they are; "auto" before."""
    source = wanted if plan is None else plan
    named = {
        "n_epochs": source.epochs,
        "batch_size": source.batch_size,
        "learning_rate_multiplier": source.multiplier,
    }
    if wanted.method == pricing.DPO:
        named["beta"] = source.beta
    return {name: "auto" if value is None else value for name, value in named.items()}


def quote_body(checked: Checked, model: str) -> dict[str, Any]:
    """What `dry_run` answers: what is in the files, what becomes of "auto", and the most it can cost."""
    plan, validation = checked.plan, checked.validation
    wanted = Wanted(method=plan.method, seed=plan.seed)
    return {
        "object": "fine_tuning.quote",
        "model": model,
        "quote": checked.worst,
        "examples": plan.examples,
        "cut": checked.cut,
        "longest": checked.training.longest,
        "tokens_per_epoch": plan.tokens,
        "tokens": plan.tokens * plan.epochs,
        "exact": checked.training.exact,
        "epochs": plan.epochs,
        "steps": plan.steps,
        "sequence_tokens": plan.sequence_tokens,
        "validation_examples": plan.validation,
        "validation_cut": 0 if validation is None else validation.cut(plan.sequence_tokens),
        "method": METHODS[plan.method],
        "hyperparameters": _hyperparameters(wanted, plan),
        "lora": _lora(wanted, plan),
        "workers": plan.workers,
    }


def event_body(finetune_id: str, event: Event) -> dict[str, Any]:
    return {
        "id": event_id(finetune_id, event.number),
        "object": "fine_tuning.job.event",
        "created_at": int(event.at),
        "level": event.level,
        "message": event.message,
        "type": event.kind,
        "data": None if event.data is None else dict(event.data),
    }


def event_id(finetune_id: str, number: int) -> str:
    return f"ftevent-{finetune_id.removeprefix('ftjob-')}-{number}"


def event_number(finetune_id: str, text: str) -> int | None:
    """Of an event's id; None if it is none of that fine-tune."""
    head, _, number = text.rpartition("-")
    fits = head == event_id(finetune_id, 0).rpartition("-")[0]
    return int(number) if fits and number.isascii() and number.isdecimal() and len(number) < 10 else None


def checkpoint_body(finetune: Finetune, checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "id": checkpoint_id(finetune.id, checkpoint.number),
        "object": "fine_tuning.job.checkpoint",
        "created_at": int(checkpoint.at),
        "fine_tuned_model_checkpoint": checkpoint_name(finetune, checkpoint),
        "fine_tuning_job_id": finetune.id,
        "metrics": dict(checkpoint.metrics),
        "step_number": checkpoint.step,
    }


def checkpoint_id(finetune_id: str, number: int) -> str:
    return f"ftckpt-{finetune_id.removeprefix('ftjob-')}-{number}"
