"""The caller's newest fine-tunes and batches, each with how far it is: also those that never had a job."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

from fastapi import APIRouter

from coordinator.api.auth import Caller
from coordinator.batches.batch import Batch
from coordinator.dashboard.live import Fragment
from coordinator.dashboard.page import Site
from coordinator.finetunes.finetune import Finetune

LISTED: Final = 5  # of each kind
EVERY_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Line:
    """`done` of `total` steps or requests; a `total` of 0 is not known."""

    id: str
    words: str
    state: str
    done: int
    total: int
    at: float


def add_wholes(site: Site, _router: APIRouter) -> None:
    wholes = Wholes(site)
    site.live.add(Fragment("wholes", wholes.version, wholes.show, every_s=EVERY_S))


class Wholes:
    def __init__(self, site: Site) -> None:
        self._site, self._context = site, site.desk.context

    def version(self, caller: Caller, _argument: str) -> Hashable:
        """Of those that are open; one that ends leaves them."""
        member, context = caller.member.id, self._context
        finetunes = [run.now for run in context.finetunes.runs.values() if run.member.id == member]
        batches = [run.batch for run in context.batches.runs.values() if run.member.id == member]
        lines = (*map(self._of_finetune, finetunes), *map(self._of_batch, batches))
        return tuple((line.id, line.state, line.done, line.total) for line in lines)

    async def show(self, caller: Caller, _argument: str) -> str:
        store, member = self._context.store, caller.member.id
        finetunes = await store.finetunes(member, limit=LISTED)
        batches = await store.batches(member, limit=LISTED)
        lines = [*map(self._of_finetune, finetunes), *map(self._of_batch, batches)]
        lines.sort(key=lambda line: line.at, reverse=True)
        return self._site.text("fragments/wholes.html", lines=lines[:LISTED])

    def _of_finetune(self, finetune: Finetune) -> Line:
        now = self._context.finetunes.now(finetune)
        done = self._context.finetunes.progress(now).steps_done
        total = 0 if now.plan is None else now.plan.steps
        words = f"Fine-tune {now.result}"
        return Line(now.id, words, now.state.value, done, total, now.created_at)

    def _of_batch(self, batch: Batch) -> Line:
        now = self._context.batches.now(batch)
        done = now.completed + now.failed
        return Line(now.id, f"Batch of {now.endpoint}", now.state.value, done, now.total, now.created_at)
