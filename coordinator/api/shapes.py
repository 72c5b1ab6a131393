"""The pool's own objects as JSON: times RFC 3339 UTC, amounts in integer microcredits (design, section 9)."""

import base64
from typing import Any, Final

from coordinator.accounts import Accounts
from coordinator.batches.batch import HOUR_S, Batch, BatchState
from coordinator.bounds import written
from coordinator.clock import rfc3339
from coordinator.core.jobs import Attempt, Job
from coordinator.records import ApiKey, Member, RecordedReceipt, Scope

_MOMENTS: Final = {  # the OpenAI API's names for when it came into a state
    "in_progress_at": BatchState.IN_PROGRESS,
    "finalizing_at": BatchState.FINALIZING,
    "completed_at": BatchState.COMPLETED,
    "failed_at": BatchState.FAILED,
    "expired_at": BatchState.EXPIRED,
    "cancelling_at": BatchState.CANCELLING,
    "cancelled_at": BatchState.CANCELLED,
}


def when(seconds: float | None) -> str | None:
    return None if seconds is None else rfc3339(seconds)


def member_body(member: Member) -> dict[str, Any]:
    """`why` says so, where the state is not active."""
    return {
        "id": member.id,
        "name": member.name,
        "role": member.role.value,
        "state": member.state.value,
        "why": member.why or None,
    }


def account_body(member: Member, accounts: Accounts) -> dict[str, Any]:
    """A member with its account, as admins see it."""
    account = accounts.account(member.account)
    return {
        **member_body(member),
        "account": member.account,
        "balance": account.balance,
        "credit_line": account.credit_line,
        "limits": written(member.limits),
        "created_at": when(member.created_at),
    }


def key_body(key: ApiKey, member: Member) -> dict[str, Any]:
    """`scopes` are those that it has now. No `models` are all models; `limits` are the key's own."""
    return {
        "id": key.id,
        "name": key.name,
        "prefix": key.display,
        "scopes": [scope.value for scope in Scope if scope in key.scopes_for(member)],
        "models": list(key.models),
        "limits": written(key.limits),
        "created_at": when(key.created_at),
        "expires_at": when(key.expires_at),
        "revoked_at": when(key.revoked_at),
    }


def job_body(job: Job, member_name: str) -> dict[str, Any]:
    """`charge` is null while the job is open. `whole`: the job of the batch or fine-tune it belongs to."""
    return {
        "id": job.id,
        "kind": job.kind.value,
        "state": job.state.value,
        "model": job.model,
        "member": member_name,
        "whole": job.whole,
        "quote": job.quote,
        "hold": job.hold,
        "charge": job.charge,
        "prompt_tokens": job.prompt_tokens,
        "output_tokens": job.output_tokens,
        "stored": job.stored,
        "created_at": when(job.created_at),
        "started_at": when(job.started_at),
        "ended_at": when(job.ended_at),
        "code": job.code or None,
        "why": job.why or None,
        "attempts": [_attempt(attempt) for attempt in job.attempts],
    }


def receipt_body(recorded: RecordedReceipt) -> dict[str, Any]:
    """`body` is the signed text as it came, `signature` Ed25519 over it in base64, `countersignature` the
    pool's, over its place in the chain of receipts (`potluck.chain`).
    """
    receipt = recorded.receipt
    return {
        "number": recorded.number,
        "attempt": receipt.attempt,
        "worker": receipt.worker_id,
        "state": receipt.state.value,
        "why": receipt.why,
        "at": recorded.at,
        "body": receipt.body.decode("ascii", "replace"),
        "signature": _base64(receipt.signature),
        "previous": recorded.previous,
        "hash": recorded.hash,
        "countersignature": _base64(recorded.countersignature),
    }


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


def _attempt(attempt: Attempt) -> dict[str, Any]:
    return {
        "number": attempt.number,
        "worker": attempt.worker,
        "state": attempt.state.value,
        "assigned_at": when(attempt.assigned_at),
        "ended_at": when(attempt.ended_at),
        "tokens": attempt.tokens,
        "paid": attempt.paid,
        "why": attempt.why or None,
    }


def batch_body(batch: Batch) -> dict[str, Any]:
    """The OpenAI API's Batch, times in seconds; `potluck` names the job whose charge it is."""
    faults = [
        {"code": fault.code, "message": fault.message, "line": fault.line, "param": fault.param}
        for fault in batch.faults
    ]
    moments = {
        name: int(batch.moments[state.value]) if state.value in batch.moments else None
        for name, state in _MOMENTS.items()
    }
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": batch.model or None,
        "errors": {"object": "list", "data": faults} if faults else None,
        "input_file_id": batch.input_file,
        "completion_window": f"{batch.window_s // HOUR_S}h",
        "status": batch.state.value,
        "output_file_id": batch.output_file,
        "error_file_id": batch.error_file,
        "created_at": int(batch.created_at),
        "expires_at": int(batch.expires_at),
        **moments,
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
        "usage": {
            "input_tokens": batch.input_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": batch.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": batch.input_tokens + batch.output_tokens,
        },
        "metadata": dict(batch.metadata) or None,
        "potluck": {"job_id": batch.job},
    }
