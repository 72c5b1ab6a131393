"""docs/benchmarks.md out of what the benchmarks printed: what is to be reached, and what was."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

WANTED: Final = Path(__file__).with_name("measurements.toml")
FIGURE: Final = re.compile(r"^= (?P<name>.+): (?P<value>-?[0-9,]+(?:\.[0-9]+)?)(?: .+)?$")
HEAD: Final = """\
# Benchmarks

Every number here was printed by a command of this repository: `scripts/measure` runs them all, keeps what
they print in `benchmarks/results`, and writes this page out of it. Measure your own machine: where two things
are compared, the ratio carries over, and little else does. The table is made of lines that begin with `=`.

## What is to be reached

| what | reach | measured | |
|---|---:|---:|---|
"""


@dataclass(frozen=True, slots=True)
class Target:
    """One number that is to be reached, by which figure it is told, and why it is not, if it is not."""

    what: str
    figure: str
    at_most: float | None = None
    at_least: float | None = None
    why: str = ""

    def met(self, value: float) -> bool:
        return (self.at_most is None or value <= self.at_most) and (
            self.at_least is None or value >= self.at_least
        )

    @property
    def reach(self) -> str:
        return f"≤ {self.at_most:,g}" if self.at_most is not None else f"≥ {self.at_least:,g}"


@dataclass(frozen=True, slots=True)
class Measurement:
    """One command, what the page says of it, and what it is to reach."""

    name: str
    title: str
    command: str  # DATA stands for the file that is asked for
    says: str
    targets: tuple[Target, ...]


def measurements(wanted: Path = WANTED) -> list[Measurement]:
    def one(name: str, table: dict[str, Any]) -> Measurement:
        targets = tuple(Target(**target) for target in table.pop("targets", []))
        return Measurement(name, targets=targets, **table)

    return [one(name, table) for name, table in tomllib.loads(wanted.read_text(encoding="utf-8")).items()]


def figures(output: str) -> dict[str, float]:
    found = (FIGURE.match(line) for line in output.splitlines())
    return {hit["name"]: float(hit["value"].replace(",", "")) for hit in found if hit}


def row(target: Target, value: float | None) -> str:
    if value is None:
        return f"| {target.what} | {target.reach} | not measured | |\n"
    word = "reached" if target.met(value) else "**missed**"
    told = f"{value:,.0f}" if value >= 1_000 else f"{value:.3g}"
    return f"| {target.what} | {target.reach} | {told} | {word} |\n"


def block(output: str) -> str:
    return f"\n```text\n{output.rstrip()}\n```\n"


def written(kept: Mapping[str, str]) -> str:
    """The page, from what each measurement printed. Raises ValueError if what is missed has no why."""
    rows, missed, sections = [], [], []
    for one in measurements():
        found = figures(kept.get(one.name, ""))
        for target in one.targets:
            value = found.get(target.figure)
            rows.append(row(target, value))
            if value is None or target.met(value):
                continue
            if not target.why:
                raise ValueError(f"{one.name}: {target.figure} is missed, and no `why` says why")
            missed.append(f"- **{target.what}**: {' '.join(target.why.split())}\n")
        if one.name in kept:
            sections.append(
                f"\n## {one.title}\n\n{one.says.strip()}\n\n```text\n{kept[one.name].rstrip()}\n```\n"
            )
    if missed:
        sections.insert(0, "\n## What is not reached, and why\n\n" + "".join(missed))
    return HEAD + "".join(rows) + "".join(sections)
