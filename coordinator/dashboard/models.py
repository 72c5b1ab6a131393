"""The models of the pool: who serves them how fast, what they cost and earn; and the adapters made here."""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote as quoted

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from coordinator import views
from coordinator.api.auth import Caller
from coordinator.api.pool_models import TunedRoutes
from coordinator.core.fleet import Served, Worker
from coordinator.core.jobs import Kind, MemberId
from coordinator.core.pricing import Demand, quote
from coordinator.dashboard.asking import Fields, add_form
from coordinator.dashboard.live import Fragment
from coordinator.dashboard.page import Site
from coordinator.pool import Pool

THOUSAND: Final = 1_000
_ORDER: Final = ("ready", "loading", "downloading", "present", "absent", "failed")


def add_models(site: Site, router: APIRouter) -> None:
    pages, routes = ModelPages(site), TunedRoutes(site.desk)
    site.live.add(Fragment("models", pages.version, pages.show, whose=_whose))
    site.live.add(Fragment("adapters", pages.adapters_version, pages.show_adapters))
    site.add(router, "GET", "/models", pages.page)
    add_form(site, router, "/models/{model}/share", routes.share, shared, _share)
    add_form(site, router, "/models/{model}/delete", routes.delete, deleted)


def _whose(caller: Caller) -> str:
    """A key may be for some models only."""
    return f"{caller.member.id} {' '.join(caller.key.models)}"


@dataclass(frozen=True, slots=True)
class Serving:
    """One worker that has the model; `progress`: how much of it has arrived, in percent, while it loads."""

    worker: Worker
    owner: str
    served: Served
    progress: int | None


class ModelPages:
    def __init__(self, site: Site) -> None:
        self._site, self._context = site, site.desk.context
        self._looked: tuple[int, int] = (0, 0)  # when, and what was found

    async def page(self, request: Request, caller: Caller) -> Response:
        return await self._site.page(request, caller, "models.html", see=("models", "adapters"))

    def version(self, _caller: Caller, _argument: str) -> Hashable:
        """Looked at once a second, however many pages are open: a pool may have thousands of workers."""
        second = int(self._context.clock.now())
        if self._looked[0] != second:
            fleet = self._context.pool.engine.fleet.workers.values()
            state = tuple(
                (w.id, w.sharing, s.name, s.state, _progress(s), round(s.decode), s.why)
                for w in fleet
                for s in w.models.values()
            )
            self._looked = (second, hash(state))
        return self._looked[1]

    async def show(self, caller: Caller, _argument: str) -> str:
        pool, allowed = self._context.pool, caller.key.models
        models = [
            {
                **shown,
                "serving": _serving(pool, shown["name"]),
                "price_words": price_words(pool, shown, caller.member.id),
            }
            for shown in views.models(pool)
            if not allowed or shown["name"] in allowed
        ]
        return self._site.text("fragments/models.html", models=models)

    def adapters_version(self, caller: Caller, _argument: str) -> Hashable:
        tuned = self._context.tuned.seen_by(caller.member.id)
        return tuple((model.name, model.shared) for model in tuned), self.version(caller, "")

    async def show_adapters(self, caller: Caller, _argument: str) -> str:
        pool, seen = self._context.pool, self._context.tuned.seen_by(caller.member.id)
        states = {shown["name"]: shown for shown in views.tuned(pool, seen)}
        adapters = [
            {
                "model": model,
                "owner": pool.names.get(model.member, model.member),
                "mine": model.member == caller.member.id,
                "path": quoted(model.name, safe=""),
                "bytes": sum(file.bytes for file in model.files),
                "state": states[model.name]["state"] if model.name in states else "base is gone",
            }
            for model in seen
        ]
        return self._site.text("fragments/adapters.html", adapters=adapters)


def price_words(pool: Pool, shown: dict[str, Any], member: MemberId) -> dict[str, Any]:
    """What 1,000 tokens cost, and how long a worker answers for it: the caller's own if it has been measured,
    else the fastest that serves the model. `by` is None where nobody's speed is known.
    """
    if not {"chat", "completion"} & set(shown["kinds"]):
        embedding = Demand(Kind.EMBEDDING, pool.shape(shown["name"]), (THOUSAND,), 0, 1)
        return {"cost": quote(embedding, pool.tariff), "answers": False, "by": None}
    price = shown["price"]
    cost = price["prompt_1000_tokens"] + price["output_1000_tokens"]
    measured = [
        (w.member == member, served.decode, w)
        for w in pool.engine.fleet.workers.values()
        if (served := w.models.get(shown["name"])) is not None and served.decode > 0
    ]
    if not measured:
        return {"cost": cost, "answers": True, "by": None}
    mine, decode, worker = max(measured, key=lambda one: one[:2])
    seconds = earned_in(cost, price["output_1000_tokens"], decode, pool.tariff.fee_permille)
    return {
        "cost": cost,
        "answers": True,
        "by": None if seconds is None else worker.name,
        "mine": mine,
        "seconds": seconds,
    }


def earned_in(cost: int, output_price: int, decode: float, fee_permille: int) -> float | None:
    """Seconds in which a worker that writes one answer at `decode` tokens/s earns `cost`, its fee paid.

    `output_price` is of 1,000 tokens. None if it never does.
    """
    per_second = output_price * decode / THOUSAND * (THOUSAND - fee_permille) / THOUSAND
    return cost / per_second if per_second > 0 else None


def _serving(pool: Pool, name: str) -> list[Serving]:
    """Those that have it ready first."""
    found: Iterable[tuple[Worker, Served]] = (
        (w, w.models[name]) for w in pool.engine.fleet.workers.values() if w.connected and name in w.models
    )
    shown = [Serving(w, pool.names.get(w.member, w.member), s, _progress(s)) for w, s in found]
    return sorted(
        shown, key=lambda one: (_ORDER.index(one.served.state), -one.served.decode, one.worker.name)
    )


def _progress(served: Served) -> int | None:
    if served.state not in {"downloading", "loading"} or not served.bytes_total:
        return None
    return min(100, 100 * served.bytes_done // served.bytes_total)


def _share(fields: Fields) -> dict[str, Any]:
    return {"shared": fields.get("shared") == "true"}


def shared(_request: Request, done: Any) -> str:
    whom = "Every member may ask" if done["shared"] else "Nobody but you may ask"
    return f"{whom} {done['name']} from now on."


def deleted(_request: Request, done: Any) -> str:
    return f"{done['id']} is deleted."
