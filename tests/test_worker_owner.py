"""The owner's word and rules while a daemon runs, by a clock that the test turns; and what a day has earned."""

from pathlib import Path

from test_worker_hours import at, week

from potluck.pricing import Demand, Shape, Tariff, microcredits, output_units, prompt_units
from potluck.receipts import ReceiptBody
from potluck.v1 import session_pb2, work_pb2
from worker.earned import Earnings
from worker.messages import Assigned, AttemptId
from worker.owner import Owner
from worker.policy import Observation, Pause, Rules, Verdict
from worker.wish import Wish

SHAPE = Shape(active_parameters=10_000_000, head_parameters=2_000_000, attention=1_000)


class Quiet:
    """A machine that nobody else uses."""

    def look(self, pause: Pause | None) -> Observation:
        return Observation(pause=pause, fullscreen=False, on_battery=False)


class Turned:
    """An owner whose clock the test turns, and what it was told."""

    def __init__(self, folder: Path, rules: Rules, now: float) -> None:
        self.now, self.verdicts, self.drains = now, list[Verdict](), list[str]()
        self.owner = Owner(
            rules=rules,
            machine=Quiet(),
            folder=folder,
            process=(7, 1.0),
            on_verdict=self.verdicts.append,
            on_drain=self.drains.append,
            clock=lambda: self.now,
        )

    def at(self, now: float) -> bool:
        self.now = now
        self.owner.heed()
        return self.owner.verdict.sharing


async def test_hours_begin_and_end_as_the_clock_goes_on_and_each_change_is_told_once(tmp_path: Path) -> None:
    turned = Turned(tmp_path, Rules(week=week("22:00-07:00")), at("2026-11-27T12:00"))
    await turned.owner.begin()
    assert not turned.owner.verdict.sharing
    assert turned.owner.verdict.next_change == at("2026-11-27T22:00")
    assert [turned.at(at(f"2026-11-27T{t}")) for t in ("21:59:59", "22:00:00", "23:00:00")] == [
        False,
        True,
        True,
    ]
    assert not turned.at(at("2026-11-28T07:00"))
    assert [verdict.sharing for verdict in turned.verdicts] == [False, True, False]


async def test_a_pause_with_an_end_is_over_by_itself_and_survives_a_new_daemon(tmp_path: Path) -> None:
    noon = at("2026-11-27T12:00")
    first = Turned(tmp_path, Rules(), noon)
    await first.owner.begin()
    assert first.owner.verdict.sharing
    Wish(word="pause", until=noon + 7200).save(tmp_path)
    assert not first.at(noon + 1)
    second = Turned(tmp_path, Rules(), noon + 60)
    await second.owner.begin()
    assert (second.owner.verdict.sharing, second.owner.verdict.next_change) == (False, noon + 7200)
    assert [second.at(noon + 7199), second.at(noon + 7200)] == [False, True]


async def test_a_drain_is_heard_once_and_by_nobody_else(tmp_path: Path) -> None:
    turned = Turned(tmp_path, Rules(), 0.0)
    Wish(word="drain", process=(7, 2.0)).save(tmp_path)
    turned.at(1.0)
    assert turned.drains == []
    Wish(word="drain", process=(7, 1.0)).save(tmp_path)
    turned.at(2.0)
    turned.at(3.0)
    assert turned.drains == ["its owner drains it"]


# --- what a day has earned


def assigned(job: str, member: str = "bob", delivered: int = 0) -> Assigned:
    assign = session_pb2.Assign(model="m", member=member)
    if delivered:
        assign.continuation.delivered.append(work_pb2.Delivered(tokens=delivered))
    return Assigned(AttemptId(job, 1), "m", member, bool(delivered), assign, "chat")


def body(job: str, tokens: int) -> ReceiptBody:
    return ReceiptBody(
        job_id=job, attempt=1, worker_id="w", model="m", engine="emulator", prompt_tokens=100,
        output_tokens=tokens, started_at=0, ended_at=1, output_sha256="00" * 32,
    )  # fmt: skip


def serve(earnings: Earnings, job: str, state: str = "matched", tokens: int = 50, **how: object) -> None:
    what = assigned(job, **how)  # type: ignore[arg-type]  # names of the helper above
    earnings.started(what)
    earnings.claimed(what.attempt, body(job, tokens))
    earnings.judged(what.attempt, state)
    earnings.judged(what.attempt, state)


def test_what_was_matched_is_worth_what_the_formula_says_and_nothing_else_counts(tmp_path: Path) -> None:
    """A part of an answer is worth its own tokens, at their place, and its part of the prompt."""
    earnings = Earnings(tmp_path, own="ada", today=lambda: "2026-11-27")
    earnings.shapes = {"m": SHAPE}
    serve(earnings, "job_1")
    serve(earnings, "job_2", state="refused")
    serve(earnings, "job_3", member="ada")
    whole = earnings.today()
    demand, tariff = Demand("chat", SHAPE, (100,)), Tariff()
    charge = microcredits(prompt_units(demand, tariff) + output_units(demand, 0, 50))
    assert whole.microcredits == charge - charge * 20 // 1000
    assert (whole.tokens, whole.own_tokens) == (50, 50)
    serve(earnings, "job_4", delivered=150)
    part = microcredits(prompt_units(demand, tariff) * 50 // 200 + output_units(demand, 150, 50))
    assert earnings.today().microcredits - whole.microcredits == part - part * 20 // 1000


def test_a_day_survives_a_restart_and_ends_at_midnight(tmp_path: Path) -> None:
    day = ["2026-11-27"]
    earnings = Earnings(tmp_path, own="ada", today=lambda: day[0])
    earnings.shapes = {"m": SHAPE}
    serve(earnings, "job_1")
    earnings.save()
    again = Earnings(tmp_path, own="ada", today=lambda: day[0])
    assert again.today() == earnings.today()
    day[0] = "2026-11-28"
    assert again.today().microcredits == 0
