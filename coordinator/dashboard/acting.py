"""What is done to a worker from its page: pause, resume, drain, rename, revoke, and what is said of it."""

from collections.abc import Hashable, Mapping
from typing import Any, Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from coordinator import worker_views
from coordinator.api.auth import Caller
from coordinator.api.pool_owners import Owners
from coordinator.api.pool_workers import Workers, enrolled, manages
from coordinator.core.jobs import WorkerId
from coordinator.dashboard.asking import Fields, add_form
from coordinator.dashboard.form import filled, text_in, whole_in
from coordinator.dashboard.live import Fragment
from coordinator.dashboard.page import Site
from potluck.credits import rounded

HERE: Final = "its owner paused it"  # on the machine
PAUSES: Final = {
    3_600: "for an hour",
    4 * 3_600: "for 4 hours",
    12 * 3_600: "for 12 hours",
    86_400: "for a day",
}


def add_acting(site: Site, router: APIRouter) -> None:
    actions, desk = Actions(site), site.desk
    site.live.add(Fragment("worker-actions", actions.version, actions.show))
    owners, worker = Owners(desk), "/workers/{worker_id}"
    forms: tuple[tuple[Any, ...], ...] = (
        (f"{worker}/pause", owners.pause, paused, pause),
        (f"{worker}/resume", owners.resume, resumed),
        (f"{worker}/drain", owners.drain, drained),
        (f"{worker}/rename", owners.rename, renamed, rename),
        (f"{worker}/revoke", Workers(desk).revoke, revoked),
    )
    for form in forms:
        add_form(site, router, *form)
    add_form(site, router, f"{worker}/vouch", Workers(desk).vouch, vouched, admin=True)


class Actions:
    def __init__(self, site: Site) -> None:
        self._site, self._pool = site, site.desk.context.pool

    def version(self, _caller: Caller, worker_id: str) -> Hashable:
        worker = self._pool.engine.fleet.workers.get(WorkerId(worker_id))
        if worker is None:
            return None
        pause = self._pool.pauses.of(worker.id)
        said = (worker.name, worker.connected, worker.draining, worker.state, worker.why)
        return (*said, len(worker.running), pause, worker.standing.proven_at, worker.standing.held)

    async def show(self, caller: Caller, worker_id: str) -> str:
        """Only what the caller may do: nothing for others than its owner and admins."""
        row = await enrolled(self._site.desk, worker_id)
        if row.revoked_at is not None or not manages(caller, row):
            return ""
        return self._site.text(
            "fragments/worker-actions.html",
            worker=worker_views.enrolled(self._pool, row),
            owner=row.member == caller.member.id,
            admin=caller.admin,
            pauses=PAUSES,
            here=HERE,
        )


def pause(fields: Fields) -> Mapping[str, Any]:
    return filled(fields, for_s=whole_in, why=text_in)


def paused(_request: Request, worker: Any) -> str:
    if worker["state"] == "away":
        return f"{worker['name']} is away: it is paused when it comes."
    return (
        f"{worker['name']} is told to pause: what runs goes on elsewhere, and its memory is free in seconds."
    )


def resumed(_request: Request, worker: Any) -> str:
    if HERE in worker["why"].split("; "):
        return (
            f"{worker['name']} was paused on the machine itself, and `potluck worker resume` there ends that."
            " What was asked for from afar is taken back."
        )
    return f"The pause of {worker['name']} is taken back: it shares again, as far as its owner's rules allow."


def drained(_request: Request, worker: Any) -> str:
    running = worker["running"]
    first = f"finishes the {running} answers that run, then its daemon ends" if running else "stops"
    return f"{worker['name']} {first}. `potluck worker start` on the machine brings it back."


def rename(fields: Fields) -> Mapping[str, Any]:
    return {"name": text_in(fields, "name")}


def renamed(_request: Request, worker: Any) -> Response:
    """The name stands in the heading: the page is loaded anew."""
    return Response(headers={"hx-redirect": f"/workers/{worker['id']}"})


def revoked(_request: Request, worker: Any) -> str:
    return f"{worker['name']} is shut out for good: what ran goes on elsewhere. What it earned stays earned."


def vouched(_request: Request, answer: Any) -> str:
    return f"It is trusted from now on; {rounded(answer['released'])} credits that were held are free."
