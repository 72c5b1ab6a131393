"""A machine that serves models: what of its memory, cores and disk may be used, and for which of the pool's.

With a site, the machine is all machines of its owner's cluster.
"""

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from potluck.catalogue import Catalogue
from potluck.fetch import Policy as Downloads
from potluck.store import ModelStore
from potluck.throttle import Throttle
from potluck.v1 import session_pb2
from worker import advice
from worker.artifacts import ArtifactClient
from worker.budget import shares, together
from worker.cores import CoreShare
from worker.errors import WorkerError
from worker.files import disk_bytes
from worker.hosts.process import EngineHost
from worker.load import Load
from worker.memory import Memory
from worker.messages import AttemptId, Event
from worker.models import ADAPTS, TRAINER, Choice, adapting_of, catalogue_from, choose, trainer_of
from worker.probe import Probe, hardware_of
from worker.ray.site import Site
from worker.rules import size_bytes
from worker.settings import Places, Settings
from worker.speeds import FILE as SPEEDS_FILE
from worker.speeds import Speeds
from worker.supervisor import Supervisor
from worker.surroundings import Surroundings
from worker.uploads import Uploads
from worker.workroom import Workroom

CORES_S: Final = 5.0  # how soon a change of the neighbours is noticed


class Serving:
    """Must be made inside the running loop. `emit` hears the models' events, `know` each new catalogue,
    `handed` what an engine works on from now on.

    `in_pool`: the names of the pool's models, None before it said so. `threads`: of all engines together.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        places: Places,
        artifacts: ArtifactClient,
        now: Callable[[], float],
        emit: Callable[[Event], None],
        know: Callable[[Catalogue], None],
        handed: Callable[[AttemptId], None],
    ) -> None:
        self._settings, self._places, self._artifacts = settings, places, artifacts
        self._emit, self._know, self._handed = emit, know, handed
        self._log = structlog.get_logger("worker.serving")
        probe = Probe(places.cache, places.worker)
        self.machine = probe.machine()
        self.engines = advice.engines(self.machine)
        self.load = Load(probe)
        self.memory = Memory(self._memory_caps())
        self.supervisor = Supervisor()
        self.in_pool: frozenset[str] | None = None
        self._cores = CoreShare(places.machine, threads=settings.threads)
        self.threads = self._cores.threads()
        quota = size_bytes(settings.caps.disk, disk_bytes(places.cache)) if settings.caps.disk else 0
        self._store = ModelStore(places.cache, derived=places.converted, quota_bytes=quota)
        self._workroom = Workroom(places.training, self._store)
        rate = settings.download_bytes_per_s
        self._downloads = Downloads(throttle=Throttle(rate) if rate else None)
        self.speeds = Speeds(places.worker / SPEEDS_FILE, device=advice.room(self.machine).where, now=now)
        self._shares: dict[str, int] = {}  # of a capped memory, by model
        self._site: Site | None = None  # without one, engines are processes of this machine

    def open_site(self) -> None:
        """From now on this worker is all machines of its owner's cluster. Raises WorkerConflict."""
        self._site = Site.open(self._settings, models=lambda: self.supervisor.engines)
        self.machine = self._site.machine(self.machine)
        self.engines = advice.engines(self.machine)
        self.memory = Memory(self._memory_caps())

    def hardware(self) -> session_pb2.Hardware:
        hardware = hardware_of(self.machine)
        hardware.nodes = 1 if self._site is None else self._site.size
        return hardware

    # --- its memory ---

    def _memory_caps(self) -> dict[str, int]:
        """Bytes that all models together may take, in the machine's memory and on a card."""
        caps, here, card = self._settings.caps, self.machine, advice.card(self.machine)
        memory = min(here.memory_free_bytes, size_bytes(caps.memory, here.memory_bytes))
        if card is None or card.backend == "mps":  # there it is the same memory
            return {"memory": memory}
        return {"memory": memory, "vram": size_bytes(caps.vram, card.memory_bytes)}

    def _place(self, engine: str) -> str:
        """Where an engine keeps its models; the llama.cpp of the published wheels has no use for a card."""
        return "vram" if engine in ("torch", TRAINER) and "vram" in self.memory.caps else "memory"

    def _by_place(self, choices: list[Choice]) -> dict[str, dict[str, int]]:
        """Sizes of the models by the place where they will be, and by name."""
        sizes: dict[str, dict[str, int]] = {place: {} for place in self.memory.caps}
        for choice in choices:
            sizes[self._place(choice.engine)][choice.tenant] = choice.variant.memory_bytes
        return {place: found for place, found in sizes.items() if found}

    def _share_out(self, choices: list[Choice]) -> dict[str, int]:
        """Bytes that each model may take where its owner has set a cap, by name."""
        caps = {"memory": self._settings.caps.memory, "vram": self._settings.caps.vram}
        found: dict[str, int] = {}
        for place, sizes in self._by_place(choices).items():
            if caps[place]:
                found |= shares(sizes, self.memory.caps[place])
        return found

    # --- its models ---

    async def serve(self, data: bytes) -> None:
        """From now on the models of this catalogue, as the owner wishes.

        Raises WorkerError if the owner's wishes cannot be met and nothing is served yet.
        """
        try:
            catalogue, left_out = catalogue_from(data)
            self.in_pool = frozenset(entry.name for entry in catalogue.entries)
            choices = choose(
                catalogue,
                self._settings,
                engines=self.engines,
                memory_bytes={engine: self.memory.caps[self._place(engine)] for engine in self.engines},
            )
        except WorkerError as error:
            if not self.supervisor.models:
                raise
            self._log.warning(str(error), action="catalogue_refused")
            return
        for sentence in left_out:
            self._log.warning(f"left out of the catalogue: {sentence}", action="catalogue_entry_refused")
        names = ", ".join(f"{choice.entry.name} ({choice.engine})" for choice in choices)
        self._log.info(f"serving {names}", action="models_chosen")
        self._know(catalogue)
        beside = [*self._trainers(choices), *self._adapting(choices)]
        self._shares = self._share_out([*choices, *beside])
        await self.supervisor.serve([*choices, *beside], self._surroundings(choices))

    def _trainers(self, choices: list[Choice]) -> list[Choice]:
        """What trains these models here: in float32 on a processor, in half of it on a card."""
        place = self._place(TRAINER)
        found = (
            trainer_of(
                choice,
                self._settings.sharing,
                here=advice.trains(self.machine),
                memory_bytes=self.memory.caps[place],
                number_bytes=2 if place == "vram" else 4,
            )
            for choice in choices
        )
        return [trainer for trainer in found if trainer is not None]

    def _adapting(self, choices: list[Choice]) -> list[Choice]:
        """What answers with adapters on those models whose engine cannot."""
        here, room = ADAPTS in self.engines, self.memory.caps[self._place(ADAPTS)]
        found = (adapting_of(choice, here=here, memory_bytes=room) for choice in choices)
        return [adapting for adapting in found if adapting is not None]

    def _surroundings(self, choices: list[Choice]) -> Surroundings:
        sizes = self._by_place(choices)
        at_once = max(1, sum(together(found.values(), self.memory.caps[p]) for p, found in sizes.items()))
        return Surroundings(
            settings=self._settings,
            store=self._store,
            downloads=self._downloads,
            speeds=self.speeds,
            converted=self._places.converted,
            threads=lambda: max(1, self.threads // (at_once + self._beside())),
            emit=self._emit,
            artifacts=self._artifacts,
            uploads=Uploads(self._artifacts),
            workroom=self._workroom,
            memory=self.memory,
            place=self._place,
            share=lambda name: self._shares.get(name, 0),
            handed=self._handed,
            start_host=EngineHost.start if self._site is None else self._site.start_host,
        )

    def _beside(self) -> int:
        """Engines that train or adapt beside those that serve. On a site their cores are set aside for good:
        whoever serves there does not load anew whenever a training comes and goes.
        """
        supervisor = self.supervisor
        if self._site is not None:
            return supervisor.engines - len(supervisor.models)
        return len(supervisor.beside)

    # --- its life ---

    async def run(self) -> None:
        """Removes what an earlier life left; then looks at the neighbours, until cancelled."""
        await asyncio.to_thread(self._workroom.sweep)
        while True:
            await asyncio.sleep(CORES_S)
            if (threads := self._cores.threads()) != self.threads:
                self.threads = threads
                self.supervisor.poke()

    async def close(self) -> None:
        """All engines are gone afterwards, with all their memory."""
        await self.supervisor.close()
        if self._site is not None:
            self._site.close()
        self.speeds.save()
        await self.load.close()
        self._cores.release()
