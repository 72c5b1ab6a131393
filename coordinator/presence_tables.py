"""The table of who was here when."""

from coordinator.table_base import Base, key


class Sighting(Base, table=True):
    __tablename__ = "sightings"
    member_id: str = key(foreign_key="members.id")
    at: float
