"""A fine-tune as it runs: its loss, where it is, what it costs, what it leaves; pause, resume, cancel."""

from collections.abc import Hashable
from typing import Any, Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from coordinator.api.auth import Caller
from coordinator.api.errors import ApiError, Json
from coordinator.api.finetune_bodies import checkpoint_body, job_body
from coordinator.api.finetunes import FinetuneRoutes
from coordinator.dashboard.asking import ask
from coordinator.dashboard.curves import Curves
from coordinator.dashboard.live import Fragment
from coordinator.dashboard.page import Site
from coordinator.dashboard.parts import Parts
from coordinator.finetunes.finetune import Finetune
from coordinator.records import Scope
from coordinator.tuned.model import CARD_NAME
from potluck.lora import CONFIG_NAME, WEIGHTS_NAME

LOG_S: Final = 2.0
FILES: Final = (WEIGHTS_NAME, CONFIG_NAME, CARD_NAME)
# What it does, by its stage or its state.
STAGES: Final = {
    "validating_files": "The examples are read.",
    "waiting": "It waits for a worker.",
    "starting": "A worker begins.",
    "downloading": "A worker fetches what it needs.",
    "loading": "A worker loads the model.",
    "training": "It trains.",
    "uploading": "A worker sends what it made.",
    "checking": "What a worker made is looked at.",
    "paused": "It is paused, and goes on from its last checkpoint.",
    "succeeded": "It is done: the model is yours.",
    "failed": "It came to nothing.",
    "cancelled": "It was cancelled.",
}

SAID: Final = {
    "cancel": "It was cancelled. What was trained until its last checkpoint is paid.",
    "pause": "It is paused. What was trained since its last checkpoint will be trained again.",
    "resume": "It goes on.",
}


def add_finetunes(site: Site, router: APIRouter) -> "FinetunePages":
    pages = FinetunePages(site)
    site.live.add(Fragment("finetune", pages.version, pages.show))
    site.live.add(Fragment("finetune-log", pages.version_of_log, pages.show_log, every_s=LOG_S))
    site.add(router, "GET", "/charts/finetunes/{finetune_id}", pages.chart)
    site.add(router, "POST", "/finetunes/{finetune_id}/{action}", pages.act, scopes=(Scope.INFERENCE,))
    return pages


class FinetunePages:
    def __init__(self, site: Site) -> None:
        self._site, self._context = site, site.desk.context
        self._finetunes, self._routes = site.desk.context.finetunes, FinetuneRoutes(site.desk)
        self._curves, self._parts = Curves(site.desk.context.store), Parts(site)

    async def page(self, request: Request, caller: Caller, finetune_id: str) -> Response:
        finetune = await self._routes.find(caller, finetune_id)
        see = (f"finetune:{finetune.id}", f"finetune-log:{finetune.id}")
        return await self._site.page(request, caller, "finetune.html", see=see, finetune=finetune)

    def version(self, caller: Caller, finetune_id: str) -> Hashable:
        """Of one that is open; of others nothing moves."""
        run = self._finetunes.runs.get(finetune_id)
        if run is None or not _may(caller, run.finetune):
            return None
        now, progress = run.now, run.progress()
        numbers = (now.charge, progress.steps_done, progress.tokens_per_second, progress.eta_s)
        return now.state, now.quote, progress.stage, progress.why, progress.workers, *numbers

    async def show(self, caller: Caller, finetune_id: str) -> str:
        try:
            finetune = self._finetunes.now(await self._routes.find(caller, finetune_id))
        except ApiError:
            return ""
        body = self._body(finetune)
        facts = body["potluck"]
        losses = [point["train_loss"] for point in facts["curve_tail"] if "train_loss" in point]
        return self._site.text(
            "fragments/finetune.html",
            job=body,
            facts=facts,
            loss=losses[-1] if losses else None,
            words=STAGES.get(facts["stage"], facts["stage"]),
            files=FILES if finetune.member == caller.member.id else (),
            own=finetune.member == caller.member.id,
        )

    def version_of_log(self, caller: Caller, finetune_id: str) -> Hashable:
        run = self._finetunes.runs.get(finetune_id)
        if run is None or not _may(caller, run.finetune):
            return None
        whole = self._context.pool.engine.wholes.get(run.finetune.job)
        return run.finetune.state, run.journal.written, None if whole is None else tuple(whole.parts)

    async def show_log(self, caller: Caller, finetune_id: str) -> str:
        try:
            finetune = self._finetunes.now(await self._routes.find(caller, finetune_id))
        except ApiError:
            return ""
        told = await self._curves.of(finetune.id)
        kept = await self._context.store.finetune_checkpoints(finetune.id)
        checkpoints = [{**checkpoint_body(finetune, one), "bytes": one.bytes} for one in reversed(kept)]
        own = finetune.member == caller.member.id
        values: dict[str, Any] = {
            "events": [told.messages[number] for number in sorted(told.messages, reverse=True)],
            "checkpoints": checkpoints,
            "weights": WEIGHTS_NAME if own else "",
            "job": self._body(finetune),
        }
        return self._site.text(
            "fragments/finetune-log.html", **values, **await self._parts.of(caller, finetune.job)
        )

    def _body(self, finetune: Finetune) -> dict[str, Any]:
        return job_body(finetune, self._finetunes.progress(finetune), self._context.settings.pool_name)

    async def chart(self, request: Request, caller: Caller) -> Response:
        finetune = await self._routes.find(caller, request.path_params["finetune_id"])
        return Json((await self._curves.of(finetune.id)).columns())

    async def act(self, request: Request, _caller: Caller) -> Response:
        """Cancel, pause or resume."""
        routes = self._routes
        endpoints = {"cancel": routes.cancel, "pause": routes.pause, "resume": routes.resume}
        action = request.path_params["action"]
        if action not in endpoints:
            raise ApiError(404, "unknown_url", "A fine-tune can be paused, resumed and cancelled.")
        await ask(endpoints[action], request)
        return self._site.html("notice.html", {"good": SAID[action]})


def _may(caller: Caller, finetune: Finetune) -> bool:
    return finetune.member == caller.member.id or caller.admin
