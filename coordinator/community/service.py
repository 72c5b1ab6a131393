"""The community: profiles and teams in memory as on the disk, and lists that are made anew once a minute."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final

from coordinator.community.board import Giver, Place, Profile, Team, of_members, of_teams
from coordinator.community.energy import Meter, month_of
from coordinator.community.rows import Month
from coordinator.core.jobs import AccountId, MemberId
from coordinator.pool import Pool
from coordinator.records import Member, MemberState
from coordinator.store import Store
from coordinator.store_errors import Unknown

FRESH_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What everybody sees. `month`: `2026-11`, in UTC."""

    month: str
    done: Month
    members: list[Place]
    teams: list[Place]


@dataclass(slots=True)
class Community:
    """`changes`: how often somebody changed a profile or a team since the start."""

    pool: Pool
    store: Store
    meter: Meter
    now: Callable[[], float]
    profiles: dict[MemberId, Profile] = field(default_factory=dict)
    teams: dict[str, Team] = field(default_factory=dict)
    changes: int = 0
    _changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    _making: asyncio.Lock = field(default_factory=asyncio.Lock)
    _shown: tuple[tuple[int, float], Shown] | None = None
    _month: tuple[float, Month] | None = None

    async def load(self) -> None:
        self.teams = {team.id: team for team in await self.store.teams()}
        self.profiles = await self.store.profiles()
        await self.meter.load()

    def profile(self, member: MemberId) -> Profile:
        return self.profiles.get(member, Profile())

    def contribution(self, account: AccountId) -> int:
        """Given minus taken by work, faded: microcredits."""
        return round(self.pool.engine.line.given.of(account))

    async def list_me(self, member: MemberId, *, listed: bool) -> Profile:
        """Whether the member may stand in lists."""
        async with self._changing:
            return await self._put(member, replace(self.profile(member), listed=listed))

    async def found(self, name: str, member: MemberId) -> Team:
        """The member leaves the team that it was in. Raises NameTaken, StoreConflict or StoreError."""
        async with self._changing:
            team = await self.store.found_team(name, member, self.profile(member), self.now())
            self.teams[team.id] = team
            await self._put(member, replace(self.profile(member), team=team.id))
            return team

    async def join(self, team: str, member: MemberId) -> Team:
        """By the team's id. Raises Unknown."""
        async with self._changing:
            if (known := self.teams.get(team)) is None:
                raise Unknown(f"there is no team {team[:64]}")
            await self._put(member, replace(self.profile(member), team=team))
            return known

    async def leave(self, member: MemberId) -> None:
        """Of no team any more; a team without members is gone."""
        async with self._changing:
            await self._put(member, replace(self.profile(member), team=None))

    async def shown(self) -> Shown:
        """At most a minute old; profiles and teams as they are now. Made once, however many ask."""
        async with self._making:
            now = self.now()
            if self._month is None or now - self._month[0] >= FRESH_S:
                self._month = (now, await self.store.month(_begin_of_month(now)))
            made_at, done = self._month
            if self._shown is None or self._shown[0] != (self.changes, made_at):
                changes = self.changes
                self._shown = ((changes, made_at), await self._make(month_of(now), done))
            return self._shown[1]

    async def _make(self, month: str, done: Month) -> Shown:
        members = await self.store.members()
        givers = [self._giver(one, done) for one in members if one.state is not MemberState.CLOSED]
        return Shown(
            month=month,
            done=done,
            members=of_members(givers, self.teams),
            teams=of_teams(givers, self.teams),
        )

    def _giver(self, member: Member, done: Month) -> Giver:
        return Giver(
            member=member.id,
            name=member.name,
            profile=self.profile(member.id),
            contribution=self.contribution(member.account),
            given=done.given.get(member.account, 0),
        )

    async def _put(self, member: MemberId, profile: Profile) -> Profile:
        for gone in await self.store.put_profile(member, profile):
            self.teams.pop(gone, None)
        self.profiles[member] = profile
        self.changes += 1
        return profile


def _begin_of_month(now: float) -> float:
    return (
        datetime.fromtimestamp(now, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0).timestamp()
    )
