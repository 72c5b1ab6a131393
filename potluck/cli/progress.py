"""A line that says what the pool is doing while nobody has answered yet: how far a model's loading is."""

import sys
import threading
from types import TracebackType
from typing import Self

from potluck.cli.printing import printable
from potluck.cli.workers import model_line
from potluck.errors import PotluckError
from potluck.results import Worker

SHOW_AFTER_S = 0.7
EVERY_S = 0.5
TIMEOUT_S = 5.0
WORKING = frozenset({"downloading", "loading", "present", "absent"})
CLEAR = "\r\x1b[2K"


class Progress:
    """A context manager. Only a terminal sees it; `stop` wipes the line, and no line comes after it."""

    def __init__(self, url: str, key: str, model: str, *, shown: bool) -> None:
        self._url, self._key, self._model = url, key, model
        self._shown = shown and sys.stderr.isatty()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self._shown:
            self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        if self._thread is None:
            return
        self._ended.set()
        self._thread.join(TIMEOUT_S + 1.0)
        self._thread = None

    def _run(self) -> None:
        from potluck.pool import Pool

        if self._ended.wait(SHOW_AFTER_S):
            return
        # A connection of its own: the other one is waiting for the answer.
        with Pool(self._url, self._key, timeout_s=TIMEOUT_S, retries_max=0) as pool:
            while not self._ended.is_set():
                try:
                    line = self._line(pool.workers())
                except PotluckError:
                    line = "waiting for the pool"  # the answer's own connection will say what is wrong
                sys.stderr.write(f"{CLEAR}{printable(line)} ...")
                sys.stderr.flush()
                self._ended.wait(EVERY_S)
        sys.stderr.write(CLEAR)
        sys.stderr.flush()

    def _line(self, workers: list[Worker]) -> str:
        for worker in workers:
            for model in worker.models if worker.state != "away" else ():
                if model.name == self._model and model.state in WORKING:
                    return f"{worker.name}: {model_line(model)}"
        return "waiting for the first word"
