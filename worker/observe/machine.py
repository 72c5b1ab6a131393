"""One look at the machine, as far as the owner's rules ask for it. What fails is None, with a reason."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import psutil

from worker.observe import cards, load
from worker.observe.input import Unseen, last_input
from worker.observe.screen import fullscreen
from worker.policy import Card, Observation, Pause, Rules

T = TypeVar("T")


@dataclass(slots=True)
class Machine:
    """`gpus`: the cards that may be used, all if empty; `has_cards`: whether there are any, of any maker."""

    rules: Rules
    gpus: tuple[int, ...] = ()
    has_cards: bool = True
    others: load.OthersLoad = field(default_factory=load.OthersLoad)

    def look(self, pause: Pause | None) -> Observation:
        """Blocks for some milliseconds, at most for seconds."""
        rules, blind = self.rules, dict[str, str]()

        def seen(key: str, ask: Callable[[], T]) -> T | None:
            try:
                return ask()
            except Unseen as error:
                blind[key] = str(error)
            except (OSError, psutil.Error) as error:
                blind[key] = f"the system refuses it: {error}"[:200]
            return None

        found = (seen("gpu", self._cards) if self.has_cards else None) or ()
        return Observation(
            pause=pause,
            input_at=seen("input", lambda: last_input(time.time())) if rules.input_s else None,
            cpu_percent=seen("cpu", self.others.look) if rules.cpu_percent else None,
            fullscreen=seen("fullscreen", fullscreen) if rules.fullscreen else None,
            programs=seen("programs", load.programs) if rules.programs else None,
            on_battery=None if rules.on_battery else seen("battery", on_battery),
            cards=found,
            blind=blind,
        )

    def _cards(self) -> tuple[Card, ...]:
        """Raises Unseen."""
        own = load.own_tree() if self.rules.gpu_alone else {}
        return cards.cards(own, self.gpus)


def on_battery() -> bool:
    """A machine without a battery never is. Raises Unseen."""
    sensors = getattr(psutil, "sensors_battery", None)  # not on every system
    if sensors is None:
        raise Unseen("the system has no such sensor")
    battery = sensors()
    return battery is not None and battery.power_plugged is False
