"""The bodies that the OpenAI routes take, checked and brought into one form."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from coordinator.api.schema import ANY, Schema

MESSAGES_MAX = 2_048
CHOICES_MAX = 8
STOPS_MAX = 4
STOP_CHARS_MAX = 256
TOP_LOGPROBS_MAX = 20
WAIT_S_MAX = 7 * 86_400.0
TOP_K_MAX = 1_000_000
PROMPTS_MAX = 16
INPUTS_MAX = 2_048
WORKERS_MAX = 64
TOKEN_ID_MAX = 2**32 - 1
MAX_TOKENS_MAX = 2**31 - 1
PARTS_MAX = 1_024


def _wrong(message: str) -> PydanticCustomError:
    return PydanticCustomError("invalid_value", "{problem}", {"problem": message})


def _wrong_type(message: str) -> PydanticCustomError:
    return PydanticCustomError("of_invalid_type", "{problem}", {"problem": message})


def _stops(value: Any) -> Any:
    """A string or up to four; null is none."""
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise _wrong_type("a string or a list of strings is needed")
    if len(stops) > STOPS_MAX:
        raise _wrong(f"at most {STOPS_MAX} stop strings are allowed, {len(stops)} came")
    if not all(0 < len(stop) <= STOP_CHARS_MAX for stop in stops):
        raise _wrong(f"each stop string must have 1 to {STOP_CHARS_MAX} characters")
    return tuple(stops)


def _content(value: Any) -> Any:
    """A message's text: a string, or a list of text parts, which are joined."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list) or len(value) > PARTS_MAX:
        raise _wrong_type(f"a string or a list of up to {PARTS_MAX} parts is needed")
    texts = []
    for part in value:
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise _wrong_type('each part must be an object with a "type"')
        if part["type"] != "text":
            kind = part["type"][:64]
            raise PydanticCustomError(
                "unsupported_parameter",
                "{problem}",
                {"problem": f"parts of type {kind!r} are not supported, only text"},
            )
        if part.keys() != {"type", "text"} or not isinstance(part["text"], str):
            raise _wrong_type('a text part is {"type": "text", "text": "..."}')
        texts.append(part["text"])
    return "".join(texts)


def _texts_or_ids(value: Any, items_max: int) -> tuple[str | tuple[int, ...], ...]:
    """A string, a list of strings, of token ids, or of lists of token ids: always as a tuple of items."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not value:
        raise _wrong_type(
            "a string, a list of strings, a list of token ids or a list of such lists is needed"
        )
    kinds = {type(item) for item in value}
    if kinds == {int}:
        return (_ids(value),)
    if kinds not in ({str}, {list}):
        raise _wrong_type("all items must be strings, or all token ids, or all lists of token ids")
    if len(value) > items_max:
        raise _wrong(f"at most {items_max} are allowed in one request, {len(value)} came")
    return tuple(value) if kinds == {str} else tuple(_ids(item) for item in value)


def _ids(value: list[Any]) -> tuple[int, ...]:
    if not value:
        raise _wrong("a list of token ids must not be empty")
    if {type(item) for item in value} != {int}:
        raise _wrong_type("token ids must be integers")
    if min(value) < 0 or max(value) > TOKEN_ID_MAX:
        raise _wrong(f"token ids lie between 0 and {TOKEN_ID_MAX}")
    return tuple(value)


def _prompts(value: Any) -> Any:
    return _texts_or_ids(value, PROMPTS_MAX)


def _inputs(value: Any) -> Any:
    inputs = _texts_or_ids(value, INPUTS_MAX)
    if "" in inputs:
        raise _wrong("an empty text has no embedding")
    return inputs


def _workers(value: Any) -> Any:
    if value is None or value in ("mine", "trusted"):
        return value
    if (
        isinstance(value, list)
        and 0 < len(value) <= WORKERS_MAX
        and all(isinstance(w, str) and w for w in value)
    ):
        return tuple(value)
    raise _wrong_type(f'"mine", "trusted" or a list of 1 to {WORKERS_MAX} worker ids is needed')


TextsOrIds = str | list[str] | list[int] | list[list[int]]
Prompt = str | tuple[int, ...]


class PotluckOptions(Schema):
    """The pool's own part of a request: which workers (ids or names) may see it, and how long it may wait
    for one, in seconds.
    """

    workers: Annotated[
        Literal["mine", "trusted"] | tuple[str, ...] | None,
        BeforeValidator(_workers, json_schema_input_type=Literal["mine", "trusted"] | list[str] | None),
    ] = None
    wait_s: Annotated[float, Field(gt=0, le=WAIT_S_MAX)] | None = None


class StreamOptions(Schema):
    include_usage: bool | None = None

    harmless: ClassVar[Mapping[str, tuple[Any, ...]]] = {"include_obfuscation": (None, False)}


class Message(Schema):
    """One message. Tools are not supported, so nobody calls one and no message carries its answer."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        str | None, BeforeValidator(_content, json_schema_input_type=str | list[dict[str, str]] | None)
    ] = None
    name: Annotated[str, Field(max_length=256)] | None = None

    # What an answer carries, so that it can be sent back as it came.
    harmless: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "annotations": (None, []),
        "audio": (None,),
        "function_call": (None,),
        "refusal": (None,),
        "tool_call_id": (None,),
        "tool_calls": (None, []),
    }

    @model_validator(mode="after")
    def _has_content(self) -> "Message":
        if self.content is None:
            raise _wrong("the message has no content")
        return self


# Accepted with a value that asks for nothing. Each of these may become a field when the pool learns it.
HARMLESS_EVERYWHERE: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
    "min_p": (None, 0),
    "presence_penalty": (None, 0),
    "repetition_penalty": (None, 1),
}


class Generation(Schema):
    """What chat and completion have in common, in the OpenAI API's names (`top_k` is vLLM's)."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    max_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS_MAX)] | None = None
    n: Annotated[int, Field(ge=1, le=CHOICES_MAX)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Annotated[
        tuple[str, ...], BeforeValidator(_stops, json_schema_input_type=str | list[str] | None)
    ] = ()
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=TOP_K_MAX)] | None = None
    user: Annotated[str, Field(max_length=512)] | None = None
    potluck: PotluckOptions | None = None

    @model_validator(mode="after")
    def _stream_options_need_stream(self) -> "Generation":
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError(
                "invalid_value",
                "{problem}",
                {"problem": "only allowed together with stream", "name": "stream_options"},
            )
        return self

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class ChatRequest(Generation):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MESSAGES_MAX)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS_MAX)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=TOP_LOGPROBS_MAX)] | None = None

    harmless: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **HARMLESS_EVERYWHERE,
        "audio": (None,),
        "function_call": (None, "none"),
        "functions": (None, []),
        "metadata": ANY,
        "modalities": (None, ["text"]),
        "moderation": (None,),
        "parallel_tool_calls": (None, True, False),
        "prediction": (None,),
        "prompt_cache_key": ANY,
        "prompt_cache_options": (None,),
        "prompt_cache_retention": (None,),
        "reasoning_effort": (None,),
        "response_format": (None, {"type": "text"}),
        "safety_identifier": ANY,
        "service_tier": (None, "auto", "default"),
        "store": (None, False),
        "tool_choice": (None, "none", "auto"),
        "tools": (None, []),
        "verbosity": (None, "medium"),
        "web_search_options": (None,),
    }

    @model_validator(mode="after")
    def _agree(self) -> "ChatRequest":
        asked = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(asked) > 1:
            problem = "max_tokens and max_completion_tokens differ; give one of them"
            raise PydanticCustomError(
                "invalid_value", "{problem}", {"problem": problem, "name": "max_tokens"}
            )
        if self.top_logprobs is not None and not self.logprobs:
            problem = "only allowed together with logprobs: true"
            raise PydanticCustomError(
                "invalid_value", "{problem}", {"problem": problem, "name": "top_logprobs"}
            )
        return self


class CompletionRequest(Generation):
    """`POST /v1/completions`. Several prompts become choices of one answer, as many as `n` for each."""

    prompt: Annotated[tuple[Prompt, ...], BeforeValidator(_prompts, json_schema_input_type=TextsOrIds)]
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=TOP_LOGPROBS_MAX)] | None = None

    harmless: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **HARMLESS_EVERYWHERE,
        "best_of": (None, 1),
        "suffix": (None,),
    }

    @model_validator(mode="after")
    def _echo_is_plain(self) -> "CompletionRequest":
        if not self.echo:
            return self
        problem = None
        if self.logprobs is not None:
            problem = "not supported together with logprobs"
        elif not all(isinstance(prompt, str) for prompt in self.prompt):
            problem = "not supported with a prompt of token ids"
        if problem:
            raise PydanticCustomError(
                "unsupported_parameter", "{problem}", {"problem": problem, "name": "echo"}
            )
        return self


class EmbeddingRequest(Schema):
    """`POST /v1/embeddings`."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    input: Annotated[tuple[Prompt, ...], BeforeValidator(_inputs, json_schema_input_type=TextsOrIds)]
    encoding_format: Literal["float", "base64"] | None = None
    user: Annotated[str, Field(max_length=512)] | None = None
    potluck: PotluckOptions | None = None

    harmless: ClassVar[Mapping[str, tuple[Any, ...]]] = {"dimensions": (None,)}
