"""A model's files on this disk: fetched within the owner's cap, and how far that is."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

from potluck.catalogue import Variant
from potluck.fetch import ArtifactSource, FetchError, cached, fetch
from worker.folders import folder_of
from worker.pace import Pace
from worker.rules import size_bytes


class OverCap(FetchError):  # noqa: N818 -- named for what happened
    """The files would take more of the disk than the owner allows; nothing was fetched."""


class ModelFiles:
    """`cap`: the owner's `caps.disk`. `on_progress` hears of every piece that came."""

    def __init__(self, variant: Variant, cache: Path, *, cap: str, on_progress: Callable[[], None]) -> None:
        self.bytes_done, self.pace = 0, Pace(0.0, 0)
        self.bytes_total = sum(file.size_bytes for file in variant.files)
        self._variant, self._cache, self._cap, self._on_progress = variant, cache, cap, on_progress

    async def fetch(self, artifacts: ArtifactSource | None) -> list[Path]:
        """The verified paths. Raises FetchError, OSError."""
        await asyncio.to_thread(self._check)
        paths, before, coming = [], 0, False
        for file in self._variant.files:

            def progress(done: int, total: int, before: int = before) -> None:
                nonlocal coming
                self.bytes_done = before + done
                if done < total:
                    if not coming:  # what was there already took no time
                        self.pace = Pace(asyncio.get_running_loop().time(), self.bytes_done)
                    coming = True
                    self._on_progress()

            paths.append(await fetch(file, self._cache, progress=progress, artifacts=artifacts))
            before += file.size_bytes
        self.bytes_done = self.bytes_total
        if self._variant.format == "safetensors":  # transformers reads them by their names
            folder = await asyncio.to_thread(folder_of, self._variant.files, paths, self._cache)
            return [folder / file.name for file in self._variant.files]
        return paths

    def _check(self) -> None:
        """Raises OverCap."""
        missing = sum(file.size_bytes for file in self._variant.files if not cached(file, self._cache))
        if not self._cap or not missing:
            return
        there = sum(path.stat().st_size for path in self._cache.glob("*") if path.is_file())
        cap = size_bytes(self._cap, disk_bytes(self._cache))
        if there + missing > cap:
            raise OverCap(
                f"its files need {missing / 1e9:.1f} GB, {there / 1e9:.1f} GB of models are there, and"
                f" caps.disk allows {cap / 1e9:.1f} GB in all. Raise it, or delete files in {self._cache}."
            )


def disk_bytes(path: Path) -> int:
    """The size of the disk on which the folder is or will be."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).total
