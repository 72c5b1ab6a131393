"""The answers of stored jobs, gathered as they come and kept with the entry that closes the job.

Interactive answers never pass through here: they are relayed and forgotten.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from coordinator.core.jobs import Job, JobId, JobState, Kind
from coordinator.core.output import Piece
from coordinator.core.parts import Content, Part
from coordinator.message import details_of, message_of
from coordinator.relay import Output
from coordinator.transcripts import Transcripts


@dataclass(slots=True)
class Answer:
    model: str  # as its member calls it
    parts: dict[int, list[Part]] = field(default_factory=dict)  # of one that is read
    reasons: bool = False
    texts: dict[int, list[str]] = field(default_factory=dict)
    ends: dict[int, str] = field(default_factory=dict)
    vectors: list[list[float]] = field(default_factory=list)


@dataclass(slots=True)
class Answers:
    transcripts: Transcripts
    open: dict[JobId, Answer] = field(default_factory=dict)
    trained: dict[JobId, bytes] = field(default_factory=dict)

    def expect(self, job_id: JobId, model: str) -> None:
        self.open[job_id] = Answer(model)

    def keep(self, job_id: JobId, result: bytes) -> None:
        """What a part of a fine-tune has left, to be kept if it ends with success."""
        self.trained[job_id] = result

    def pieces(self, job_id: JobId, pieces: Sequence[Piece]) -> None:
        if (answer := self.open.get(job_id)) is not None:
            for piece in pieces:
                answer.texts.setdefault(piece.choice, []).append(piece.text)
                if piece.finish_reason:
                    answer.ends[piece.choice] = piece.finish_reason

    def outputs(self, job_id: JobId, outputs: Sequence[Output]) -> None:
        """As `pieces`, of an answer that was read."""
        if (answer := self.open.get(job_id)) is not None:
            for output in outputs:
                answer.reasons = output.reasons
                answer.parts.setdefault(output.choice, []).extend(output.parts or ())
                if output.finish_reason:
                    answer.ends[output.choice] = output.finish_reason

    def vectors(self, job_id: JobId, vectors: list[list[float]]) -> None:
        if (answer := self.open.get(job_id)) is not None:
            answer.vectors = vectors

    def close(self, job: Job) -> bytes | None:
        """The result in the OpenAI API's shape, as JSON; None if it is not stored or delivered nothing."""
        if (transcript := self.transcripts.open.get(job.id)) is not None:
            self.outputs(job.id, transcript.cut_off())
        answer = self.open.pop(job.id, None)
        if job.kind is Kind.FINETUNE:
            trained = self.trained.pop(job.id, None)
            return trained if job.state is JobState.SUCCEEDED else None
        if answer is None or job.state in (JobState.FAILED, JobState.EXPIRED):
            return None
        if job.kind is Kind.EMBEDDING:
            return orjson.dumps(_embedding(job, answer)) if answer.vectors else None
        if not (answer.parts or answer.texts or answer.ends):
            return None
        return orjson.dumps(_text(job, answer, self.transcripts.reasoning_tokens(job)))


def _usage(job: Job) -> dict[str, Any]:
    return {
        "prompt_tokens": job.prompt_tokens,
        "completion_tokens": job.output_tokens,
        "total_tokens": job.prompt_tokens + job.output_tokens,
        "potluck": {"charge": job.charge, "job_id": job.id, "state": job.state.value},
    }


def _embedding(job: Job, answer: Answer) -> dict[str, Any]:
    data = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(answer.vectors)]
    usage = {k: v for k, v in _usage(job).items() if k != "completion_tokens"}
    return {"object": "list", "model": answer.model, "data": data, "usage": usage}


def _text(job: Job, answer: Answer, reasoning_tokens: int | None) -> dict[str, Any]:
    chat = job.kind is Kind.CHAT
    choices = []
    for index in range(job.choices):
        text = "".join(answer.texts.get(index, ()))
        parts = answer.parts[index] if index in answer.parts else [Content(text)]
        body = {"message": message_of(parts, reasons=answer.reasons)} if chat else {"text": text}
        choices.append({"index": index, **body, "finish_reason": answer.ends.get(index), "logprobs": None})
    return {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{job.id}",
        "object": "chat.completion" if chat else "text_completion",
        "created": int(job.created_at),
        "model": answer.model,
        "choices": choices,
        "usage": _usage(job) | details_of(reasoning_tokens),
    }
