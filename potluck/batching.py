"""The part of the SDK that is about batches; `potluck.Pool` has it."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from potluck.errors import JobNotFinished, Unavailable, Unreachable
from potluck.results import read
from potluck.transport import Transport, path_of

POLL_S: Final = 1.0
AWAY_S_MAX: Final = (
    300.0  # a coordinator may be away so long while a batch is followed: the batch outlives it
)
BATCH_ENDED: Final = frozenset({"completed", "failed", "expired", "cancelled"})


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchCounts:
    total: int = 0
    completed: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchFault:
    """Why the file could not be taken; `line` from 1, None for the whole file."""

    code: str = ""
    message: str = ""
    line: int | None = None
    param: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchErrors:
    data: tuple[BatchFault, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchJob:
    job_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """As the OpenAI API has it, times in seconds since the epoch. `potluck` names the job that is charged."""

    id: str
    status: str
    endpoint: str = ""
    model: str | None = None
    completion_window: str = ""
    input_file_id: str = ""
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int = 0
    expires_at: int = 0
    request_counts: BatchCounts = field(default_factory=BatchCounts)
    errors: BatchErrors | None = None
    potluck: BatchJob = field(default_factory=BatchJob)

    @property
    def ended(self) -> bool:
        return self.status in BATCH_ENDED


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPage:
    data: tuple[Batch, ...] = ()
    has_more: bool = False


class Batching:
    _transport: Transport
    _sleep: Callable[[float], None]

    def create_batch(
        self,
        input_file_id: str,
        endpoint: str,
        *,
        window_hours: int = 24,
        metadata: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> Batch:
        """Have every line of an uploaded file answered, behind interactive work."""
        body: dict[str, Any] = {
            "input_file_id": input_file_id,
            "endpoint": endpoint,
            "completion_window": f"{window_hours}h",
        }
        if metadata:
            body["metadata"] = dict(metadata)
        return read(Batch, self._transport.post("/v1/batches", body, idempotency_key=idempotency_key))

    def batch(self, batch_id: str) -> Batch:
        return read(Batch, self._transport.get(path_of("/v1/batches", batch_id)))

    def batches(self, *, limit: int = 20, after: str | None = None) -> BatchPage:
        """The newest first; `after` is the id of the last one on the page before."""
        params = {"limit": limit} | ({} if after is None else {"after": after})
        return read(BatchPage, self._transport.get("/v1/batches", params))

    def cancel_batch(self, batch_id: str) -> Batch:
        """End it; answers that are there stay, and are charged."""
        return read(Batch, self._transport.post(path_of("/v1/batches", batch_id, "cancel"), {}))

    def follow_batch(self, batch_id: str, *, timeout_s: float | None = None) -> Iterator[Batch]:
        """The batch now and whenever something changes, up to its end. Raises JobNotFinished in time."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        last: Batch | None = None
        gone_since: float | None = None
        while True:
            try:
                batch, gone_since = self.batch(batch_id), None
            except (Unreachable, Unavailable):
                gone_since = gone_since or time.monotonic()
                if time.monotonic() - gone_since > AWAY_S_MAX:
                    raise
                self._sleep(POLL_S)
                continue
            if batch != last:
                last = batch
                yield batch
            if batch.ended:
                return
            if deadline is not None and time.monotonic() + POLL_S > deadline:
                message = (
                    f"Batch {batch_id} is still {batch.status} after {timeout_s:g} s. Follow it with `potluck"
                    f" jobs watch {batch.potluck.job_id}`."
                )
                raise JobNotFinished(message, extra={"batch": batch_id, "state": batch.status})
            self._sleep(POLL_S)
