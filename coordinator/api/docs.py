"""The API's description: OpenAPI with the request schemas, and a plain page made from it.

FastAPI's own /docs loads scripts from a public CDN; a pool may have no way there, and its content policy none
for them.
"""

import base64
import hashlib
import html
import re
from collections.abc import Iterable
from typing import Any, Final

import orjson
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter
from starlette.routing import BaseRoute
from typing_extensions import is_typeddict

from coordinator.api.answers import batches, files, finetunes, generation, models, people, webhooks, work
from coordinator.api.contract import ERROR, ERRORS, JSON
from coordinator.api.schema import Schema

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #8886; }
code, pre { font: 14px/1.4 ui-monospace, monospace; }
pre { background: #8882; padding: .8rem; overflow-x: auto; }
dt { float: left; clear: left; font-weight: 600; }
dd { margin-left: 3rem; }
.method { display: inline-block; min-width: 4.5rem; font-weight: 600; }
"""
_STYLE_DIGEST = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
PAGE_POLICY = f"default-src 'none'; style-src 'sha256-{_STYLE_DIGEST}'; frame-ancestors 'none'"
BEARER = "bearer"
ANSWERS: Final = (batches, files, finetunes, generation, models, people, webhooks, work)
ERROR_SHAPE: Final = {
    "description": "What went wrong, as the OpenAI API says it; some have more beside these.",
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string", "minLength": 1, "description": "For people."},
                "type": {"type": "string"},
                "code": {"type": "string", "description": "For programs; it stays."},
                "param": {"type": ["string", "null"], "description": "What of the request it is about."},
            },
            "required": ["message", "type", "code", "param"],
            "additionalProperties": True,
        }
    },
    "required": ["error"],
}


def describe(
    title: str, version: str, routes: Iterable[BaseRoute], schemas: Iterable[type[Schema]]
) -> dict[str, Any]:
    """OpenAPI 3.1 of the routes; every route but the open ones needs an API key."""
    described = get_openapi(title=title, version=version, routes=list(routes))
    answers = (shape for module in ANSWERS for shape in vars(module).values() if is_typeddict(shape))
    _, definitions = TypeAdapter.json_schemas(
        [(shape.__name__, "validation", TypeAdapter(shape)) for shape in (*schemas, *answers)],
        ref_template="#/components/schemas/{model}",
    )
    components = described.setdefault("components", {})
    components.setdefault("schemas", {}).update(definitions["$defs"])
    components["schemas"]["Error"] = ERROR_SHAPE
    said = "A key of the pool: `Authorization: Bearer sk-potluck-...`."
    components["securitySchemes"] = {BEARER: {"type": "http", "scheme": "bearer", "description": said}}
    described["security"] = [{BEARER: []}]
    return described


def page(described: dict[str, Any]) -> str:
    """HTML: each route with its docstring, what it takes and answers, then each shape as JSON."""
    parts = [f"<h1>{html.escape(described['info']['title'])}</h1>"]
    parts.append('<p>All of it in machine-readable form: <a href="/openapi.json">openapi.json</a>.</p>')
    sections: dict[str, list[str]] = {}
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            sections.setdefault(operation["tags"][0], []).append(_operation(method, path, operation))
    tags = " · ".join(f'<a href="#{html.escape(tag)}">{html.escape(tag)}</a>' for tag in sections)
    parts.append(f"<p>{tags}</p>")
    for tag, operations in sections.items():
        parts += [f'<h2 id="{html.escape(tag)}">{html.escape(tag)}</h2>', *operations]
    parts.append("<h2>Errors</h2><dl>")
    parts += [f"<dt>{status}</dt><dd>{html.escape(words)}</dd>" for status, words in ERRORS.items()]
    parts.append("</dl><h2>Shapes</h2>")
    for name, schema in sorted(described["components"]["schemas"].items()):
        text = orjson.dumps(schema, option=orjson.OPT_INDENT_2).decode()
        shown = html.escape(name)
        parts.append(f'<h3 id="{shown}">{shown}</h3><pre>{html.escape(text)}</pre>')
    head = f"<title>{html.escape(described['info']['title'])}</title><style>{STYLE}</style>"
    body = "".join(parts)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">{head}</head><body>{body}</body></html>'
    )


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    lines = [f'<h3><code><span class="method">{method.upper()}</span> {html.escape(path)}</code></h3>']
    lines.append(f"<p>{html.escape(operation['description'])}</p><ul>")
    if operation.get("security") == []:
        lines.append("<li>Needs no key.</li>")
    for parameter in operation.get("parameters", []):
        if parameter["in"] != "path":
            name, words = html.escape(parameter["name"]), html.escape(parameter["description"])
            lines.append(f"<li><code>{name}</code>: {words} {_bounds(parameter['schema'])}</li>")
    if "requestBody" in operation:
        lines.append(f"<li>Takes {_content(operation['requestBody'])}.</li>")
    answers, errors = list[str](), list[str]()
    for status, answer in operation["responses"].items():
        if answer["content"].get(JSON) == {"schema": ERROR}:
            errors.append(status)
        else:
            answers.append(f"{status} {_content(answer)}")
    lines.append(f"<li>Answers {', '.join(answers)}. Refuses with {', '.join(sorted(errors))}.</li></ul>")
    return "".join(lines)


def _bounds(schema: dict[str, Any]) -> str:
    """What a parameter may be, in words, where it is bounded."""
    if "enum" in schema:
        return html.escape(f"One of {', '.join(schema['enum'])}.")
    if "maximum" in schema:
        default = f"; {schema['default']} if left out" if "default" in schema else ""
        return f"{schema['minimum']} to {schema['maximum']}{default}."
    return ""


def _content(described: dict[str, Any]) -> str:
    """In which content types, JSON by its shape."""
    kinds = []
    for kind, content in described["content"].items():
        names = re.findall(r"schemas/(\w+)", orjson.dumps(content["schema"]).decode())
        links = " or ".join(f'<a href="#{name}">{name}</a>' for name in dict.fromkeys(names))
        kinds.append(links or html.escape(kind))
    return " or ".join(kinds)
