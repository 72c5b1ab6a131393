"""The tables of several coordinators on one database: which of them leads, and who waits."""

from coordinator.table_base import Base, integer, key, text_column


class Leader(Base, table=True):
    """One row. `epoch` is a key: PostgreSQL locks its change, not the beat's (coordinator/leadership.py)."""

    __tablename__ = "leader"
    epoch: int = key(sa_column_kwargs={"autoincrement": False})
    beat: int = integer()  # goes up while the leader lives
    held: bool  # somebody leads, or died leading
    http: str = text_column()  # where members reach it
    grpc: str = text_column()  # where workers do


class Standby(Base, table=True):
    """A coordinator that waits, or led lately: workers may find the pool there."""

    __tablename__ = "standbys"
    grpc: str = key()
    seen_at: float  # by the database's clock
