"""All tuned models of the pool, in memory as on the disk: who may ask for which, and what still uses one."""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from coordinator.core.jobs import MemberId
from coordinator.pool import Pool
from coordinator.refusal import Refusal
from coordinator.store import Store
from coordinator.tuned.model import MARK, TunedModel

MODELS_MAX: Final = 100  # of one member

User = Callable[[str], Awaitable[str | None]]


@dataclass(slots=True)
class TunedModels:
    """`checkpoints`: of fine-tunes, which may be asked like models and go with their fine-tune.

    `users`: each says what of its own is open and asks the model, in words, or None.
    """

    pool: Pool
    store: Store
    models: dict[str, TunedModel] = field(default_factory=dict)
    checkpoints: dict[str, TunedModel] = field(default_factory=dict)
    users: list[User] = field(default_factory=list)

    async def load(self) -> None:
        """At the start, before anybody asks."""
        self.models = {model.name: model for model in await self.store.tuned_models()}

    def get(self, name: str, member: MemberId) -> TunedModel | None:
        """One's own, or one that is shared; aliases of the base are as good as its name."""
        base, mark, suffix = name.strip().lower().partition(MARK)
        entry = self.pool.catalogue().get(base) if mark else None
        if entry is None:
            return None
        full = f"{entry.name}{mark}{suffix}"
        found = self.models.get(full) or self.checkpoints.get(full)
        return found if found is not None and found.seen_by(member) else None

    def seen_by(self, member: MemberId) -> list[TunedModel]:
        """By name."""
        return [self.models[name] for name in sorted(self.models) if self.models[name].seen_by(member)]

    def refuse_full(self, member: MemberId, more: int, weights_bytes: int) -> None:
        """Raises Refusal 403 if the member's models, with so many more of this size, would be too many."""
        own = [model.weights.bytes for model in self.models.values() if model.member == member]
        most = self.pool.settings.files_bytes_max
        if len(own) + more > MODELS_MAX:
            said = f"a member may have {MODELS_MAX}"
        elif sum(own) + more * weights_bytes > most:
            said = f"with {weights_bytes:,} bytes each they would be more than {most:,} bytes together"
        else:
            return
        message = (
            f"You have {len(own)} tuned models and {more - 1} more under way; {said}. Delete some first."
        )
        raise Refusal(403, "too_many_models", message, type="permission_error")

    async def add(self, model: TunedModel) -> None:
        """Once more is as once: after a crash."""
        if model.name not in self.models:
            await self.store.add_tuned(model)
            self.models[model.name] = model

    def list_checkpoints(self, finetune: str, listed: Iterable[TunedModel]) -> None:
        """These are all that this fine-tune has from now on."""
        others = {name: one for name, one in self.checkpoints.items() if one.finetune != finetune}
        self.checkpoints = others | {one.name: one for one in listed}

    async def share(self, model: TunedModel, *, shared: bool) -> TunedModel:
        await self.store.share_tuned(model.name, shared=shared)
        self.models[model.name] = replace(self.models[model.name], shared=shared)
        return self.models[model.name]

    async def delete(self, model: TunedModel) -> None:
        """Raises Refusal 409 while something open asks it."""
        for user in (self._job, *self.users):
            if (said := await user(model.name)) is not None:
                message = f"{model.name} is used by {said}. Wait for its end, or cancel it first."
                raise Refusal(409, "model_in_use", message, type="conflict_error")
        self.models.pop(model.name, None)  # nobody begins to ask it while the disk is written
        try:
            await self.store.forget_tuned(model.name)
        except BaseException:
            self.models[model.name] = model
            raise
        await self.store.put_finetune_checkpoints(model.finetune, ())
        self.list_checkpoints(model.finetune, ())

    def digests(self) -> set[str]:
        """Of the files that must stay: all models', and those of jobs that are open."""
        adapters = [work.adapter for work in self.pool.works.values() if work.HasField("adapter")]
        models = (*self.models.values(), *self.checkpoints.values())
        kept = {file.sha256 for model in models for file in model.files}
        return kept | {digest for a in adapters for digest in (a.weights_sha256, a.config_sha256)}

    async def _job(self, name: str) -> str | None:
        found = (job for job, work in self.pool.works.items() if work.adapter.name == name)
        job = next(found, None)
        return None if job is None else f"the job {job}"
