"""Whether this machine may be shared now: the owner's rules against what is seen of the machine.

`judge(rules, seen, now, before)` is pure and total. It says in words why not, and when that will change by
itself: the first moment at which, with nothing seen anew, the answer is another one. `before` is the verdict
given last; what it remembers keeps a worker from swinging (a card that was too hot must cool down by a
margin, and what was just seen counts for a while longer).

What cannot be seen is None in the observation. It is no reason to pause, and is said in `notes`; with one
exception, on the owner's side: who shares only while nobody is there does not share while that is unknown.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from worker.hours import Week

HORIZON_DAYS: Final = 8  # how far ahead a change of hours is looked for
SETTLE_S: Final = 30.0  # what others did counts so much longer, or every pause of theirs would load a model
REST_S: Final = 60.0  # a card that was too hot rests at least so long: it cools at once, and heats up as fast
NAMED_MAX: Final = 3  # programs that a sentence names

UNSEEN: Final = {
    "input": "whether somebody is at this machine",
    "gpu": "whether other programs use the cards",
    "cpu": "what other programs do with the processor",
    "fullscreen": "whether a program fills the screen",
    "programs": "which programs run",
    "battery": "whether this machine runs on battery",
    "temperature": "how hot the cards are",
    "power": "how much power the cards draw",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """0, empty and None switch a rule off. `cpu_percent` is of all cores together."""

    week: Week | None = None
    on_battery: bool = False
    input_s: float = 0.0
    gpu_alone: bool = True
    cpu_percent: float = 0.0
    fullscreen: bool = True
    programs: frozenset[str] = frozenset()  # in lower case
    temperature_c: float = 0.0
    temperature_margin_c: float = 0.0
    power_w: float = 0.0
    power_margin_w: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """`others`: names of programs that use it and are not ours; None: that cannot be seen, as in all."""

    index: int
    temperature_c: float | None = None
    power_w: float | None = None
    others: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Pause:
    """The owner's own word, or what was asked for from afar.

    `until` in seconds since the epoch; None: until it is taken back.
    """

    until: float | None = None
    words: str = "its owner paused it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """The machine as it is seen. `input_at`: when somebody last touched keyboard or mouse.

    `blind` says in words why something is None, by the keys of `UNSEEN`.
    """

    pause: Pause | None = None
    asked: Pause | None = None  # from afar; it adds to the owner's word and takes nothing from it
    input_at: float | None = None
    cpu_percent: float | None = None  # of others
    fullscreen: bool | None = None
    programs: frozenset[str] | None = None  # in lower case, of those that run
    on_battery: bool | None = None
    cards: tuple[Card, ...] = ()
    blind: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reason:
    """Something that keeps this machine from being shared. `until`: when it ends by itself; None: unknown."""

    key: str
    words: str
    until: float | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """`next_change` in seconds since the epoch; None: not by itself, or nobody can know."""

    sharing: bool
    why: str
    next_change: float | None
    notes: tuple[str, ...] = ()
    last_seen: dict[str, float] = field(default_factory=dict)  # of what others do and of cards


@dataclass(frozen=True, slots=True)
class _Sensed:
    """A rule about what is seen: `now_true` at this moment, `words` while it is and for `settle_s` after."""

    key: str
    words: str
    now_true: bool
    settle_s: float


def judge(rules: Rules, seen: Observation, now: float, before: Verdict | None = None) -> Verdict:
    """`now` in seconds since the epoch."""
    kept = before.last_seen if before is not None else {}
    sensed = list(_sensed(rules, seen, kept))
    last_seen = _remembered(sensed, kept, now)
    reasons = _reasons(rules, seen, sensed, last_seen, now)
    why = "; ".join(reason.words for reason in reasons)
    return Verdict(
        not reasons, why, _next_change(rules, seen, sensed, last_seen, now), _notes(rules, seen), last_seen
    )


def _remembered(sensed: list[_Sensed], kept: dict[str, float], now: float) -> dict[str, float]:
    remembered = {}
    for each in sensed:
        at = now if each.now_true else kept.get(each.key)
        if at is not None and now < at + each.settle_s:
            remembered[each.key] = at
    return remembered


def _reasons(
    rules: Rules, seen: Observation, sensed: list[_Sensed], last_seen: dict[str, float], now: float
) -> list[Reason]:
    """What keeps it from being shared at `now`, if what is seen stays as it is."""
    found = list(_timed(rules, seen, now))
    for each in sensed:
        at = last_seen.get(each.key)
        if each.now_true:
            found.append(Reason(each.key, each.words, None))
        elif at is not None and now < at + each.settle_s:
            found.append(Reason(each.key, f"{each.words} until a moment ago", at + each.settle_s))
    return found


def _timed(rules: Rules, seen: Observation, now: float) -> Iterator[Reason]:
    """Rules that only time ends."""
    for key, pause in (("pause", seen.pause), ("asked", seen.asked)):
        if pause is not None and (pause.until is None or now < pause.until):
            yield Reason(key, pause.words, pause.until)
    if rules.week is not None and not rules.week.open(now):
        yield Reason("hours", "outside its owner's hours for sharing", None)
    if rules.input_s and seen.input_at is None:
        yield Reason("input", f"{UNSEEN['input']} cannot be seen here{_because(seen, 'input')}", None)
    elif rules.input_s and seen.input_at is not None and now < seen.input_at + rules.input_s:
        yield Reason("input", "somebody is at this machine", seen.input_at + rules.input_s)


def _sensed(rules: Rules, seen: Observation, kept: dict[str, float]) -> Iterator[_Sensed]:
    if not rules.on_battery:
        yield _Sensed("battery", "it runs on battery", bool(seen.on_battery), 0.0)
    if rules.fullscreen:
        yield _Sensed("fullscreen", "a program fills the screen", bool(seen.fullscreen), SETTLE_S)
    if rules.programs:
        running = sorted(rules.programs & (seen.programs or frozenset()))
        words = f"{_named(running)} runs" if running else "a program on its owner's list runs"
        yield _Sensed("programs", words, bool(running), SETTLE_S)
    if rules.cpu_percent:
        busy = seen.cpu_percent is not None and seen.cpu_percent > rules.cpu_percent
        words = f"other programs use more than {rules.cpu_percent:.0f} % of the processor"
        yield _Sensed("cpu", words, busy, SETTLE_S)
    for card in seen.cards:
        yield from _of_card(rules, card, kept)


def _of_card(rules: Rules, card: Card, kept: dict[str, float]) -> Iterator[_Sensed]:
    if rules.gpu_alone:
        others = card.others or ()
        words = f"card {card.index} is used by {_named(others) or 'another program'}"
        yield _Sensed(f"gpu {card.index}", words, bool(others), SETTLE_S)
    if rules.temperature_c and card.temperature_c is not None:
        key, margin = f"temperature {card.index}", rules.temperature_margin_c
        hot = _above(card.temperature_c, rules.temperature_c, margin, key in kept)
        words = f"card {card.index} is at {card.temperature_c:.0f} °C, {rules.temperature_c:.0f} are allowed"
        yield _Sensed(key, words, hot, REST_S)
    if rules.power_w and card.power_w is not None:
        key, margin = f"power {card.index}", rules.power_margin_w
        high = _above(card.power_w, rules.power_w, margin, key in kept)
        words = f"card {card.index} draws {card.power_w:.0f} W, {rules.power_w:.0f} are allowed"
        yield _Sensed(key, words, high, REST_S)


def _above(value: float, limit: float, margin: float, was: bool) -> bool:  # noqa: FBT001 -- was it before
    """With hysteresis: stops above the limit, and goes on at the limit less the margin."""
    return value > limit - margin if was else value > limit


def _next_change(
    rules: Rules, seen: Observation, sensed: list[_Sensed], last_seen: dict[str, float], now: float
) -> float | None:
    """The first moment at which sharing begins or ends with nothing seen anew: each at which anything could
    is looked at."""
    present = not _reasons(rules, seen, sensed, last_seen, now)
    moments = {reason.until for reason in _reasons(rules, seen, sensed, last_seen, now)}
    if rules.week is not None:
        moments |= set(rules.week.edges(now, HORIZON_DAYS))
    for at in sorted(moment for moment in moments if moment is not None and moment > now):
        if present == bool(_reasons(rules, seen, sensed, last_seen, at)):
            return at
    return None


def _notes(rules: Rules, seen: Observation) -> tuple[str, ...]:
    """Rules that cannot be kept here, in words."""
    cards = seen.cards
    unseen = {
        "battery": not rules.on_battery and seen.on_battery is None,
        "fullscreen": rules.fullscreen and seen.fullscreen is None,
        "programs": bool(rules.programs) and seen.programs is None,
        "cpu": bool(rules.cpu_percent) and seen.cpu_percent is None,
        "gpu": rules.gpu_alone and ("gpu" in seen.blind or any(c.others is None for c in cards)),
        "temperature": bool(rules.temperature_c)
        and ("gpu" in seen.blind or any(c.temperature_c is None for c in cards)),
        "power": bool(rules.power_w) and ("gpu" in seen.blind or any(c.power_w is None for c in cards)),
    }
    return tuple(
        f"{UNSEEN[key]} cannot be seen here{_because(seen, key)}: that rule is not kept"
        for key, there in unseen.items()
        if there
    )


def _because(seen: Observation, key: str) -> str:
    why = seen.blind.get(key) or (seen.blind.get("gpu") if key in {"temperature", "power"} else None)
    return f" ({why})" if why else ""


def _named(names: list[str] | tuple[str, ...]) -> str:
    shown = ", ".join(names[:NAMED_MAX])
    return f"{shown} and others" if len(names) > NAMED_MAX else shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Guests:
    """For whom and what this worker works; empty allows all. The owner's own jobs are always welcome."""

    owner: str = ""
    kinds: frozenset[str] = frozenset()
    members: frozenset[str] = frozenset()
    members_refused: frozenset[str] = frozenset()

    def refusal(self, kind: str, member: str) -> str:
        """Empty, or why its owner does not want this job here."""
        if self.kinds and kind and kind not in self.kinds:
            return f"its owner does not share this machine for {kind}"
        if member == self.owner:
            return ""
        if member in self.members_refused or (self.members and member not in self.members):
            return f"its owner does not share this machine with {member or 'nameless members'}"
        return ""
