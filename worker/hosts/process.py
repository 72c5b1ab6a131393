"""One engine in a process of its own, as the daemon sees it."""

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
from collections import deque
from pathlib import Path

import psutil

from potluck.v1 import engine_pb2
from worker.engines import engine, pipe
from worker.engines.runner import variables
from worker.hosts.host import CLOSE_GRACE_S, EngineStartError, OnEvent, Talk

LOG_LINES_MAX = 50
LOG_LINE_CHARS_MAX = 1000


class EngineHost:
    """A loaded engine process: a Host. Whether to start another when it dies is the daemon's choice."""

    def __init__(
        self, process: asyncio.subprocess.Process, load: engine_pb2.Load, on_event: OnEvent, directory: Path
    ) -> None:
        self._process = process
        self._directory = directory
        self._talk = Talk(load, on_event)
        self._log: deque[str] = deque(maxlen=LOG_LINES_MAX)
        self._watch = asyncio.create_task(self._run())
        self._write(engine_pb2.EngineCommand(load=load))

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
                env=os.environ | variables(load, directory),
            )
        except OSError as error:
            shutil.rmtree(directory, ignore_errors=True)
            raise EngineStartError("cannot_start", f"no engine process could be started: {error}") from error
        host = cls(process, load, on_event, directory)
        try:
            await host._talk.until_loaded()
        except BaseException:  # cancelled or failed: no process is left behind
            await host.close()
            raise
        return host

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def pids(self) -> tuple[int, ...]:
        return (self.pid,)

    @property
    def exited(self) -> asyncio.Future[str]:
        return self._talk.exited

    @property
    def loaded(self) -> engine_pb2.Loaded:
        return self._talk.loaded

    @property
    def running(self) -> frozenset[engine.Key]:
        return self._talk.running

    @property
    def log(self) -> list[str]:
        """The last lines that the process wrote to its stderr."""
        return list(self._log)

    def memory_bytes(self) -> int:
        """Resident memory of the process now; 0 once it is gone."""
        try:
            return int(psutil.Process(self.pid).memory_info().rss)
        except psutil.Error:
            return 0

    def send(self, command: engine_pb2.EngineCommand) -> None:
        """As Host.send."""
        data = pipe.frame(command)
        if self._talk.asked(command) and self._process.stdin and not self._process.stdin.is_closing():
            self._process.stdin.write(data)

    async def close(self, grace_s: float = CLOSE_GRACE_S) -> None:
        """End the process and wait until it is gone, with all its memory. May be called again."""
        self._talk.closing = True
        if self._process.returncode is None:
            self._write(engine_pb2.EngineCommand(shutdown=engine_pb2.Shutdown()))
            if self._process.stdin is not None:
                self._process.stdin.close()
            try:
                await asyncio.wait_for(asyncio.shield(self.exited), grace_s)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
        await asyncio.shield(self._watch)

    def _write(self, command: engine_pb2.EngineCommand) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(pipe.frame(command))

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
        self._talk.over(engine.EngineError("engine_died", self._reason(code, broken)))

    async def _read_events(self) -> None:
        assert self._process.stdout is not None
        async for event in pipe.receive_messages(self._process.stdout, engine_pb2.EngineEvent):
            self._talk.heard(event)

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
        return f"engine {self._talk.name} for {self._talk.model} died: {how}{last}"
