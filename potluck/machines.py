"""The part of the SDK about workers: who is there, and what owners and admins may ask of them from afar."""

from typing import Any

from potluck.results import Worker, read, read_all
from potluck.transport import Transport, path_of

WORKERS = "/pool/v1/workers"


class Machines:
    """Inherited by `Pool`, which has the connection. Workers are named by their ids."""

    _transport: Transport

    def workers(self) -> list[Worker]:
        return read_all(Worker, self._transport.get(WORKERS))

    def worker(self, worker_id: str) -> Worker:
        return read(Worker, self._transport.get(path_of(WORKERS, worker_id)))

    def pause_worker(self, worker_id: str, *, for_s: int | None = None, why: str = "") -> Worker:
        """What runs goes on elsewhere. Without `for_s` (seconds) until somebody takes it back.

        One that is away hears of it when it comes. Raises InvalidRequest if its owner paused it and an admin
        asks.
        """
        given: dict[str, Any] = {"for_s": for_s, "why": why or None}
        body = {name: value for name, value in given.items() if value is not None}
        return read(Worker, self._transport.post(path_of(WORKERS, worker_id, "pause"), body))

    def resume_worker(self, worker_id: str) -> Worker:
        """Takes back what was asked for from afar; what was paused on the machine stays so."""
        return read(Worker, self._transport.post(path_of(WORKERS, worker_id, "resume"), {}))

    def drain_worker(self, worker_id: str) -> Worker:
        """It finishes what runs, then its daemon ends. Raises InvalidRequest if it is away."""
        return read(Worker, self._transport.post(path_of(WORKERS, worker_id, "drain"), {}))

    def rename_worker(self, worker_id: str, name: str) -> Worker:
        """One's own; a number is added where one has another of that name."""
        return read(Worker, self._transport.patch(path_of(WORKERS, worker_id), {"name": name}))

    def revoke_worker(self, worker_id: str) -> None:
        """For good: the machine must join anew to share again."""
        self._transport.delete(path_of(WORKERS, worker_id))
