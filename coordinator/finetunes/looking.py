"""Is what a worker has sent an adapter that its steps could have made? For threads; nothing is believed.

Adam moves a number by at most about 3 times the learning rate in a step, so what moved much further was not
made by training (Kingma and Ba, 2015, section 2.1).
"""

from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors import SafetensorError, safe_open

from coordinator.aggregation import UNCHANGED, gate
from coordinator.finetunes.plan import Plan
from potluck import lora
from potluck.deltas import DeltaError, Packed
from potluck.lora import LoraError, Shapes

MOVED: Final = 10.0  # learning rates in a step, at most
FLOATS: Final = ("F32", "F64")
NUMBERS: Final = (*FLOATS, "I64", "I32")
WARMED_UP: Final = 2  # steps, before which nothing may have moved


def wrong_adapter(path: Path, of: Shapes, before: Path, plan: Plan, steps: int, *, idle: bool = False) -> str:
    """Empty, or what is wrong with the adapter after so many steps from `before`.

    `idle`: the steps may have had nothing to learn, so that it may be the same.
    """
    most, moved = _most(plan, steps), 0.0
    try:
        with (
            safe_open(str(path), framework="numpy") as new,
            safe_open(str(before), framework="numpy") as old,
        ):
            lora.check_names(dict.fromkeys(new.keys()), of)
            for name, shape in of.items():
                if why := _wrong_form(new, name, shape):
                    return why
                array = new.get_tensor(name)
                if not np.isfinite(array).all():
                    return f"the weights {name} are not all finite"
                furthest = float(np.abs(array - old.get_tensor(name)).max(initial=0.0))
                if furthest > most:
                    return f"{name} moved by {furthest:.3g}, and {steps} steps move by {most:.3g} at the most"
                moved = max(moved, furthest)
    except (SafetensorError, LoraError) as error:
        return f"it is no adapter of this model: {str(error)[:200]}"
    return "" if moved or idle or steps < WARMED_UP else f"nothing is different after {steps} steps"


def wrong_state(path: Path, plan: Plan) -> str:
    """Empty, or what is wrong with the optimizer's state; what its tensors mean is the workers' affair."""
    count = 0
    try:
        with safe_open(str(path), framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 -- not a mapping
                if file.get_slice(name).get_dtype() not in NUMBERS:
                    return f"the optimizer's state has {name[:200]} as {file.get_slice(name).get_dtype()}"
                array = file.get_tensor(name)
                count += array.size
                if not np.isfinite(array).all():
                    return f"the optimizer's state is not finite in {name[:200]}"
    except SafetensorError as error:
        return f"the optimizer's state cannot be read: {str(error)[:200]}"
    if count < plan.parameters:
        return f"the optimizer's state has {count:,} numbers for {plan.parameters:,} that are trained"
    return ""


def wrong_delta(path: Path, before: Path, *, idle: bool = False) -> str:
    """Empty, or why it can be no update of the adapter `before`. `idle` as above."""
    try:
        why = gate(Packed(path.read_bytes()), lora.decode(before.read_bytes()))
    except DeltaError as error:
        return f"it is no update of this adapter: {str(error)[:200]}"
    return "" if idle and why == UNCHANGED else why


def _wrong_form(file: Any, name: str, shape: tuple[int, int]) -> str:
    part = file.get_slice(name)
    if part.get_dtype() != "F32" or tuple(part.get_shape()) != shape:
        return f"{name} is {part.get_dtype()} {part.get_shape()}; F32 {list(shape)} is needed"
    return ""


def _most(plan: Plan, steps: int) -> float:
    """How far training moves a number."""
    return MOVED * plan.learning_rate * steps
