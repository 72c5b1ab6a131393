"""Numbers that the pages state in sentences are those of the code."""

from pathlib import Path

import pytest

from coordinator.api.auth import FAILURES_MAX, FAILURES_S
from coordinator.api.browser import SESSION_S
from coordinator.core.course import SAMPLE_MAX
from coordinator.core.fleet import Patience
from coordinator.core.rules import Rules
from coordinator.finetunes.finetune import DAYS
from coordinator.settings import MICROCREDITS, Settings
from worker.attempt_files import KEPT_S

DOCS = Path(__file__).resolve().parent.parent / "docs"
DAY_S = 86_400
WORDS: dict[float, str] = {5: "five", 7: "seven", 10: "ten"}
SILENCE, RULES = Patience(), Rules()
DEFAULT = {name: field.default for name, field in Settings.model_fields.items()}

STATED = [
    ("concepts", f"before it is taken away ({SILENCE.lease_s:g} s)"),
    ("credits", f"(`prompt_weight_permille` = {DEFAULT['prompt_weight_permille']})"),
    ("credits", f"(`fee_permille` = {DEFAULT['fee_permille']})"),
    ("credits", f"({DEFAULT['default_credit_line'] // MICROCREDITS:,} credits by default"),
    ("credits", f"up to {SAMPLE_MAX} of its examples on the way"),
    ("failover", f"{SILENCE.lease_s:g} seconds (the *lease*)"),
    ("failover", f"(more than three tenths of at least {WORDS[SILENCE.brake_workers_min]})"),
    ("failover", f"waits up to {SILENCE.brake_s:g} seconds"),
    ("failover", f"back within {SILENCE.forgiven_s:g} seconds"),
    ("failover", f"after {RULES.attempts_max} attempts that failed or were lost"),
    ("failover", f"a fine-tune for {DAYS} days"),
    ("faq", f"({DEFAULT['grpc'].rpartition(':')[2]} unless it says otherwise)"),
    ("faq", f"half of it after {WORDS[DEFAULT['fairness_half_life_s'] // DAY_S]} days"),
    ("privacy", f"`file_days` ({DEFAULT['file_days']}) after its end"),
    ("privacy", f"{WORDS[KEPT_S // 60]} minutes after its last part"),
    ("security", f"certificates: {WORDS[DEFAULT['certificate_days']]} days"),
    ("security", f"{WORDS[FAILURES_MAX]} within {WORDS[FAILURES_S // 60]} minutes"),
    ("security", f"for {SESSION_S // DAY_S} days"),
    ("trust", f"`proof_jobs` ({DEFAULT['proof_jobs']}) jobs"),
    ("trust", f"`proof_hours` ({DEFAULT['proof_hours']})"),
    ("trust", f"after {SILENCE.lease_s:g} seconds of silence"),
]


@pytest.mark.parametrize(("page", "stated"), STATED)
def test_a_page_states_what_the_code_does(page: str, stated: str) -> None:
    assert stated in " ".join((DOCS / f"{page}.md").read_text(encoding="utf-8").split())


def test_words_for_what_is_no_round_number_of_seconds() -> None:
    """Half a second, three tenths, a minute: where they stand, they are true."""
    assert (SILENCE.closed_grace_s, SILENCE.brake_share) == (0.5, 0.3)
    assert DEFAULT["wait_for_worker_s"] == 60
    failover = " ".join((DOCS / "failover.md").read_text(encoding="utf-8").split())
    assert "it has half a second to come back" in failover
    assert "up to a minute (`wait_for_worker_s`)" in failover
