"""A model's files on this disk: fetched within the owner's cap, and how far that is."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

from potluck.catalogue import Variant
from potluck.fetch import ArtifactSource, Policy
from potluck.store import ModelStore
from worker.pace import Pace


class ModelFiles:
    """`on_progress` hears of every piece that came."""

    def __init__(
        self, variant: Variant, store: ModelStore, downloads: Policy, on_progress: Callable[[], None]
    ) -> None:
        self.bytes_done, self.pace = 0, Pace(0.0, 0)
        self.bytes_total = sum(file.size_bytes for file in variant.files)
        self._variant, self._store, self._downloads = variant, store, downloads
        self._on_progress = on_progress

    async def fetch(self, artifacts: ArtifactSource | None) -> list[Path]:
        """The verified paths; what nobody uses gives way for them. Raises FetchError, OSError."""
        coming = False

        def progress(done: int, total: int) -> None:
            nonlocal coming
            self.bytes_done = done
            if done < total:
                if not coming:  # what was there already took no time
                    self.pace = Pace(asyncio.get_running_loop().time(), self.bytes_done)
                coming = True
                self._on_progress()

        paths = await self._store.fetch(
            self._variant.files,
            named=self._variant.format == "safetensors",  # transformers reads them by their names
            progress=progress,
            artifacts=artifacts,
            policy=self._downloads,
        )
        self.bytes_done = self.bytes_total
        return paths


def disk_bytes(path: Path) -> int:
    """The size of the disk on which the folder is or will be."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).total
