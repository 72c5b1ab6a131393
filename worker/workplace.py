"""What a daemon finds in its home before it can work: who it is, its keys, its receipts, and nobody else."""

import os
from typing import Final

from potluck.identity import IdentityError, WorkerIdentity
from potluck.lock import FileLock, Locked
from worker.errors import NotJoined, WorkerConflict, WorkerError
from worker.journal import Journal, JournalError
from worker.membership import Certificate, Membership
from worker.settings import Places

LOCK_FILE: Final = "daemon.lock"
JOURNAL_FILE: Final = "receipts.sqlite3"


class Workplace:
    """Held by one daemon at a time. `warning`: what was wrong with the receipts found here, or empty."""

    def __init__(self, places: Places) -> None:
        """Raises WorkerError with a sentence if this home cannot start a worker."""
        self.membership = Membership.load(places.worker)
        self.certificate = Certificate.load(places.worker)
        self.identity = _identity(places)
        self._lock = _lock(places)
        self.journal, self.warning = _journal(places)

    def release(self) -> None:
        self._lock.release()


def _identity(places: Places) -> WorkerIdentity:
    try:
        return WorkerIdentity.load(places.worker)
    except (FileNotFoundError, IdentityError) as error:
        raise NotJoined(f"the keys in {places.worker} are missing or cannot be read ({error})") from None


def _journal(places: Places) -> tuple[Journal, str]:
    path = places.worker / JOURNAL_FILE
    try:
        return Journal.open(path)
    except (JournalError, OSError) as error:
        raise WorkerError(
            f"receipts cannot be kept in {path}: {error}. Make room on the disk, and see that the"
            " folder can be written."
        ) from None


def _lock(places: Places) -> FileLock:
    path = places.worker / LOCK_FILE
    try:
        return FileLock.acquire(path, str(os.getpid()).encode())
    except Locked as locked:
        pid = locked.content.decode("ascii", "replace").strip() or "unknown"
        raise WorkerConflict(
            f"a worker runs in {places.worker} already (process {pid}). `potluck worker status` shows it; to"
            " run a second one, give it a POTLUCK_HOME of its own.",
            code="already_running",
        ) from None
    except OSError as error:
        raise WorkerError(f"{path} cannot be locked: {error.strerror or error}.") from None
