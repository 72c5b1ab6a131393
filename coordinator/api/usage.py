"""The usage object of an answer: tokens by the coordinator's count, and what they cost."""

from dataclasses import dataclass
from typing import Any

from coordinator.message import details_of


@dataclass(frozen=True, slots=True)
class Usage:
    """`charge` in microcredits, summed over the jobs (several prompts in one request are several jobs)."""

    prompt_tokens: int
    output_tokens: int
    charge: int
    job_ids: tuple[str, ...]
    reasoning_tokens: int | None = None  # of the output tokens; None where no model reasons

    @property
    def potluck(self) -> dict[str, Any]:
        several = {"job_ids": list(self.job_ids)} if len(self.job_ids) > 1 else {}
        return {"charge": self.charge, "job_id": self.job_ids[0], **several}

    @property
    def body(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.output_tokens,
            "total_tokens": self.prompt_tokens + self.output_tokens,
            **details_of(self.reasoning_tokens),
            "potluck": self.potluck,
        }

    @property
    def embedding_body(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens,
            "potluck": self.potluck,
        }
