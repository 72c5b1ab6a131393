"""The bodies that the OpenAI routes take, checked and brought into one form."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from coordinator.api.messages import Message, check_answers
from coordinator.api.schema import ANY, Schema, wrong, wrong_type
from coordinator.api.tools import ResponseFormat, ToolChoice, Tools

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


def _stops(value: Any) -> Any:
    """A string or up to four; null is none."""
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise wrong_type("a string or a list of strings is needed")
    if len(stops) > STOPS_MAX:
        raise wrong(f"at most {STOPS_MAX} stop strings are allowed, {len(stops)} came")
    if not all(0 < len(stop) <= STOP_CHARS_MAX for stop in stops):
        raise wrong(f"each stop string must have 1 to {STOP_CHARS_MAX} characters")
    return tuple(stops)


def _texts_or_ids(value: Any, items_max: int) -> tuple[str | tuple[int, ...], ...]:
    """A string, a list of strings, of token ids, or of lists of token ids: always as a tuple of items."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not value:
        raise wrong_type("a string, a list of strings, a list of token ids or a list of such lists is needed")
    kinds = {type(item) for item in value}
    if kinds == {int}:
        return (_ids(value),)
    if kinds not in ({str}, {list}):
        raise wrong_type("all items must be strings, or all token ids, or all lists of token ids")
    if len(value) > items_max:
        raise wrong(f"at most {items_max} are allowed in one request, {len(value)} came")
    return tuple(value) if kinds == {str} else tuple(_ids(item) for item in value)


def _ids(value: list[Any]) -> tuple[int, ...]:
    if not value:
        raise wrong("a list of token ids must not be empty")
    if {type(item) for item in value} != {int}:
        raise wrong_type("token ids must be integers")
    if min(value) < 0 or max(value) > TOKEN_ID_MAX:
        raise wrong(f"token ids lie between 0 and {TOKEN_ID_MAX}")
    return tuple(value)


def _prompts(value: Any) -> Any:
    return _texts_or_ids(value, PROMPTS_MAX)


def _inputs(value: Any) -> Any:
    inputs = _texts_or_ids(value, INPUTS_MAX)
    if "" in inputs:
        raise wrong("an empty text has no embedding")
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
    raise wrong_type(f'"mine", "trusted" or a list of 1 to {WORKERS_MAX} worker ids is needed')


Workers = Annotated[
    Literal["mine", "trusted"] | tuple[str, ...] | None,
    BeforeValidator(_workers, json_schema_input_type=Literal["mine", "trusted"] | list[str] | None),
]
TextsOrIds = str | list[str] | list[int] | list[list[int]]
Prompt = str | tuple[int, ...]


class PotluckOptions(Schema):
    """The pool's own part of a request: which workers (ids or names) may see it, and how long it may wait
    for one, in seconds.
    """

    workers: Workers = None
    wait_s: Annotated[float, Field(gt=0, le=WAIT_S_MAX)] | None = None


class StreamOptions(Schema):
    include_usage: bool | None = None

    harmless: ClassVar[Mapping[str, tuple[Any, ...]]] = {"include_obfuscation": (None, False)}


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
            raise wrong("only allowed together with stream", name="stream_options")
        return self

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class ChatRequest(Generation):
    """`POST /v1/chat/completions`. Without `tools`, `tool_choice` has nothing to choose from."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MESSAGES_MAX)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS_MAX)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=TOP_LOGPROBS_MAX)] | None = None
    tools: Tools = ()
    tool_choice: ToolChoice = ("", "")
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high"] | None = None

    harmless: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **HARMLESS_EVERYWHERE,
        "audio": (None,),
        "function_call": (None, "none"),
        "functions": (None, []),
        "metadata": ANY,
        "modalities": (None, ["text"]),
        "moderation": (None,),
        "prediction": (None,),
        "prompt_cache_key": ANY,
        "prompt_cache_options": (None,),
        "prompt_cache_retention": (None,),
        "safety_identifier": ANY,
        "service_tier": (None, "auto", "default"),
        "store": (None, False),
        "verbosity": (None, "medium"),
        "web_search_options": (None,),
    }
    unsupported: ClassVar[Mapping[str, str]] = {
        "function_call": "the older form is not supported; use tool_choice",
        "functions": "the older form is not supported; use tools",
    }

    @model_validator(mode="after")
    def _agree(self) -> "ChatRequest":
        asked = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(asked) > 1:
            raise wrong("max_tokens and max_completion_tokens differ; give one of them", name="max_tokens")
        if self.top_logprobs is not None and not self.logprobs:
            raise wrong("only allowed together with logprobs: true", name="top_logprobs")
        choice, wanted = self.tool_choice
        if choice in ("required", "function") and not self.tools:
            raise wrong("only allowed together with tools", name="tool_choice")
        if choice == "function" and wanted not in {tool.function.name for tool in self.tools}:
            raise wrong(f"there is no tool {wanted[:64]!r}", name="tool_choice")
        check_answers(self.messages)
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
            raise wrong(problem, name="echo", kind="unsupported_parameter")
        return self


class EmbeddingRequest(Schema):
    """`POST /v1/embeddings`."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    input: Annotated[tuple[Prompt, ...], BeforeValidator(_inputs, json_schema_input_type=TextsOrIds)]
    encoding_format: Literal["float", "base64"] | None = None
    user: Annotated[str, Field(max_length=512)] | None = None
    potluck: PotluckOptions | None = None

    harmless: ClassVar[Mapping[str, tuple[Any, ...]]] = {"dimensions": (None,)}
