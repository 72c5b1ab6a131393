"""The options that say how to train, and what they mean."""

import math
import re
from pathlib import Path
from typing import Annotated, Final, Literal

import typer

from potluck import training_data
from potluck.cli import asking
from potluck.errors import UsageError
from potluck.finetune import Method

FILE_ID: Final = re.compile(r"file-[a-z0-9]{1,59}")

DataArgument = Annotated[str, typer.Argument(metavar="DATA", help="JSON Lines of examples, or a file's id.")]
ValidationOption = Annotated[
    str | None,
    typer.Option("--validation", metavar="FILE|ID", help="Examples to measure with, not to learn."),
]
MethodOption = Annotated[
    Literal["sft", "dpo"] | None,
    typer.Option("--method", help="Imitate, or prefer; default: as the data is."),
]
EpochsOption = Annotated[
    str | None, typer.Option("--epochs", metavar="N|auto", help="How often each example is seen.")
]
BatchOption = Annotated[
    str | None, typer.Option("--batch-size", metavar="N|auto", help="Examples in a step.")
]
RateOption = Annotated[
    float | None, typer.Option("--learning-rate", metavar="X", help="Like 2e-4; default: the pool's.")
]
BetaOption = Annotated[
    float | None, typer.Option("--beta", metavar="X", help="How much dpo holds to the base; default 0.1.")
]
RankOption = Annotated[int | None, typer.Option("--rank", metavar="N", min=1, help="Of LoRA; default 16.")]
AlphaOption = Annotated[
    float | None, typer.Option("--alpha", metavar="N", help="Of LoRA; default: twice the rank.")
]
SequenceOption = Annotated[
    int | None, typer.Option("--sequence-tokens", metavar="N", min=1, help="Longer examples are cut.")
]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", metavar="N", min=1, help="More than one train in rounds.")
]
LocalStepsOption = Annotated[
    int | None, typer.Option("--local-steps", metavar="N", min=1, help="Of each of them in a round.")
]
TargetsOption = Annotated[
    str | None, typer.Option("--targets", metavar="A,B", help="Layers that LoRA adapts; default: all it can.")
]
OnlyOption = Annotated[
    str | None,
    typer.Option("--only", metavar="mine|trusted|ID,ID", help="Only these workers may see the examples."),
]
SuffixOption = Annotated[
    str | None, typer.Option("--suffix", metavar="NAME", help="The model is called MODEL:ft-NAME.")
]
SeedOption = Annotated[
    int | None, typer.Option("--seed", metavar="N", min=0, help="The same one begins in the same way.")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Only say what is in the files and what it can cost.")
]


def number(option: str, text: str | None) -> int | None:
    """None leaves it to the pool. Raises UsageError."""
    if text is None or text == "auto":
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) > 0):
        raise UsageError(f"{option}: {text[:40]!r} is neither a number above 0 nor auto.")
    return int(text)


def finite(option: str, value: float | None) -> float | None:
    """Raises UsageError."""
    if value is not None and not math.isfinite(value):
        raise UsageError(f"{option}: {value} is no number to train with.")
    return value


def names(option: str, text: str | None) -> tuple[str, ...]:
    """Raises UsageError."""
    found = tuple(asking.listed(text or ""))
    if text is not None and not found:
        raise UsageError(f"{option}: names with commas between them are needed.")
    return found


def is_id(data: str) -> bool:
    """Of a file in the pool, and not a path here."""
    return FILE_ID.fullmatch(data) is not None and not Path(data).exists()


def method_of(data: str) -> Method:
    """As the first example of a file here; one in the pool is taken for examples to imitate."""
    if is_id(data):
        return "sft"
    first = next(training_data.examples(Path(data)), None)
    return "dpo" if isinstance(first, training_data.Preference) else "sft"
