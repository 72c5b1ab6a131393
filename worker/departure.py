"""How a worker leaves its pool for good: what it earned is settled, the pool is told, its identity goes.

In this order, so that whatever breaks off can be begun again: the pool answers a second time as it did the
first, and only a home without its membership counts as left.
"""

import asyncio
import secrets
from datetime import datetime
from pathlib import Path
from typing import Final

from potluck.identity import RECEIPT_KEY_FILE, TLS_KEY_FILE
from potluck.v1 import session_pb2
from potluck.version import version
from worker import asked, checks, earned, state, wire, wish
from worker.addresses import Addresses
from worker.claims import Claims
from worker.enrol import leave
from worker.errors import Revoked, Unreachable, WorkerError
from worker.limits import Limits
from worker.link import Link
from worker.membership import CA_FILE, CERTIFICATE_FILE, MEMBERSHIP_FILE, utc_now
from worker.messages import AttemptId, Connected, Disconnected, Event, ReceiptAcknowledged
from worker.outstanding import OutstandingReceipts
from worker.renewal import Renewal
from worker.settings import Places
from worker.workplace import JOURNAL_FILE, Workplace

SETTLED_S_MAX: Final = 30.0
TRIES_MAX: Final = 5  # of one connection after the other, none of which the pool welcomed
UNKNOWN: Final = "worker_not_found"  # what the pool says of a worker that it has not, or no longer

# All that is of this pool, the membership last. The owner's settings, models and proof of work stay.
REMOVED: Final = (
    wish.FILE,
    asked.FILE,
    earned.FILE,
    checks.CATALOGUE_FILE,
    state.STATE_FILE,
    JOURNAL_FILE,
    f"{JOURNAL_FILE}-wal",
    f"{JOURNAL_FILE}-shm",
    CERTIFICATE_FILE,
    CA_FILE,
    TLS_KEY_FILE,
    RECEIPT_KEY_FILE,
    MEMBERSHIP_FILE,
)


class Settlement:
    """Sends the receipts that the pool has not acknowledged, over one link of its own.

    Must be made inside the running loop, by whoever holds the workplace.
    """

    def __init__(self, workplace: Workplace, places: Places) -> None:
        limits, member = Limits(), workplace.membership
        self.why = "the coordinator does not answer"  # why it goes on no further, as the link last heard
        self._tries = 0
        self._claims = Claims(workplace, places, on_kept=lambda _: None)
        self._queue = OutstandingReceipts(limits.receipts_max, limits.receipts_in_flight_max)
        for attempt in self._claims.restore():
            self._queue.keep(attempt)
        self._link = Link(
            addresses=Addresses.of(member),
            tls_key=workplace.identity.tls_key_pem(),
            renewal=Renewal(
                membership=member,
                identity=workplace.identity,
                certificate=workplace.certificate,
                folder=places.worker,
                now=utc_now,
            ),
            reporter=self,
            hello=lambda: session_pb2.Hello(
                protocol=wire.PROTOCOL, version=version(), session_id=secrets.token_hex(8), bundles=True
            ),
            feed=self._feed,
            on_welcome=lambda _: None,
            on_message=self._hear,
        )

    @property
    def left(self) -> int:
        """Receipts that the pool has not judged."""
        return len(self._queue.kept)

    async def run(self) -> None:
        """Returns when all are acknowledged. Raises Unreachable, or what the link raises."""
        keeping = asyncio.create_task(self._claims.run())
        try:
            if self.left:
                async with asyncio.timeout(SETTLED_S_MAX):
                    await self._link.run()
        except TimeoutError:
            pass
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            await self._claims.close()
        if self.left:
            raise Unreachable(f"{self.left} receipts could not be handed in: {self.why}.")

    def connecting(self) -> None: ...

    def connected(self) -> None:
        self.why, self._tries = "the coordinator has not acknowledged them", 0

    def lost(self, why: str) -> None:
        self.why, self._tries = why, self._tries + 1
        if self._tries >= TRIES_MAX:
            self._link.close()

    def _feed(self, event: Event) -> None:
        if isinstance(event, Connected):
            self._send()
        elif isinstance(event, Disconnected):
            self._queue.land()

    def _hear(self, message: session_pb2.CoordinatorMessage, event: Event | None) -> None:
        if isinstance(event, ReceiptAcknowledged):
            self._claims.judged(message.receipt_ack, event)
            self._forget(event.attempt)
            self._send()

    def _forget(self, attempt: AttemptId) -> None:
        self._queue.acknowledge(attempt)
        self._claims.forget(attempt)

    def _send(self) -> None:
        for attempt in self._queue.take_off():
            if (receipt := self._claims.message(attempt)) is not None:
                self._link.send(receipt)
        if not self.left:
            self._link.close()


async def depart(places: Places, *, force: bool, now: datetime) -> tuple[int, str]:
    """Leave; no daemon runs. How many receipts are lost, and why the pool was not told (empty: it was).

    Raises WorkerError, nothing being removed then; with `force` only if this home cannot be changed.
    """
    workplace, untold = Workplace(places), ""
    try:
        settlement = Settlement(workplace, places)
        try:
            await settlement.run()
        except Revoked:  # it takes nothing of this worker any more
            pass
        except WorkerError as error:
            if not force:
                raise
            untold = error.message
        try:
            await leave(membership=workplace.membership, identity=workplace.identity, now=now)
            untold = ""
        except WorkerError as error:
            if not force and error.code != UNKNOWN:
                raise
            untold = "" if error.code == UNKNOWN else error.message
        remove(places.worker)
        return settlement.left, untold
    finally:
        workplace.release()


def remove(folder: Path) -> None:
    """All that is of this pool. Raises WorkerError."""
    for name in REMOVED:
        try:
            (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise WorkerError(f"{folder / name} cannot be removed: {error.strerror or error}.") from None
