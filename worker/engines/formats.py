"""How a model writes tool calls and thoughts, told from its own chat template. Pure.

The syntaxes are those of the published templates: hermes (Nous Research's Hermes, Qwen2.5, Qwen3, SmolLM3),
mistral (since v3; with `[ARGS]` since v11), llama3 (Llama 3.1 to 3.3, JSON tools), deepseek (V3 and R1 with
fenced arguments, V3.1 without). A template that shows tools in another way has none that the pool can read.
"""

import re
from dataclasses import dataclass
from typing import Final

from potluck.v1 import work_pb2

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"

# What shows a syntax, and what only looks like one (XML arguments of Qwen3-Coder and GLM).
_SIGNS: Final = {
    "hermes": re.compile(r"<tool_call>"),
    "mistral": re.compile(r"\[TOOL_CALLS\]"),
    "deepseek": re.compile(r"<｜tool▁calls?▁begin｜>"),
    "llama3": re.compile(r"<\|python_tag\|>|\"name\": function name, \"parameters\":"),
}
_OTHERS: Final = re.compile(r"<function=|<arg_key>|<parameter=")
# Tokens that belong to the text, though vocabularies may count them among the control tokens.
MARKS: Final = {
    "hermes": ("<tool_call>", "</tool_call>"),
    "mistral": ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"),
    "llama3": ("<|python_tag|>",),
    "deepseek": (
        *("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"),
        *("<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"),
    ),
    "think": (THINK_OPEN, THINK_CLOSE),
}


@dataclass(frozen=True, slots=True)
class Dialect:
    """`tools`, `reasoning`: as in OutputFormat. `fenced`: arguments stand in an envelope or a fence, as
    mistral and deepseek wrote at first, and not right behind the name.
    """

    tools: str = ""
    reasoning: str = ""
    fenced: bool = True

    @property
    def features(self) -> list[str]:
        """Of `Loaded.features`, those that the template decides."""
        return [name for name, there in (("tools", self.tools), ("reasoning", self.reasoning)) if there]

    @property
    def marks(self) -> tuple[str, ...]:
        return tuple(mark for name in (self.tools, self.reasoning) if name for mark in MARKS[name])

    def output_format(self, prompt: str) -> work_pb2.OutputFormat:
        """How the answer to this rendered prompt is to be read."""
        opened = bool(self.reasoning) and prompt.rstrip().endswith(THINK_OPEN)
        return work_pb2.OutputFormat(reasoning=self.reasoning, reasoning_open=opened, tools=self.tools)


def dialect_of(template: str) -> Dialect:
    """From a chat template's source; "" has neither tools nor reasoning."""
    reasoning = "think" if THINK_CLOSE in template or THINK_OPEN in template else ""
    if not re.search(r"\btools\b", template) or _OTHERS.search(template):
        return Dialect(reasoning=reasoning)
    tools = next((name for name, sign in _SIGNS.items() if sign.search(template)), "")
    fenced = "```" in template if tools == "deepseek" else "[ARGS]" not in template
    return Dialect(tools=tools, reasoning=reasoning, fenced=fenced)
