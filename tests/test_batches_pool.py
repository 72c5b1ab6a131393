"""A batch through real processes: a worker dies, the coordinator dies, and every line is answered once."""

import json
from collections import Counter
from typing import Any

import pytest
from fixtures_pool import RealPool

from potluck.proof.verify import verify

pytestmark = pytest.mark.processes

LINES = 60


def lines() -> bytes:
    body = {"model": "emulator-small", "messages": [{"role": "user", "content": "Go on."}], "max_tokens": 20}
    wanted = {"method": "POST", "url": "/v1/chat/completions", "body": body}
    return "".join(json.dumps({"custom_id": f"n{n}", **wanted}) + "\n" for n in range(LINES)).encode()


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
