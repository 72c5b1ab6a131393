"""The adapters of attempts, fetched from the pool's artifact store before the attempts begin.

peft's two files lie in the model store under their digests; an engine finds them by name in a folder.
"""

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from potluck.catalogue import Artifact, File
from potluck.fetch import ArtifactSource, FetchError, Policy
from potluck.store import ModelStore
from potluck.v1 import engine_pb2, session_pb2, work_pb2
from worker.messages import Assigned, AttemptId, EngineFailed, Event, Failure, Fault

WEIGHTS_BYTES_MAX: Final = 4 << 30
CONFIG_BYTES_MAX: Final = 1 << 20
WEIGHTS: Final = "adapter_model.safetensors"
CONFIG: Final = "adapter_config.json"


class AdapterError(Exception):
    """What the pool names cannot be an adapter; the message says why."""


def files_of(adapter: work_pb2.Adapter) -> list[File]:
    """Its weights and its configuration. Raises AdapterError."""
    sizes = adapter.weights_bytes, adapter.config_bytes
    if sizes[0] > WEIGHTS_BYTES_MAX or sizes[1] > CONFIG_BYTES_MAX:
        raise AdapterError(f"the adapter {adapter.name[:100]} is larger than adapters may be")
    try:
        return [
            File(name=name, sha256=sha256, size_bytes=size, source=Artifact())
            for name, sha256, size in zip(
                (WEIGHTS, CONFIG), (adapter.weights_sha256, adapter.config_sha256), sizes, strict=True
            )
        ]
    except ValidationError:
        raise AdapterError(
            f"the files of the adapter {adapter.name[:100]} are not named by digests"
        ) from None


def _loaded(name: str, paths: list[Path]) -> engine_pb2.LoadedAdapter:
    folder = paths[0].parent
    return engine_pb2.LoadedAdapter(name=name, digest=folder.name, folder=str(folder))


class Adapters:
    """Attempts that wait for their adapters, and the adapters of those that run.

    An attempt that waits begins, or has failed, unless it was stopped. Until it has ended, no process removes
    its adapter's files: an engine reads them when it comes to the attempt.
    """

    def __init__(self) -> None:
        self._tasks: dict[AttemptId, asyncio.Task[None]] = {}
        self._held: dict[AttemptId, ExitStack] = {}

    def waiting(self) -> list[AttemptId]:
        return list(self._tasks)

    def begin(
        self,
        assigned: Assigned,
        *,
        store: ModelStore,
        downloads: Policy,
        artifacts: ArtifactSource | None,
        start: Callable[[Assigned], None],
        emit: Callable[[Event], None],
    ) -> None:
        """`start` is called at once without an adapter, else when its files are here."""
        payload = assigned.payload
        if not isinstance(payload, session_pb2.Assign) or not payload.HasField("adapter"):
            start(assigned)
            return

        async def wait() -> None:
            held = self._held[assigned.attempt] = ExitStack()
            try:
                files = files_of(payload.adapter)
                held.enter_context(store.using(files))
                paths = await store.fetch(files, named=True, artifacts=artifacts, policy=downloads)
            except AdapterError as error:
                failure = Failure(Fault.JOB, "bad_adapter", str(error))
            except (FetchError, OSError) as error:
                failure = Failure(Fault.WORKER, "adapter_not_there", str(error))
            else:
                start(replace(assigned, adapter=_loaded(payload.adapter.name, paths)))
                return
            self.ended(assigned.attempt)
            emit(EngineFailed(assigned.attempt, failure))

        task = asyncio.create_task(wait(), name=f"adapter for {assigned.attempt.job_id}")
        self._tasks[assigned.attempt] = task
        task.add_done_callback(lambda _: self._tasks.pop(assigned.attempt, None))

    def stop(self, attempt: AttemptId) -> bool:
        """Whether it was waiting here; then it never begins."""
        self.ended(attempt)
        task = self._tasks.get(attempt)
        return task is not None and task.cancel()

    def ended(self, attempt: AttemptId) -> None:
        """Nobody needs its adapter any more. Said of any attempt, once or more often."""
        if (held := self._held.pop(attempt, None)) is not None:
            held.close()

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for attempt in list(self._held):
            self.ended(attempt)
