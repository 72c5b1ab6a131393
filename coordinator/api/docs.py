"""The API's description: OpenAPI with the request schemas, and a plain page made from it.

FastAPI's own /docs loads scripts from a public CDN; a pool may have no way there, and its content policy none
for them.
"""

import base64
import hashlib
import html
from collections.abc import Iterable
from typing import Any

import orjson
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from starlette.routing import BaseRoute

from coordinator.api.schema import Schema

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
code, pre { font: 14px/1.4 ui-monospace, monospace; }
pre { background: #f4f4f4; padding: .8rem; overflow-x: auto; }
.method { display: inline-block; min-width: 4.5rem; font-weight: 600; }
"""
_STYLE_DIGEST = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
PAGE_POLICY = f"default-src 'none'; style-src 'sha256-{_STYLE_DIGEST}'; frame-ancestors 'none'"
BEARER = "bearer"


def describe(
    title: str, version: str, routes: Iterable[BaseRoute], schemas: Iterable[type[Schema]]
) -> dict[str, Any]:
    """OpenAPI 3.1 of the routes; every route but the open ones needs an API key."""
    described = get_openapi(title=title, version=version, routes=list(routes))
    _, definitions = models_json_schema(
        [(schema, "validation") for schema in schemas], ref_template="#/components/schemas/{model}"
    )
    components = described.setdefault("components", {})
    components.setdefault("schemas", {}).update(definitions.get("$defs", {}))
    components["securitySchemes"] = {BEARER: {"type": "http", "scheme": "bearer"}}
    described["security"] = [{BEARER: []}]
    return described


def page(described: dict[str, Any]) -> str:
    """HTML: each route with its docstring, each schema as JSON."""
    parts = [f"<h1>{html.escape(described['info']['title'])}</h1>"]
    parts.append('<p>All of it in machine-readable form: <a href="/openapi.json">openapi.json</a>.</p>')
    sections: dict[str, list[str]] = {}
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            tag = operation.get("tags", ["other"])[0]
            sections.setdefault(tag, []).append(_operation(method, path, operation))
    for tag, operations in sections.items():
        parts += [f"<h2>{html.escape(tag)}</h2>", *operations]
    parts.append("<h2>schemas</h2>")
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
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    name = html.escape(body.get("$ref", "").rpartition("/")[2])
    takes = f' takes <a href="#{name}">{name}</a>' if name else ""
    title = f'<code><span class="method">{method.upper()}</span> {html.escape(path)}</code>{takes}'
    return f"<h3>{title}</h3><p>{html.escape(operation.get('description', ''))}</p>"
