"""Between the core's values and the tables' rows, without a decision."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Row

from coordinator.core.jobs import (
    AccountId,
    Attempt,
    AttemptState,
    Job,
    JobId,
    JobState,
    Kind,
    MemberId,
    WorkerId,
)
from coordinator.core.ledger import Account, Bucket, Code, Entry, Posting, Recorded
from coordinator.records import ReceiptRow, ReceiptState


def job_values(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "kind": job.kind.value,
        "model": job.model,
        "member_id": job.member,
        "account_id": job.account,
        "created_at": job.created_at,
        "quote": job.quote,
        "hold": job.hold,
        "prompt_tokens": job.prompt_tokens,
        "max_tokens": job.max_tokens,
        "choices": job.choices,
        "stored": job.stored,
        "own_only": job.own_only,
        "only_workers": json.dumps(sorted(job.only)) if job.only else "[]",
        "expires_at": job.expires_at,
        "state": job.state.value,
        "charge": job.charge,
        "output_tokens": job.output_tokens,
        "started_at": job.started_at,
        "ended_at": job.ended_at,
        "why": job.why,
        "code": job.code,
    }


def job_of(row: Row[Any], attempts: Iterable[Attempt]) -> Job:
    return Job(
        id=JobId(row.id),
        kind=Kind(row.kind),
        model=row.model,
        member=MemberId(row.member_id),
        account=AccountId(row.account_id),
        created_at=row.created_at,
        quote=row.quote,
        hold=row.hold,
        prompt_tokens=row.prompt_tokens,
        max_tokens=row.max_tokens,
        choices=row.choices,
        stored=row.stored,
        own_only=row.own_only,
        only=frozenset(WorkerId(worker) for worker in json.loads(row.only_workers)),
        expires_at=row.expires_at,
        state=JobState(row.state),
        attempts=tuple(attempts),
        charge=row.charge,
        output_tokens=row.output_tokens,
        started_at=row.started_at,
        ended_at=row.ended_at,
        why=row.why,
        code=row.code,
    )


def attempt_values(job: JobId, attempt: Attempt) -> dict[str, Any]:
    return {
        "job_id": job,
        "number": attempt.number,
        "worker_id": attempt.worker,
        "owner_id": attempt.owner,
        "assigned_at": attempt.assigned_at,
        "why": attempt.why,
        "state": attempt.state.value,
        "ended_at": attempt.ended_at,
        "tokens": attempt.tokens,
        "paid": attempt.paid,
    }


def attempt_of(row: Row[Any]) -> Attempt:
    return Attempt(
        number=row.number,
        worker=WorkerId(row.worker_id),
        owner=AccountId(row.owner_id),
        assigned_at=row.assigned_at,
        why=row.why,
        state=AttemptState(row.state),
        ended_at=row.ended_at,
        tokens=row.tokens,
        paid=row.paid,
    )


def account_of(row: Row[Any]) -> Account:
    return Account(AccountId(row.id), row.credit_line, row.main, row.reserved, row.held)


def entry_values(recorded: Recorded) -> dict[str, Any]:
    entry = recorded.entry
    return {
        "number": recorded.number,
        "id": entry.id,
        "at": recorded.at,
        "code": entry.code.value,
        "job_id": entry.job,
        "details": entry.details,
        "previous": recorded.previous,
        "hash": recorded.hash,
    }


def posting_values(recorded: Recorded) -> list[dict[str, Any]]:
    return [
        {
            "entry_number": recorded.number,
            "position": position,
            "account_id": posting.account,
            "bucket": posting.bucket.value,
            "amount": posting.amount,
        }
        for position, posting in enumerate(recorded.entry.postings)
    ]


def postings_of(rows: Iterable[Row[Any]]) -> Mapping[int, list[Posting]]:
    """Postings by the number of their entry, in their order."""
    found: dict[int, list[Posting]] = {}
    for row in rows:
        posting = Posting(AccountId(row.account_id), Bucket(row.bucket), row.amount)
        found.setdefault(row.entry_number, []).append(posting)
    return found


def entry_of(row: Row[Any], postings: Iterable[Posting]) -> Entry:
    job = None if row.job_id is None else JobId(row.job_id)
    return Entry(row.id, Code(row.code), tuple(postings), job, row.details)


def recorded_of(row: Row[Any], postings: Iterable[Posting]) -> Recorded:
    return Recorded(row.number, row.at, entry_of(row, postings), row.previous, row.hash)


def receipt_values(receipt: ReceiptRow) -> dict[str, Any]:
    return {
        "job_id": receipt.job_id,
        "attempt": receipt.attempt,
        "worker_id": receipt.worker_id,
        "body": receipt.body,
        "signature": receipt.signature,
        "state": receipt.state.value,
        "why": receipt.why,
        "at": receipt.at,
    }


def receipt_of(row: Row[Any]) -> ReceiptRow:
    return ReceiptRow(
        job_id=JobId(row.job_id),
        attempt=row.attempt,
        worker_id=WorkerId(row.worker_id),
        body=row.body,
        signature=row.signature,
        state=ReceiptState(row.state),
        why=row.why,
        at=row.at,
    )
