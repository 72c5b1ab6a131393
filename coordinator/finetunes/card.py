"""The model card: what the adapter was made of, by whom, how it fell, and what it cost.

Its front matter is what the hub reads of a peft adapter (base_model, library_name).
"""

from collections.abc import Mapping, Sequence
from typing import Final

from coordinator.clock import rfc3339
from coordinator.finetunes.finetune import Checkpoint, Data, Finetune
from coordinator.finetunes.made import Made
from coordinator.finetunes.plan import Plan
from potluck import pricing
from potluck.credits import exact

ROWS_MAX: Final = 40  # of the curve
USE: Final = """```python
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained(FOLDER_OF_THIS_FILE)
```
"""
METHODS: Final = {"sft": "supervised (LoRA)", pricing.DPO: "DPO (LoRA)"}


def card(
    finetune: Finetune,
    plan: Plan,
    *,
    base: str,
    licence: str,
    pool: str,
    curve: Sequence[Mapping[str, float]],
    made: Sequence[Made],
    ended_at: float,
) -> str:
    """Markdown. `base`: where the base is found; `curve`: by the OpenAI API's names."""
    parts = (
        _front(base, licence),
        f"# {finetune.result}\n",
        f"A LoRA adapter for {base}, trained in the pool {pool} and finished {rfc3339(ended_at)}.\n",
        "## Data\n",
        _table(("", ""), _data(finetune, plan)),
        "## Hyper-parameters\n",
        _table(("", ""), _numbers(plan)),
        "## Curve\n",
        _curve(curve),
        "## Workers\n",
        _table(("worker", "parts", "tokens"), _workers(made)),
        f"It cost {exact(finetune.charge)} credits for {finetune.trained_tokens:,} tokens.\n",
        "## Use\n",
        USE,
    )
    return "\n".join(parts)


def checkpoint_card(finetune: Finetune, checkpoint: Checkpoint, base: str, licence: str) -> str:
    """Of an adapter on its way: where it stands."""
    steps = 0 if finetune.plan is None else finetune.plan.steps
    rows = [(name, _number(value)) for name, value in sorted(checkpoint.metrics.items())]
    return "\n".join(
        (
            _front(base, licence),
            f"# {finetune.result}, after step {checkpoint.step} of {steps}\n",
            f"A checkpoint of the fine-tune {finetune.id}, made {rfc3339(checkpoint.at)}.\n",
            _table(("", ""), rows),
        )
    )


def _front(base: str, licence: str) -> str:
    return (
        f"---\nbase_model: {base}\nlibrary_name: peft\nlicense: {licence.lower()}\n"
        "pipeline_tag: text-generation\ntags:\n- lora\n- potluck\n---\n"
    )


def _data(finetune: Finetune, plan: Plan) -> list[tuple[str, ...]]:
    rows = [
        ("training examples", f"{plan.examples:,}"),
        ("tokens of an epoch", f"{plan.tokens:,}"),
        ("training file, sha256", _digest(finetune.training)),
    ]
    if finetune.validation is not None:
        rows.append(("validation examples", f"{plan.validation:,}"))
        rows.append(("validation file, sha256", _digest(finetune.validation)))
    return [*rows]


def _digest(data: Data) -> str:
    return f"`{data.sha256}`"


def _numbers(plan: Plan) -> list[tuple[str, ...]]:
    rows = [
        ("method", METHODS[plan.method]),
        ("epochs", str(plan.epochs)),
        ("batch size", str(plan.batch_size)),
        ("steps", str(plan.steps)),
        ("learning rate", f"{plan.learning_rate:g}"),
        ("rank, alpha", f"{plan.rank}, {plan.alpha:g}"),
        ("targets", ", ".join(plan.targets)),
        ("sequence length", f"{plan.sequence_tokens:,} tokens"),
        ("seed", str(plan.seed)),
        ("workers side by side", str(plan.workers)),
    ]
    if plan.method == pricing.DPO:
        rows.append(("beta", f"{plan.beta:g}"))
    return [*rows]


def _curve(curve: Sequence[Mapping[str, float]]) -> str:
    if not curve:
        return "Not one step was taken.\n"
    every = -(-len(curve) // ROWS_MAX)
    shown = [
        point
        for number, point in enumerate(curve)
        if number % every == 0 or number == len(curve) - 1 or "valid_loss" in point
    ]
    names = ("step", "train_loss", "valid_loss")
    rows = [tuple(_number(point.get(name)) for name in names) for point in shown]
    return _table(("step", "training loss", "validation loss"), rows)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.4f}"


def _workers(made: Sequence[Made]) -> list[tuple[str, ...]]:
    """Those that trained, the most tokens first."""
    sums: dict[str, tuple[int, int]] = {}
    for one in made:
        if one.steps:
            parts, tokens = sums.get(one.worker, (0, 0))
            sums[one.worker] = parts + 1, tokens + one.tokens
    order = sorted(sums, key=lambda name: (-sums[name][1], name))
    return [(_plain(name), str(sums[name][0]), f"{sums[name][1]:,}") for name in order]


def _plain(text: str) -> str:
    """Names are others' words: no markup, and no cell ends in them."""
    return "".join(c if c.isalnum() or c in " ._-" else "?" for c in text)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
