"""The pool's own objects as JSON: times RFC 3339 UTC, amounts in integer microcredits (design, section 9)."""

import base64
from typing import Any

from coordinator.accounts import Accounts
from coordinator.bounds import written
from coordinator.clock import rfc3339
from coordinator.core.jobs import Attempt, Job
from coordinator.records import ApiKey, Member, RecordedReceipt, Scope


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
    """`charge` is null while the job is open."""
    return {
        "id": job.id,
        "kind": job.kind.value,
        "state": job.state.value,
        "model": job.model,
        "member": member_name,
        "quote": job.quote,
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
        "tokens": attempt.tokens,
        "paid": attempt.paid,
        "why": attempt.why or None,
    }
