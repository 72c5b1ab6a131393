"""What goes to workers once what led to it is on the disk: assignments, acknowledgements, cancellations."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from coordinator import translate
from coordinator.core.engine import Engine
from coordinator.core.jobs import JobId, MemberId
from coordinator.core.messages import Send, SendAck, SendAssign
from coordinator.records import ReceiptRow, RecordedReceipt
from coordinator.sessions import Sessions
from coordinator.tick import Ticker
from coordinator.traces import Traces
from potluck.v1 import session_pb2, work_pb2


@dataclass(frozen=True, slots=True)
class Outgoing:
    engine: Engine
    sessions: Sessions
    works: Mapping[JobId, work_pb2.Work]
    names: Mapping[MemberId, str]
    now: Callable[[], float]
    ticker: Callable[[], Ticker]
    traces: Traces

    def send(self, send: Send) -> None:
        message = session_pb2.CoordinatorMessage()
        attempt = translate.attempt(send.job, send.number)
        if isinstance(send, SendAssign):
            live = self.engine.lives.get(send.job)
            if live is None or live.job.attempt is None or live.job.attempt.number != send.number:
                return  # ended while the commit ran
            work, member = self.works[send.job], self.names.get(live.job.member, "")
            message.assign.CopyFrom(translate.assign(live, send.number, send.why, work, member))
            message.assign.traceparent = self.traces.assigned(live.job, live.job.attempt)
            if not self.sessions.send(send.worker, message):
                self.engine.unsent(send.worker, send.job, send.number, self.now())
                self.ticker().wake()
            return
        if isinstance(send, SendAck):
            message.ack.CopyFrom(session_pb2.Ack(attempt=attempt, sequence=send.sequence))
        else:
            message.cancel.CopyFrom(session_pb2.Cancel(attempt=attempt, why=send.why))
        self.sessions.send(send.worker, message)

    def acknowledge(self, row: ReceiptRow, recorded: RecordedReceipt | None = None) -> None:
        """`recorded`: its place in the chain, which the worker may keep; none if it was not worth one."""
        ack = session_pb2.ReceiptAck(
            attempt=translate.attempt(row.job_id, row.attempt), state=row.state.value, why=row.why
        )
        if recorded is not None:
            ack.number, ack.at, ack.previous = recorded.number, recorded.at, recorded.previous
            ack.hash, ack.countersignature = recorded.hash, recorded.countersignature
        self.sessions.send(row.worker_id, session_pb2.CoordinatorMessage(receipt_ack=ack))
