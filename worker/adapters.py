"""The adapters of attempts, fetched from the pool's artifact store before the attempts begin.

peft's two files lie in the model store under their digests; an engine finds them by name in a folder.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from potluck.catalogue import Artifact, File
from potluck.fetch import ArtifactSource, FetchError, fetch
from potluck.v1 import engine_pb2, session_pb2, work_pb2
from worker.folders import folder_of
from worker.messages import Assigned, AttemptId, EngineFailed, Event, Failure, Fault

WEIGHTS_BYTES_MAX: Final = 4 << 30
CONFIG_BYTES_MAX: Final = 1 << 20
WEIGHTS: Final = "adapter_model.safetensors"
CONFIG: Final = "adapter_config.json"


class AdapterError(Exception):
    """What the pool names cannot be an adapter; the message says why."""


async def fetch_adapter(
    adapter: work_pb2.Adapter, cache: Path, artifacts: ArtifactSource | None
) -> engine_pb2.LoadedAdapter:
    """Both files verified by their digests. Raises AdapterError, FetchError, OSError."""
    sizes = adapter.weights_bytes, adapter.config_bytes
    if sizes[0] > WEIGHTS_BYTES_MAX or sizes[1] > CONFIG_BYTES_MAX:
        raise AdapterError(f"the adapter {adapter.name[:100]} is larger than adapters may be")
    try:
        files = [
            File(name=name, sha256=sha256, size_bytes=size, source=Artifact())
            for name, sha256, size in zip(
                (WEIGHTS, CONFIG), (adapter.weights_sha256, adapter.config_sha256), sizes, strict=True
            )
        ]
    except ValidationError:
        raise AdapterError(
            f"the files of the adapter {adapter.name[:100]} are not named by digests"
        ) from None
    paths = [await fetch(file, cache, artifacts=artifacts) for file in files]
    folder = await asyncio.to_thread(folder_of, files, paths, cache)
    return engine_pb2.LoadedAdapter(name=adapter.name, digest=folder.name, folder=str(folder))


class Adapters:
    """Attempts that wait for their adapters; each then begins, or has failed, unless it was stopped."""

    def __init__(self) -> None:
        self._tasks: dict[AttemptId, asyncio.Task[None]] = {}

    def waiting(self) -> list[AttemptId]:
        return list(self._tasks)

    def begin(
        self,
        assigned: Assigned,
        *,
        cache: Path,
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
            try:
                loaded = await fetch_adapter(payload.adapter, cache, artifacts)
            except AdapterError as error:
                emit(EngineFailed(assigned.attempt, Failure(Fault.JOB, "bad_adapter", str(error))))
            except (FetchError, OSError) as error:
                emit(EngineFailed(assigned.attempt, Failure(Fault.WORKER, "adapter_not_there", str(error))))
            else:
                start(replace(assigned, adapter=loaded))

        task = asyncio.create_task(wait(), name=f"adapter for {assigned.attempt.job_id}")
        self._tasks[assigned.attempt] = task
        task.add_done_callback(lambda _: self._tasks.pop(assigned.attempt, None))

    def stop(self, attempt: AttemptId) -> bool:
        """Whether it was waiting here; then it never begins."""
        task = self._tasks.get(attempt)
        return task is not None and task.cancel()

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
