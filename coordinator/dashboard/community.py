"""The community: what the pool did this month, who gave lately, and teams."""

from collections.abc import Hashable, Mapping
from typing import Any, Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from coordinator.api.auth import Caller
from coordinator.api.pool_community import CommunityRoutes, energy_body
from coordinator.community.board import Place
from coordinator.community.service import FRESH_S
from coordinator.dashboard.asking import Fields, add_form
from coordinator.dashboard.form import filled, text_in
from coordinator.dashboard.live import Fragment, everybody
from coordinator.dashboard.page import Site

EVERY_S: Final = 2.0
SHOWN: Final = 50
_DAY_S: Final = 86_400


def add_community(site: Site, router: APIRouter) -> None:
    pages, routes = CommunityPages(site), CommunityRoutes(site.desk)
    for name, show in (("month", pages.show_month), ("leaderboard", pages.show_leaderboard)):
        site.live.add(Fragment(name, pages.version, show, whose=everybody, every_s=EVERY_S))
    site.live.add(Fragment("teams", pages.version, pages.show_teams, every_s=EVERY_S))
    site.live.add(Fragment("profile", pages.version, pages.show_profile, every_s=EVERY_S))
    site.add(router, "GET", "/community", pages.page)
    add_form(site, router, "/community/profile", routes.put_profile, listed, _listed)
    add_form(site, router, "/community/teams", routes.found, founded, _name)
    add_form(site, router, "/community/teams/leave", routes.leave, left)
    add_form(site, router, "/community/teams/{team}/join", routes.join, joined)


class CommunityPages:
    def __init__(self, site: Site) -> None:
        self._site, self._context = site, site.desk.context

    def version(self, _caller: Caller, _argument: str) -> Hashable:
        community = self._context.community
        return community.changes, int(self._context.clock.now() // FRESH_S)

    async def page(self, request: Request, caller: Caller) -> Response:
        half_life_days = self._context.settings.fairness_half_life_s / _DAY_S
        return await self._site.page(
            request,
            caller,
            "community.html",
            see=("month", "leaderboard", "teams", "profile"),
            half_life_days=half_life_days,
        )

    async def show_month(self, _caller: Caller, _argument: str) -> str:
        shown = await self._context.community.shown()
        return self._site.text(
            "fragments/month.html", shown=shown, energy=energy_body(self._context.community.meter.energy)
        )

    async def show_leaderboard(self, _caller: Caller, _argument: str) -> str:
        shown = await self._context.community.shown()
        return self._site.text(
            "fragments/leaderboard.html", places=shown.members[:SHOWN], more=len(shown.members) - SHOWN
        )

    async def show_teams(self, caller: Caller, _argument: str) -> str:
        community = self._context.community
        teams: list[Place] = (await community.shown()).teams
        return self._site.text(
            "fragments/teams.html", teams=teams[:SHOWN], mine=community.profile(caller.member.id).team
        )

    async def show_profile(self, caller: Caller, _argument: str) -> str:
        community = self._context.community
        places = (await community.shown()).members
        return self._site.text(
            "fragments/profile.html",
            profile=community.profile(caller.member.id),
            contribution=community.contribution(caller.member.account),
            rank=next((place.rank for place in places if place.id == caller.member.id), None),
        )


def _listed(fields: Fields) -> Mapping[str, Any]:
    return {"listed": fields.get("listed") == "true"}


def _name(fields: Fields) -> Mapping[str, Any]:
    return filled(fields, name=text_in)


def listed(_request: Request, done: Any) -> str:
    if done["listed"]:
        return "You stand in the leaderboard and in your team's sum."
    return "You stand in no list and in no team's sum."


def founded(_request: Request, done: Any) -> str:
    return f"The team {done['name']} is founded, with you in it."


def joined(_request: Request, done: Any) -> str:
    return f"You are in the team {done['name']}."


def left(_request: Request, _done: Any) -> str:
    return "You are in no team."
