"""What a server has split already, as one text again, in the forms that the pool reads: thoughts as
`<think>...</think>` in front, calls as Hermes writes them. Pure.

Deltas are those of OpenAI's stream (chat.completion.chunk); thoughts come as `reasoning_content` (DeepSeek,
SGLang, llama.cpp) or as `reasoning` (vLLM, Ollama).
"""

import json
from dataclasses import dataclass
from typing import Any

from worker.engines.formats import THINK_CLOSE, THINK_OPEN


@dataclass(slots=True)
class Canonical:
    """One choice's text as it comes."""

    _part: str = ""  # what the last delta belonged to: think, text, or the index of a call
    _bare: bool = False  # the open call has no arguments yet

    def feed(self, delta: dict[str, Any]) -> str:
        """The text of one delta. What is of the wrong kind is left out."""
        text = ""
        thought = delta.get("reasoning_content") or delta.get("reasoning")
        if isinstance(thought, str) and thought:
            text += self._turn("think") + thought
        if isinstance(said := delta.get("content"), str) and said:
            text += self._turn("text") + said
        calls = delta.get("tool_calls")
        for call in calls if isinstance(calls, list) else ():
            function = call.get("function") if isinstance(call, dict) else None
            if isinstance(function, dict):
                text += self._call(str(call.get("index", 0)), function)
        return text

    def end(self) -> str:
        """What closes the part that is open."""
        return self._turn("")

    def _call(self, index: str, function: dict[str, Any]) -> str:
        text = ""
        name, arguments = function.get("name"), function.get("arguments")
        if self._part != f"call {index}":
            text += self._turn(f"call {index}")
            text += (
                f'<tool_call>\n{{"name": {json.dumps(name if isinstance(name, str) else "")}, "arguments": '
            )
            self._bare = True
        if isinstance(arguments, dict):  # Ollama gives objects
            arguments = json.dumps(arguments, ensure_ascii=False)
        if isinstance(arguments, str) and arguments:
            self._bare = False
            text += arguments
        return text

    def _turn(self, part: str) -> str:
        """Close what is open and go over to another part."""
        if part == self._part:
            return ""
        before, self._part = self._part, part
        text = ""
        if before == "think":
            text = f"\n{THINK_CLOSE}\n\n" if part else f"\n{THINK_CLOSE}"
        elif before.startswith("call"):
            text = ("{}" if self._bare else "") + "}\n</tool_call>" + ("\n" if part else "")
        return text + (f"{THINK_OPEN}\n" if part == "think" else "")
