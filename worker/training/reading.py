"""Examples as token ids, and which of them are learned: what the assistant says, its end included.

A chat is rendered by the model's own template, whole and up to where each answer begins; the answer is what
the whole has from there on, through the token that ends it. Its header is not learned, since the model is
given it when it is asked. A template that changes what stands before an answer once the answer follows leaves
no such place, and is refused.
"""

from bisect import bisect_left
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Final

from potluck.training_data import Chat, Completion, Example, Preference, Turn
from potluck.v1 import work_pb2
from worker.engines.engine import JobError
from worker.engines.template import ChatTemplate
from worker.engines.weights import Text
from worker.training.packing import Tokens, Unit
from worker.training.plan import DPO

# A template may write the date into a prompt. A training is the same on whichever day each of its segments
# runs; this is the date that Llama's own templates fall back to.
DATE: Final = datetime(2024, 7, 26)  # noqa: DTZ001 -- it is printed, and that is all

Span = tuple[int, int]  # in characters of a text


class Reader:
    """`end_ids`: the tokens with which this model ends an answer."""

    def __init__(self, text: Text, end_ids: Collection[int], tokens_max: int, ids_max: int) -> None:
        self._text = text
        self._control_ids = frozenset(end_ids) | set(text.control.values())
        self._tokens_max, self._ids_max = tokens_max, ids_max
        self._template = (
            ChatTemplate(text.chat_template, bos=text.bos, eos=text.eos, now=lambda: DATE)
            if text.chat_template
            else None
        )

    def read(self, example: Example, method: str) -> Unit:
        """Raises JobError."""
        if (method == DPO) != isinstance(example, Preference):
            raise JobError("bad_examples", f"this is no example for the method {method}")
        match example:
            case Completion():
                return (self._completion(example),)
            case Chat():
                learned = [index for index, turn in enumerate(example.turns) if _is_learned(turn)]
                return (self._chat(example.turns, learned),)
            case Preference():
                answers = (example.preferred, example.non_preferred)
                chats = [(*example.turns, Turn("assistant", answer)) for answer in answers]
                return tuple(self._chat(turns, [len(turns) - 1]) for turns in chats)

    def _completion(self, example: Completion) -> Tokens:
        """As it stands, no template; the end token is learned, too."""
        text = example.prompt + example.completion
        encoded = self._text.tokenizer.encode(text, add_special_tokens=False)
        learned = _within(encoded.offsets, [(len(example.prompt), len(text))])
        begin = self._text.begin_ids
        ids, targets = [*begin, *encoded.ids], [len(begin) + place for place in learned]
        if self._text.end_id is not None:
            targets.append(len(ids))
            ids.append(self._text.end_id)
        return self._cut(ids, targets)

    def _chat(self, turns: Sequence[Turn], learned: Sequence[int]) -> Tokens:
        whole = self._render(turns, opened=False)
        encoded = self._text.tokenizer.encode(whole, add_special_tokens=False)
        ends = [
            span
            for token, span in zip(encoded.ids, encoded.offsets, strict=True)
            if token in self._control_ids
        ]
        seen = encoded.offsets[: self._tokens_max]
        spans: list[Span] = []
        for index in learned:
            header = self._render(turns[:index], opened=True)
            if seen and len(header) >= seen[-1][1]:
                break  # what follows is cut off
            spans.append(_answer(whole, header, turns[index].content, ends))
        return self._cut(encoded.ids, _within(encoded.offsets, spans))

    def _render(self, turns: Sequence[Turn], *, opened: bool) -> str:
        if self._template is None:
            raise JobError(
                "no_chat_template", "this model has no chat template: use prompts with completions"
            )
        messages = [work_pb2.ChatMessage(role=turn.role, content=turn.content) for turn in turns]
        return self._template.render(work_pb2.ChatWork(messages=messages), opened=opened)

    def _cut(self, ids: Sequence[int], targets: Sequence[int]) -> Tokens:
        """At the longest allowed, and behind the last token that is learned: nobody looks at the rest."""
        kept = tuple(place for place in targets if 0 < place < self._tokens_max)
        ids = ids[: kept[-1] + 1] if kept else ids[: self._tokens_max]
        if ids and max(ids) >= self._ids_max:
            raise JobError("bad_examples", f"token id {max(ids)}: this model has {self._ids_max}")
        return Tokens(tuple(ids), kept)


def _is_learned(turn: Turn) -> bool:
    return turn.role == "assistant" and turn.weight > 0


def _answer(whole: str, header: str, content: str, ends: Sequence[Span]) -> Span:
    """From the header's end through the token that ends the answer: the first of `ends` behind its words.

    Raises JobError.
    """
    words = content.strip()
    begin = whole.find(words, len(header)) if whole.startswith(header) else -1
    if begin < 0:
        raise JobError(
            "bad_chat_template",
            "this model's chat template writes an answer in another way than it asks for one, so what"
            " is to be learned cannot be told from the rest: use prompts with completions",
        )
    behind = bisect_left(ends, (begin + len(words), 0))
    if behind == len(ends):
        raise JobError(
            "bad_chat_template",
            "this model's chat template puts no end token behind an answer, so the model would learn never to"
            " stop: use prompts with completions",
        )
    return len(header), ends[behind][1]


def _within(offsets: Sequence[Span], spans: Sequence[Span]) -> list[int]:
    """The places of the tokens that have a character of a span in them; both are in order."""
    found = []
    spans = sorted(spans)
    current = 0
    for place, (begin, end) in enumerate(offsets):
        while current < len(spans) and spans[current][1] <= begin:
            current += 1
        if current < len(spans) and end > spans[current][0]:
            found.append(place)
    return found
