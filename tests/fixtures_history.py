"""A pool's database as each revision left it: real rows of the first one, and what every later one brought.

What stands here is what stood in a database then: nothing of it follows the code that is there now.
"""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine

from coordinator.ca import CertificateAuthority
from coordinator.core.jobs import AccountId, JobId
from coordinator.core.ledger import Bucket, Code, Entry, Posting, record
from coordinator.keys import digest_of
from coordinator.migrations import configuration
from potluck import chain

FIRST = Path(__file__).parent / "data" / "revision_0001.sql"
AT, AT_S, LATER_S = "2027-01-15T09:00:00.000Z", 1_800_003_600.0, 4_000_000_000.0
KEY = "sk-potluck-" + "a" * 43  # of the admin
ADMIN, ADMINS = "mem_admin", "acc_admin"
OWNER, OWNERS = "mem_06h1g17l5uvq66p1d7if8mo0", "acc_06h1g17l624vsmet2r625e31"
MEMBER, MEMBERS = "mem_06h1g17l6kr60d7udq8fvgll", "acc_06h1g17l6o11oftlhkq3liib"
WORKER, JOB = "wrk_06h1g17l8k0k70nli2g75n6p", "job_06h1g17lc044ce3jv96hirk6"
MODEL = (
    b'{"name":"emulator-old","family":"emulator","licence":"Apache-2.0","kinds":["chat"],"context_tokens":8192,'
    b'"parameters":134515008,"shape":{"active_parameters":134479872,"head_parameters":28311552,"layers":30,'
    b'"heads":9,"d_qk":64,"d_v":64},"variants":[{"format":"none","engines":["emulator"],"memory_bytes":0}]}'
)
WANTED = (
    '{"method": "sft", "seed": 7, "epochs": null, "batch_size": null, "multiplier": null, "learning_rate": null,'
    ' "beta": null, "rank": 16, "alpha": null, "targets": [], "sequence_tokens": null, "workers": 1,'
    ' "local_steps": 10, "checkpoint_s": null, "only": null}'
)
PLAN = (
    '{"method": "sft", "seed": 7, "epochs": 3, "batch_size": 1, "learning_rate": 0.0002, "multiplier": 1.0,'
    ' "warmup_steps": 1, "beta": 0.1, "rank": 16, "alpha": 32.0, "targets": ["q_proj"], "parameters": 9216,'
    ' "sequence_tokens": 64, "examples": 10, "tokens": 300, "steps": 30, "workers": 1, "local_steps": 10,'
    ' "checkpoint_s": 90.0, "validation": 0}'
)


class Past:
    """One database at one revision, with the end of its chain."""

    def __init__(self, connection: Connection, ca: CertificateAuthority) -> None:
        self.connection, self.ca = connection, ca
        self._tables = sa.MetaData()  # as they are at this revision

    def upgrade(self, revision: str) -> None:
        command.upgrade(configuration(self.connection), revision)
        self._tables.clear()

    def row(self, table: str, **values: Any) -> None:
        found = sa.Table(table, self._tables, autoload_with=self.connection)
        booleans = {column.name for column in found.columns if isinstance(column.type, sa.Boolean)}
        spoken = {name: bool(value) if name in booleans else value for name, value in values.items()}
        self.connection.execute(found.insert().values(spoken))

    def end(self, table: str) -> tuple[int, str]:
        wanted = f"SELECT number, hash FROM {table} ORDER BY number DESC LIMIT 1"
        number, last = self.connection.exec_driver_sql(wanted).one()
        return number, last

    def append(self, entry: Entry) -> None:
        """An entry in its place, and what it moves."""
        number, last = self.end("entries")
        made = record(number + 1, AT, entry, last)
        self.row(
            "entries", number=made.number, id=entry.id, at=AT, code=entry.code.value, job_id=entry.job,
            details=entry.details, previous=made.previous, hash=made.hash,
        )  # fmt: skip
        for position, one in enumerate(entry.postings):
            self.row(
                "postings", entry_number=made.number, position=position, account_id=one.account,
                bucket=one.bucket.value, amount=one.amount,
            )  # fmt: skip
            moved = f"UPDATE accounts SET {one.bucket.value} = {one.bucket.value} + {one.amount}"
            self.connection.exec_driver_sql(f"{moved} WHERE id = '{one.account}'")

    def whole(self, job: str, kind: str, hold: int, charge: int) -> None:
        """A job in parts that has ended, with its one part, paid to the owner's worker."""
        times = {"created_at": AT_S, "started_at": AT_S, "ended_at": AT_S + 9, "expires_at": None}
        same = {
            "model": "emulator-small", "member_id": MEMBER, "account_id": MEMBERS, "prompt_tokens": 7,
            "max_tokens": 16, "choices": 1, "key_id": "key_06h1g17l6phs3qsg48u31v6r", "stored": True,
            "own_only": False, "only_workers": "[]", "state": "succeeded", "charge": charge, "output_tokens": 3,
            "why": "", "code": "", **times,
        }  # fmt: skip
        part = "chat" if kind == "batch" else kind
        whole = {"settled": charge, "settlements": 1, "whole_id": None, "part": 0}
        self.row("jobs", id=job, kind=kind, quote=hold, hold=hold, **whole, **same)
        one = {"settled": 0, "settlements": 0, "whole_id": job, "part": 1}
        self.row("jobs", id=f"{job}.1", kind=part, quote=charge, hold=charge, **one, **same)
        self.row(
            "attempts", job_id=f"{job}.1", number=1, worker_id=WORKER, owner_id=OWNERS, assigned_at=AT_S,
            why="free", state="succeeded", ended_at=AT_S + 9, tokens=3, paid=charge, held=False,
        )  # fmt: skip
        fee, left = charge // 50, hold - charge
        name = JobId(job)
        self.append(Entry(f"{job}/hold", Code.HOLD, moved(("main", -hold), ("reserved", hold)), name))
        paid = (
            *moved(("reserved", -charge)),
            Posting(AccountId(OWNERS), Bucket.MAIN, charge - fee),
            Posting(AccountId("commons"), Bucket.MAIN, fee),
        )
        self.append(Entry(f"{job}/settle/1", Code.SETTLE, paid, name))
        self.append(Entry(f"{job}/close", Code.CLOSE, moved(("reserved", -left), ("main", left)), name))


def moved(*amounts: tuple[str, int]) -> tuple[Posting, ...]:
    """In the member's account."""
    return tuple(Posting(AccountId(MEMBERS), Bucket(bucket), amount) for bucket, amount in amounts)


def first(past: Past) -> None:
    with sqlite3.connect(":memory:") as memory:
        memory.executescript(FIRST.read_text(encoding="utf-8"))
        memory.row_factory = sqlite3.Row
        metadata = sa.MetaData()
        metadata.reflect(past.connection)
        for table in metadata.sorted_tables:
            if table.name != "alembic_version":
                for row in memory.execute(f"SELECT * FROM {table.name}").fetchall():
                    past.row(table.name, **dict(row))
    memory.close()
    past.row("members", id=ADMIN, name="Root", name_folded="root", role="admin", created_at=AT_S)
    past.row("accounts", id=ADMINS, member_id=ADMIN, credit_line=1_000, main=0, reserved=0, held=0)
    past.row(
        "api_keys", id="key_admin", member_id=ADMIN, name="first", digest=digest_of(KEY), display="sk-potluck-aaaaaa…",
        created_at=AT_S, expires_at=None, revoked_at=None,
    )  # fmt: skip
    past.row("models", name="emulator-old", entry=MODEL, added_by=ADMIN, added_at=AT_S)
    past.row("stored_requests", job_id=JOB, request=b"\n\x00")
    past.row("stored_results", job_id=JOB, result=b'{"choices": []}')


def credits_anyone_can_check(past: Past) -> None:
    past.row(
        "invites", id="inv_1", member_id=ADMIN, digest="1" * 64, credit_line=0, from_pool=True, note="for eve",
        created_at=AT_S, expires_at=LATER_S, accepted_by=None, accepted_at=None, revoked_at=None,
    )  # fmt: skip
    number, previous = past.end("receipts")
    receipt = {"body": b'{"job":2}', "signature": b"\x01" * 64, "state": "void", "previous": previous}
    covered = chain.receipt_bytes(number=number + 1, at=AT, worker=WORKER, **receipt)  # type: ignore[arg-type]  # as said
    signed = past.ca.sign(chain.countersigned(chain.hash_of(covered)))
    past.row(
        "receipts", number=number + 1, at=AT, worker_id=WORKER, job_id="job_gone", attempt=1, why="",
        hash=chain.receipt_hash(covered, signed), countersignature=signed, **receipt,
    )  # fmt: skip
    (entry, entry_hash), (count, last) = past.end("entries"), past.end("receipts")
    ends = {"number": entry, "hash": entry_hash, "receipts_number": count, "receipts_hash": last, "at": AT}
    past.row("heads", reason="daily", signature=past.ca.sign(chain.head_bytes(**ends)), **ends)  # type: ignore[arg-type]  # as said


def wholes(past: Past) -> None:
    past.whole("job_batch", "batch", 500, 300)


def files(past: Past) -> None:
    for name, purpose in (("file_in", "batch"), ("file_out", "batch_output"), ("file_train", "fine-tune")):
        past.row(
            "files", id=name, member_id=MEMBER, purpose=purpose, filename=f"{name}.jsonl", bytes=12,
            sha256="ab" * 32, created_at=AT_S, expires_at=LATER_S,
        )  # fmt: skip


def batches(past: Past) -> None:
    past.row(
        "batches", id="batch_batch", job_id="job_batch", member_id=MEMBER, key_id="key_06h1g17l6phs3qsg48u31v6r",
        input_file_id="file_in", endpoint="/v1/chat/completions", window_s=86_400, created_at=AT_S,
        expires_at=AT_S + 86_400, state="completed", model="emulator-small", total=2, completed=1, failed=1,
        input_tokens=7, output_tokens=3, notes='{"for": "soup"}', faults="[]", output_file_id="file_out",
        error_file_id=None, moments='{"completed": 1800003609.0}',
    )  # fmt: skip
    past.row("batch_failures", batch_id="batch_batch", line=2, status=400, code="invalid", message="no")


def uploads(past: Past) -> None:
    past.row(
        "uploads", id="upload_1", member_id=MEMBER, purpose="fine-tune", filename="more.jsonl", bytes=100,
        file_expires_s=None, created_at=AT_S, expires_at=LATER_S, state="pending", file_id=None,
    )  # fmt: skip
    past.row("upload_parts", id="part_1", upload_id="upload_1", bytes=12, sha256="ab" * 32, created_at=AT_S)


def finetunes(past: Past) -> None:
    past.whole("job_tune", "finetune", 400, 100)
    past.row(
        "finetunes", id="ftjob-1", job_id="job_tune", member_id=MEMBER, key_id="key_06h1g17l6phs3qsg48u31v6r",
        model="emulator-small", result="emulator-small:ft-supper", training_file_id="file_train",
        training_sha256="ab" * 32, training_bytes=12, validation_file_id=None, validation_sha256=None,
        validation_bytes=0, wanted=WANTED, plan=PLAN, created_at=AT_S, expires_at=LATER_S, notes="{}",
        state="succeeded", quote=400, charge=100, steps_done=30, trained_tokens=300, fault="",
        result_files="[]", moments='{"succeeded": 1800003609.0}',
    )  # fmt: skip
    past.row("finetune_progress", finetune_id="ftjob-1", training=b"\x01", validation=None, snapshot="")
    past.row(
        "finetune_events", finetune_id="ftjob-1", number=1, at=AT_S, level="info", message="It began.",
        data='{"step": 1, "train_loss": 2.5}',
    )  # fmt: skip
    past.row(
        "finetune_checkpoints", finetune_id="ftjob-1", number=1, step=30, at=AT_S, sha256="cd" * 32, bytes=9,
        metrics='{"train_loss": 1.5}',
    )  # fmt: skip
    past.row(
        "tuned_models", name="emulator-small:ft-supper", base="emulator-small", member_id=MEMBER,
        finetune_id="ftjob-1", shared=True, created_at=AT_S, weights_sha256="cd" * 32, weights_bytes=9,
        config_sha256="ce" * 32, config_bytes=9, card_sha256="cf" * 32, card_bytes=9,
    )  # fmt: skip


def browser_sessions(past: Past) -> None:
    past.row("browser_sessions", digest="2" * 64, key_id="key_admin", created_at=AT_S, expires_at=LATER_S)


def audit_log(past: Past) -> None:
    event = {"action": "member_added", "subject": MEMBER, "details": '{"name": "member-1"}'}
    past.row("audit_events", number=1, at=AT_S, member_id=ADMIN, key_id="key_admin", **event)
    past.row("terms", version=1, text="Be kind.", at=AT_S, member_id=ADMIN)
    past.row("terms_acceptances", member_id=MEMBER, version=1, at=AT_S)
    past.row("sightings", member_id=MEMBER, at=AT_S)


def pauses(past: Past) -> None:
    pause = {"number": 1, "by_owner": True, "until": None, "why": "the cat sleeps on it"}
    past.row("worker_pauses", worker_id=WORKER, member_id=OWNER, **pause)


def community(past: Past) -> None:
    past.row("teams", id="team_1", name="Cooks", name_folded="cooks", founder_id=MEMBER, created_at=AT_S)
    past.row("profiles", member_id=MEMBER, listed=False, team_id="team_1")


def webhooks(past: Past) -> None:
    past.row(
        "webhook_endpoints", id="we_1", member_id=MEMBER, account_id=MEMBERS, name="kitchen", low=False,
        url="https://example.org/hook", event_types='["batch.completed"]', secret="whsec_" + "a" * 44,
        old_secret="", old_secret_until=0.0, created_at=AT_S, updated_at=AT_S, given_up=0, why_off="",
    )  # fmt: skip
    past.row(
        "webhook_deliveries", event_id="evt_1", endpoint_id="we_1", type="batch.completed", body="{}",
        created_at=AT_S, next_at=AT_S, attempts=1, state="delivered", status=200, why="",
    )  # fmt: skip


def identities(past: Past) -> None:
    account = {"issuer": "https://login.example.org", "subject": "42", "email": "root@example.org"}
    past.row("identities", key_id="key_admin", linked_at=AT_S, **account)


def leader(past: Past) -> None:
    past.row("standbys", grpc="b.example.org:8421", seen_at=AT_S)


LIFE: dict[str, Callable[[Past], None]] = {
    "0001": first,
    "0002": credits_anyone_can_check,
    "0003": wholes,
    "0004": files,
    "0005": batches,
    "0006": uploads,
    "0007": finetunes,
    "0008": browser_sessions,
    "0009": audit_log,
    "0010": pauses,
    "0011": community,
    "0012": webhooks,
    "0013": identities,
    "0014": leader,
}


def revisions() -> list[str]:
    """All there are, the oldest first."""
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        script = ScriptDirectory.from_config(configuration(connection))
        found = [one.revision for one in script.walk_revisions()]
    engine.dispose()
    return found[::-1]


def write(connection: Connection, revision: str, ca: CertificateAuthority) -> None:
    """The database as it was at that revision, in the caller's transaction; it is empty before."""
    past = Past(connection, ca)
    for one in revisions():
        past.upgrade(one)
        LIFE[one](past)
        if one == revision:
            return


def contents(connection: Connection) -> dict[str, list[dict[str, Any]]]:
    """All rows of all tables."""
    metadata = sa.MetaData()
    metadata.reflect(connection)
    return {
        table.name: [dict(row._mapping) for row in connection.execute(sa.select(table))]
        for table in metadata.sorted_tables
        if table.name != "alembic_version"
    }
