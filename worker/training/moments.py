"""AdamW over the adapter's one vector, and its state as a file: what a checkpoint is beside the adapter.

The state names each moment as `exp_avg/NAME` and `exp_avg_sq/NAME`, with peft's name of the factor, and
`steps`: of the fine-tune, and those that AdamW has done. In float16 also the loss's scale.
"""

from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors.numpy import save_file

from potluck import tensors
from potluck.tensors import Array, TensorsError
from potluck.v1 import work_pb2
from worker.engines.engine import JobError
from worker.training.adapter import Adapter
from worker.training.precision import LossScale

BETAS: Final = (0.9, 0.999)
EPSILON: Final = 1e-8
MOMENTS: Final = ("exp_avg", "exp_avg_sq")
STEPS: Final = "steps"
SCALE: Final = "loss_scale"


class Moments:
    def __init__(self, adapter: Adapter, plan: work_pb2.TrainingPlan) -> None:
        self._adapter = adapter
        self._values = values = adapter.values
        self._norm_max = plan.gradient_norm_max
        self._optimizer = torch.optim.AdamW(
            [values], lr=plan.learning_rate, betas=BETAS, eps=EPSILON, weight_decay=plan.weight_decay
        )
        self._state: dict[str, Any] = {name: torch.zeros_like(values) for name in MOMENTS}
        self._state["step"] = torch.zeros(())
        self._optimizer.state[values] = self._state

    def begin(self) -> None:
        self._values.grad.zero_()

    def gradient_norm(self) -> float:
        return float(torch.linalg.vector_norm(self._values.grad))

    def step(self, norm: float, rate: float) -> None:
        """`norm`: of the gradient, which is clipped to the plan's; 0 there: it never is."""
        if self._norm_max and norm > self._norm_max:
            self._values.grad.mul_(self._norm_max / norm)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()

    def save(self, path: Path, next_step: int, scale: LossScale | None) -> None:
        """Raises OSError."""
        arrays = {
            f"{moment}/{name}": array
            for moment in MOMENTS
            for name, array in self._adapter.arrays(self._state[moment]).items()
        }
        arrays[STEPS] = np.array([next_step, int(self._state["step"])], np.int64)
        if scale is not None:
            arrays[SCALE] = np.array([scale.value, scale.good_steps], np.float64)
        save_file(arrays, path)

    def load(self, path: Path, next_step: int, scale: LossScale | None) -> None:
        """Raises JobError if it is not the state at this step of this adapter's training, OSError."""
        try:
            arrays, _ = tensors.read(path.read_bytes())
        except TensorsError as error:
            raise _bad(str(error)) from None
        steps = _numbers(arrays, STEPS, np.int64)
        if steps[0] != next_step or steps[1] < 0:
            raise _bad(f"it is of step {steps[0]}, and {next_step} is next")
        if scale is not None:
            value, good_steps = _numbers(arrays, SCALE, np.float64)
            if not LossScale.LEAST <= value <= 2.0**64 or good_steps < 0:
                raise _bad("its scale of the loss is no usable number")
            scale.value, scale.good_steps = float(value), int(good_steps)
        arrays.pop(SCALE, None)
        wanted = self._adapter.arrays(self._values)
        for moment in MOMENTS:
            found: dict[str, Array] = {}
            for name, like in wanted.items():
                array = arrays.pop(f"{moment}/{name}", None)
                if array is None:
                    raise _bad(f"{moment} of {name} is missing")
                if array.dtype != np.float32 or array.shape != like.shape:
                    raise _bad(f"{moment} of {name} is {array.dtype} {list(array.shape)}")
                if not np.isfinite(array).all() or (moment == MOMENTS[1] and (array < 0).any()):
                    raise _bad(f"{moment} of {name} has values that cannot be")
                found[name] = array
            self._state[moment].copy_(self._adapter.vector(found))
        if arrays:
            raise _bad(f"{min(arrays)[:200]} is no part of it")
        self._state["step"].fill_(int(steps[1]))


def _numbers(arrays: dict[str, Array], name: str, dtype: Any) -> Array:
    """Two of them, taken out."""
    found = arrays.pop(name, None)
    if found is None or found.dtype != dtype or found.shape != (2,) or not np.isfinite(found).all():
        raise _bad(f"{name} is missing, or not two numbers")
    return found


def _bad(why: str) -> JobError:
    return JobError("bad_state", f"the optimizer's state cannot be used: {why}")
