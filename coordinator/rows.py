"""Between the core's values and the tables' rows, without a decision.

Tuples to be written are in the order of the tables' columns, as `statements` asks for them.
"""

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
from coordinator.core.receipts import ReceiptState
from coordinator.core.standing import Standing
from coordinator.records import ReceiptRow, RecordedReceipt


def job_values(job: Job) -> tuple[Any, ...]:
    return (
        job.id,
        job.kind.value,
        job.model,
        job.member,
        job.account,
        job.created_at,
        job.quote,
        job.hold,
        job.prompt_tokens,
        job.max_tokens,
        job.choices,
        job.key,
        job.whole,
        job.part,
        job.settled,
        job.settlements,
        job.stored,
        job.own_only,
        json.dumps(sorted(job.only)) if job.only else "[]",
        job.expires_at,
        job.state.value,
        job.charge,
        job.output_tokens,
        job.started_at,
        job.ended_at,
        job.why,
        job.code,
    )


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
        key=row.key_id,
        whole=None if row.whole_id is None else JobId(row.whole_id),
        part=row.part,
        settled=row.settled,
        settlements=row.settlements,
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


def attempt_values(job: JobId, attempt: Attempt) -> tuple[Any, ...]:
    return (
        job,
        attempt.number,
        attempt.worker,
        attempt.owner,
        attempt.assigned_at,
        attempt.why,
        attempt.state.value,
        attempt.ended_at,
        attempt.tokens,
        attempt.paid,
        attempt.held,
    )


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
        held=row.held,
    )


def account_of(row: Row[Any]) -> Account:
    return Account(AccountId(row.id), row.credit_line, row.main, row.reserved, row.held)


def entry_values(recorded: Recorded) -> tuple[Any, ...]:
    entry = recorded.entry
    return (
        recorded.number,
        entry.id,
        recorded.at,
        entry.code.value,
        entry.job,
        entry.details,
        recorded.previous,
        recorded.hash,
    )


def posting_values(recorded: Recorded) -> list[tuple[Any, ...]]:
    return [
        (recorded.number, position, posting.account, posting.bucket.value, posting.amount)
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


def receipt_values(recorded: RecordedReceipt) -> tuple[Any, ...]:
    receipt = recorded.receipt
    return (
        recorded.number,
        receipt.job_id,
        receipt.attempt,
        receipt.worker_id,
        receipt.body,
        receipt.signature,
        receipt.state.value,
        receipt.why,
        recorded.at,
        recorded.previous,
        recorded.hash,
        recorded.countersignature,
    )


def receipt_of(row: Row[Any]) -> RecordedReceipt:
    receipt = ReceiptRow(
        job_id=JobId(row.job_id),
        attempt=row.attempt,
        worker_id=WorkerId(row.worker_id),
        body=row.body,
        signature=row.signature,
        state=ReceiptState(row.state),
        why=row.why,
    )
    return RecordedReceipt(
        number=row.number,
        at=row.at,
        receipt=receipt,
        previous=row.previous,
        hash=row.hash,
        countersignature=row.countersignature,
    )


def standing_values(worker: WorkerId, standing: Standing) -> tuple[Any, ...]:
    return standing.good_jobs, standing.first_job_at, standing.proven_at, worker


def standing_of(row: Row[Any], held: int) -> Standing:
    return Standing(row.good_jobs, row.first_job_at, row.proven_at, held)
