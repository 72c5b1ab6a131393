"""What fine-tunes have told so far, as pages show it: read from the journal once, and gone on with."""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Final

from coordinator.finetunes.finetune import Event
from coordinator.finetunes.telling import TRAIN_LOSS
from coordinator.store import Store

KNOWN_MAX: Final = 200
PAGE: Final = 1_000
POINTS_MAX: Final = 500  # of a chart; of more, neighbours are joined to their mean
MESSAGES_KEPT: Final = 50
VALID_LOSS: Final = "valid_loss"


@dataclass(slots=True)
class Told:
    """Losses by step. `messages`: the newest events that are no metrics, by number."""

    last: int = 0
    train: dict[int, float] = field(default_factory=dict)
    valid: dict[int, float] = field(default_factory=dict)
    messages: dict[int, Event] = field(default_factory=dict)

    def take(self, event: Event) -> None:
        """Once more is as once."""
        self.last = max(self.last, event.number)
        if event.data is None:
            self.messages[event.number] = event
            while len(self.messages) > MESSAGES_KEPT:
                del self.messages[min(self.messages)]
            return
        for name, losses in ((TRAIN_LOSS, self.train), (VALID_LOSS, self.valid)):
            if name in event.data:
                losses[int(event.data["step"])] = float(event.data[name])

    def columns(self) -> dict[str, Any]:
        """As a chart takes them."""
        train = _joined(self.train)
        steps = sorted(train.keys() | self.valid.keys())
        series = [{"label": "training loss", "values": [train.get(step) for step in steps]}]
        if self.valid:
            series.append({"label": "validation loss", "values": [self.valid.get(step) for step in steps]})
        return {"x": {"label": "Step", "values": steps}, "series": series}


def _joined(losses: dict[int, float]) -> dict[int, float]:
    """At most POINTS_MAX of them, each at the last of its steps."""
    steps, size = sorted(losses), -(-len(losses) // POINTS_MAX)
    if size <= 1:
        return losses
    bites = [steps[at : at + size] for at in range(0, len(steps), size)]
    return {bite[-1]: sum(losses[step] for step in bite) / len(bite) for bite in bites}


@dataclass(slots=True)
class Curves:
    store: Store
    _known: OrderedDict[str, Told] = field(default_factory=OrderedDict)

    async def of(self, finetune_id: str) -> Told:
        told = self._known.setdefault(finetune_id, Told())
        self._known.move_to_end(finetune_id)
        if len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)
        while page := await self.store.finetune_events(finetune_id, limit=PAGE, after=told.last):
            for event in page:
                told.take(event)
            if len(page) < PAGE:
                break
        return told
