"""Pool routes about the community: the leaderboard, teams, and what a member lets be shown."""

from typing import Annotated, Any, Final

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from coordinator.api.answers import people
from coordinator.api.auth import Caller
from coordinator.api.desk import Desk
from coordinator.api.errors import ApiError, Json
from coordinator.api.pool_members import sentence
from coordinator.api.routing import add, new_router
from coordinator.api.schema import Schema
from coordinator.community.board import TEAM_NAME_CHARS_MAX, Place, Team
from coordinator.community.energy import EVERY_S, Energy
from coordinator.naming import folded
from coordinator.store_errors import NameTaken, StoreConflict, StoreError, StoreUnavailable, Unknown

ESTIMATE: Final = (
    f"The power that the cards of working machines report, looked at every {EVERY_S:.0f} seconds and added"
    " up, what they would draw idle included. The rest of a machine is not counted, nor are machines whose"
    " cards do not report it."
)


class TeamRequest(Schema):
    """A name that others can tell from all members' and teams' names."""

    name: Annotated[str, Field(min_length=1, max_length=TEAM_NAME_CHARS_MAX)]


class ProfileRequest(Schema):
    """Whether you stand in the leaderboard and in your team's sum."""

    listed: bool


def community_router(desk: Desk) -> APIRouter:
    routes, router = CommunityRoutes(desk), new_router("Community")
    add(router, "GET", "/pool/v1/community", routes.show, answer=people.CommunityBody)
    add(router, "PUT", "/pool/v1/profile", routes.put_profile, answer=people.Profile, body=ProfileRequest)
    add(
        router,
        "POST",
        "/pool/v1/teams",
        routes.found,
        answer=people.Named,
        body=TeamRequest,
        status=201,
        errors=(409,),
    )
    add(router, "POST", "/pool/v1/teams/leave", routes.leave, answer=people.Profile)
    add(router, "POST", "/pool/v1/teams/{team}/join", routes.join, answer=people.Named)
    return router


class CommunityRoutes:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def show(self, request: Request) -> Response:
        """What the pool did this month, and who gave lately: `{month, done, energy, members, teams, you}`.

        Amounts are microcredits. Sums are at most a minute old.
        """
        caller = await self._desk.auth.look(request)
        community = self._desk.context.community
        shown = await community.shown()
        done = shown.done
        return Json(
            {
                "month": shown.month,
                "done": {
                    "jobs": {kind.value: number for kind, number in sorted(done.jobs.items())},
                    "prompt_tokens": done.prompt_tokens,
                    "output_tokens": done.output_tokens,
                    "charged": done.charged,
                },
                "energy": energy_body(community.meter.energy),
                "members": [_place(place) | {"team": place.team} for place in shown.members],
                "teams": [_place(place) | {"members": place.members} for place in shown.teams],
                "you": self._you(caller),
            }
        )

    async def put_profile(self, request: Request) -> Response:
        """Stand in lists, or in none: `{listed, team, contribution}`."""
        caller = await self._desk.auth.look(request)
        wanted = await self._desk.read(request, ProfileRequest)
        await self._desk.context.community.list_me(caller.member.id, listed=wanted.listed)
        return Json(self._you(caller))

    async def found(self, request: Request) -> Response:
        """Found a team, and be its first member: `{id, name}`."""
        caller = await self._desk.auth.act(request)
        wanted = await self._desk.read(request, TeamRequest)
        try:
            team = await self._desk.context.community.found(wanted.name, caller.member.id)
        except StoreUnavailable:
            raise
        except NameTaken as error:
            raise ApiError(409, "name_taken", sentence(error), param="name", retry=False) from None
        except StoreConflict as error:
            raise ApiError(409, "too_many_teams", sentence(error), retry=False) from None
        except StoreError as error:
            raise ApiError(400, "invalid_value", sentence(error), param="name") from None
        return Json({"id": team.id, "name": team.name}, 201)

    async def join(self, request: Request) -> Response:
        """Join a team, by its name or id, and leave the one before: `{id, name}`."""
        caller = await self._desk.auth.act(request)
        community, named = self._desk.context.community, request.path_params["team"][:128]
        known: Team | None = community.teams.get(named)
        for team in community.teams.values():
            if known is None and folded(team.name) == folded(named):
                known = team
        try:
            joined = await community.join(known.id if known else named, caller.member.id)
        except Unknown as error:
            raise ApiError(404, "team_not_found", sentence(error)) from None
        return Json({"id": joined.id, "name": joined.name})

    async def leave(self, request: Request) -> Response:
        """Leave the team; one without members is gone: `{listed, team, contribution}`."""
        caller = await self._desk.auth.look(request)
        await self._desk.context.community.leave(caller.member.id)
        return Json(self._you(caller))

    def _you(self, caller: Caller) -> dict[str, Any]:
        community = self._desk.context.community
        profile = community.profile(caller.member.id)
        team = community.teams.get(profile.team or "")
        return {
            "listed": profile.listed,
            "team": None if team is None else {"id": team.id, "name": team.name},
            "contribution": community.contribution(caller.member.account),
        }


def energy_body(energy: Energy) -> dict[str, Any]:
    """`kwh` is null where no working machine reports its cards' power; `measured`: of their working time."""
    return {
        "kwh": None if energy.kwh is None else round(energy.kwh, 6),
        "measured": round(energy.measured_share, 4),
        "how": ESTIMATE,
    }


def _place(place: Place) -> dict[str, Any]:
    return {
        "rank": place.rank,
        "id": place.id,
        "name": place.name,
        "contribution": place.contribution,
        "given": place.given,
    }
