"""One engine in a process of its own, as the daemon sees it."""

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
from collections import deque
from pathlib import Path

from potluck.v1 import engine_pb2
from worker.engines import engine, pipe
from worker.engines.runner import cards, variables
from worker.hosts.host import CLOSE_GRACE_S, EngineStartError, OneEngine, OnEvent, resident_bytes

LOG_LINES_MAX = 50
LOG_LINE_CHARS_MAX = 1000


class EngineHost(OneEngine):
    """A loaded engine process: a Host. Whether to start another when it dies is the daemon's choice."""

    def __init__(
        self, process: asyncio.subprocess.Process, load: engine_pb2.Load, on_event: OnEvent, directory: Path
    ) -> None:
        super().__init__(load, on_event)
        self._process = process
        self._directory = directory
        self._log: deque[str] = deque(maxlen=LOG_LINES_MAX)  # what it wrote to its stderr last
        self._watch = asyncio.create_task(self._run())
        self._tell(pipe.frame(engine_pb2.EngineCommand(load=load)))

    @classmethod
    async def start(
        cls,
        load: engine_pb2.Load,
        on_event: OnEvent,
        *,
        memory_bytes: int = 0,  # noqa: ARG003 -- hosts that choose among machines ask for it
    ) -> "EngineHost":
        """Start the process and wait until the model is loaded. Raises EngineStartError."""
        directory = Path(tempfile.mkdtemp(prefix="potluck-"))
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-P", "-m", "worker.engines"),  # -P: a torch.py in the current folder is not ours
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=pipe.READ_BYTES_MAX,
                env=os.environ | variables(load, directory) | cards(load),
            )
        except OSError as error:
            shutil.rmtree(directory, ignore_errors=True)
            raise EngineStartError("cannot_start", f"no engine process could be started: {error}") from error
        host = cls(process, load, on_event, directory)
        await host._until_loaded()
        return host

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def pids(self) -> tuple[int, ...]:
        return (self.pid,)

    def memory_bytes(self) -> int:
        """Resident memory of the process."""
        return resident_bytes(self.pid)

    def _tell(self, frame: bytes) -> None:
        assert self._process.stdin is not None
        if not self._process.stdin.is_closing():
            self._process.stdin.write(frame)

    async def close(self, grace_s: float = CLOSE_GRACE_S) -> None:
        """End the process and wait until it is gone, with all its memory. May be called again."""
        self._closing = True
        if self._process.returncode is None:
            self._tell(pipe.frame(engine_pb2.EngineCommand(shutdown=engine_pb2.Shutdown())))
            if self._process.stdin is not None:
                self._process.stdin.close()
            try:
                await asyncio.wait_for(asyncio.shield(self.exited), grace_s)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
        await asyncio.shield(self._watch)

    async def _run(self) -> None:
        """Watch the process from start to end."""
        log = asyncio.create_task(self._read_log())
        broken = ""
        try:
            await self._read_events()
        except pipe.PipeError as error:
            broken = str(error)
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        code = await self._process.wait()
        await log
        shutil.rmtree(self._directory, ignore_errors=True)
        self._over(engine.EngineError("engine_died", self._reason(code, broken)))

    async def _read_events(self) -> None:
        assert self._process.stdout is not None
        async for event in pipe.receive_messages(self._process.stdout, engine_pb2.EngineEvent):
            self._heard(event)

    async def _read_log(self) -> None:
        assert self._process.stderr is not None
        while True:
            try:
                line = await self._process.stderr.readline()
            except ValueError:  # longer than the limit: the stream drops it and goes on
                continue
            if not line:
                return
            self._log.append(line.decode(errors="replace").rstrip()[:LOG_LINE_CHARS_MAX])

    def _reason(self, code: int, broken: str) -> str:
        how = broken or (f"it was killed by signal {-code}" if code < 0 else f"it ended with code {code}")
        last = f"; its last words: {self._log[-1][:200]}" if self._log else ""
        return f"engine {self._name} for {self._model} died: {how}{last}"
