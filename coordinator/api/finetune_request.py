"""What `POST /v1/fine_tuning/jobs` takes, in the OpenAI API's names and the pool's own."""

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from coordinator.api.requests import Workers
from coordinator.api.schema import Schema, wrong, wrong_type
from coordinator.finetunes import plan
from coordinator.finetunes.plan import Wanted
from coordinator.finetunes.service import Order
from potluck import lora, pricing
from potluck.catalogue import ModelEntry

SEED_MAX: Final = 2**63 - 1
METADATA_MAX: Final = 16
TARGETS_MAX: Final = 16
SUFFIX: Final = "[a-z0-9-]{1,40}"


def _auto(value: Any) -> Any:
    """None leaves it to the pool. A union would say of a number too large that it should be "auto"."""
    if value is None or value == "auto":
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong_type('a number or "auto" is needed')
    return value


def _suffix(value: str) -> str:
    if not re.fullmatch(SUFFIX, value):
        raise wrong("1 to 40 small letters (a-z), digits and hyphens are needed")
    return value


Auto = Literal["auto"]
Epochs = Annotated[int, Field(ge=1, le=plan.EPOCHS_MAX)]
BatchSize = Annotated[int, Field(ge=1, le=plan.BATCH_MAX)]
Multiplier = Annotated[float, Field(ge=plan.MULTIPLIER_MIN, le=plan.MULTIPLIER_MAX)]
Beta = Annotated[float, Field(ge=plan.BETA_MIN, le=plan.BETA_MAX)]
Suffix = Annotated[str, AfterValidator(_suffix), Field(json_schema_extra={"pattern": f"^{SUFFIX}$"})]
FileName = Annotated[str, Field(min_length=1, max_length=64)]
Name = Annotated[str, Field(max_length=64)]
Short = Annotated[str, Field(max_length=512)]


class Hyperparameters(Schema):
    """Each a number or "auto", which is None here."""

    n_epochs: Annotated[
        Epochs | None, BeforeValidator(_auto, json_schema_input_type=Auto | Epochs | None)
    ] = None
    batch_size: Annotated[
        BatchSize | None, BeforeValidator(_auto, json_schema_input_type=Auto | BatchSize | None)
    ] = None
    learning_rate_multiplier: Annotated[
        Multiplier | None, BeforeValidator(_auto, json_schema_input_type=Auto | Multiplier | None)
    ] = None


class DpoHyperparameters(Hyperparameters):
    """`beta`: how much the model is held to what it was."""

    beta: Annotated[Beta | None, BeforeValidator(_auto, json_schema_input_type=Auto | Beta | None)] = None


class Supervised(Schema):
    hyperparameters: Hyperparameters | None = None


class Dpo(Schema):
    hyperparameters: DpoHyperparameters | None = None


class Method(Schema):
    """How it learns: `supervised` imitates, `dpo` prefers one answer to another."""

    type: Literal["supervised", "dpo"]
    supervised: Supervised | None = None
    dpo: Dpo | None = None

    @model_validator(mode="after")
    def _agree(self) -> "Method":
        other = "dpo" if self.type == "supervised" else "supervised"
        if getattr(self, other) is not None:
            raise wrong(f"only with the type {other}", name=other)
        return self

    @property
    def hyperparameters(self) -> Hyperparameters | None:
        chosen = self.supervised if self.type == "supervised" else self.dpo
        return None if chosen is None else chosen.hyperparameters


class TuningOptions(Schema):
    """The pool's own part: LoRA, how many workers, which of them may see the examples, and `dry_run`, which
    only says what it would cost.
    """

    rank: Annotated[int, Field(ge=1, le=lora.RANK_MAX)] | None = None
    alpha: Annotated[float, Field(ge=plan.ALPHA_MIN, le=plan.ALPHA_MAX)] | None = None
    targets: Annotated[list[Name], Field(min_length=1, max_length=TARGETS_MAX)] | None = None
    sequence_tokens: Annotated[int, Field(ge=plan.SEQUENCE_MIN)] | None = None
    learning_rate: Annotated[float, Field(ge=plan.LEARNING_RATE_MIN, le=plan.LEARNING_RATE_MAX)] | None = None
    workers: Annotated[int, Field(ge=1, le=plan.WORKERS_MAX)] | None = None
    local_steps: Annotated[int, Field(ge=1, le=plan.LOCAL_STEPS_MAX)] | None = None
    checkpoint_s: Annotated[float, Field(ge=plan.CHECKPOINT_S_MIN, le=plan.CHECKPOINT_S_MAX)] | None = None
    only: Workers = None
    dry_run: bool = False


class FineTuningRequest(Schema):
    """`suffix`: the model will be called `BASE:ft-SUFFIX`."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    training_file: FileName
    validation_file: FileName | None = None
    hyperparameters: Hyperparameters | None = None
    method: Method | None = None
    suffix: Suffix | None = None
    seed: Annotated[int, Field(ge=0, le=SEED_MAX)] | None = None
    metadata: Annotated[dict[Name, Short], Field(max_length=METADATA_MAX)] | None = None
    potluck: TuningOptions | None = None

    harmless: ClassVar[Mapping[str, tuple[Any, ...]]] = {"integrations": (None, [])}

    @model_validator(mode="after")
    def _agree(self) -> "FineTuningRequest":
        if self.method is not None and self.hyperparameters is not None:
            raise wrong("give them inside method, which is given, too", name="hyperparameters")
        asked = self.asked
        if self.options.learning_rate is not None and asked.learning_rate_multiplier is not None:
            raise wrong("only instead of learning_rate_multiplier", name="potluck.learning_rate")
        return self

    @property
    def options(self) -> TuningOptions:
        return self.potluck or TuningOptions()

    @property
    def asked(self) -> Hyperparameters:
        inside = None if self.method is None else self.method.hyperparameters
        return inside or self.hyperparameters or Hyperparameters()

    def order(self, entry: ModelEntry, draw_seed: Callable[[], int]) -> Order:
        """Of a model that was found. Raises ValueError if a sequence would not fit into its context."""
        options, asked = self.options, self.asked
        if (options.sequence_tokens or 0) > entry.context_tokens:
            raise ValueError(f"{entry.name} has a context of {entry.context_tokens:,} tokens")
        dpo = self.method is not None and self.method.type == "dpo"
        wanted = Wanted(
            method=pricing.DPO if dpo else "sft",
            seed=draw_seed() if self.seed is None else self.seed,
            epochs=asked.n_epochs,
            batch_size=asked.batch_size,
            multiplier=asked.learning_rate_multiplier,
            learning_rate=options.learning_rate,
            beta=asked.beta if isinstance(asked, DpoHyperparameters) else None,
            rank=options.rank or plan.RANK,
            alpha=options.alpha,
            targets=tuple(dict.fromkeys(options.targets or ())),
            sequence_tokens=options.sequence_tokens,
            workers=options.workers or 1,
            local_steps=options.local_steps or plan.LOCAL_STEPS,
            checkpoint_s=options.checkpoint_s,
            only=options.only,
        )
        return Order(
            model=entry.name,
            training_file=self.training_file,
            validation_file=self.validation_file,
            suffix=self.suffix,
            wanted=wanted,
            metadata=self.metadata or {},
        )
