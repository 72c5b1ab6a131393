"""An engine process: `python -m worker.engines`, started by worker.hosts.process, speaks on its stdin and
stdout.

It ends when its stdin closes, so it outlives its daemon by no more than EXIT_GRACE_S, however that one died.
"""

import asyncio
import os
import queue
import shutil
import signal
import sys
import threading
from typing import NoReturn

from potluck import loops
from potluck.v1 import engine_pb2
from worker.engines import engine, pipe
from worker.engines.runner import Runner

EVENTS_WAITING_MAX = 4096  # then the engine waits for its daemon
COMMANDS_WAITING_MAX = 1024
WRITE_EVENTS_MAX = 256  # that go out in one system call
EXIT_GRACE_S = 2.0
EXIT_DIED = 70  # EX_SOFTWARE


class Writer:
    """Events to the daemon, from a thread of its own: a slow reader must not hold up commands."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._queue: queue.Queue[bytes | None] = queue.Queue(EVENTS_WAITING_MAX)
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)
        self._thread.start()

    def emit(self, event: engine_pb2.EngineEvent) -> None:
        self._queue.put(pipe.frame(event))

    def close(self) -> None:
        """Blocking: send what waits."""
        self._queue.put(None)
        self._thread.join(EXIT_GRACE_S)

    def _run(self) -> None:
        while True:
            batch = [self._queue.get()]
            while len(batch) < WRITE_EVENTS_MAX and not self._queue.empty():
                batch.append(self._queue.get())
            try:
                pipe.write_all(self._fd, b"".join(data for data in batch if data is not None))
            except OSError:  # nobody reads any more: the daemon is gone
                clean_up()
                os._exit(0)
            if None in batch:
                return


class Commands:
    """What the daemon says, read by a thread of its own: asyncio cannot watch a pipe on Windows."""

    def __init__(self, fd: int) -> None:
        self._fd, self._loop = fd, asyncio.get_running_loop()
        self._queue: asyncio.Queue[engine_pb2.EngineCommand | None] = asyncio.Queue()
        self._room = threading.Semaphore(COMMANDS_WAITING_MAX)
        threading.Thread(target=self._read, name="commands", daemon=True).start()

    async def next(self) -> engine_pb2.EngineCommand | None:
        """None: there will be no more, and the process ends within EXIT_GRACE_S."""
        command = await self._queue.get()
        self._room.release()
        return command

    def _read(self) -> None:
        try:
            for command in pipe.read_messages(self._fd, engine_pb2.EngineCommand):
                self._hand_over(command)
        except (pipe.PipeError, OSError) as error:
            sys.stderr.write(f"engine: {error}\n")
        exit_within(EXIT_GRACE_S)
        self._hand_over(None)

    def _hand_over(self, command: engine_pb2.EngineCommand | None) -> None:
        """Waits while too many do."""
        self._room.acquire()
        self._loop.call_soon_threadsafe(self._queue.put_nowait, command)


def exit_within(seconds: float) -> None:
    """Whatever the engine is doing then, the process ends."""

    def leave() -> None:
        clean_up()
        os._exit(0)

    timer = threading.Timer(seconds, leave)
    timer.daemon = True
    timer.start()


def clean_up() -> None:
    """The daemon removes this folder too, unless it was killed."""
    if directory := os.environ.get(engine.RUNTIME_DIR):
        shutil.rmtree(directory, ignore_errors=True)


async def serve(fd: int, writer: Writer) -> int:
    """The life of an engine: load, attempts, end. Returns the exit code."""
    commands = Commands(fd)

    def die() -> None:
        writer.close()
        os._exit(EXIT_DIED)

    first = await commands.next()
    if first is None or not first.HasField("load"):
        return 0
    runner = Runner(writer.emit, die)
    if not await runner.load(first.load):
        return 1
    while (command := await commands.next()) is not None and runner.handle(command):
        pass
    exit_within(EXIT_GRACE_S)
    await runner.close()
    return 0


def main() -> NoReturn:
    # A library that prints must not corrupt the pipe, one that reads must not eat commands: both get others.
    commands, events = os.dup(0), os.dup(1)
    if sys.platform == "win32":
        import msvcrt

        for fd in (commands, events):  # else the C library turns line ends round
            msvcrt.setmode(fd, os.O_BINARY)
    devnull = os.open(os.devnull, os.O_RDONLY)
    os.dup2(devnull, 0)
    os.close(devnull)
    os.dup2(2, 1)
    # Ctrl-C and a service manager's stop reach the whole group; when engines end, the draining daemon
    # decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    writer = Writer(events)
    with asyncio.Runner(loop_factory=loops.quickest()) as loop:
        code = loop.run(serve(commands, writer))
    writer.close()
    clean_up()
    sys.stderr.flush()
    os._exit(code)  # the system takes gigabytes back faster than an interpreter that tidies up


if __name__ == "__main__":
    main()
