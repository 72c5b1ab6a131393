"""Chunks of a streamed answer as server-sent events (WHATWG HTML, section 9.2), in the OpenAI API's shapes.

All that is the same in every chunk of a choice is encoded once; a piece costs one JSON string and one join.
"""

from typing import Protocol

import orjson

from coordinator.api import logprobs
from coordinator.api.usage import Usage
from coordinator.core.parts import joined
from coordinator.message import delta_of
from coordinator.relay import Output

DONE = b"data: [DONE]\n\n"
PLAIN_END = b'},"logprobs":null,"finish_reason":null}]}\n\n'
ROLE = b'{"role":"assistant","content":"","refusal":null' + PLAIN_END


class Chunks(Protocol):
    """What turns the pieces of one answer into bytes."""

    def piece(self, index: int, output: Output) -> bytes:
        """The events for one piece of the choice; may be empty."""
        ...

    def usage(self, usage: Usage) -> bytes:
        """The last event before [DONE], where the member asked for it."""
        ...


def error_event(body: object) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"


def _head(answer_id: str, kind: str, created: int, model: str, *, usage: bool) -> bytes:
    head = orjson.dumps({"id": answer_id, "object": kind, "created": created, "model": model})
    # With include_usage every chunk has the key, null in all but the last (OpenAI API reference).
    return b"data: " + head[:-1] + (b',"usage":null' if usage else b"")


class ChatChunks:
    """chat.completion.chunk: the role first, then text, then an empty delta with the finish reason."""

    def __init__(
        self, answer_id: str, created: int, model: str, *, choices: int, usage: bool, logprobs: bool
    ) -> None:
        kind = "chat.completion.chunk"
        head = _head(answer_id, kind, created, model, usage=usage)
        self._usage_head = _head(answer_id, kind, created, model, usage=False) + b',"choices":[],"usage":'
        self._opens = [head + b',"choices":[{"index":%d,"delta":' % index for index in range(choices)]
        self._texts = [opening + b'{"content":' for opening in self._opens]
        self._begun = [False] * choices
        self._logprobs = logprobs

    def piece(self, index: int, output: Output) -> bytes:
        if output.parts is not None:
            return self._read(index, output)
        parts: list[bytes] = []
        if not self._begun[index]:
            self._begun[index] = True
            parts += (self._opens[index], ROLE)
        if output.text or (self._logprobs and output.logprobs):
            parts += (self._texts[index], orjson.dumps(output.text))
            if self._logprobs and output.logprobs:
                parts += (
                    b'},"logprobs":',
                    orjson.dumps(logprobs.chat(output.logprobs)),
                    b',"finish_reason":null}]}\n\n',
                )
            else:
                parts.append(PLAIN_END)
        if output.finish_reason:
            reason = orjson.dumps(output.finish_reason)
            parts += (self._opens[index], b'{},"logprobs":null,"finish_reason":', reason, b"}]}\n\n")
        return b"".join(parts)

    def _read(self, index: int, output: Output) -> bytes:
        """Of an answer that is read: a chunk for each part, the role in the first. Logprobs are those of the
        tokens that came, whatever they are part of, and stand in the first chunk that follows them.
        """
        # Those who add up contents as they come need a text, but a call alone is no content.
        empty = None if output.finish_reason == "tool_calls" else ""
        nothing = {"content": empty, "reasoning_content": None} if output.reasons else {"content": empty}
        deltas = [delta_of(part, reasons=output.reasons) for part in joined(output.parts or ())]
        scored = logprobs.chat(output.logprobs) if self._logprobs and output.logprobs else None
        if not deltas and (scored or (output.finish_reason and not self._begun[index])):
            deltas = [nothing]
        if deltas and not self._begun[index]:
            self._begun[index] = True
            deltas[0] = {"role": "assistant", "content": None, "refusal": None, **deltas[0]}
        ends: list[str | None] = [None] * len(deltas)
        if output.finish_reason:
            deltas.append(nothing if output.reasons else {})
            ends.append(output.finish_reason)
        chunks: list[bytes] = []
        for delta, end in zip(deltas, ends, strict=True):
            body = orjson.dumps({"logprobs": scored, "finish_reason": end})
            chunks += (self._opens[index], orjson.dumps(delta), b",", body[1:], b"]}\n\n")
            scored = None
        return b"".join(chunks)

    def usage(self, usage: Usage) -> bytes:
        return self._usage_head + orjson.dumps(usage.body) + b"}\n\n"


class CompletionChunks:
    """text_completion: one shape for every piece. `echoes` stand before the first text of each choice."""

    def __init__(
        self, answer_id: str, created: int, model: str, *, echoes: list[str], usage: bool, logprobs: bool
    ) -> None:
        head = _head(answer_id, "text_completion", created, model, usage=usage)
        bare = _head(answer_id, "text_completion", created, model, usage=False)
        self._usage_head = bare + b',"choices":[],"usage":'
        self._texts = [head + b',"choices":[{"index":%d,"text":' % index for index in range(len(echoes))]
        self._echoes = list(echoes)
        self._offsets = [0] * len(echoes)
        self._logprobs = logprobs

    def piece(self, index: int, output: Output) -> bytes:
        text = self._echoes[index] + output.text
        self._echoes[index] = ""
        if not (text or output.finish_reason or (self._logprobs and output.logprobs)):
            return b""
        shown = b"null"
        if self._logprobs and output.logprobs:
            shown = orjson.dumps(logprobs.legacy(output.logprobs, self._offsets[index]))
        self._offsets[index] += len(output.text)
        reason = orjson.dumps(output.finish_reason) if output.finish_reason else b"null"
        parts = (orjson.dumps(text), b',"logprobs":', shown, b',"finish_reason":', reason, b"}]}\n\n")
        return self._texts[index] + b"".join(parts)

    def usage(self, usage: Usage) -> bytes:
        return self._usage_head + orjson.dumps(usage.body) + b"}\n\n"
