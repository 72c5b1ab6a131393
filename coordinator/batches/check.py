"""Every line of a batch before any is done: is it a request, for the same model, and what can it cost?"""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from coordinator.batches.batch import FAULTS_MAX, LINES_MAX, Batch, LineFault
from coordinator.batches.lines import LineRefused, Understand
from coordinator.records import ApiKey, Member
from coordinator.refusal import Refusal
from coordinator.submission import Submission


@dataclass(slots=True)
class Checked:
    """`worst`: the most that all lines can cost, in microcredits. `seen`: custom ids by their lines."""

    faults: list[LineFault] = field(default_factory=list)
    total: int = 0
    model: str = ""  # as its member calls it
    base: str = ""  # its name in the catalogue
    worst: int = 0
    prompt_tokens: int = 0
    max_tokens: int = 0
    seen: dict[str, int] = field(default_factory=dict)

    def take(self, number: int, custom_id: str, submission: Submission, cost: int) -> None:
        """Raises LineRefused if it does not go with the lines before."""
        if self.model and self.model != submission.name:
            message = (
                f"A batch asks one model; the lines before ask {self.model}, this one {submission.name}."
            )
            raise LineRefused(400, "mismatched_model", message, "body.model")
        if (first := self.seen.setdefault(custom_id, number)) != number:
            message = f"The custom_id {custom_id[:64]!r} stands in line {first} already."
            raise LineRefused(400, "duplicate_custom_id", message, "custom_id")
        self.model = submission.name
        self.base = submission.model
        self.worst += cost
        self.prompt_tokens += submission.prompt_tokens
        self.max_tokens = max(self.max_tokens, submission.max_tokens)


async def checked(
    batch: Batch,
    member: Member,
    key: ApiKey,
    lines: Callable[[], AsyncIterator[tuple[int, bytes]]],
    understand: Understand,
    quote: Callable[[Submission], int],
) -> Checked:
    """All of the file, up to LINES_MAX lines; of faults the first FAULTS_MAX."""
    found = Checked()
    async for number, line in lines():
        found.total += 1
        if found.total > LINES_MAX:
            message = f"A batch has at most {LINES_MAX:,} lines."
            found.faults.append(LineFault("too_many_lines", message, number))
            break
        if len(found.faults) >= FAULTS_MAX:
            break
        try:
            custom_id, submission = await understand(batch, member, key, line)
            found.take(number, custom_id, submission, quote(submission))
        except (LineRefused, Refusal) as refused:
            found.faults.append(LineFault(refused.code, refused.message, number, refused.param))
    if not found.total:
        found.faults.append(LineFault("empty_file", "The file holds no request."))
    return found
