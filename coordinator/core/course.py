"""What a fine-tune is asked to do, what it hears of, and what it wants done: the words of `tuning`.

Adapters, optimizer states, momenta and deltas are names (digests), which the core passes on and never looks
into.
"""

from dataclasses import dataclass
from typing import Final

from potluck.shuffle import order, steps_in_epoch

SAMPLE_MAX: Final = 32  # lines of the validation that are read on the way; all of them at the end
QUARTERS: Final = 4  # of a chain, after which it is evaluated, where a segment happens to end


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """Times in seconds. `steps` are those of one worker over the whole fine-tune, for which the learning rate
    is planned: of a chain all steps, of rounds the part of one of the `workers`.
    """

    examples: int
    epochs: int
    batch_size: int
    steps: int
    seed: int
    workers: int  # 1: a chain; more: rounds
    local_steps: int  # of a share in a round, at most
    validation: int  # lines; 0: none
    segment_s: float  # of a chain: how much may be lost
    round_s: float  # who has not answered by then is closed out

    @property
    def total(self) -> int:
        """Examples that are to be trained, each once for each epoch."""
        return self.examples * self.epochs

    @property
    def rounds(self) -> int:
        """As planned; more of them where shares are lost."""
        return self.epochs * -(-self.examples // (self.workers * self.local_steps * self.batch_size))

    @property
    def sample(self) -> tuple[int, ...]:
        """Lines of the validation that are read on the way: always the same ones, so that losses compare."""
        return tuple(sorted(order(self.seed, 0, self.validation)[:SAMPLE_MAX]))

    @property
    def samples_max(self) -> int:
        """How often the sample may be read: what the quote has to cover, and the plan keeps to. All lines are
        read once more, at the end.
        """
        if not self.validation:
            return 0
        return 1 + (QUARTERS if self.workers == 1 else 2 * self.rounds + 1)


def steps_of(examples: int, epochs: int, batch_size: int, workers: int) -> int:
    """`Course.steps`."""
    return -(-epochs * steps_in_epoch(examples, batch_size) // workers)


# ---- what it hears of


@dataclass(frozen=True, slots=True, kw_only=True)
class PartDone:
    """A part came back, was looked at and is paid. `artifact`: of a chain its adapter and state, of a share
    its delta, of an evaluation nothing. `valid_tokens`: those that `valid_loss` is the mean of.
    """

    part: int
    first_step: int = 0
    steps: int = 0
    tokens: int = 0
    artifact: tuple[str, ...] = ()
    valid_loss: float | None = None
    valid_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PartFailed:
    """It ended and is not paid; also after `CancelPart`. `retryable`: the same may go well another time."""

    part: int
    code: str
    why: str
    retryable: bool = True


@dataclass(frozen=True, slots=True)
class Began:
    """`resumed`: after a restart. `ended`: parts that came back and are paid, of which it may not have heard;
    whatever else it believes to be open is lost then, and was not paid.
    """

    resumed: bool = False
    ended: tuple[PartDone, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregated:
    """`rejected`: parts whose deltas did not count. `momentum`: of the outer step, "" if it has none."""

    round: int
    adapter: str
    momentum: str = ""
    rejected: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time went by."""


@dataclass(frozen=True, slots=True)
class Paused:
    """Open parts are cancelled: what was done since the last checkpoint is not paid, and done again later."""


@dataclass(frozen=True, slots=True)
class Resumed:
    pass


@dataclass(frozen=True, slots=True)
class Stopped:
    """Its member cancelled it: nothing more is opened."""


Event = Began | PartDone | PartFailed | Aggregated | Ticked | Paused | Resumed | Stopped

# ---- what it wants done


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenTrain:
    """`leased`: the lines of a share, in the order in which they are trained; () for a chain, whose steps
    name theirs. `delta`: answer what changed, and no state.
    """

    part: int
    first_step: int
    last_step: int  # exclusive
    leased: tuple[int, ...]
    adapter: str
    state: str | None
    seconds_max: int
    delta: bool
    validate: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenEvaluate:
    part: int
    adapter: str
    validated: tuple[int, ...]  # lines of the validation


@dataclass(frozen=True, slots=True)
class CancelPart:
    """Its end is told as of any part: `PartFailed`, or `PartDone` if it was quicker."""

    part: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregate:
    """`parts`: number, delta and trained tokens of each share, in the order of their numbers."""

    round: int
    adapter: str
    momentum: str
    parts: tuple[tuple[int, str, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpointed:
    """A good adapter after so many steps. Said again when its held-out loss is known. `full`: over all lines
    of the validation.
    """

    step: int
    adapter: str
    valid_loss: float | None = None
    full: bool = False


@dataclass(frozen=True, slots=True)
class Finish:
    adapter: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fail:
    """`adapter`: the last good one; None: nothing was trained."""

    code: str
    why: str
    adapter: str | None


Action = OpenTrain | OpenEvaluate | CancelPart | Aggregate | Checkpointed | Finish | Fail
