"""How each family of models writes a tool call, as data.

* hermes (NousResearch Hermes, Qwen): `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`
* mistral: `[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]`; since v11 `[TOOL_CALLS]name[ARGS]{...}`
* llama3: `{"name": ..., "parameters": {...}}`, alone or after `<|python_tag|>`; between several stands `;`
* deepseek: `<｜tool▁calls▁begin｜>`, then each call as `<｜tool▁call▁begin｜>function<｜tool▁sep｜>name`, the
  arguments as a fenced block of JSON, `<｜tool▁call▁end｜>`; since V3.1 `name<｜tool▁sep｜>{...}`

The openings of mistral, llama3 and deepseek are special tokens, which a detokeniser leaves out of the text
unless it is told otherwise: an engine that reports one of these formats sends them (`special: true` of
llama.cpp's server, `skip_special_tokens=False` of transformers), without the token that ends the answer.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

NAME: Final = r"[a-zA-Z0-9_-]{1,64}"
HEAD_CHARS_MAX: Final = 512  # of what stands between an opening and the arguments
# Quantifiers are possessive: no text makes a match go back over what it has read.
_ENVELOPE: Final = (
    r'\s*+\{\s*+(?:"type"\s*+:\s*+"function"\s*+,\s*+)?'
    rf'"name"\s*+:\s*+"(?P<name>{NAME})"\s*+,\s*+"(?:arguments|parameters)"\s*+:\s*+(?=\{{)'
)


@dataclass(frozen=True, slots=True)
class Shape:
    """One way to write a call behind an opening. `head` ends in front of the arguments' `{`."""

    head: re.Pattern[str]
    enveloped: bool  # the call is a JSON object of which the arguments are a part
    closers: tuple[str, ...] = ()  # that may follow, in this order, with whitespace around them
    chained: bool = False  # after them, the next call may follow without an opening


@dataclass(frozen=True, slots=True)
class Syntax:
    openings: tuple[str, ...]
    shapes: tuple[Shape, ...]
    bare: bool = False  # an answer that begins with `{` may be a call without an opening

    @property
    def enveloped(self) -> Shape | None:
        return next((shape for shape in self.shapes if shape.enveloped), None)


SYNTAXES: Final[Mapping[str, Syntax]] = {
    "hermes": Syntax(
        openings=("<tool_call>",),
        shapes=(Shape(re.compile(_ENVELOPE), enveloped=True, closers=("</tool_call>",)),),
    ),
    "mistral": Syntax(
        openings=("[TOOL_CALLS]",),
        shapes=(
            Shape(re.compile(r"\s*+\[?" + _ENVELOPE), enveloped=True, closers=(",", "]"), chained=True),
            Shape(
                re.compile(rf"\s*+(?P<name>{NAME})(?:\[CALL_ID\]\w{{1,64}}+)?(?:\[ARGS\])?\s*+(?=\{{)"),
                enveloped=False,
            ),
        ),
    ),
    "llama3": Syntax(
        openings=("<|python_tag|>",),
        shapes=(Shape(re.compile(_ENVELOPE), enveloped=True, closers=(";",), chained=True),),
        bare=True,
    ),
    "deepseek": Syntax(
        openings=("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"),
        shapes=(
            Shape(
                re.compile(
                    r"\s*+(?:<｜tool▁call▁begin｜>)?\s*+(?:function<｜tool▁sep｜>)?"
                    rf"(?P<name>{NAME})(?:<｜tool▁sep｜>)?\s*+(?:```(?:json)?)?\s*+(?=\{{)"
                ),
                enveloped=False,
                closers=("```", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"),
            ),
        ),
    ),
}
