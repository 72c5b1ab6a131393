"""One engine as a Ray actor on a node of the owner's site, as the daemon sees it.

Nothing is tried again by Ray (max_restarts, max_task_retries 0): a generator that Ray starts again would
splice its items in once more, unnoticed. Replicas are started anew by `site`, answers continued by the pool.
"""

import asyncio
import contextlib
import json
from typing import Any, Final

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from potluck.v1 import engine_pb2, work_pb2
from potluck.version import version
from worker.engines import engine, pipe
from worker.hosts.actor import EngineActor, machine
from worker.hosts.host import CLOSE_GRACE_S, EngineStartError, OneEngine, OnEvent, resident_bytes
from worker.ray.placement import Node, Place

PLACE_S_MAX: Final = 60.0  # to start a process on the node, if there is room for it
CONNECT_S: Final = 1.0
GONE_S_MAX: Final = 5.0
CALLS_MAX: Final = 16  # at once on one actor: its stream, a command, a question


class ActorHost(OneEngine):
    """A loaded engine in an actor: a Host."""

    def __init__(self, actor: Any, node: Node, load: engine_pb2.Load, on_event: OnEvent) -> None:
        super().__init__(load, on_event)
        self._actor = actor
        self._node = node
        self._pid = 0  # on this machine
        self._outgoing: list[bytes] = []
        self._sending: asyncio.Task[None] | None = None
        self._reading: asyncio.Task[str] | None = None
        self._watch: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, place: Place, node: Node, load: engine_pb2.Load, on_event: OnEvent) -> "ActorHost":
        """Start the actor and wait until the model is loaded. Raises EngineStartError."""
        if not await _answers(node):  # Ray would wait for it, and so would everybody who waits for this
            raise EngineStartError("node_lost", f"{node.address} does not answer")
        made = ray.remote(EngineActor).options(
            num_cpus=place.cpus,
            num_gpus=place.cards,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=CALLS_MAX,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
        )
        load = engine_pb2.Load.FromString(load.SerializeToString())
        load.ClearField("gpus")  # Ray shows an actor its own cards only
        if place.cpus:
            load.threads = max(1, int(place.cpus))
        host = cls(made.remote(), node, load, on_event)
        try:
            await host._placed(place)
            host._reading = asyncio.create_task(host._read(load))
            host._watch = asyncio.create_task(host._run())
        except BaseException:  # cancelled or failed: no actor is left behind
            await host.close()
            raise
        await host._until_loaded()
        return host

    async def _placed(self, place: Place) -> None:
        """Raises EngineStartError if the actor does not come to life."""
        try:
            about = json.loads(await asyncio.wait_for(_result(self._actor.about.remote()), PLACE_S_MAX))
        except TimeoutError:
            needed = f"{place.cards:g} cards" if place.cards else f"{place.cpus:g} processors"
            raise EngineStartError(
                "no_room",
                f"no room on {self._node.address} within {PLACE_S_MAX:.0f} s: an engine there needs {needed}",
            ) from None
        except ray.exceptions.RayError as error:
            raise EngineStartError("cannot_start", f"{self._node.address}: {_sentence(error)}") from None
        if about["version"] != version():
            raise EngineStartError(
                "version",
                f"{self._node.address} has Potluck {about['version']}, and this worker {version()}: install"
                " the same on both",
            )
        if about["machine"] == machine():
            self._pid = int(about["pid"])

    @property
    def pids(self) -> tuple[int, ...]:
        return (self._pid,) if self._pid else ()

    def memory_bytes(self) -> int:
        """Resident memory here; of an actor on another machine, what its engine said when it was loaded."""
        if self._pid:
            return resident_bytes(self._pid)
        return 0 if self.exited.done() else self.loaded.memory_bytes

    async def close(self, grace_s: float = CLOSE_GRACE_S) -> None:
        """End the actor and wait until its process is gone. May be called again."""
        self._closing = True
        if self._watch is None or self._reading is None:
            await self._kill()
            return
        if not self.exited.done():
            self._tell(pipe.frame(engine_pb2.EngineCommand(shutdown=engine_pb2.Shutdown())))
            await asyncio.wait([self._reading], timeout=grace_s)
            self._reading.cancel()
        await asyncio.shield(self._watch)

    def _tell(self, frame: bytes) -> None:
        self._outgoing.append(frame)
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send())

    async def _send(self) -> None:
        """What waits goes out in one call, one call at a time: Ray keeps no order between calls at once."""
        with contextlib.suppress(ray.exceptions.RayError):  # the stream of events says why
            while self._outgoing:
                data, self._outgoing = b"".join(self._outgoing), []
                await _result(self._actor.tell.remote(data))

    async def _read(self, load: engine_pb2.Load) -> str:
        """Every event until the engine ends; the sentence says how it did."""
        unframer = pipe.Unframer(engine_pb2.EngineEvent)
        stream = self._actor.serve.options(num_returns="streaming").remote(load.SerializeToString())
        try:
            async for item in stream:
                for event in unframer.feed(await _result(item)):
                    self._heard(event)
        except pipe.PipeError as error:
            return str(error)
        except ray.exceptions.RayError as error:
            return _sentence(error)
        return "it ended by itself"

    async def _run(self) -> None:
        """Watch the actor from start to end."""
        assert self._reading is not None
        await asyncio.wait([self._reading])
        how = "" if self._reading.cancelled() else self._reading.result()
        there = self._closing or await _answers(self._node)
        if there:
            await self._kill()
            why = f"engine {self._name} for {self._model} on {self._node.address} died: {how}"
            self._over(engine.EngineError("engine_died", why))
        else:
            why = f"the node {self._node.address} of this site is lost, and {self._model} there with it"
            self._over(engine.EngineError("node_lost", why, fault=work_pb2.FAULT_NONE))

    async def _kill(self) -> None:
        """The actor's process is gone afterwards, unless its node does not answer."""
        ray.kill(self._actor, no_restart=True)
        with contextlib.suppress(ray.exceptions.RayError, TimeoutError):
            await asyncio.wait_for(_result(self._actor.about.remote()), GONE_S_MAX)
        if self._pid:
            with contextlib.suppress(psutil.Error):
                await asyncio.to_thread(psutil.wait_procs, [psutil.Process(self._pid)], GONE_S_MAX)


async def _result(ref: Any) -> Any:
    """As a coroutine: what Ray gives is only awaitable."""
    return await ref


async def _answers(node: Node) -> bool:
    """Whether the node's raylet is there. Ray itself takes ten seconds and more to notice that it is not."""
    try:
        async with asyncio.timeout(CONNECT_S):
            _, writer = await asyncio.open_connection(node.address, node.port)
    except OSError:
        return False
    writer.close()
    return True


def _sentence(error: Exception) -> str:
    """Ray's errors are pages long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
