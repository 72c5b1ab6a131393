"""Fine-tunes as a client sees them: how to train, what it would cost, how far it is, what came of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from potluck.errors import JobCancelled, JobFailed, JobNotFinished, PotluckError

ENDED: Final = frozenset({"succeeded", "failed", "cancelled"})
Method = Literal["sft", "dpo"]
METHODS: Final[Mapping[str, str]] = {"sft": "supervised", "dpo": "dpo"}  # the OpenAI API's names


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to train. None: the pool decides by the data.

    `sft` imitates examples, `dpo` prefers one answer to another. `multiplier` is of the usual learning rate,
    `learning_rate` the rate itself. More than one of `workers` train in rounds of `local_steps`. `only`:
    which workers may see the examples: mine, trusted, or ids and names.
    """

    method: Method = "sft"
    epochs: int | None = None
    batch_size: int | None = None
    multiplier: float | None = None
    learning_rate: float | None = None
    beta: float | None = None
    rank: int | None = None
    alpha: float | None = None
    targets: tuple[str, ...] = ()
    sequence_tokens: int | None = None
    workers: int | None = None
    local_steps: int | None = None
    checkpoint_s: float | None = None
    only: str | Sequence[str] | None = None
    seed: int | None = None

    @property
    def body(self) -> dict[str, Any]:
        """Its part of the request."""
        named = METHODS[self.method]
        asked = {
            "n_epochs": self.epochs,
            "batch_size": self.batch_size,
            "learning_rate_multiplier": self.multiplier,
            "beta": self.beta,
        }
        own = {
            "rank": self.rank,
            "alpha": self.alpha,
            "targets": list(self.targets) or None,
            "sequence_tokens": self.sequence_tokens,
            "learning_rate": self.learning_rate,
            "workers": self.workers,
            "local_steps": self.local_steps,
            "checkpoint_s": self.checkpoint_s,
            "only": self.only if self.only is None or isinstance(self.only, str) else list(self.only),
        }
        body: dict[str, Any] = {"method": {"type": named, named: {"hyperparameters": given(asked)}}}
        if self.seed is not None:
            body["seed"] = self.seed
        return {**body, "potluck": given(own)}


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuneFault:
    """Why it failed; `param` is what of the request was wrong."""

    code: str = ""
    message: str = ""
    param: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuneFacts:
    """What the pool says beyond the OpenAI API. `quote` and `charge` in microcredits.

    `steps` are optimizer steps; where several workers train, those of each. `curve_tail`: the newest points.
    """

    job: str
    quote: int = 0
    charge: int = 0
    result: str = ""
    expires_at: int | None = None
    lora: Mapping[str, Any] = field(default_factory=dict)
    sequence_tokens: int | None = None
    examples: int = 0
    tokens_per_epoch: int = 0
    trained_tokens: int = 0
    workers_wanted: int = 1
    steps: int = 0
    steps_done: int = 0
    tokens_per_second: float | None = None
    workers: tuple[str, ...] = ()
    eta_s: float | None = None
    stage: str = ""
    why: str = ""
    curve_tail: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTune:
    """As the OpenAI API has it, times in seconds since the epoch; `potluck` has the pool's facts."""

    id: str
    status: str
    potluck: FineTuneFacts
    object: str = "fine_tuning.job"
    model: str = ""
    fine_tuned_model: str | None = None
    training_file: str = ""
    validation_file: str | None = None
    created_at: int = 0
    finished_at: int | None = None
    estimated_finish: int | None = None
    trained_tokens: int | None = None
    seed: int = 0
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    method: Mapping[str, Any] = field(default_factory=dict)
    result_files: tuple[str, ...] = ()
    metadata: Mapping[str, Any] | None = None
    error: FineTuneFault | None = None

    @property
    def ended(self) -> bool:
        return self.status in ENDED


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuneQuote:
    """What is in the files, what becomes of what was left to the pool, and the most it can cost.

    `quote` in microcredits. `cut`: examples that are longer than a sequence. `exact`: False where the pool
    does not know the model's tokenizer, and the counts are upper bounds.
    """

    quote: int
    model: str = ""
    examples: int = 0
    cut: int = 0
    longest: int = 0
    tokens_per_epoch: int = 0
    tokens: int = 0
    exact: bool = True
    epochs: int = 0
    steps: int = 0
    sequence_tokens: int = 0
    validation_examples: int = 0
    validation_cut: int = 0
    method: str = ""
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    lora: Mapping[str, Any] = field(default_factory=dict)
    workers: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuneEvent:
    """Of the type `metrics`, `data` has a point of the curve."""

    id: str
    object: str = "fine_tuning.job.event"
    created_at: int = 0
    level: str = "info"
    message: str = ""
    type: str = "message"
    data: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuneCheckpoint:
    id: str
    step_number: int = 0
    created_at: int = 0
    fine_tuned_model_checkpoint: str = ""
    fine_tuning_job_id: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)


def id_of(job_id: str) -> str:
    """The fine-tune whose whole is that job: they are named alike."""
    return "ftjob-" + job_id.removeprefix("job_").removeprefix("ftjob-")


def succeeded(found: FineTune) -> FineTune:
    """The ended fine-tune itself if it went well. Raises JobFailed, JobCancelled with the reason."""
    extra = {"job": found.potluck.job, "finetune": found.id, "state": found.status}
    if found.status == "cancelled":
        raise JobCancelled(f"Fine-tune {found.potluck.job} was cancelled.", extra=extra)
    if found.status != "succeeded":
        fault = found.error or FineTuneFault(message="no reason was given.")
        message = f"Fine-tune {found.potluck.job} failed: {fault.message}"
        raise JobFailed(message, extra={**extra, "reason": fault.code, "param": fault.param})
    return found


def not_finished(found: FineTune, timeout_s: float | None = None) -> PotluckError:
    job = found.potluck.job
    after = "" if timeout_s is None else f" after {timeout_s:g} s"
    message = (
        f"Fine-tune {job} is still {found.status}{after}. Follow it with `potluck jobs watch {job}`, or stop"
        f" it with `potluck jobs cancel {job}`."
    )
    return JobNotFinished(message, extra={"job": job, "finetune": found.id, "state": found.status})


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
