"""What a route takes and which answers it may give, as OpenAPI says it.

Most of it follows from what a route is: whoever needs a key may be refused as unknown (401) or busy (429),
whoever sends a body may have it refused for its size, its type or what is in it. A route only names what it
adds.
"""

import re
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any, Final, TypedDict

JSON: Final = "application/json"
EVENTS: Final = "text/event-stream"
BYTES: Final = "application/octet-stream"
FORM: Final = "multipart/form-data"
TEXT: Final = "text/plain"

Described = dict[str, Any]

ERRORS: Final[Mapping[int, str]] = {
    400: "Something in the request is wrong; `param` says what, where it has a name.",
    401: "The key is missing or not valid.",
    402: "There are not enough credits, or a budget is used up.",
    403: "The key, its member, or whoever sent the page may not do this.",
    404: "There is no such thing, or it is not the caller's to see.",
    408: "The body did not arrive in time.",
    409: "It does not fit what there is already, or the state that it is in.",
    413: "The body is larger than the pool takes.",
    415: "The body has another content type or encoding than the route reads.",
    416: "The range lies outside the file.",
    424: "The address did not answer.",
    429: "A limit is reached; `Retry-After` says when to come back, where that is known.",
    500: "The job could not be done.",
    503: "The pool cannot do it just now; `Retry-After` says when to come back.",
    507: "The pool's disk has no room.",
}
ERROR: Final[Described] = {"$ref": "#/components/schemas/Error"}
YES_NO: Final[Described] = {"type": "boolean"}
KEYED: Final = (401, 429, 503)
OF_BODIES: Final = (400, 408, 413, 415)
RANGE: Final[Described] = {
    "name": "Range",
    "in": "header",
    "description": "A part of the bytes (RFC 9110).",
    "schema": {"type": "string", "pattern": "^bytes=[0-9]{1,9}-$"},
}
IDEMPOTENCY_KEY: Final[Described] = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "The same request under the same key is done once.",
    "schema": {"type": "string", "pattern": "^[ -~]{1,255}$"},
}


# -- what a query may hold ----------------------------------------------------------------------------------


def limit(default: int, largest: int) -> Described:
    return _query(
        "limit", {"type": "integer", "minimum": 1, "maximum": largest, "default": default}, "How many."
    )


def number(name: str, largest: int, words: str) -> Described:
    return _query(name, {"type": "integer", "minimum": 1, "maximum": largest}, words)


def text(name: str, words: str) -> Described:
    return _query(name, {"type": "string"}, words)


def flag(name: str, words: str) -> Described:
    return _query(name, {"type": "string", "enum": ["true", "false"]}, words)


def choice(name: str, allowed: Iterable[str], words: str) -> Described:
    values = [one.value if isinstance(one, Enum) else one for one in allowed]
    return _query(name, {"type": "string", "enum": values}, words)


def moment(name: str, words: str) -> Described:
    shape = {"anyOf": [{"type": "string", "format": "date"}, {"type": "string", "format": "date-time"}]}
    return _query(name, shape, f"{words}, a day or a time in UTC.")


def _query(name: str, schema: Described, words: str) -> Described:
    return {"name": name, "in": "query", "description": words, "schema": schema}


# -- shapes -------------------------------------------------------------------------------------------------


def schema_of(shape: type | Described) -> Described:
    """A reference to a named shape; what is a schema already stays it."""
    return shape if isinstance(shape, dict) else {"$ref": f"#/components/schemas/{shape.__name__}"}


def object_of(properties: Mapping[str, Described], required: tuple[str, ...] | None = None) -> Described:
    """All properties are there, unless it is said which."""
    return {"type": "object", "properties": properties, "required": list(required or properties)}


def list_of(shape: type, **more: Described) -> Described:
    """`{"data": [shape], ...}`."""
    return object_of({"data": many(shape), **more})


def page_of(shape: type) -> Described:
    """A list as the OpenAI API's cursor pages have it."""
    end = {"type": ["string", "null"]}
    return list_of(shape, object={"const": "list"}, first_id=end, last_id=end, has_more=YES_NO)


def many(shape: type) -> Described:
    return {"type": "array", "items": schema_of(shape)}


def one_of(*shapes: type | Described) -> Described:
    return {"anyOf": [schema_of(shape) for shape in shapes]}


def form_of(named: str, fields: Mapping[str, Described], required: tuple[str, ...] = ()) -> Described:
    """A form with one file and these fields."""
    file = {"type": "string", "format": "binary"}
    return object_of({named: file, **fields}, (named, *required)) | {"additionalProperties": False}


# -- a whole route ------------------------------------------------------------------------------------------


class Facts(TypedDict, total=False):
    """What is said of a route where it is added; what is left out is as most are."""

    body: type | Described  # what it reads: JSON as a type, a form as its schema
    status: int  # of success; 200
    answer: type | Described  # the shape of a JSON answer
    media: tuple[str, ...]  # in which content types it answers; JSON
    query: tuple[Described, ...]
    errors: tuple[int, ...]  # those that do not follow from the rest
    others: Mapping[int, Described]  # what it answers with further statuses, each in a shape of its own
    open_to_all: bool  # no key is needed
    repeatable: bool  # it reads Idempotency-Key
    ranges: bool  # it reads Range


def operation(path: str, facts: Facts) -> Described:
    """All of an operation but its words."""
    named = re.findall(r"{(\w+)(?::\w+)?}", path)
    ranges, body = facts.get("ranges", False), facts.get("body")
    headers = [IDEMPOTENCY_KEY] * facts.get("repeatable", False) + [RANGE] * ranges
    query = facts.get("query", ())
    refused = {403, *facts.get("errors", ())} | (set() if facts.get("open_to_all") else {*KEYED})
    refused |= {400} if query or headers else set()
    refused |= {400, 404} if named else set()
    refused |= {*OF_BODIES} if body is not None else set()
    done = _answer("Done.", facts.get("answer", {}), facts.get("media", (JSON,)))
    responses: Described = {str(facts.get("status", 200)): done}
    responses |= {str(code): _answer(ERRORS[code], shape) for code, shape in facts.get("others", {}).items()}
    responses |= {str(error): _refusal(error) for error in sorted(refused)}
    if ranges:
        responses["206"] = done | {"description": "The part that was asked for."}
        responses["416"] = _answer(ERRORS[416], {}, (TEXT,))
        responses["400"] = _answer(ERRORS[400], ERROR, (JSON, TEXT))
    described: Described = {"responses": responses}
    in_path = [{"name": n, "in": "path", "required": True, "schema": {"type": "string"}} for n in named]
    if parameters := [*in_path, *query, *headers]:
        described["parameters"] = parameters
    if body is not None:
        kind = FORM if isinstance(body, dict) else JSON
        described["requestBody"] = {"required": True, "content": {kind: {"schema": schema_of(body)}}}
    if facts.get("open_to_all"):
        described["security"] = []
    return described


def _answer(words: str, shape: type | Described, media: tuple[str, ...] = (JSON,)) -> Described:
    schemas = {JSON: schema_of(shape), EVENTS: {}}
    content = {kind: {"schema": schemas.get(kind, {"type": "string"})} for kind in media}
    return {"description": words, "content": content}


def _refusal(status: int) -> Described:
    """An answer that is an error: all of them have one shape."""
    said = _answer(ERRORS[status], ERROR)
    if status in (429, 503):
        said["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    return said
