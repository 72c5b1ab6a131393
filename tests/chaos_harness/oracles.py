"""What must be true of a pool once the faults are over and everybody has left."""

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from fixtures_engine import completion
from fixtures_margin import MARGIN_MAX, Judge
from fixtures_pool import Member, RealPool

from chaos_harness.traffic import STORED_TOKENS, TOKENS, Notes, said
from potluck.proof.verify import verify

ENDED = {"succeeded", "failed", "cancelled", "expired"}
OVER = {"completed", "failed", "cancelled", "expired"}  # of batches


def all_jobs(pool: RealPool) -> list[dict[str, Any]]:
    jobs: list[dict[str, Any]] = []
    while True:
        before = f"&before={jobs[-1]['id']}" if jobs else ""
        page = pool.admin.api("GET", f"/pool/v1/jobs?all=true&limit=100{before}").raise_for_status().json()
        jobs += page["data"]
        if not page["has_more"]:
            return jobs


def still_open(pool: RealPool, notes: Notes) -> Iterator[str]:
    """Jobs, and the batches that have yet to write their files."""
    for job in all_jobs(pool):
        if job["state"] not in ENDED:
            yield f"{job['id']} ({job['kind']}) is {job['state']}"
    for member, batch_id, _ in notes.batches:
        batch = member.api("GET", f"/v1/batches/{batch_id}").raise_for_status().json()
        if batch["status"] not in OVER:
            yield f"{batch_id} is {batch['status']}"


def held(pool: RealPool) -> int:
    """Microcredits reserved by anybody."""
    return sum(member.balance()["reserved"] for member in [pool.admin, *pool.members.values()])


def not_closed_once(books: Path) -> list[str]:
    """Of the books on the disk: jobs without exactly one hold and one close."""
    with contextlib.closing(sqlite3.connect(f"file:{books}?mode=ro", uri=True)) as reading:
        ids = [row[0] for row in reading.execute("SELECT id FROM entries")]
    holds = {name.removesuffix("/hold") for name in ids if name.endswith("/hold")}
    closes = [name.removesuffix("/close") for name in ids if name.endswith("/close")]
    twice = {job for job in closes if closes.count(job) > 1}
    return sorted((holds ^ set(closes)) | twice)


def wrong_batches(notes: Notes) -> Iterator[str]:
    """Each line is answered once, and rightly, or stands in the errors' file with a reason."""
    for member, batch_id, right in notes.batches:
        with member.openai() as client:
            batch = client.batches.retrieve(batch_id)
            rows = [
                json.loads(line)
                for file in (batch.output_file_id, batch.error_file_id)
                if file is not None
                for line in client.files.content(file).text.splitlines()
            ]
        if sorted(row["custom_id"] for row in rows) != sorted(right):
            yield f"{batch_id} has {len(rows)} lines of {len(right)}"
        for row in rows:
            if (answer := row.get("response")) and answer["status_code"] == 200:
                text = answer["body"]["choices"][0]["message"]["content"]
                if text != right[row["custom_id"]]:
                    yield f"{batch_id}, {row['custom_id']}: {text!r}"


def wrong_answers(notes: Notes) -> Iterator[str]:
    """A stored job outlives everything: it succeeds, with the right text."""
    for member, job_id, seed in notes.stored:
        job = member.api("GET", f"/pool/v1/jobs/{job_id}").raise_for_status().json()
        if job["state"] != "succeeded":
            yield f"{job_id} is {job['state']}: {job['why']}"
            continue
        answer = member.api("GET", f"/pool/v1/jobs/{job_id}/result").raise_for_status().json()
        if (text := answer["choices"][0]["message"]["content"]) != said(seed, STORED_TOKENS):
            yield f"{job_id}: {text!r}"


def wrong_finetunes(notes: Notes) -> Iterator[str]:
    """Each has come to its end. One that nobody could train in five tries has failed, and says why."""
    for member, job_id in notes.finetunes:
        with member.openai() as client:
            job = client.fine_tuning.jobs.retrieve(job_id)
            if job.status not in ("succeeded", "failed") or (job.status == "failed" and not job.error):
                yield f"{job_id} is {job.status}: {job.error}"
            notes.note(f"finetune: {job.status}")


def other_texts(notes: Notes, right: dict[tuple[str, int], str], judge: Judge) -> Iterator[str]:
    """Of the model in fp32: a text may differ only where the sampler's choice was a narrow one."""
    for prompt, seed, text in set(notes.torch):
        if text == right[prompt, seed]:
            continue
        work = completion(prompt, max_tokens=TOKENS, temperature=0.7, seed=seed)
        narrow = asyncio.run(judge.difference(work, text))
        if narrow is None or narrow >= MARGIN_MAX:
            yield f"{prompt!r}, seed {seed}: {text!r} is not {right[prompt, seed]!r} (margin {narrow})"


def unproven(member: Member, folder: Path) -> str:
    """What an auditor would find first in the ledger's export; "" if nothing."""
    path = folder / "ledger.jsonl"
    path.write_bytes(member.api("GET", "/pool/v1/ledger/export").raise_for_status().content)
    try:
        verify(path)
    except Exception as error:
        return str(error)
    return ""


def left_behind(folder: Path) -> list[str]:
    """Processes that still work for this pool."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            theirs = any(str(folder) in value for value in process.environ().values())
            if theirs and process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{process.pid} {' '.join(process.cmdline())}")
    return found
