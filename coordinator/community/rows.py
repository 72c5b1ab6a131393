"""Teams and profiles in the database, and what its books say of a month."""

from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import and_, case, delete, func, or_, select

from coordinator import dialect, tables
from coordinator.clock import rfc3339
from coordinator.community.board import Profile, Team
from coordinator.core.jobs import WHOLES, AccountId, JobState, Kind, MemberId
from coordinator.core.ledger import COMMONS, MONEY, Code
from coordinator.database import Database
from coordinator.ids import new_id
from coordinator.lately import first_since
from coordinator.naming import folded, member_name
from coordinator.store_errors import NameTaken, StoreConflict
from coordinator.table_base import table_of

TEAMS_MAX: Final = 1_000
_TEAMS = table_of(tables.Team)
_PROFILES = table_of(tables.Profile)
_ENTRIES = table_of(tables.Entry)
_POSTINGS = table_of(tables.Posting)
_JOBS = table_of(tables.Job)


@dataclass(frozen=True, slots=True, kw_only=True)
class Month:
    """What was done since a month began. `given`: what each account earned by others' jobs, after the fee;
    `charged`: what all jobs cost together; both by the ledger, in microcredits. `jobs`: those that succeeded,
    by kind, parts of wholes not counted.
    """

    given: dict[AccountId, int] = field(default_factory=dict)
    charged: int = 0
    jobs: dict[Kind, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    output_tokens: int = 0


class Communities(Database):
    async def teams(self) -> list[Team]:
        """By name."""
        async with self.reading() as connection:
            rows = (await connection.execute(select(_TEAMS).order_by(_TEAMS.c.name_folded))).all()
            return [_team_of(row) for row in rows]

    async def profiles(self) -> dict[MemberId, Profile]:
        async with self.reading() as connection:
            rows = (await connection.execute(select(_PROFILES))).all()
            return {MemberId(row.member_id): Profile(row.listed, row.team_id) for row in rows}

    async def put_profile(self, member: MemberId, profile: Profile) -> list[str]:
        """As it is from now on. A team that its last member left is gone: the ids of those."""
        values = {"member_id": member, "listed": profile.listed, "team_id": profile.team}
        in_use = select(_PROFILES.c.team_id).where(_PROFILES.c.team_id.is_not(None))
        async with self.writing() as connection:
            await connection.execute(dialect.upsert(connection.dialect, _PROFILES), values)
            empty = list(
                (await connection.scalars(select(_TEAMS.c.id).where(_TEAMS.c.id.not_in(in_use)))).all()
            )
            await connection.execute(delete(_TEAMS).where(_TEAMS.c.id.in_(empty)))
        return empty

    async def found_team(self, name: str, founder: MemberId, profile: Profile, now: float) -> Team:
        """A team with its founder in it. Raises NameTaken, or StoreError for a name that cannot be one."""
        team = Team(id=new_id("team"), name=member_name(name), founder=founder, created_at=now)
        async with self.writing() as connection:
            if (await connection.scalar(select(func.count()).select_from(_TEAMS)) or 0) >= TEAMS_MAX:
                raise StoreConflict(f"a pool has at most {TEAMS_MAX} teams")
            taken = select(_TEAMS.c.id).where(_TEAMS.c.name_folded == folded(team.name))
            if await connection.scalar(taken) is not None:
                raise NameTaken(f"there is a team named {team.name} already: choose another name, or join it")
            values = {
                "id": team.id,
                "name": team.name,
                "name_folded": folded(team.name),
                "founder_id": founder,
                "created_at": now,
            }
            await connection.execute(_TEAMS.insert().values(**values))
            belongs = {"member_id": founder, "listed": profile.listed, "team_id": team.id}
            await connection.execute(dialect.upsert(connection.dialect, _PROFILES), belongs)
        return team

    async def month(self, since: float) -> Month:
        """Reads the end of the ledger, and the jobs that ended since."""
        position, amount = _POSTINGS.c.position, _POSTINGS.c.amount
        close = _ENTRIES.c.code == Code.CLOSE.value
        of_payer = or_(position == 0, and_(position == 1, close))  # as `core.entries` writes them
        earned = func.sum(case((of_payer, 0), else_=amount)).label("earned")
        paid = func.sum(case((of_payer, -amount), else_=0)).label("paid")
        async with self.reading() as connection:
            first = await first_since(connection, rfc3339(since))
            moved = (
                select(_POSTINGS.c.account_id, earned, paid)
                .join(_ENTRIES, _ENTRIES.c.number == _POSTINGS.c.entry_number)
                .where(
                    _POSTINGS.c.entry_number >= first,
                    _ENTRIES.c.number >= first,
                    _ENTRIES.c.code.in_([Code.CLOSE.value, Code.SETTLE.value]),
                    _POSTINGS.c.bucket.in_([bucket.value for bucket in MONEY]),
                )
                .group_by(_POSTINGS.c.account_id)
            )
            sums = (await connection.execute(moved)).all()
            done = (
                select(
                    _JOBS.c.kind,
                    func.sum(case((_JOBS.c.whole_id.is_(None), 1), else_=0)).label("jobs"),
                    func.sum(_JOBS.c.prompt_tokens).label("prompt"),
                    func.sum(_JOBS.c.output_tokens).label("output"),
                )
                .where(_JOBS.c.ended_at >= since, _JOBS.c.state == JobState.SUCCEEDED.value)
                .group_by(_JOBS.c.kind, _JOBS.c.whole_id.is_(None))
            )
            jobs = (await connection.execute(done)).all()
        counted: dict[Kind, int] = {}
        for row in jobs:
            counted[Kind(row.kind)] = counted.get(Kind(row.kind), 0) + int(row.jobs)
        return Month(
            given={
                AccountId(r.account_id): int(r.earned) for r in sums if r.earned and r.account_id != COMMONS
            },
            charged=sum(int(row.paid) for row in sums),
            jobs={kind: number for kind, number in counted.items() if number},
            # A whole's are those of its parts.
            prompt_tokens=sum(int(row.prompt) for row in jobs if Kind(row.kind) not in WHOLES),
            output_tokens=sum(int(row.output) for row in jobs if not (row.jobs and Kind(row.kind) in WHOLES)),
        )


def _team_of(row: Any) -> Team:
    return Team(id=row.id, name=row.name, founder=MemberId(row.founder_id), created_at=row.created_at)
