"""Several replicas of one engine that serve as one host: their slots add up, the least busy one is asked.

A replica that dies is started again in its place, ever more slowly, while the others serve on; places are
looked at anew from time to time, since machines of a site come and go. When the last replica is gone, so is
this host, and what happens then is the supervisor's choice.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from typing import Final, Generic, TypeVar

import structlog

from potluck.v1 import engine_pb2
from worker.engines import engine
from worker.hosts.host import CLOSE_GRACE_S, EngineStartError, Host, OnEvent

REPLAN_S: Final = 10.0
AGAIN_S_MIN: Final = 1.0
AGAIN_S_MAX: Final = 60.0

P = TypeVar("P", bound=Hashable)
Places = Callable[[], Awaitable[Sequence[P]]]
StartOne = Callable[[P, OnEvent], Awaitable[Host]]


class SiteHost(Generic[P]):
    """The replicas of one model: a Host."""

    def __init__(self, model: str, on_event: OnEvent, places: Places[P], start_one: StartOne[P]) -> None:
        loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[str] = loop.create_future()
        self._first: asyncio.Future[None] = loop.create_future()
        self._on_event = on_event
        self._places = places
        self._start_one = start_one
        self._replicas: dict[P, Host] = {}
        self._serving: dict[engine.Key, Host] = {}
        self._tasks: dict[P, asyncio.Task[None]] = {}
        self._failed: dict[P, EngineStartError] = {}
        self._log = structlog.get_logger("worker.site").bind(model=model)
        self._model = model
        self._tending: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls, model: str, on_event: OnEvent, places: Places[P], start_one: StartOne[P]
    ) -> "SiteHost[P]":
        """Start all replicas; returns when one is loaded. Raises EngineStartError if none can be."""
        host = cls(model, on_event, places, start_one)
        host._tending = asyncio.create_task(host._tend())
        try:
            await asyncio.shield(host._first)
        except BaseException:  # cancelled or failed: nothing is left behind
            await host.close()
            raise
        return host

    @property
    def loaded(self) -> engine_pb2.Loaded:
        return together(replica.loaded for replica in self._replicas.values())

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(pid for replica in self._replicas.values() for pid in replica.pids)

    @property
    def running(self) -> frozenset[engine.Key]:
        return frozenset(self._serving)

    def memory_bytes(self) -> int:
        return sum(replica.memory_bytes() for replica in self._replicas.values())

    def send(self, command: engine_pb2.EngineCommand) -> None:
        """As Host.send."""
        if command.HasField("stop"):
            if (replica := self._serving.get(engine.key_of(command.stop.attempt))) is not None:
                replica.send(command)
        elif command.HasField("start"):
            attempt = command.start.attempt
            if not self._replicas:
                gone = engine.EngineError("engine_died", f"no replica of {self._model} is left on this site")
                asyncio.get_running_loop().call_soon(self._on_event, engine.failed(attempt, gone))
                return
            replica = min(self._replicas.values(), key=_busy)
            replica.send(command)
            self._serving[engine.key_of(attempt)] = replica

    async def close(self, grace_s: float = CLOSE_GRACE_S) -> None:
        """As Host.close."""
        tasks = [*self._tasks.values(), *([self._tending] if self._tending else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(replica.close(grace_s) for replica in self._replicas.values()))
        self._replicas.clear()
        if not self.exited.done():
            self.exited.set_result(f"the replicas of {self._model} were closed")

    async def _tend(self) -> None:
        """A task for each place, for as long as it is one."""
        while True:
            wished = await self._places()
            for place in [place for place in self._tasks if place not in wished]:
                if place not in self._replicas:
                    self._tasks.pop(place).cancel()
                    self._failed.pop(place, None)
            for place in wished:
                if place not in self._tasks:
                    self._tasks[place] = asyncio.create_task(self._keep(place))
            if not self._tasks and not self._first.done():
                self._fail(EngineStartError("no_room", f"no machine of this site has room for {self._model}"))
            await asyncio.sleep(REPLAN_S)

    async def _keep(self, place: P) -> None:
        """One replica in this place, again and again."""
        pause_s = AGAIN_S_MIN
        while True:
            try:
                replica = await self._start_one(place, self._heard)
            except EngineStartError as error:
                self._log.warning(
                    f"a replica did not start: {error}", action="replica_failed", place=str(place)
                )
                self._failed[place] = error
                if len(self._failed) == len(self._tasks):
                    self._fail(error)
            else:
                self._failed.pop(place, None)
                pause_s = AGAIN_S_MIN
                self._replicas[place] = replica
                self._changed()
                why = await asyncio.shield(replica.exited)
                self._log.warning(f"a replica is gone: {why}", action="replica_gone", place=str(place))
                del self._replicas[place]
                await replica.close()
                if not self._replicas:
                    self.exited.set_result(why)
                    return
                self._changed()
            await asyncio.sleep(pause_s)
            pause_s = min(AGAIN_S_MAX, pause_s * 2)

    def _changed(self) -> None:
        """There is another number of replicas."""
        slots = self.loaded.slots
        self._log.info("replicas", action="replicas", replicas=len(self._replicas), slots=slots)
        self._on_event(engine_pb2.EngineEvent(loaded=self.loaded))
        if not self._first.done():
            self._first.set_result(None)

    def _fail(self, error: EngineStartError) -> None:
        if not self._first.done():
            self._first.set_exception(error)

    def _heard(self, event: engine_pb2.EngineEvent) -> None:
        match event.WhichOneof("body"):
            case "loaded":  # said once the replica is among the others
                return
            case "done":
                self._serving.pop(engine.key_of(event.done.attempt), None)
            case "failed":
                self._serving.pop(engine.key_of(event.failed.attempt), None)
        self._on_event(event)


def together(replicas: Iterable[engine_pb2.Loaded]) -> engine_pb2.Loaded:
    """What several engines can do as one: slots add up, of the rest the least, and of memory the most, since
    each lies in a memory of its own.

    Replicas of different numerics classes are a class of their own: which one answers is chance.
    """
    each = list(replicas)
    if not each:
        return engine_pb2.Loaded()
    numerics = sorted({loaded.numerics for loaded in each})
    features = set(each[0].features).intersection(*(loaded.features for loaded in each))
    return engine_pb2.Loaded(
        numerics=numerics[0] if len(numerics) == 1 else f"mixed/{'+'.join(numerics)}",
        sampler=each[0].sampler,
        slots=sum(loaded.slots for loaded in each),
        context_tokens=min(loaded.context_tokens for loaded in each),
        kinds=each[0].kinds,
        memory_bytes=max(loaded.memory_bytes for loaded in each),
        prefill_tokens_per_s=min(loaded.prefill_tokens_per_s for loaded in each),
        decode_tokens_per_s=min(loaded.decode_tokens_per_s for loaded in each),
        features=[feature for feature in each[0].features if feature in features],
    )


def _busy(replica: Host) -> float:
    return len(replica.running) / max(1, replica.loaded.slots)
