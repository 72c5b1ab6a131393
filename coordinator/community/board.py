"""The leaderboard as a value: who stands where, and what each team's members gave together.

It ranks by recent contribution, the number that also decides who is served first (`core.contribution`): given
minus taken by work, fading with one half-life. Who does not want to be listed stands in no list and in no
team's sum.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from coordinator.core.jobs import MemberId

TEAM_NAME_CHARS_MAX: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    id: str
    name: str
    founder: MemberId
    created_at: float


@dataclass(frozen=True, slots=True)
class Profile:
    """What a member has said about itself; who said nothing is listed and in no team."""

    listed: bool = True
    team: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Giver:
    """A member with what it gave. Amounts are microcredits: `contribution` fades, `given` is this month's."""

    member: MemberId
    name: str
    profile: Profile
    contribution: int
    given: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One line of a list. Equals share a rank; `members`: of a team, those who are listed."""

    rank: int
    id: str
    name: str
    contribution: int
    given: int
    team: str | None = None
    members: int = 1


def of_members(givers: Iterable[Giver], teams: dict[str, Team]) -> list[Place]:
    """The most first; those who neither gave nor took stand in no list."""
    listed = [one for one in givers if one.profile.listed and (one.contribution or one.given)]
    return _ranked(
        Place(
            rank=0,
            id=one.member,
            name=one.name,
            contribution=one.contribution,
            given=one.given,
            team=team.name if (team := teams.get(one.profile.team or "")) is not None else None,
        )
        for one in listed
    )


def of_teams(givers: Iterable[Giver], teams: dict[str, Team]) -> list[Place]:
    """Every team, the most first."""
    sums = dict.fromkeys(teams, (0, 0, 0))
    for one in givers:
        if one.profile.listed and one.profile.team in sums:
            contribution, given, members = sums[one.profile.team]
            sums[one.profile.team] = (contribution + one.contribution, given + one.given, members + 1)
    return _ranked(
        Place(
            rank=0,
            id=team,
            name=teams[team].name,
            contribution=contribution,
            given=given,
            members=members,
        )
        for team, (contribution, given, members) in sums.items()
    )


def _ranked(places: Iterable[Place]) -> list[Place]:
    found: list[Place] = []
    for index, place in enumerate(sorted(places, key=lambda one: (-one.contribution, one.name, one.id))):
        same = found and found[-1].contribution == place.contribution
        rank = found[-1].rank if same else index + 1
        found.append(replace(place, rank=rank))
    return found
