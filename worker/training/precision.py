"""How exactly a training is computed: decided from the names of types alone. Pure."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Precision:
    """`autocast`: what matrices are multiplied in; "" is float32. The factors always are."""

    autocast: str = ""
    scaled: bool = False  # gradients of float16 vanish unless the loss is multiplied


def precision(dtype: str) -> Precision:
    """Of a model whose weights have this type."""
    if dtype == "float32":
        return Precision()
    return Precision(autocast=dtype, scaled=dtype == "float16")


class LossScale:
    """What the loss is multiplied with in float16, which loses small gradients (arXiv 1710.03740)."""

    FIRST: Final = 2.0**16
    LEAST: Final = 2.0**-8
    GROWTH_STEPS: Final = 2000

    def __init__(self, value: float = FIRST, good_steps: int = 0) -> None:
        self.value, self.good_steps = value, good_steps

    def overflowed(self) -> bool:
        """The step is computed again with half of it. False: it is not the scale."""
        self.value, self.good_steps = self.value / 2, 0
        return self.value >= self.LEAST

    def went_well(self) -> None:
        self.good_steps += 1
        if self.good_steps == self.GROWTH_STEPS:
            self.value, self.good_steps = self.value * 2, 0
