"""A batch through real processes: a worker dies, the coordinator dies, and every line is answered once."""

import json
import os
import subprocess
from collections import Counter
from typing import Any

import pytest
from fixtures_pool import COMMAND, Member, RealPool

from potluck.proof.verify import verify

pytestmark = pytest.mark.processes

LINES = 60


def lines() -> bytes:
    body = {"model": "emulator-small", "messages": [{"role": "user", "content": "Go on."}], "max_tokens": 20}
    wanted = {"method": "POST", "url": "/v1/chat/completions", "body": body}
    return "".join(json.dumps({"custom_id": f"n{n}", **wanted}) + "\n" for n in range(LINES)).encode()


def potluck(pool: RealPool, member: Member, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as a member would run it."""
    environment = {
        **os.environ,
        "POTLUCK_HOME": str(pool.folder / member.name),
        "POTLUCK_URL": pool.url,
        "POTLUCK_KEY": member.key,
    }
    return subprocess.run(
        [*COMMAND, *arguments], env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_a_batch_from_the_command_line(real_pool: RealPool) -> None:
    """Submitted, followed and fetched; submitted and left; and a file that cannot be taken, with its line."""
    real_pool.add_emulator("rig", "bob")
    carol, folder = real_pool.member("carol"), real_pool.folder
    (folder / "in.jsonl").write_bytes(lines())
    out = folder / "out.jsonl"
    waited = potluck(
        real_pool, carol, "submit", "batch", str(folder / "in.jsonl"), "--wait", "--output-file", str(out)
    )
    assert waited.returncode == 0, waited.stderr
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert [answer["custom_id"] for answer in answers] == [f"n{n}" for n in range(LINES)]
    again = potluck(
        real_pool, carol, "submit", "batch", str(folder / "in.jsonl"), "--wait", "--output-file", str(out)
    )
    assert (again.returncode, "is there already" in again.stderr) == (2, True)
    left = potluck(real_pool, carol, "submit", "batch", str(folder / "in.jsonl"))
    job_id = left.stdout.strip()
    assert job_id.startswith("job_")
    watched = potluck(real_pool, carol, "jobs", "watch", job_id)
    assert (watched.returncode, f"{job_id} succeeded" in watched.stdout) == (0, True)
    result = potluck(real_pool, carol, "jobs", "result", job_id, "-o", "json")
    assert len(json.loads(result.stdout)) == LINES
    (folder / "bad.jsonl").write_bytes(lines() + b'{"custom_id"\n')
    bad = potluck(real_pool, carol, "submit", "batch", str(folder / "bad.jsonl"), "--wait")
    assert bad.returncode == 100
    assert f"line {LINES + 1}: The body is not valid JSON" in bad.stderr
    broken = potluck(real_pool, carol, "submit", "batch", str(folder / "bad.jsonl"))
    seen = potluck(real_pool, carol, "jobs", "watch", broken.stdout.strip())
    assert (seen.returncode, f"line {LINES + 1}" in seen.stderr) == (100, True), (
        "it has no job, only its faults"
    )
    (folder / "none.jsonl").write_bytes(b"nonsense\n")
    none = potluck(real_pool, carol, "submit", "batch", str(folder / "none.jsonl"))
    assert (none.returncode, "the first line is no request" in none.stderr) == (5, True)


def test_a_worker_and_the_coordinator_die_and_no_line_is_lost_or_done_twice(real_pool: RealPool) -> None:
    """kill -9 of one of two workers, then of the coordinator, then both come back: as many answers as lines,
    each charged once, and an export of the ledger verifies.
    """
    for name, owner in (("rig", "bob"), ("box", "dave")):
        real_pool.add_emulator(name, owner, slots=4, tpot_ms=20)
    carol = real_pool.member("carol")
    client = carol.openai()
    file = client.files.create(file=("lines.jsonl", lines()), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )

    def counts() -> Any:
        return client.batches.retrieve(batch.id).request_counts

    real_pool.until(lambda: counts().completed >= 8, "some lines to be answered")
    real_pool.workers["rig"].kill()
    real_pool.until(lambda: counts().completed >= 20, "the other worker to go on")
    assert real_pool.coordinator is not None
    real_pool.coordinator.kill()
    real_pool.start_coordinator()
    real_pool.start_worker("rig")
    real_pool.until(lambda: client.batches.retrieve(batch.id).status == "completed", "the batch to end")
    found = client.batches.retrieve(batch.id)
    assert found.request_counts is not None
    assert found.request_counts.model_dump() == {"total": LINES, "completed": LINES, "failed": 0}
    assert found.output_file_id is not None
    answers = [json.loads(line) for line in client.files.content(found.output_file_id).text.splitlines()]
    assert [answer["custom_id"] for answer in answers] == [f"n{n}" for n in range(LINES)]
    assert {answer["response"]["body"]["usage"]["completion_tokens"] for answer in answers} == {20}
    job_id = (found.model_extra or {})["potluck"]["job_id"]
    charges = [answer["response"]["body"]["usage"]["potluck"]["charge"] for answer in answers]
    assert real_pool.job(job_id)["charge"] == sum(charges)
    assert carol.balance()["balance"] == -sum(charges)
    assert carol.balance()["reserved"] == 0
    assert real_pool.ledger_sum() == 0
    export = real_pool.folder / "export.jsonl"
    export.write_bytes(carol.api("GET", "/pool/v1/ledger/export").raise_for_status().content)
    summary = verify(export)
    assert summary.charges_recomputed >= LINES
    paid = [json.loads(line)["id"] for line in export.read_text().splitlines() if "/settle/" in line]
    assert Counter(paid) == {f"{job_id}/settle/{n}": 1 for n in range(1, LINES + 1)}
