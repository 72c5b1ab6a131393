"""What `chat`, `submit` and `quote` have in common: a request's options, and where its text comes from."""

import sys
from typing import Annotated, Any, Literal

import typer

from potluck.errors import UsageError

PROMPT_BYTES_MAX = 4 << 20

ModelOption = Annotated[
    str | None,
    typer.Option(
        "-m", "--model", metavar="MODEL", help="Which model; default: POTLUCK_MODEL, else a loaded one."
    ),
]
SystemOption = Annotated[str | None, typer.Option("--system", metavar="TEXT", help="A system message.")]
MaxTokensOption = Annotated[
    int | None, typer.Option("--max-tokens", metavar="N", min=1, help="At most so many tokens of output.")
]
TemperatureOption = Annotated[
    float | None, typer.Option("--temperature", min=0.0, max=2.0, help="0 always takes the likeliest token.")
]
SeedOption = Annotated[int | None, typer.Option("--seed", help="The same seed draws the same tokens.")]
EffortOption = Annotated[
    Literal["none", "minimal", "low", "medium", "high"] | None,
    typer.Option("--reasoning-effort", help="How much a reasoning model may think."),
]
WorkersOption = Annotated[
    str | None,
    typer.Option("--workers", metavar="mine|trusted|ID,ID", help="Only these workers may see the text."),
]


def parameters(
    *,
    max_tokens: int | None = None,
    temperature: float | None = None,
    seed: int | None = None,
    workers: str | None = None,
    reasoning_effort: str | None = None,
) -> dict[str, Any]:
    """The request's parameters that were given."""
    given = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "seed": seed,
        "reasoning_effort": reasoning_effort,
    }
    found: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if workers:
        found["potluck"] = {"workers": chosen(workers)}
    return found


def chosen(workers: str) -> str | list[str]:
    """Of those that may see the text."""
    return workers if workers in {"mine", "trusted"} else listed(workers)


def listed(text: str) -> list[str]:
    """What stands between commas."""
    return [name for part in text.split(",") if (name := part.strip())]


def messages(prompt: str, system: str | None) -> list[dict[str, str]]:
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": prompt}]


def text_of(prompt: str | None) -> str:
    """The prompt itself; `-` stands for standard input. Raises UsageError if there is none."""
    if prompt == "-":
        data = sys.stdin.buffer.read(PROMPT_BYTES_MAX + 1)
        if len(data) > PROMPT_BYTES_MAX:
            raise UsageError(
                f"Standard input holds more than {PROMPT_BYTES_MAX} bytes: more than a request may."
            )
        try:
            prompt = data.decode()
        except UnicodeDecodeError:
            raise UsageError("Standard input is no UTF-8 text.") from None
    if not prompt or not prompt.strip():
        raise UsageError("There is nothing to ask: give a PROMPT, or - to read it from standard input.")
    return prompt
