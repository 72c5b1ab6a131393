"""The model that a fine-tune begins with: where adapters may go on it, and whether anybody could train it."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from coordinator.bounds import check_model
from coordinator.core.jobs import JobId, Kind
from coordinator.core.schedule import Waiting, impossible
from coordinator.finetunes.plan import Wanted
from coordinator.pool import Pool
from coordinator.records import ApiKey, Member
from coordinator.refusal import Refusal
from potluck import lora
from potluck.catalogue import File, ModelEntry
from potluck.fetch import FetchError, cached
from potluck.home import model_cache
from potluck.linears import Linear
from potluck.lora import LoraError, Shapes

CONFIG: Final = "config.json"
VALUE_BYTES: Final = 4
ADAPTER_BYTES_MAX: Final = 4 << 30  # as workers take them


@dataclass(frozen=True, slots=True)
class Base:
    entry: ModelEntry
    linears: tuple[Linear, ...]

    @property
    def memory_bytes(self) -> int:
        """The least that any form of it needs."""
        return min((variant.memory_bytes for variant in self.entry.variants), default=0)

    def shapes(self, rank: int, targets: Sequence[str]) -> Shapes:
        """Of the adapter's tensors. Raises Refusal 400."""
        try:
            found = lora.shapes(self.linears, self.entry.shape.layers, rank, targets)
        except LoraError as error:
            raise Refusal(
                400, "invalid_value", f"potluck.targets: {error}.", param="potluck.targets"
            ) from None
        if VALUE_BYTES * lora.parameters(found) > ADAPTER_BYTES_MAX:
            message = (
                f"potluck.rank: an adapter of rank {rank} would have more than {ADAPTER_BYTES_MAX:,} bytes."
            )
            raise Refusal(400, "invalid_value", message, param="potluck.rank")
        return found

    def weights_bytes(self, wanted: Wanted) -> int:
        """Of the adapter, in float32. Raises Refusal 400."""
        return VALUE_BYTES * lora.parameters(self.shapes(wanted.rank, wanted.targets))

    def targets(self, wanted: Sequence[str]) -> tuple[str, ...]:
        """Of a list that `shapes` takes."""
        return lora.targets_of(self.linears, wanted)


@dataclass(slots=True)
class Bases:
    """Each model's layers are looked up once."""

    pool: Pool
    known: dict[str, Base] = field(default_factory=dict)

    async def get(self, name: str) -> Base:
        """By the catalogue's name. Raises Refusal 400 if it can carry no adapter."""
        entry = self.pool.catalogue().get(name)
        assert entry is not None, "the API resolves models"
        found = self.known.get(entry.name)
        if found is None or found.entry != entry:
            await self._bring_configuration(entry)
            linears = await asyncio.to_thread(lora.linears_of, entry, self._local)
            if not linears:
                message = (
                    f"{entry.name} cannot be fine-tuned: neither its catalogue entry nor a file that the pool"
                    " has says which of its layers may carry adapters (`linears` of the entry)."
                )
                raise Refusal(400, "model_not_trainable", message, param="model")
            found = self.known[entry.name] = Base(entry, linears)
        return found

    def refuse_impossible(self, base: Base, member: Member, key: ApiKey | None, wanted: Wanted) -> None:
        """Raises Refusal 400 if no worker of the pool could ever train it, 403 if the key is not for it."""
        check_model(key, base.entry.name)
        engine = self.pool.engine
        waiting = Waiting(
            id=JobId(""),
            kind=Kind.FINETUNE,
            model=base.entry.name,
            account=member.account,
            context_tokens=wanted.sequence_tokens or 0,
            asker=member.name,
            own_only=wanted.only == "mine",
            only=self.pool.only(wanted.only, member),
        )
        if why := impossible(waiting, engine.fleet, base.memory_bytes):
            message = f"No worker of this pool could train this: {why}."
            raise Refusal(400, "no_worker_could_serve", message, param="model")

    async def _bring_configuration(self, entry: ModelEntry) -> None:
        """A few kilobytes that say all, where the model comes from elsewhere. Without them, it may do."""
        if entry.linears:
            return
        for variant in entry.variants:
            for file in variant.files:
                if file.name == CONFIG and file.size_bytes <= lora.CONFIG_BYTES_MAX:
                    try:
                        await self.pool.vocabularies.obtain(file)
                    except FetchError:
                        continue

    def _local(self, file: File) -> Path | None:
        store, cache = self.pool.vocabularies.artifacts, model_cache()
        if file.sha256 in set(store.names()):
            return store.path(file.sha256)
        return cache / file.sha256 if cached(file, cache) else None
