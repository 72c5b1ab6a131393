"""What the routes about fine-tunes answer, as the OpenAI API has it, with `potluck` beside it."""

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

Seconds = int  # since the epoch
Micro = int  # microcredits


class LoraBody(TypedDict):
    """`parameters` and `learning_rate` once they are numbers."""

    rank: int
    alpha: float | None
    targets: list[str] | None
    parameters: NotRequired[int]
    learning_rate: NotRequired[float]


class FinetuneFacts(TypedDict):
    job: str
    quote: Micro
    charge: Micro | None
    result: str | None
    expires_at: Seconds
    lora: LoraBody
    sequence_tokens: int | None
    examples: int
    tokens_per_epoch: int
    trained_tokens: int
    workers_wanted: int
    steps: int
    steps_done: int
    tokens_per_second: float | None
    workers: list[Any]
    eta_s: float | None
    stage: str | None
    why: str | None
    curve_tail: list[dict[str, Any]]


class FinetuneFault(TypedDict):
    code: str
    message: str
    param: str | None


class FinetuneBody(TypedDict):
    """The numbers of `hyperparameters` are "auto" until the files have been read."""

    id: str
    object: Literal["fine_tuning.job"]
    created_at: Seconds
    finished_at: Seconds | None
    model: str
    fine_tuned_model: str | None
    organization_id: str
    status: str
    training_file: str
    validation_file: str | None
    hyperparameters: dict[str, int | float | str]
    method: dict[str, Any]
    result_files: list[str]
    trained_tokens: int | None
    error: FinetuneFault | None
    seed: int
    estimated_finish: Seconds | None
    integrations: list[Any]
    metadata: dict[str, str] | None
    potluck: FinetuneFacts


class FinetuneQuote(TypedDict):
    """What a dry run answers: what is in the files, and the most that it can cost."""

    object: Literal["fine_tuning.quote"]
    model: str
    quote: Micro
    examples: int
    cut: int
    longest: int
    tokens_per_epoch: int
    tokens: int
    exact: bool
    epochs: int
    steps: int
    sequence_tokens: int
    validation_examples: int
    validation_cut: int
    method: str
    hyperparameters: dict[str, int | float | str]
    lora: LoraBody
    workers: int


class FinetuneEvent(TypedDict):
    id: str
    object: Literal["fine_tuning.job.event"]
    created_at: Seconds
    level: str
    message: str
    type: str
    data: dict[str, Any] | None


class FinetuneCheckpoint(TypedDict):
    id: str
    object: Literal["fine_tuning.job.checkpoint"]
    created_at: Seconds
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    metrics: dict[str, Any]
    step_number: int
