"""The messages of a conversation, checked and brought into one form."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from coordinator.api.schema import ANY, Schema, wrong, wrong_type
from coordinator.api.tools import TOOLS_MAX, Name

PARTS_MAX = 1_024
CALL_ID_CHARS_MAX = 128


def _content(value: Any) -> Any:
    """A message's text: a string, or a list of text parts, which are joined."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list) or len(value) > PARTS_MAX:
        raise wrong_type(f"a string or a list of up to {PARTS_MAX} parts is needed")
    texts = []
    for part in value:
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise wrong_type('each part must be an object with a "type"')
        if part["type"] != "text":
            kind = part["type"][:64]
            raise wrong(f"parts of type {kind!r} are not supported, only text", kind="unsupported_parameter")
        if part.keys() != {"type", "text"} or not isinstance(part["text"], str):
            raise wrong_type('a text part is {"type": "text", "text": "..."}')
        texts.append(part["text"])
    return "".join(texts)


def _calls(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else () if value is None else value


class CalledFunction(Schema):
    """`arguments` is JSON as text; what the model wrote badly comes back as it was."""

    name: Name
    arguments: str

    harmless: ClassVar[Mapping[str, tuple[Any, ...]]] = {"parsed_arguments": ANY}  # the client's own helpers


CallId = Annotated[str, Field(min_length=1, max_length=CALL_ID_CHARS_MAX)]


class ToolCall(Schema):
    id: CallId
    type: Literal["function"] = "function"
    function: CalledFunction

    unsupported: ClassVar[Mapping[str, str]] = {"custom": "only calls of type function are supported"}
    # `index` of a streamed call that was put together and sent back as it came.
    harmless: ClassVar[Mapping[str, tuple[Any, ...]]] = {"index": tuple(range(TOOLS_MAX))}


class Message(Schema):
    """One message: of an assistant with the calls that it made, of a tool with the answer to one."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[
        str | None, BeforeValidator(_content, json_schema_input_type=str | list[dict[str, str]] | None)
    ] = None
    name: Annotated[str, Field(max_length=256)] | None = None
    tool_calls: Annotated[
        tuple[ToolCall, ...],
        BeforeValidator(_calls, json_schema_input_type=list[ToolCall] | None),
        Field(max_length=TOOLS_MAX),
    ] = ()
    tool_call_id: CallId | None = None
    reasoning_content: str | None = None

    # What an answer carries, so that it can be sent back as it came.
    harmless: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "annotations": (None, []),
        "audio": (None,),
        "function_call": (None,),
        "parsed": ANY,
        "refusal": (None,),
    }
    unsupported: ClassVar[Mapping[str, str]] = {
        "function_call": "the older form of calls is not supported; use tool_calls"
    }

    @model_validator(mode="after")
    def _agree(self) -> "Message":
        if self.tool_calls and self.role != "assistant":
            raise wrong("only an assistant calls tools", name="tool_calls")
        if self.reasoning_content is not None and self.role != "assistant":
            raise wrong("only an assistant reasons", name="reasoning_content")
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise wrong("needed with the role tool, and only there", name="tool_call_id")
        if self.content is None and not self.tool_calls:
            raise wrong("the message has no content")
        return self


def check_answers(messages: Sequence[Message]) -> None:
    """Each tool's message answers a call that an assistant made before it. Raises PydanticCustomError."""
    called: set[str] = set()
    for index, message in enumerate(messages):
        called.update(call.id for call in message.tool_calls)
        if message.tool_call_id is not None and message.tool_call_id not in called:
            problem = "no assistant's message before it has a tool call with this id"
            raise wrong(problem, name=f"messages.{index}.tool_call_id")
