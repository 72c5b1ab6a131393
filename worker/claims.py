"""What this worker claims for its work, from the signature to the pool's word: receipts, proof, earnings."""

from collections.abc import Callable, Iterator

from potluck.receipts import ReceiptBody, sign
from potluck.v1 import session_pb2
from worker import wire
from worker.earned import Earnings
from worker.evidence import Evidence
from worker.journal import ReceiptKeeper, SignedReceipt
from worker.messages import AttemptId, ReceiptAcknowledged
from worker.settings import Places
from worker.workplace import Workplace


class Claims:
    """Must be made inside the running loop. `on_kept`: a receipt is safe on disk."""

    def __init__(self, workplace: Workplace, places: Places, on_kept: Callable[[AttemptId], None]) -> None:
        member = workplace.membership
        self._journal, self._key = workplace.journal, workplace.identity.receipt_key
        self._keeper = ReceiptKeeper(workplace.journal, on_kept)
        self._evidence = Evidence(places.worker, member.worker_id, bytes.fromhex(member.public_key))
        self.earnings = Earnings(places.worker, own=member.member)

    @property
    def waiting(self) -> int:
        """Receipts that the coordinator has not acknowledged."""
        return len(self._keeper.receipts)

    @property
    def countersigned(self) -> int:
        return self._evidence.kept

    def restore(self) -> Iterator[AttemptId]:
        """Those of an earlier life, which are on disk."""
        for receipt in self._journal.load():
            self._keeper.receipts[receipt.attempt] = receipt
            yield receipt.attempt

    def sign(self, attempt: AttemptId, body: ReceiptBody) -> None:
        """`on_kept` follows."""
        self.earnings.claimed(attempt, body)
        encoded = body.encode()
        self._keeper.keep(SignedReceipt(attempt, encoded, sign(self._key, encoded)))

    def message(self, attempt: AttemptId) -> session_pb2.WorkerMessage | None:
        receipt = self._keeper.receipts.get(attempt)
        return None if receipt is None else wire.receipt_to(receipt)

    def judged(self, ack: session_pb2.ReceiptAck, event: ReceiptAcknowledged) -> None:
        """To be called before the receipt is forgotten."""
        self._evidence.add(ack, self._keeper.receipts.get(event.attempt))
        self.earnings.judged(event.attempt, event.state)

    def forget(self, attempt: AttemptId) -> None:
        self._keeper.forget(attempt)

    async def run(self) -> None:
        """Until cancelled."""
        await self._keeper.run()

    async def close(self) -> None:
        """All that was signed is on disk afterwards."""
        await self._keeper.close()
