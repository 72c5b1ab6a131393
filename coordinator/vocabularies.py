"""Fetches, in the background, what the token counter needs for the models that workers offer."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from coordinator.artifacts import ArtifactStore, NoSuchArtifact
from coordinator.tokens import TokenCounter, TokenizerUnavailable
from potluck.catalogue import Catalogue, File
from potluck.fetch import FetchError, fetch
from potluck.home import model_cache

log = structlog.get_logger(__name__)

MODELS_MAX = 256  # prepared or under way
WAIT_S = 60.0  # as long as a request waits for a model that loads


@dataclass(slots=True)
class Vocabularies:
    """A model is asked for once; where it fails, its count stays an upper bound."""

    counter: TokenCounter
    catalogue: Callable[[], Catalogue]
    artifacts: ArtifactStore
    tasks: dict[str, "asyncio.Task[None]"] = field(default_factory=dict)

    def want(self, model: str) -> None:
        entry = self.catalogue().get(model)
        if entry is None or entry.name in self.tasks or len(self.tasks) >= MODELS_MAX:
            return
        self.tasks[entry.name] = asyncio.create_task(self._prepare(entry.name))

    async def wait(self, model: str) -> None:
        """Until the model is counted exactly, if that is under way: a first request is not overcharged."""
        entry = self.catalogue().get(model)
        task = None if entry is None else self.tasks.get(entry.name)
        if task is not None and not task.done():
            await asyncio.wait([task], timeout=WAIT_S)

    async def close(self) -> None:
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)

    async def _prepare(self, model: str) -> None:
        entry = self.catalogue().get(model)
        assert entry is not None, "looked up a moment ago"
        try:
            await self.counter.prepare(entry, self.obtain)
        except (TokenizerUnavailable, FetchError) as error:
            log.warning("tokens are bounded by bytes", action="count_inexact", model=model, why=str(error))

    async def obtain(self, file: File) -> Path:
        """Out of the pool's own store if it is there: nothing else has what came from a path."""
        try:
            return self.artifacts.path(file.sha256)
        except NoSuchArtifact:
            return await fetch(file, model_cache())
