"""Chat templates: Jinja from the model's own file, rendered in a sandbox that can change nothing.

Follows what Hugging Face's chat templates may use (transformers, utils/chat_template_utils.py): trimmed
blocks, loop controls, `{% generation %}`, `raise_exception`, `strftime_now`, `tojson`; messages and tools in
OpenAI's shape, with arguments as objects, and the words for how much is to be thought.
"""

import hashlib
import json
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from potluck.v1 import work_pb2
from worker.engines.engine import EngineError, JobError

PROMPT_CHARS_MAX = 16 * 1024 * 1024
_ASKS_FOR_NONE = re.compile(r"content['\"\]]*\s+is\s+(not\s+)?none")
_MISTRAL_ID = re.compile(r"[a-zA-Z0-9]{9}")  # Mistral's templates refuse any other id


class ChatTemplate:
    """Raises EngineError if the source is no template."""

    def __init__(self, source: str, *, bos: str, eos: str, now: Callable[[], datetime]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation], autoescape=False
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda layout: now().strftime(layout)
        self._tokens = {"bos_token": bos, "eos_token": eos}
        self._short_ids = "[TOOL_CALLS]" in source
        self._no_content = None if _ASKS_FOR_NONE.search(source) else ""  # beside tool calls
        try:
            self._template = environment.from_string(source)
        except Exception as error:  # it comes out of a model's file: whatever compiling it trips over
            raise EngineError("bad_chat_template", f"the model's chat template is broken: {error}") from error

    def render(self, chat: work_pb2.ChatWork, *, opened: bool = True) -> str:
        """The prompt up to where the assistant's answer begins, or, not `opened`, the conversation as it is.

        Raises JobError if the template refuses.
        """
        tools = [_tool(tool) for tool in chat.tools] if chat.tool_choice != "none" else []
        try:
            text = self._template.render(
                messages=self._messages(chat),
                add_generation_prompt=opened,
                tools=tools or None,
                documents=None,
                **_effort(chat.reasoning_effort),
                **self._tokens,
            )
        except _RefusedError as error:
            raise JobError("template_refused", f"this model does not take these messages: {error}") from None
        except Exception as error:  # a template is a program: whatever it trips over, the messages caused it
            raise JobError(
                "template_refused",
                f"this model's chat template fails on these messages ({type(error).__name__})",
            ) from None
        if len(text) > PROMPT_CHARS_MAX:
            raise JobError("context_too_long", f"the prompt has more than {PROMPT_CHARS_MAX} characters")
        return text

    def _messages(self, chat: work_pb2.ChatWork) -> list[dict[str, Any]]:
        names = {call.id: call.name for message in chat.messages for call in message.tool_calls}
        return [self._fields(message, names) for message in chat.messages]

    def _fields(self, message: work_pb2.ChatMessage, names: dict[str, str]) -> dict[str, Any]:
        # `developer` is OpenAI's newer word for `system`; the templates of open models know only that one.
        role = "system" if message.role == "developer" else message.role
        fields: dict[str, Any] = {"role": role, "content": message.content}
        if message.tool_calls:
            fields["content"] = message.content or self._no_content
            fields["tool_calls"] = [self._call(call) for call in message.tool_calls]
        if message.reasoning:
            fields["reasoning_content"] = message.reasoning
        if message.tool_call_id:
            fields["tool_call_id"] = self._id(message.tool_call_id)
        if name := message.name or names.get(message.tool_call_id, ""):
            fields["name"] = name
        return fields

    def _call(self, call: work_pb2.ToolCall) -> dict[str, Any]:
        function = {"name": call.name, "arguments": _arguments(call.arguments or "{}")}
        return {"id": self._id(call.id), "type": "function", "function": function}

    def _id(self, given: str) -> str:
        if not self._short_ids or _MISTRAL_ID.fullmatch(given):
            return given
        return hashlib.sha256(given.encode()).hexdigest()[:9]


class _Generation(Extension):
    """`{% generation %}` marks what an assistant said, for training; here it is what stands in it."""

    tags = {"generation"}  # noqa: RUF012 -- Jinja's own interface

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _RefusedError(Exception):
    pass


def _refuse(why: object) -> NoReturn:
    raise _RefusedError(str(why))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002 -- templates may pass it by place
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002 -- as above
) -> str:
    """Not Jinja's own, which escapes for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


class _Arguments(dict[str, Any]):
    """An object for the templates that write it as JSON, and its text for those that put strings together."""

    def __init__(self, value: dict[str, Any], text: str) -> None:
        super().__init__(value)
        self._text = text

    def __radd__(self, before: str) -> str:
        return before + self._text

    def __add__(self, behind: str) -> str:
        return self._text + behind

    def __str__(self) -> str:
        return self._text


def _arguments(text: str) -> _Arguments | str:
    """The model's own words, when they were no JSON object."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return _Arguments(value, text) if isinstance(value, dict) else text


def _tool(tool: work_pb2.Tool) -> dict[str, Any]:
    """Raises JobError."""
    try:
        parameters = json.loads(tool.parameters or '{"type": "object", "properties": {}}')
    except (ValueError, RecursionError):
        raise JobError("invalid_request", f"the parameters of the tool {tool.name} are no JSON") from None
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": function}


def _effort(effort: str) -> dict[str, Any]:
    """`enable_thinking` is Qwen's word, `thinking` DeepSeek's, `reasoning_effort` that of gpt-oss."""
    if not effort:
        return {}
    thinks = effort != "none"
    said = {"enable_thinking": thinks, "thinking": thinks}
    return said | ({"reasoning_effort": "low" if effort == "minimal" else effort} if thinks else {})
