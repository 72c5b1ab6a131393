"""What the pool itself remembers: catalogue entries that admins added, and settings of its own."""

from sqlmodel import select

from coordinator import tables
from coordinator.core.jobs import MemberId
from coordinator.database import Database
from coordinator.records import ModelRow


class Registry(Database):
    async def models(self) -> list[ModelRow]:
        """By name."""
        async with self.viewing() as session:
            rows = (await session.exec(select(tables.Model).order_by(tables.Model.name))).all()
            return [
                ModelRow(
                    name=row.name, entry=row.entry, added_by=MemberId(row.added_by), added_at=row.added_at
                )
                for row in rows
            ]

    async def put_model(self, name: str, entry: bytes, added_by: MemberId, now: float) -> None:
        """Add the entry, or replace the one of that name."""
        row = tables.Model(name=name, entry=entry, added_by=added_by, added_at=now)
        async with self.changing() as session:
            await session.merge(row)

    async def delete_model(self, name: str) -> bool:
        """Was there one?"""
        async with self.changing() as session:
            row = await session.get(tables.Model, name)
            if row is not None:
                await session.delete(row)
            return row is not None

    async def setting(self, name: str) -> str | None:
        async with self.viewing() as session:
            row = await session.get(tables.Setting, name)
            return None if row is None else row.value

    async def put_setting(self, name: str, value: str) -> None:
        async with self.changing() as session:
            await session.merge(tables.Setting(name=name, value=value))
