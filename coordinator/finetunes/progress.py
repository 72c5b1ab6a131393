"""How far a fine-tune is at the moment, as its member sees it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from coordinator.core.live import Live
from coordinator.finetunes.curve import Curve, Pace
from coordinator.finetunes.driver import Driver
from coordinator.finetunes.finetune import Finetune, FinetuneState
from coordinator.parts import Parts
from coordinator.views import queue

PACE_KEPT_S: Final = 30.0  # from one part to the next


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """`steps_done`: those under way included.

    `stage` and `why`: what it does or waits for. `curve_tail`: the newest points, by the OpenAI API's names.
    """

    steps_done: int = 0
    tokens_per_second: float | None = None
    workers: tuple[str, ...] = ()  # that train it now, by name
    eta_s: float | None = None
    estimated_finish: int | None = None
    stage: str = ""
    why: str = ""
    curve_tail: tuple[Mapping[str, float], ...] = ()


def progress_of(finetune: Finetune, driver: Driver | None, parts: Parts, *, active: bool) -> Progress:
    """Of one that is open, or has just ended. `active`: its member's account is."""
    state = finetune.state.value
    if finetune.ended or driver is None or driver.tuning is None:
        tail = () if driver is None else driver.telling.curve.tail()
        return Progress(steps_done=finetune.steps_done, stage=state, curve_tail=tail)
    curve, plan = driver.telling.curve, driver.plan
    under_way = max((len(live.points) for live in curve.live.values()), default=0)
    steps_done = min(plan.steps, driver.tuning.step + under_way)
    lives, now = _lives(driver, parts), parts.pool.now()
    pace, eta_s = _pace(finetune, curve, lives, now), None
    if pace is not None and pace.steps:
        eta_s = round((plan.steps - steps_done) / pace.steps, 1)
    stage, why = _stage(finetune, lives, parts)
    if stage == "waiting" and not active:
        why = "the account of its member is frozen"
    return Progress(
        steps_done=steps_done,
        tokens_per_second=None if pace is None else round(pace.tokens, 1),
        workers=tuple(sorted(_names(lives, parts))),
        eta_s=eta_s,
        estimated_finish=None if eta_s is None else int(now + eta_s),
        stage=stage,
        why=why,
        curve_tail=curve.tail(),
    )


def _pace(finetune: Finetune, curve: Curve, lives: list[Live], now: float) -> Pace | None:
    """The last one stands between two parts; where nobody trains any more, there is none."""
    if finetune.state is not FinetuneState.RUNNING or curve.pace is None:
        return None
    goes_on = any(live.holder is not None for live in lives) or now < curve.pace.at + PACE_KEPT_S
    return curve.pace if goes_on else None


def _lives(driver: Driver, parts: Parts) -> list[Live]:
    """Its open parts."""
    whole, lives = parts.whole(driver.job), parts.pool.engine.lives
    return [] if whole is None else [lives[part] for part in whole.parts if part in lives]


def _names(lives: list[Live], parts: Parts) -> set[str]:
    workers = parts.pool.engine.fleet.workers
    return {workers[live.holder[0]].name for live in lives if live.holder is not None}


def _stage(finetune: Finetune, lives: list[Live], parts: Parts) -> tuple[str, str]:
    if finetune.state is FinetuneState.PAUSED:
        return finetune.state.value, "its member paused it"
    running = [live for live in lives if live.holder is not None]
    if running:
        return max((live.stage or "starting" for live in running), key=_STAGES.__getitem__), ""
    for live in lives:
        if place := queue(parts.pool, live):
            return "waiting", str(place["queue"]["why"])
    return "waiting", "" if finetune.state is FinetuneState.RUNNING else "its first part is not open yet"


class _Order(dict[str, int]):
    """Stages by how far they are; what is not known is the least."""

    def __missing__(self, _key: str) -> int:
        return -1


_STAGES = _Order(
    {"starting": 0, "downloading": 1, "loading": 2, "uploading": 3, "checking": 4, "training": 5}
)


def finished(finetune: Finetune) -> Progress:
    """Of one that has ended: nothing moves any more."""
    return Progress(steps_done=finetune.steps_done, stage=finetune.state.value)
