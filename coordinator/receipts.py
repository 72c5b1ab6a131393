"""Workers' receipts: judged, put in their chain, acknowledged. They are evidence, and move nothing.

Each is recorded once. A worker repeats a receipt until it is acknowledged, so what was seen of late is
remembered here, and the database knows the rest.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from coordinator.core.engine import Engine
from coordinator.core.jobs import Job, JobId, WorkerId
from coordinator.core.receipts import ReceiptState, Verdict, judge
from coordinator.records import ReceiptRow, RecordedReceipt
from coordinator.store import Store
from potluck.receipts import SIGNATURE_BYTES, ReceiptBody, ReceiptError, verify
from potluck.v1 import session_pb2

log = structlog.get_logger(__name__)

REMEMBERED_MAX = 20_000
ATTEMPT_MAX = 2**32 - 1  # what the wire can name
EXACT_SAMPLERS = {"torch", "emulator"}  # engines whose token counts come from ids

Key = tuple[JobId, int, WorkerId]
Acknowledge = Callable[[ReceiptRow, RecordedReceipt | None], None]


@dataclass(slots=True)
class Receipts:
    engine: Engine
    store: Store
    acknowledge: Acknowledge
    keep: Callable[[ReceiptRow], None]  # with the next commit, after which it is `recorded`
    since: float  # when this coordinator began
    forgot: bool = False  # some of what was seen
    keys: dict[WorkerId, bytes] = field(default_factory=dict)  # of those that are or were here
    seen: dict[Key, RecordedReceipt | None] = field(default_factory=dict)  # None: on its way to the disk

    async def receive(self, worker: WorkerId, receipt: session_pb2.Receipt) -> int:
        """What it was worth, as of any message. Acknowledged always, so that no worker carries one for ever.

        One for a job that the pool never had is acknowledged and not kept: it could fill the disk.
        """
        try:
            body = ReceiptBody.decode(receipt.body)
            if body.attempt > ATTEMPT_MAX:
                raise ReceiptError(f"attempt {body.attempt} cannot be named in an answer")
        except ReceiptError as error:
            log.warning("receipt unreadable", action="receipt_unreadable", worker=worker, why=str(error))
            return -1
        key = (JobId(body.job_id), body.attempt, worker)
        if len(receipt.signature) != SIGNATURE_BYTES:
            return self._unsigned(key, receipt.body)
        if key in self.seen:
            self._again(self.seen[key])
            return -1
        self._remember(key, None)
        job = self._in_memory(key[0])
        if job is None or not self._first(job, body.attempt):
            try:
                recorded = await self.store.receipt(*key)
                job = job or await self.store.job(key[0])
            except BaseException:  # also where the stream breaks meanwhile: it comes again on the next one
                del self.seen[key]
                raise
            if recorded is not None:
                self._remember(key, recorded)
                self._again(recorded)
                return -1
        verdict = self._judge(job, worker, body, receipt)
        row = ReceiptRow(
            job_id=key[0],
            attempt=body.attempt,
            worker_id=worker,
            body=receipt.body,
            signature=receipt.signature,
            state=verdict.state,
            why=verdict.why,
        )
        if job is None:
            del self.seen[key]
            self.acknowledge(row, None)
            return -1
        self.keep(row)
        if verdict.blame:
            self.engine.dispute(worker)
        return -1 if verdict.state is ReceiptState.REFUSED else 0

    def recorded(self, recorded: RecordedReceipt) -> None:
        """It is on the disk."""
        row = recorded.receipt
        self._remember((row.job_id, row.attempt, row.worker_id), recorded)
        self.acknowledge(row, recorded)

    def _unsigned(self, key: Key, body: bytes) -> int:
        """Refused and not kept: what is no signature cannot stand in the chain, where everybody checks it."""
        job_id, attempt, worker = key
        self.engine.dispute(worker)
        why = f"its signature has not {SIGNATURE_BYTES} bytes"
        row = ReceiptRow(
            job_id=job_id,
            attempt=attempt,
            worker_id=worker,
            body=body,
            signature=b"",
            state=ReceiptState.REFUSED,
            why=why,
        )
        self.acknowledge(row, None)
        return -1

    def _again(self, recorded: RecordedReceipt | None) -> None:
        if recorded is not None:
            self.acknowledge(recorded.receipt, recorded)

    def _remember(self, key: Key, recorded: RecordedReceipt | None) -> None:
        self.seen[key] = recorded
        if len(self.seen) > REMEMBERED_MAX:
            # Those on their way must not be forgotten: they would be recorded twice.
            oldest = next((k for k, known in self.seen.items() if known is not None), None)
            if oldest is not None:
                del self.seen[oldest]
                self.forgot = True

    def _judge(
        self, job: Job | None, worker: WorkerId, body: ReceiptBody, receipt: session_pb2.Receipt
    ) -> Verdict:
        if body.worker_id != worker:
            return Verdict(ReceiptState.REFUSED, "it names another worker", blame=True)
        if not verify(self.keys[worker], receipt.body, receipt.signature):
            return Verdict(ReceiptState.REFUSED, "its signature is not the worker's", blame=True)
        exact = body.engine in EXACT_SAMPLERS
        return judge(job, worker, body.attempt, body.output_tokens, exact=exact)

    def _in_memory(self, job_id: JobId) -> Job | None:
        live = self.engine.lives.get(job_id)
        return self.engine.recent.get(job_id) if live is None else live.job

    def _first(self, job: Job, number: int) -> bool:
        """Whether no receipt of this attempt can be on the disk unseen: it began after we did. So the usual
        receipt costs the stream that it came on no look into the database.
        """
        attempt = next((a for a in job.attempts if a.number == number), None)
        return attempt is not None and attempt.assigned_at >= self.since and not self.forgot
