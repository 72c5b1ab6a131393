"""Several engines that compute one training together, as one host: whatever one hears, all hear.

The first of them speaks for all. An attempt has ended when it has ended in each. One that fails alone leaves
the others waiting for it in the middle of a step, so the group ends with it, and what happens then is the
supervisor's choice, as with any engine that dies.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Final

import structlog

from potluck.v1 import engine_pb2, work_pb2
from worker.engines import engine
from worker.hosts.host import CLOSE_GRACE_S, Host, OnEvent

APART_S_MAX: Final = 10.0  # between the first end of an attempt and the last

StartRank = Callable[[int, OnEvent], Awaitable[Host]]


class GroupHost:
    """A Host. `ranks`: how many."""

    def __init__(self, model: str, on_event: OnEvent, ranks: int) -> None:
        self.exited: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._model, self._on_event, self._ranks = model, on_event, ranks
        self._hosts: list[Host] = []
        self._ends: dict[engine.Key, dict[int, engine_pb2.EngineEvent]] = {}  # of those that run
        self._apart: dict[engine.Key, asyncio.TimerHandle] = {}
        self._watching: asyncio.Task[None] | None = None
        self._log = structlog.get_logger("worker.group").bind(model=model)

    @classmethod
    async def start(cls, model: str, on_event: OnEvent, ranks: int, start_rank: StartRank) -> "GroupHost":
        """Start all; returns when all are loaded. Raises EngineStartError, and leaves nothing behind then."""
        host = cls(model, on_event, ranks)
        starting = [
            asyncio.ensure_future(start_rank(rank, partial(host._heard, rank))) for rank in range(ranks)
        ]
        try:
            await _all(starting)
        except BaseException:  # cancelled or failed: they wait for each other, and would for long
            for task in starting:
                task.cancel()
            ends = await asyncio.gather(*starting, return_exceptions=True)
            await asyncio.gather(*(one.close() for one in ends if not isinstance(one, BaseException)))
            raise
        host._hosts = [task.result() for task in starting]
        host._watching = asyncio.create_task(host._watch())
        host._log.info("ranks", action="ranks", ranks=ranks)
        return host

    @property
    def loaded(self) -> engine_pb2.Loaded:
        """Of the first; each takes as much memory, where it is."""
        return self._hosts[0].loaded if self._hosts else engine_pb2.Loaded()

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(pid for host in self._hosts for pid in host.pids)

    @property
    def running(self) -> frozenset[engine.Key]:
        return frozenset(self._ends)

    def memory_bytes(self) -> int:
        return sum(host.memory_bytes() for host in self._hosts)

    def send(self, command: engine_pb2.EngineCommand) -> None:
        """As Host.send."""
        if command.HasField("start"):
            attempt = command.start.attempt
            if self.exited.done():
                gone = engine.EngineError("engine_died", f"the engines that trained {self._model} are gone")
                asyncio.get_running_loop().call_soon(self._on_event, engine.failed(attempt, gone))
                return
            self._ends[engine.key_of(attempt)] = {}
        try:
            for host in self._hosts:
                host.send(command)
        except BaseException:  # too large for each of them: nothing was sent
            if command.HasField("start"):
                del self._ends[engine.key_of(command.start.attempt)]
            raise

    async def close(self, grace_s: float = CLOSE_GRACE_S) -> None:
        """As Host.close."""
        if self._watching is not None:
            self._watching.cancel()
        await asyncio.gather(*(host.close(grace_s) for host in self._hosts))
        closed = engine.EngineError(
            "engine_closed", f"the engines that train {self._model} were closed", fault=work_pb2.FAULT_NONE
        )
        self._give_up(closed)

    async def _watch(self) -> None:
        """Until one of them is gone."""
        await asyncio.wait([host.exited for host in self._hosts], return_when=asyncio.FIRST_COMPLETED)
        why = next(host.exited.result() for host in self._hosts if host.exited.done())
        self._give_up(engine.EngineError("engine_died", why))

    def _give_up(self, error: engine.EngineError) -> None:
        """The group is gone for good: what still ran there failed, by the reason that was heard first."""
        for key in list(self._ends):
            failed = _failure(self._ends[key].values())
            attempt = work_pb2.Attempt(job_id=key[0], number=key[1])
            self._tell(key, engine.failed(attempt, error) if failed is None else failed)
        if not self.exited.done():
            self.exited.set_result(str(error))

    def _heard(self, rank: int, event: engine_pb2.EngineEvent) -> None:
        match event.WhichOneof("body"):
            case "done":
                self._ended(rank, engine.key_of(event.done.attempt), event)
            case "failed":
                self._ended(rank, engine.key_of(event.failed.attempt), event)
            case "loaded":
                return  # said by the host
            case _:
                if rank == 0:
                    self._on_event(event)

    def _ended(self, rank: int, key: engine.Key, event: engine_pb2.EngineEvent) -> None:
        if (ends := self._ends.get(key)) is None:
            return
        ends[rank] = event
        if len(ends) == self._ranks:
            self._tell(key, _failure(ends.values()) or ends[0])
        elif key not in self._apart:
            loop = asyncio.get_running_loop()
            self._apart[key] = loop.call_later(APART_S_MAX, self._hang, key)

    def _hang(self, key: engine.Key) -> None:
        """Some have ended it and some have not: these wait in vain."""
        if key in self._ends:
            self._log.warning("the engines of a training lost each other", action="group_apart")
            self._give_up(engine.EngineError("engine_died", "the engines of a training lost each other"))

    def _tell(self, key: engine.Key, event: engine_pb2.EngineEvent) -> None:
        del self._ends[key]
        if (timer := self._apart.pop(key, None)) is not None:
            timer.cancel()
        self._on_event(event)


def _failure(ends: Iterable[engine_pb2.EngineEvent]) -> engine_pb2.EngineEvent | None:
    """The first that is one, in the order in which they came."""
    return next((event for event in ends if event.HasField("failed")), None)


async def _all(tasks: Sequence["asyncio.Future[Host]"]) -> None:
    """Raises what the first that fails raises, at once."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    for task in done:
        task.result()
