"""The table of tuned models. Their files are artifacts."""

from sqlmodel import Field

from coordinator.table_base import Base, check, integer, key


class TunedModel(Base, table=True):
    """It may outlive its fine-tune, so `finetune_id` names that without a constraint."""

    __tablename__ = "tuned_models"
    __table_args__ = (check("weights_bytes > 0 AND config_bytes > 0 AND card_bytes > 0", "bytes"),)
    name: str = key()
    base: str
    member_id: str = Field(foreign_key="members.id", index=True)
    finetune_id: str = Field(index=True)
    shared: bool
    created_at: float
    weights_sha256: str
    weights_bytes: int = integer()
    config_sha256: str
    config_bytes: int = integer()
    card_sha256: str
    card_bytes: int = integer()
