#!/usr/bin/env python3
"""The questions of MT-bench as one batch over two workers; one is killed, then the coordinator is, and both
come back.

    benchmarks/batch.py FILE [--questions 80] [--engine llamacpp] [--tokens 64]

FILE is MT-bench's question.jsonl, one JSON object a line, of which the first of `turns` is asked. The batch
goes through the official openai client. With a quarter of the lines answered a worker is killed with -9, with
half of them the coordinator. Checked:

  whole     as many lines out as in, in their order, each with an answer
  once      the output names no line twice, and the ledger has settled none twice
  charged   the member's balance fell by what the lines say that they were charged; nothing stays reserved
  zero      the ledger adds up to nothing, and a member's export verifies offline

Exit code 1 if any check fails.
"""

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import stand
from fixtures_pool import Member, RealPool
from mt_bench import PACKAGES, questions

from potluck.credits import aligned
from potluck.proof.lines import Fault
from potluck.proof.verify import verify

OWNERS = {"rig1": "bob", "rig2": "dave"}
MINUTES_MAX = 20.0


def lines(asked: list[str], tokens: int) -> bytes:
    written = []
    for number, question in enumerate(asked, start=1):
        body: dict[str, Any] = {"model": stand.SMALL, "max_tokens": tokens, "seed": number}
        body["messages"] = [{"role": "user", "content": question}]
        line = {"custom_id": f"question {number}", "method": "POST", "url": "/v1/chat/completions"}
        written.append(json.dumps({**line, "body": body}))
    return "\n".join(written).encode()


def disturbed(pool: RealPool, asker: Member, data: bytes, count: int) -> Any:
    """The batch when it has ended, after two deaths on its way."""
    client = asker.openai()
    file = client.files.create(file=("questions.jsonl", data), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    began = time.perf_counter()

    def done() -> int:
        counts = client.batches.retrieve(batch.id).request_counts
        return 0 if counts is None else counts.completed

    def say(what: str) -> None:
        print(f"{time.perf_counter() - began:6.1f} s  {what}", flush=True)

    pool.until(lambda: done() >= count // 4, "a quarter of the lines")
    say(f"{done()} lines are answered; rig1 is killed")
    pool.workers["rig1"].kill()
    pool.until(lambda: done() >= count // 2, "half of the lines")
    say(f"{done()} lines are answered; the coordinator is killed")
    assert pool.coordinator is not None
    pool.coordinator.kill()
    pool.start_coordinator()
    say("the coordinator is back")
    pool.start_worker("rig1", ready=False)
    pool.until(lambda: client.batches.retrieve(batch.id).status in ("completed", "expired"), "the end")
    found = client.batches.retrieve(batch.id)
    say(f"the batch is {found.status}")
    return found


def checked(pool: RealPool, asker: Member, batch: Any, asked: list[str]) -> list[str]:
    """What is wrong, in words. Prints what came of the lines."""
    problems = []
    text = asker.openai().files.content(batch.output_file_id).text if batch.output_file_id else ""
    answers = [json.loads(line) for line in text.splitlines()]
    said = [answer["response"]["body"] for answer in answers]
    if [answer["custom_id"] for answer in answers] != [f"question {n + 1}" for n in range(len(asked))]:
        problems.append(f"{len(answers)} lines came out, not each of {len(asked)} once and in order")
    empty = sum(not body["choices"][0]["message"]["content"].strip() for body in said)
    if empty:
        problems.append(f"{empty} answers are empty")
    charge = sum(body["usage"]["potluck"]["charge"] for body in said)
    balance = asker.balance()
    if balance["balance"] != -charge or balance["reserved"]:
        problems.append(f"the lines cost {charge}, and the member has {balance}")
    export = pool.folder / "export.jsonl"
    export.write_bytes(asker.api("GET", "/pool/v1/ledger/export").raise_for_status().content)
    try:
        verify(export)
    except Fault as error:
        problems.append(f"the export does not verify: {error}")
    entries = [json.loads(line).get("id", "") for line in export.read_text().splitlines()]
    settled = Counter(entry for entry in entries if "/settle/" in entry)
    if len(settled) != len(asked) or set(settled.values()) != {1}:
        problems.append(
            f"{len(settled)} lines were settled, at most {max(settled.values(), default=0)} times"
        )
    tokens = sum(body["usage"]["completion_tokens"] for body in said)
    print(
        f"{len(answers)} of {len(asked)} lines out, {tokens} tokens, charged {aligned(charge)} credits,"
        f" {len(settled)} settlements, the ledger's sum is {pool.ledger_sum()}"
    )
    earned = {name: aligned(pool.members[owner].balance()["balance"]) for name, owner in OWNERS.items()}
    print(", ".join(f"{name} earned {amount.strip()}" for name, amount in earned.items()))
    return problems + (["the ledger does not add up"] if pool.ledger_sum() else [])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="question.jsonl of MT-bench")
    parser.add_argument("--questions", type=int, default=80)
    parser.add_argument("--engine", default="llamacpp", choices=sorted(PACKAGES))
    parser.add_argument("--tokens", type=int, default=64, help="the most of one answer")
    wanted = parser.parse_args()
    asked = questions(wanted.file, wanted.questions)
    print(stand.machine("openai", PACKAGES[wanted.engine]), flush=True)
    with stand.running_pool() as pool:
        pool.start_s = MINUTES_MAX * 60
        asker = pool.member("asker", credit_line=10**12)
        for name, owner in OWNERS.items():
            pool.add_worker(name, owner, "--engine", wanted.engine, "--models", stand.SMALL, "--threads", "1")
        batch = disturbed(pool, asker, lines(asked, wanted.tokens), len(asked))
        problems = checked(pool, asker, batch, asked)
    print("; ".join(problems) or "every line is answered, once, and paid as counted")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
