"""Tools, the choice among them, and the form of the answer, as `POST /v1/chat/completions` takes them.

JSON Schemas are data here: bounded, and handed on as text. Whoever constrains a model by one says what of
it is not supported.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from coordinator.api.schema import Schema, wrong, wrong_type

TOOLS_MAX = 128  # as in the OpenAI API
NAME_PATTERN = r"^[a-zA-Z0-9_-]{1,64}$"
DESCRIPTION_CHARS_MAX = 16_384
SCHEMA_BYTES_MAX = 64 << 10
SCHEMA_DEPTH_MAX = 24  # objects and lists inside each other
TOOLS_BYTES_MAX = 256 << 10  # of all schemas together

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Description = Annotated[str, Field(max_length=DESCRIPTION_CHARS_MAX)]
Choice = tuple[str, str]  # auto | none | required | function, and for the last the name of the tool


def text_of(schema: Mapping[str, Any] | None) -> str:
    """As JSON text, spelled as chat templates spell it; "" for none."""
    return "" if schema is None else json.dumps(schema, ensure_ascii=False)


def _json_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """An object within bounds whose references stay inside it."""
    size = len(text_of(schema).encode())
    if size > SCHEMA_BYTES_MAX:
        raise wrong(f"a schema may have {SCHEMA_BYTES_MAX:,} bytes, this one has {size:,}")
    level: list[Any] = [schema]
    for _ in range(SCHEMA_DEPTH_MAX):
        below: list[Any] = []
        for node in level:
            below.extend(node.values() if isinstance(node, dict) else node)
            reference = node.get("$ref") if isinstance(node, dict) else None
            if isinstance(reference, str) and not reference.startswith("#"):
                raise wrong('a "$ref" must stay inside its schema: it begins with "#"')
        level = [node for node in below if isinstance(node, dict | list)]
        if not level:
            return schema
    raise wrong(f"a schema may be nested {SCHEMA_DEPTH_MAX} levels deep")


JsonSchema = Annotated[dict[str, Any], AfterValidator(_json_schema)]


class Function(Schema):
    """A function that the model may call. `strict`: its arguments are held to the schema."""

    name: Name
    description: Description | None = None
    parameters: JsonSchema | None = None
    strict: bool | None = None


class Tool(Schema):
    type: Literal["function"]
    function: Function

    unsupported: ClassVar[Mapping[str, str]] = {"custom": "only tools of type function are supported"}


def _tools(tools: tuple[Tool, ...]) -> tuple[Tool, ...]:
    names = [tool.function.name for tool in tools]
    if len(set(names)) < len(names):
        raise wrong("two tools have the same name")
    size = sum(len(text_of(tool.function.parameters).encode()) for tool in tools)
    if size > TOOLS_BYTES_MAX:
        raise wrong(f"the schemas of all tools may have {TOOLS_BYTES_MAX:,} bytes, these have {size:,}")
    return tools


def _list(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else () if value is None else value


Tools = Annotated[
    tuple[Tool, ...],
    BeforeValidator(_list, json_schema_input_type=list[Tool] | None),
    Field(max_length=TOOLS_MAX),
    AfterValidator(_tools),
]


def _choice(value: Any) -> Any:
    if value is None:
        return "", ""
    if isinstance(value, str):
        if value not in ("auto", "none", "required"):
            raise wrong('"auto", "none", "required" or a function is needed')
        return value, ""
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        raise wrong_type(
            '"auto", "none", "required" or {"type": "function", "function": {"name": ...}} is needed'
        )
    if value["type"] != "function":
        raise wrong(f"a choice of type {value['type'][:64]!r} is not supported", kind="unsupported_parameter")
    function = value.get("function")
    if value.keys() != {"type", "function"} or not isinstance(function, dict):
        raise wrong_type('a named function is {"type": "function", "function": {"name": "..."}}')
    if function.keys() != {"name"} or not isinstance(function["name"], str):
        raise wrong_type('a named function is {"type": "function", "function": {"name": "..."}}')
    return "function", function["name"]


ToolChoice = Annotated[
    Choice,
    BeforeValidator(
        _choice, json_schema_input_type=Literal["auto", "none", "required"] | dict[str, Any] | None
    ),
]


class NamedSchema(Schema):
    """The schema of the answer. It is held to it whether `strict` or not."""

    name: Name
    description: Description | None = None
    schema_: Annotated[JsonSchema, Field(alias="schema")]
    strict: bool | None = None

    @property
    def text(self) -> str:
        """As JSON, with the description where the schema has none of its own."""
        described = {"description": self.description} if self.description else {}
        return text_of({**described, **self.schema_})


class ResponseFormat(Schema):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    unsupported: ClassVar[Mapping[str, str]] = {
        "grammar": "only text, json_object and json_schema are supported"
    }

    @model_validator(mode="after")
    def _agree(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise wrong("needed with the type json_schema, and only there", name="json_schema")
        return self
