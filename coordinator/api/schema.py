"""The base of all request schemas: strict types, and no parameter is ever silently ignored.

A parameter that the OpenAI API knows and this pool does not do yet is accepted only with a value that
changes nothing (`harmless`), and otherwise refused by name; one that nobody knows is refused with the names
close to it.
"""

import difflib
from collections.abc import Mapping
from typing import Any, ClassVar, LiteralString, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from coordinator.api.errors import ApiError

NAME_CHARS_SHOWN_MAX = 64


def wrong(problem: str, *, name: str = "", kind: LiteralString = "invalid_value") -> PydanticCustomError:
    """What a validator raises. `name`: the parameter, where it is a part of what is being validated."""
    return PydanticCustomError(kind, "{problem}", {"problem": problem, "name": name})


def wrong_type(problem: str) -> PydanticCustomError:
    return wrong(problem, kind="of_invalid_type")


class Any_:  # noqa: N801 -- reads as `Any` in the tables below
    """In a table of harmless values: every value is, since the parameter changes no answer."""


ANY = (Any_,)


class Schema(BaseModel):
    """A request body or a part of one."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)

    harmless: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    unsupported: ClassVar[Mapping[str, str]] = {}  # what is said of those that many try
    names: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        cls.names = frozenset(field.alias or name for name, field in cls.model_fields.items())

    @model_validator(mode="before")
    @classmethod
    def _names(cls, data: Any) -> Any:
        """Take out what is known and harmless; refuse by name what is not known or not done."""
        if not isinstance(data, dict):
            return data
        strange = data.keys() - cls.names
        if not strange:
            return data
        for name in sorted(strange):
            if _is_one_of(data[name], cls.harmless.get(name, ())):
                continue
            if name not in cls.harmless and name not in cls.unsupported:
                raise wrong(cls._close(name), name=name, kind="unknown_parameter")
            problem = cls.unsupported.get(name, "this pool does not support it yet; leave it out")
            raise wrong(problem, name=name, kind="unsupported_parameter")
        return {name: value for name, value in data.items() if name not in strange}

    @classmethod
    def _close(cls, name: str) -> str:
        known = [*cls.names, *cls.harmless]
        close = difflib.get_close_matches(name[:NAME_CHARS_SHOWN_MAX], known, n=3)
        return "there is no such parameter" + (f"; did you mean {' or '.join(close)}?" if close else "")


def _is_one_of(value: Any, harmless: tuple[Any, ...]) -> bool:
    """JSON equality: 0 and 0.0 are the same, 0 and false are not."""
    return any(
        allowed is Any_ or (value == allowed and isinstance(value, bool) == isinstance(allowed, bool))
        for allowed in harmless
    )


SchemaT = TypeVar("SchemaT", bound=Schema)


def validated(schema: type[SchemaT], data: Any, *, within: str = "") -> SchemaT:
    """The data as the schema; the first thing wrong with it as a 400. `within` names where it stood."""
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        # A broken body of many items has many errors: one is enough, and pydantic counts before it renders.
        first = error.errors(include_url=False, include_input=False)[0]
        raise _as_api_error(first, within) from None


def _as_api_error(error: ErrorDetails, within: str) -> ApiError:
    context = error.get("ctx", {})
    path = [
        within,
        *(str(part) for part in error["loc"]),
        str(context.get("name", ""))[:NAME_CHARS_SHOWN_MAX],
    ]
    param = ".".join(part for part in path if part) or None
    code = {
        "missing": "missing_required_parameter",
        "unknown_parameter": "unknown_parameter",
        "unsupported_parameter": "unsupported_parameter",
    }.get(error["type"], "invalid_type" if error["type"].endswith("_type") else "invalid_value")
    message = error["msg"][0].lower() + error["msg"][1:]
    if error["type"] == "model_type":
        message = "an object is needed"
    elif error["type"] == "int_type":  # JSON knows no other number; one beyond 64 bits arrives as a float
        message = "an integer that fits into 64 bits is needed"
    end = "" if message.endswith("?") else "."
    return ApiError(400, code, f"{param}: {message}{end}" if param else f"{message}{end}", param=param)
