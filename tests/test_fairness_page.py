"""The page about fair order says what the simulation says, and the simulation what the rule promises."""

import sys
from functools import cache
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import fairness  # noqa: E402 -- a program beside the package, found by the line above

PAGE = ROOT / "docs" / "fairness.md"


@cache
def found() -> dict[fairness.Rule, fairness.Tally]:
    return fairness.simulate(seed=7, seconds=1_800.0)


def test_the_pages_table_is_what_the_command_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["fairness.py"])
    fairness.main()
    printed = capsys.readouterr().out
    page = PAGE.read_text(encoding="utf-8")
    assert fairness.written(page, printed.strip()) == page, "run: python benchmarks/fairness.py --write docs"


def test_the_pages_picture_is_what_the_command_draws() -> None:
    """And it is well-formed, with a bar for every number."""
    drawn = fairness.picture(found())
    assert drawn == (ROOT / "docs" / "fairness.svg").read_text(encoding="utf-8")
    root = ET.fromstring(drawn)
    bars = root.findall(".//{http://www.w3.org/2000/svg}rect/{http://www.w3.org/2000/svg}title")
    assert len(bars) == 2 * len(fairness.KINDS) * len(fairness.RULES)


def test_the_simulation_keeps_the_rules_promises() -> None:
    """Under a full load, by the planner itself."""
    fair, first, richest = (found()[rule] for rule in fairness.RULES)
    alone = "newcomer, ten at a time"
    assert fair.worst("newcomer, one at a time") <= fairness.bound_s()
    assert fair.share("contributor") > 0.6, "who serves is served"
    assert fair.share("deep in debt") > 0, "nobody starves"
    assert fair.share("deep in debt") < fair.share(alone)
    assert fair.share("ten keys of one") < 1.3 * fair.share(alone), "keys gain nothing"
    invited = fair.share("ten invited by one") + fair.share("one who invites")
    assert invited < 1.3 * fair.share(alone), "accounts gain nothing"
    assert fair.share("rich by an old gift") < 1.3 * fair.share(alone), "a fortune is no contribution"
    assert fair.share("stored jobs") == pytest.approx(0.1, abs=0.02), "two of twenty slots"
    assert first.share("ten keys of one") > 5 * fair.share("ten keys of one"), "elsewhere, asking pays"
    assert richest.share(alone) < 0.005, "elsewhere, newcomers starve"


def test_the_same_seed_gives_the_same_table_and_another_one_another() -> None:
    again = fairness.simulate(seed=7, seconds=60.0)
    assert fairness.table(again) == fairness.table(fairness.simulate(seed=7, seconds=60.0))
    assert fairness.table(again) != fairness.table(fairness.simulate(seed=8, seconds=60.0))
