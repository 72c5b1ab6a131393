"""The tables of teams, and of what members say about themselves."""

from sqlmodel import Field

from coordinator.table_base import Base, key


class Team(Base, table=True):
    __tablename__ = "teams"
    id: str = key()
    name: str
    name_folded: str = Field(unique=True)
    founder_id: str = Field(foreign_key="members.id")
    created_at: float


class Profile(Base, table=True):
    """Without one a member is listed, and in no team."""

    __tablename__ = "profiles"
    member_id: str = key(foreign_key="members.id")
    listed: bool
    team_id: str | None = Field(default=None, foreign_key="teams.id", index=True)
