"""A tuned model as the pool keeps it: which adapter on top of which base, and whose it is."""

from dataclasses import dataclass
from typing import Final

from coordinator.core.jobs import MemberId
from potluck.lora import CONFIG_NAME, WEIGHTS_NAME
from potluck.v1 import work_pb2

CARD_NAME: Final = "README.md"
MARK: Final = ":ft-"  # in every tuned model's name: BASE:ft-SUFFIX


@dataclass(frozen=True, slots=True)
class Kept:
    """A file of it, in the store of what was trained."""

    name: str
    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedModel:
    """Private to its member unless `shared` with the pool. `files`: weights, configuration, card."""

    name: str
    base: str
    member: MemberId
    finetune: str
    created_at: float
    weights: Kept
    config: Kept
    card: Kept
    shared: bool = False

    @property
    def files(self) -> tuple[Kept, ...]:
        return self.weights, self.config, self.card

    def seen_by(self, member: MemberId) -> bool:
        return self.shared or self.member == member

    @property
    def adapter(self) -> work_pb2.Adapter:
        """As a worker gets it."""
        return work_pb2.Adapter(
            name=self.name,
            weights_sha256=self.weights.sha256,
            weights_bytes=self.weights.bytes,
            config_sha256=self.config.sha256,
            config_bytes=self.config.bytes,
        )


def kept(weights: tuple[str, int], config: tuple[str, int], card: tuple[str, int]) -> dict[str, Kept]:
    """By the fields of a TunedModel."""
    return {
        "weights": Kept(WEIGHTS_NAME, *weights),
        "config": Kept(CONFIG_NAME, *config),
        "card": Kept(CARD_NAME, *card),
    }
