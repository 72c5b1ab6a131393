"""One engine in a process of its own, as the daemon sees it."""

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path

import psutil

from potluck.v1 import engine_pb2, work_pb2
from worker.engines import engine, pipe

OnEvent = Callable[[engine_pb2.EngineEvent], None]
LOAD_S_MAX = 1800.0
CLOSE_GRACE_S = 2.0
LOG_LINES_MAX = 50
LOG_LINE_CHARS_MAX = 1000


class EngineStartError(Exception):
    """The engine did not load; the sentence says why, `code` is the fixed word for programs."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class EngineHost:
    """A loaded engine process.

    `on_event` hears every event on the loop's thread, LoadProgress and Loaded included. `exited` becomes a
    sentence when the process is gone; every attempt that ran then gets its Failed first: `engine_died`, the
    worker's fault, or `engine_closed`, nobody's, after close(). Whether to start another is the daemon's
    choice.
    """

    def __init__(
        self, process: asyncio.subprocess.Process, load: engine_pb2.Load, on_event: OnEvent, directory: Path
    ) -> None:
        self._process = process
        self._on_event = on_event
        self._directory = directory
        self._running: dict[engine.Key, work_pb2.Attempt] = {}
        self._closing = False
        self._log: deque[str] = deque(maxlen=LOG_LINES_MAX)
        loop = asyncio.get_running_loop()
        self._loading: asyncio.Future[engine_pb2.Loaded] = loop.create_future()
        self.exited: asyncio.Future[str] = loop.create_future()
        self.engine = load.engine
        self.model = load.model
        self.loaded = engine_pb2.Loaded()
        self._watch = asyncio.create_task(self._run())
        self._write(engine_pb2.EngineCommand(load=load))

    @classmethod
    async def start(
        cls, load: engine_pb2.Load, on_event: OnEvent, *, load_s_max: float = LOAD_S_MAX
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
                env=_environment(load, directory),
            )
        except OSError as error:
            shutil.rmtree(directory, ignore_errors=True)
            raise EngineStartError("cannot_start", f"no engine process could be started: {error}") from error
        host = cls(process, load, on_event, directory)
        try:
            host.loaded = await asyncio.wait_for(asyncio.shield(host._loading), load_s_max)
        except TimeoutError:
            await host.close()
            raise EngineStartError(
                "load_timeout", f"{load.model} did not load within {load_s_max:.0f} s"
            ) from None
        except BaseException:  # cancelled or failed: no process is left behind
            await host.close()
            raise
        return host

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> frozenset[engine.Key]:
        """Attempts that have neither ended nor failed."""
        return frozenset(self._running)

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
        """Hand a Start or Stop over. A Start to an engine that is gone fails like one that ran when it died.

        Raises PipeError for a command that is too large; then nothing was sent.
        """
        data = pipe.frame(command)
        if command.HasField("start"):
            attempt = command.start.attempt
            if self.exited.done():
                asyncio.get_running_loop().call_soon(self._on_event, self._gone(attempt))
                return
            self._running[engine.key_of(attempt)] = attempt
        if self._process.stdin is not None and not self._process.stdin.is_closing():
            self._process.stdin.write(data)

    async def close(self, grace_s: float = CLOSE_GRACE_S) -> None:
        """End the process and wait until it is gone, with all its memory. May be called again."""
        self._closing = True
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
        reason = self._reason(code, broken)
        if not self._loading.done():
            self._loading.set_exception(EngineStartError("engine_died", reason))
            self._loading.exception()  # heard, even if the start was cancelled meanwhile
        self.exited.set_result(reason)
        running, self._running = self._running, {}
        for attempt in running.values():
            self._on_event(self._gone(attempt))

    async def _read_events(self) -> None:
        assert self._process.stdout is not None
        async for event in pipe.receive_messages(self._process.stdout, engine_pb2.EngineEvent):
            match event.WhichOneof("body"):
                case "load_failed":
                    if not self._loading.done():
                        failure = event.load_failed.failure
                        self._loading.set_exception(EngineStartError(failure.code, failure.message))
                        self._loading.exception()  # as above
                    continue
                case "loaded":
                    self._on_event(event)
                    if not self._loading.done():
                        self._loading.set_result(event.loaded)
                    continue
                case "done":
                    self._running.pop(engine.key_of(event.done.attempt), None)
                case "failed":
                    self._running.pop(engine.key_of(event.failed.attempt), None)
            self._on_event(event)

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
        if self._closing:
            return f"engine {self.engine} was closed"
        how = broken or (f"it was killed by signal {-code}" if code < 0 else f"it ended with code {code}")
        last = f"; its last words: {self._log[-1][:200]}" if self._log else ""
        return f"engine {self.engine} for {self.model} died: {how}{last}"

    def _gone(self, attempt: work_pb2.Attempt) -> engine_pb2.EngineEvent:
        if self._closing:
            error = engine.EngineError("engine_closed", self.exited.result(), fault=work_pb2.FAULT_NONE)
        else:
            error = engine.EngineError("engine_died", self.exited.result())
        return engine.failed(attempt, error)


def _environment(load: engine_pb2.Load, directory: Path) -> dict[str, str]:
    """What the engine's libraries must know before they are loaded."""
    environment = dict(os.environ)
    environment[engine.RUNTIME_DIR] = str(directory)
    environment["TOKENIZERS_PARALLELISM"] = "false"
    environment["HF_HUB_OFFLINE"] = "1"  # a worker loads files it has verified and nothing else
    environment["TQDM_DISABLE"] = "1"  # bars belong to people, not to a log
    if load.threads:
        environment["OMP_NUM_THREADS"] = str(load.threads)
    return environment
