"""Tuned models in the database."""

from typing import Any

from sqlalchemy import select

from coordinator import tables
from coordinator.core.jobs import MemberId
from coordinator.database import Database
from coordinator.table_base import table_of
from coordinator.tuned.model import TunedModel, kept

_TUNED = table_of(tables.TunedModel)


class Tuned(Database):
    async def tuned_models(self) -> list[TunedModel]:
        """Everybody's, by name."""
        async with self.reading() as connection:
            rows = (await connection.execute(select(_TUNED).order_by(_TUNED.c.name))).all()
            return [_tuned_of(row) for row in rows]

    async def add_tuned(self, model: TunedModel) -> None:
        """Raises StoreConflict if the name is taken."""
        values = {
            "name": model.name,
            "base": model.base,
            "member_id": model.member,
            "finetune_id": model.finetune,
            "shared": model.shared,
            "created_at": model.created_at,
            "weights_sha256": model.weights.sha256,
            "weights_bytes": model.weights.bytes,
            "config_sha256": model.config.sha256,
            "config_bytes": model.config.bytes,
            "card_sha256": model.card.sha256,
            "card_bytes": model.card.bytes,
        }
        async with self.writing() as connection:
            await connection.execute(_TUNED.insert().values(**values))

    async def share_tuned(self, name: str, *, shared: bool) -> None:
        async with self.writing() as connection:
            await connection.execute(_TUNED.update().where(_TUNED.c.name == name).values(shared=shared))

    async def forget_tuned(self, name: str) -> None:
        async with self.writing() as connection:
            await connection.execute(_TUNED.delete().where(_TUNED.c.name == name))


def _tuned_of(row: Any) -> TunedModel:
    return TunedModel(
        name=row.name,
        base=row.base,
        member=MemberId(row.member_id),
        finetune=row.finetune_id,
        created_at=row.created_at,
        shared=row.shared,
        **kept(
            (row.weights_sha256, row.weights_bytes),
            (row.config_sha256, row.config_bytes),
            (row.card_sha256, row.card_bytes),
        ),
    )
