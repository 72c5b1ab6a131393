#!/usr/bin/env python3
"""The first questions of MT-bench through the pool, answered by a worker of each engine.

    benchmarks/mt_bench.py FILE [--questions 10] [--engines llamacpp,torch] [--tokens 256]

FILE is MT-bench's question.jsonl (Zheng et al., Judging LLM-as-a-judge, 2023), one JSON object a line, of
which the first of `turns` is asked. Each engine is a worker of a member of its own, on one thread; each
question goes to one of them after the other (by `potluck.workers` of the request), so that no two engines
compute at once. Printed are tokens as the pool counts them, seconds from the request to the last token, and
what moved: the asker's charge and the owner's pay, in credits. Exit code 1 if an answer is empty, does not
end, or does not move exactly its charge.
"""

import argparse
import json
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import stand
from fixtures_pool import Member, RealPool

from potluck.credits import aligned

PACKAGES = {"llamacpp": "xllamacpp", "torch": "torch"}
QUESTIONS_MAX = 1000
MINUTES_MAX = 20.0
FIRST_LINE_MAX = 100
SHOWN_MAX = 100
TEMPERATURE = 0.7  # a small model rambles at 1


@dataclass(slots=True)
class Served:
    """One engine's worker and what it did."""

    engine: str
    worker: str = ""
    owner: Member | None = None
    tokens: int = 0
    charges: int = 0
    rates: list[float] = field(default_factory=list)
    quotes: list[tuple[int, int]] = field(default_factory=list)  # (quote, charge) of each answer

    @property
    def earned(self) -> int:
        assert self.owner is not None
        balance: int = self.owner.balance()["balance"]
        return balance


def questions(path: Path, count: int) -> list[str]:
    """The first turns. Exits with a sentence if the file is another."""
    try:
        with path.open(encoding="utf-8") as file:
            lines = [line for line, _ in zip(file, range(count), strict=False)]
        return [str(json.loads(line)["turns"][0]) for line in lines]
    except OSError as error:
        raise SystemExit(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, IndexError, TypeError):
        raise SystemExit(f"{path} is no question.jsonl of MT-bench.") from None


def ask(asker: Member, served: Served, question: str, tokens_max: int) -> list[str]:
    """Prints the answer's lines; what is wrong, in words."""
    before, earned = asker.balance()["balance"], served.earned
    began = time.perf_counter()
    text, reason, usage = "", None, None
    wanted: Any = {"potluck": {"workers": [served.worker]}}
    with asker.openai().chat.completions.create(
        model=stand.SMALL,
        messages=[{"role": "user", "content": question}],
        max_tokens=tokens_max,
        temperature=TEMPERATURE,
        seed=1,
        stream=True,
        stream_options={"include_usage": True},
        extra_body=wanted,
    ) as stream:
        for chunk in stream:
            for choice in chunk.choices:
                text += choice.delta.content or ""
                reason = choice.finish_reason or reason
            usage = chunk.usage or usage
    seconds = time.perf_counter() - began
    if usage is None:
        return [f"{served.engine}: no usage came"]
    extra: Any = usage.model_extra
    charge = extra["potluck"]["charge"]
    moved, paid = before - asker.balance()["balance"], served.earned - earned
    rate = usage.completion_tokens / seconds
    served.tokens += usage.completion_tokens
    served.charges += charge
    served.rates.append(rate)
    quote = asker.api("GET", f"/pool/v1/jobs/{extra['potluck']['job_id']}").json()["quote"]
    served.quotes.append((quote, charge))
    print(
        f"   {served.engine:<9} {usage.prompt_tokens:>4} + {usage.completion_tokens:>4} tokens"
        f" {seconds:6.1f} s {rate:6.1f} tokens/s  {reason:<6}  charged {aligned(moved)},"
        f" paid {aligned(paid)} credits"
    )
    print(f"             {' '.join(text.split())[:SHOWN_MAX]}", flush=True)
    problems = []
    if not text.strip() or reason not in ("stop", "length"):
        problems.append(f"{served.engine}: the answer is empty or ended with {reason!r}")
    if charge > quote:
        problems.append(f"{served.engine}: {charge} were charged, above the quote of {quote}")
    if not moved == charge > paid > 0:
        problems.append(f"{served.engine}: charged {charge}, the balance fell by {moved}, {paid} were paid")
    return problems


def serve(pool: RealPool, engine: str) -> Served:
    worker, owner = f"{engine}-rig", f"{engine}-owner"
    pool.add_worker(worker, owner, "--engine", engine, "--models", stand.SMALL, "--threads", "1")
    return Served(engine, str(pool.view(worker)["id"]), pool.members[owner])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="question.jsonl of MT-bench")
    parser.add_argument("--questions", type=int, default=10)
    parser.add_argument("--engines", default="llamacpp,torch")
    parser.add_argument("--tokens", type=int, default=256, help="the most of one answer")
    parser.add_argument("--minutes", type=float, default=MINUTES_MAX, help="no question is asked after that")
    wanted = parser.parse_args()
    engines = wanted.engines.split(",")
    if unknown := set(engines) - set(PACKAGES):
        parser.error(f"unknown engine {', '.join(sorted(unknown))}: there are {', '.join(PACKAGES)}")
    asked = questions(wanted.file, min(wanted.questions, QUESTIONS_MAX))
    print(stand.machine("openai", *(PACKAGES[engine] for engine in engines)), flush=True)
    ends = time.monotonic() + wanted.minutes * 60
    problems: list[str] = []
    with stand.running_pool() as pool:
        asker = pool.member("asker", credit_line=10**12)
        benches = [serve(pool, engine) for engine in engines]
        for number, question in enumerate(asked, start=1):
            if time.monotonic() > ends:
                problems.append(f"time was over before question {number}")
                break
            print(f"{number:2} {question.strip().splitlines()[0][:FIRST_LINE_MAX]}", flush=True)
            for served in benches:
                problems += ask(asker, served, question, wanted.tokens)
        for served in benches:
            if served.rates:
                print(
                    f"{served.engine}: {len(served.rates)} answers, {served.tokens} tokens, median"
                    f" {statistics.median(served.rates):.1f} tokens/s, charged {aligned(served.charges)},"
                    f" its owner has {aligned(served.earned)} credits"
                )
            if served.quotes:
                above = sum(charge > quote for quote, charge in served.quotes)
                ratio = statistics.median(quote / charge for quote, charge in served.quotes)
                print(
                    f"{served.engine}: the charge was above the quote in {above} of {len(served.quotes)};"
                    f" median quote / charge {ratio:.2f} at {wanted.tokens} tokens at most"
                )
        total = pool.ledger_sum()
        print(f"the asker has {aligned(asker.balance()['balance'])} credits; the ledger's sum is {total}")
    if total:
        problems.append("the ledger does not add up")
    print("; ".join(problems) or "all answers are whole and charged as counted")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
