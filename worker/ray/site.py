"""The owner's site as the daemon uses it: a cluster, and the hosts of models that live on it."""

import asyncio
import secrets
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from potluck.v1 import engine_pb2
from worker.cores import usable_cores
from worker.hosts.group import GroupHost
from worker.hosts.host import EngineStartError, Host, OnEvent
from worker.hosts.process import EngineHost
from worker.hosts.site import SiteHost
from worker.machine import Machine
from worker.messages import FINETUNE
from worker.models import TRAINER
from worker.ray.cluster import Cluster
from worker.ray.placement import Node, Place, places
from worker.ray.ranks import ranks
from worker.settings import Settings

BRIDGE: Final = "openai"
TOKEN_FILE: Final = Path("~/.ray/auth_token")  # where Ray itself keeps it


class Site:
    """`models`: how many engines share the site now: those of the models that the daemon serves, one for
    training, and those for adapters. Ray sets their part aside for each, whether or not it works.
    """

    def __init__(self, cluster: Cluster, settings: Settings, models: Callable[[], int]) -> None:
        self._cluster = cluster
        self._settings = settings
        self._models = models
        self._nodes: dict[str, Node] = {}
        self.size = 1  # machines, when it was last looked at as one

    @classmethod
    def open(cls, settings: Settings, models: Callable[[], int]) -> "Site":
        """Blocking, in the main thread: Ray's children die with the thread that started them.

        Raises WorkerConflict.
        """
        if settings.ray_address:
            token = Path(settings.ray_token_file) if settings.ray_token_file else TOKEN_FILE
            return cls(Cluster.join(settings.ray_address, token.expanduser()), settings, models)
        return cls(Cluster.private(cpus=settings.threads or usable_cores()), settings, models)

    def machine(self, own: Machine) -> Machine:
        """The site as one machine."""
        whole, self.size = self._cluster.machine(own)
        return whole

    async def start_host(self, load: engine_pb2.Load, on_event: OnEvent, *, memory_bytes: int = 0) -> Host:
        """A StartHost: the model's replicas all over the site; a bridge to a server stays on this machine."""
        if load.engine == BRIDGE:
            return await EngineHost.start(load, on_event)
        if load.engine == TRAINER and (together := await self._ranks(memory_bytes)):
            return await self._start_group(load, on_event, together)
        from worker.hosts.ray import ActorHost

        async def places_now() -> Sequence[Place]:
            nodes = await asyncio.to_thread(self._cluster.nodes)
            self._nodes = {node.id: node for node in nodes}
            return places(
                nodes,
                engine=load.engine,
                memory_bytes=memory_bytes,
                threads=load.threads if self._settings.threads or not self._settings.ray_address else 0,
                models=self._models(),
                replicas_max=self._settings.replicas,
                trains=FINETUNE in load.kinds,
            )

        async def start_one(place: Place, heard: OnEvent) -> Host:
            if (node := self._nodes.get(place.node)) is None:
                raise EngineStartError("node_lost", "this node is no longer part of the site")
            return await ActorHost.start(place, node, load, heard)

        return await SiteHost.start(load.model, on_event, places_now, start_one)

    async def _ranks(self, memory_bytes: int) -> Sequence[Place]:
        nodes = await asyncio.to_thread(self._cluster.nodes)
        self._nodes = {node.id: node for node in nodes}
        wanted = self._settings.training_ranks
        return ranks(nodes, memory_bytes=memory_bytes, models=self._models(), wanted=wanted)

    async def _start_group(self, load: engine_pb2.Load, on_event: OnEvent, together: Sequence[Place]) -> Host:
        """One engine in each of the places, all on one node, where they meet by a file."""
        from worker.hosts.ray import ActorHost

        meet = f"{tempfile.gettempdir()}/potluck-{secrets.token_hex(16)}"

        async def start_rank(rank: int, heard: OnEvent) -> Host:
            own = engine_pb2.Load.FromString(load.SerializeToString())
            own.options.update({"rank": str(rank), "ranks": str(len(together)), "meet": meet})
            return await ActorHost.start(together[rank], self._nodes[together[rank].node], own, heard)

        return await GroupHost.start(load.model, on_event, len(together), start_rank)

    def close(self) -> None:
        self._cluster.close()
