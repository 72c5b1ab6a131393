"""The pool's pulse: what was delivered is counted once, whatever ends or restarts meanwhile."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from coordinator.pulse import EVERY_S, RATE_S, Pulse

START = 1_790_000_000.0


@dataclass
class Stand:
    """An engine's open jobs by their tokens, and a clock."""

    now: float = START
    lives: dict[str, Any] = field(default_factory=dict)

    @property
    def pulse(self) -> Pulse:
        engine: Any = SimpleNamespace(
            lives=self.lives, fleet=SimpleNamespace(workers={}), queue=()
        )  # what the pulse reads of an engine
        return Pulse(engine, lambda: self.now)

    def deliver(self, job: str, tokens: int) -> None:
        self.lives[job] = SimpleNamespace(output=SimpleNamespace(so_far=tokens))

    def end(self, pulse: Pulse, job: str) -> None:
        ended: Any = SimpleNamespace(output_tokens=self.lives.pop(job).output.so_far, has_parts=False)
        pulse.ended(ended)


def test_a_steady_stream_has_its_rate_now_and_over_time() -> None:
    stand = Stand()
    pulse = stand.pulse
    for second in range(0, 61, 5):
        stand.now = START + second
        stand.deliver("a", 20 * second)
        pulse.take()
    assert pulse.tokens_per_s() == 20.0
    spans = pulse.spans(10.0, 6)
    assert [round(span.tokens_per_s) for span in spans[1:]] == [20] * 5
    stand.end(pulse, "a")
    stand.now += RATE_S
    pulse.take()
    stand.now += RATE_S
    pulse.take()
    assert pulse.tokens_per_s() == 0.0


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 50), st.booleans()), max_size=40))
def test_nothing_is_counted_twice_and_nothing_is_lost(steps: list[tuple[int, int, bool]]) -> None:
    """Jobs grow and end in any order; the spans' sum is what was delivered."""
    stand = Stand()
    pulse = stand.pulse
    pulse.take()
    delivered = 0
    for job, tokens, over in steps:
        stand.now += EVERY_S
        name = str(job)
        had = stand.lives[name].output.so_far if name in stand.lives else 0
        stand.deliver(name, had + tokens)
        delivered += tokens
        if over:
            stand.end(pulse, name)
        pulse.take()
    stand.now += 1.0
    length_s = (stand.now - START) / 4 + 1.0
    total = sum(span.tokens_per_s * length_s for span in pulse.spans(length_s, 4))
    assert round(total) == delivered
    assert [p.tokens for p in pulse.points] == sorted(p.tokens for p in pulse.points)


def test_a_restart_begins_with_what_the_books_say() -> None:
    """Also where a minute of the books has not ended yet."""
    stand = Stand()
    pulse = stand.pulse
    pulse.recall([(START - 3_600, 600), (START - 60, 1_200), (START + 30, 60)])
    spans = pulse.spans(60.0, 61)
    assert round(sum(span.tokens_per_s for span in spans) * 60) == 1_860
    latest = pulse.latest
    assert (latest.at, latest.tokens) == (START, 1_860)
    stand.deliver("a", 40)
    assert pulse.latest is latest, "looked at a moment ago"
    stand.now += EVERY_S
    assert pulse.latest.tokens == 1_900


def test_what_a_batch_wrote_was_counted_with_its_parts() -> None:
    pulse = Stand().pulse
    for tokens, has_parts in ((5, False), (5, True)):
        ended: Any = SimpleNamespace(output_tokens=tokens, has_parts=has_parts)
        pulse.ended(ended)
    assert pulse.take().tokens == 5
