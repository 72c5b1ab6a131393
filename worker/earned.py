"""What this worker has earned today, as far as it can know: by its own receipts that the pool has matched.

The pool's books decide: they know the fee of this pool, and who finished an answer that two began. Here
stands what the published formula makes of each matched receipt, less the usual fee. Own jobs earn nothing.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from potluck.catalogue import Catalogue
from potluck.home import write_atomic
from potluck.pricing import (
    Demand,
    Shape,
    Tariff,
    Training,
    microcredits,
    output_units,
    prompt_units,
    training_units,
)
from potluck.receipts import ReceiptBody
from potluck.v1 import session_pb2, work_pb2
from worker.messages import Assigned, AttemptId

FILE: Final = "earned.json"
BYTES_MAX: Final = 4_096
ATTEMPTS_MAX: Final = 8_192  # whose receipts are awaited


class Earned(BaseModel):
    """Of one day, by the clock on the wall. `own_tokens` were for the owner's own jobs, which are free."""

    model_config = ConfigDict(frozen=True)

    day: str = ""
    microcredits: int = 0
    tokens: int = 0
    own_tokens: int = 0


def worth(body: ReceiptBody, assigned: Assigned, shape: Shape, tariff: Tariff) -> int:
    """Microcredits of one attempt, less the fee: its output, and of the prompt the part that goes with it."""
    assign = assigned.payload
    assert isinstance(assign, session_pb2.Assign), "assignments come from `wire`"
    if assigned.trains:
        return _less_fee(microcredits(training_units(shape, _trained(body, assign.work.training))), tariff)
    before = sum(choice.tokens for choice in assign.continuation.delivered)
    demand = Demand(assigned.kind, shape, (body.prompt_tokens,))
    tokens = body.output_tokens
    whole = prompt_units(demand, tariff)
    prompt = whole * tokens // (before + tokens) if tokens else whole
    earned = microcredits(prompt + output_units(demand, before, tokens))
    return _less_fee(earned, tariff)


def _trained(body: ReceiptBody, work: work_pb2.TrainingWork) -> Training:
    """As far as the receipt tells: without what attention and validation come to."""
    number_bytes = 2 if work.delta else 4  # of the adapter as it comes
    return Training(work.plan.method, work.adapter.bytes // number_bytes, body.output_tokens, 0)


def _less_fee(earned: int, tariff: Tariff) -> int:
    return earned - earned * tariff.fee_permille // 1_000


def _today() -> str:
    return time.strftime("%Y-%m-%d")


class Earnings:
    """`own`: the owner's name as a member."""

    def __init__(self, folder: Path, *, own: str, today: Callable[[], str] = _today) -> None:
        self._path, self._own, self._today = folder / FILE, own, today
        self._assigned: OrderedDict[AttemptId, Assigned] = OrderedDict()
        self._claims: dict[AttemptId, tuple[int, int, bool]] = {}  # microcredits, tokens, own
        self._day = self._load()
        self.shapes: dict[str, Shape] = {}

    def know(self, catalogue: Catalogue) -> None:
        self.shapes = {
            entry.name: Shape(
                entry.shape.active_parameters, entry.shape.head_parameters, entry.shape.attention
            )
            for entry in catalogue.entries
        }

    def started(self, assigned: Assigned) -> None:
        self._assigned[assigned.attempt] = assigned
        while len(self._assigned) > ATTEMPTS_MAX:
            old, _ = self._assigned.popitem(last=False)
            self._claims.pop(old, None)

    def claimed(self, attempt: AttemptId, body: ReceiptBody) -> None:
        assigned, shape = self._assigned.get(attempt), self.shapes.get(body.model)
        if assigned is not None and shape is not None:
            own = assigned.member == self._own
            value = 0 if own else worth(body, assigned, shape, Tariff())
            self._claims[attempt] = value, body.output_tokens, own

    def judged(self, attempt: AttemptId, state: str) -> None:
        """What the pool made of the receipt. Said twice, the first time counts."""
        self._assigned.pop(attempt, None)
        value, tokens, own = self._claims.pop(attempt, (0, 0, False))
        if state == "matched" and tokens:
            day = self.today()
            self._day = Earned(
                day=day.day,
                microcredits=day.microcredits + value,
                tokens=day.tokens + (0 if own else tokens),
                own_tokens=day.own_tokens + (tokens if own else 0),
            )

    def today(self) -> Earned:
        return self._day if self._day.day == self._today() else Earned(day=self._today())

    def save(self) -> None:
        """Raises OSError."""
        write_atomic(self._path, self.today().model_dump_json().encode(), durable=False)

    def _load(self) -> Earned:
        try:
            with self._path.open("rb") as file:
                return Earned.model_validate_json(file.read(BYTES_MAX))
        except (OSError, ValidationError):
            return Earned()
