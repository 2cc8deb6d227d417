"""The page of the routes: the OpenAPI document as Markdown, and the routes of other servers' protocols."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.routing import BaseRoute, Mount, Route

from service.api.access import Role
from service.api.app import create_app
from service.api.console import console_routes
from service.api.grpc import health
from service.api.grpc.server import SERVICES
from service.api.oip import _ROUTES
from service.api.openapi import PREFIXES
from service.settings import Settings
from service.words import OPERATIONS
from tools.docs.markdown import code, codes, page, table

Json = dict[str, Any]

PROTOCOLS = Path(__file__).parents[2] / "docs" / "protocols.md"
_ROLES = {Role.ANYONE: "none", Role.CALLER: "any", Role.ADMIN: "admin"}
_KINDS = {"integer": "whole number", "boolean": "true or false", "string": "text", "null": "null"}


def service_app() -> FastAPI:
    """The application over a store that nobody opens."""
    return create_app(Settings(store="nowhere"))


def routes_page(document: Json) -> str:
    described = list(_routes(document))
    operations = [each for each in described if "operations" in each[2]["tags"]]
    others = [each for each in described if "operations" not in each[2]["tags"]]
    return page(
        "Routes",
        "The same as the service itself shows at `/docs` (Swagger UI) and `/redoc`, which work without internet. The "
        "document is [openapi.json](openapi.json), and `GET /openapi.json` of a running service.",
        "A key is needed only where keys are set: *any* stands for a key of either kind, *admin* for an admin key. "
        "Every answer has `X-Request-ID`; a request may bring its own.",
        table(("Route", "Key", ""), [_line(*each) for each in described]),
        "## Operations",
        "Each of the four stands under " + codes(prefix or "/" for prefix in PREFIXES) + ".",
        *[part for each in operations if each[1].count("/") == 1 for part in _route(*each)],
        "## Models and service",
        *[part for each in others for part in _route(*each)],
        "## Pages",
        "For people, without a key: the console asks for one itself.",
        table(("Route", ""), _pages()),
        *_protocols(),
        "## Bodies",
        *[part for name, schema in sorted(document["components"]["schemas"].items()) for part in _body(name, schema)],
    )


def _routes(document: Json) -> Iterator[tuple[str, str, Json]]:
    for path, methods in document["paths"].items():
        for method, described in methods.items():
            yield method.upper(), path, described


def _line(method: str, path: str, described: Json) -> tuple[str, str, str]:
    is_own = "operations" not in described["tags"] or path.count("/") == 1
    shown = code(f"{method} {path}")
    return f"[{shown}](#{_anchor(method, path)})" if is_own else shown, _key(described), described["summary"]


def _anchor(method: str, path: str) -> str:
    return re.sub(r"[^a-z]+", "-", f"{method} {path}".lower()).strip("-")


def _key(described: Json) -> str:
    statuses = described["responses"]
    is_admin = "403" in statuses
    return _ROLES[Role.ADMIN if is_admin else Role.CALLER if "401" in statuses else Role.ANYONE]


def _route(method: str, path: str, described: Json) -> Iterator[str]:
    yield f"### {code(f'{method} {path}')} {{ #{_anchor(method, path)} }}"
    yield f"{described['summary']}. Key: {_key(described)}."
    if parameters := described.get("parameters"):
        yield table(("Parameter", "In", "Value", "Meaning"), [_parameter(each) for each in parameters])
    if body := described.get("requestBody"):
        yield f"Body: {_content(body['content'])}."
    rows = [
        (code(status), _content(each.get("content", {})), each["description"]) for status, each in _answers(described)
    ]
    yield table(("Status", "Answer", "Meaning"), rows)


def _answers(described: Json) -> list[tuple[str, Json]]:
    return sorted(described["responses"].items())


def _parameter(parameter: Json) -> tuple[str, ...]:
    schema = parameter["schema"]
    meaning = parameter.get("description") or schema.get("description", "")
    needed = "" if parameter.get("required") else " (optional)"
    return code(parameter["name"]), parameter["in"] + needed, _kind(schema), meaning


def _content(content: Json) -> str:
    return ", ".join(
        f"{_kind(each['schema'])} as {code(media_type)}" if "$ref" in each.get("schema", {}) else code(media_type)
        for media_type, each in content.items()
    )


def _body(name: str, schema: Json) -> Iterator[str]:
    yield f"### {name} {{ #{name.lower()} }}"
    yield schema.get("description", "").strip()
    if "properties" in schema:
        required = schema.get("required", ())
        yield table(
            ("Field", "Value", "Meaning"),
            [_field(field, value, required) for field, value in schema["properties"].items()],
        )
    else:
        yield f"{_kind(schema)}."


def _field(name: str, schema: Json, required: Any) -> tuple[str, str, str]:
    optional = "" if name in required else " (optional)"
    return code(name), _kind(schema) + optional, schema.get("description", "")


def _kind(schema: Json) -> str:
    """What a value may be, in words; other bodies as links."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            return " or ".join(dict.fromkeys(_kind(each) for each in schema[several]))
    if "enum" in schema or "const" in schema:
        return codes(schema.get("enum") or [schema["const"]])
    kind: Any = schema.get("type", "any value")
    if isinstance(kind, list):
        return " or ".join(str(_KINDS.get(each, each)) for each in kind)
    inner = schema.get("items") or schema.get("additionalProperties")
    if isinstance(inner, dict):
        return f"{kind} of {_kind(inner)}"
    return f"{_KINDS.get(kind, kind)}{_range(schema)}"


def _range(schema: Json) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        return f", {low} to {high}"
    if low is not None:
        return f", {low} or more"
    if "exclusiveMinimum" in schema and "exclusiveMaximum" in schema:
        return f" between {schema['exclusiveMinimum']} and {schema['exclusiveMaximum']}"
    return ""


# --- what the document does not hold --------------------------------------------------------------------------------


def page_paths() -> list[str]:
    """Paths that people open, and what these load."""
    routes: list[BaseRoute] = [*service_app().routes, *console_routes().routes]
    shown = (Mount, Route)
    return sorted({each.path or "/" for each in routes if isinstance(each, shown) and not _is_documented(each)})


def _is_documented(route: BaseRoute) -> bool:
    return bool(getattr(route, "include_in_schema", False))


def _pages() -> list[tuple[str, str]]:
    meanings = {
        "/": "Leads to `/ui`.",
        "/docs": "Swagger UI.",
        "/redoc": "ReDoc.",
        "/ui": "[The console](../console.md).",
        "/openapi.json": "The OpenAPI document.",
    }
    return [(code(f"GET {path}"), meanings.get(path, "Files that these pages load.")) for path in page_paths()]


def protocol_routes() -> list[tuple[str, str, str]]:
    """Protocol, route and key of the REST routes of other servers' protocols.

    Routes are those of the table in docs/protocols.md, which tests/compat holds against the service in both directions.
    """
    text = PROTOCOLS.read_text(encoding="utf-8").partition("<!-- protocols -->")[2].partition("<!-- /protocols -->")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.strip().splitlines()[2:]]
    return [
        (protocol, f"{method} {path}", _ROLES[_role(method, path)])
        for protocol, over, supported, _ in rows
        if over == "REST"
        for method, path in re.findall(r"`(GET|POST) (/[^`]+)`", supported)
    ]


def _role(method: str, path: str) -> Role:
    asked = path.replace("{model}", "m")
    found = [route.role for route in _ROUTES if route.method == method and route.pattern.fullmatch(asked)]
    # ``infer`` asks for its key later; TensorFlow Serving's routes all need one.
    return Role.CALLER if not found or path.endswith("/infer") else found[0]


def grpc_methods() -> list[tuple[str, str]]:
    """Full name and key of every gRPC method."""
    named = [(f"{each.service}/{method.name}", _ROLES[method.role]) for each in SERVICES for method in each.methods]
    return [*named, *((f"{health.SERVICE}/{name}", _ROLES[Role.ANYONE]) for name in ("Check", "Watch"))]


def _protocols() -> Iterator[str]:
    yield "## Routes of other servers' protocols"
    yield (
        "[TensorFlow Serving and Open Inference Protocol](../protocols.md) says what they take. Those of a model also "
        "stand under `/versions/{version}`, TensorFlow Serving's under `/labels/{label}` too. The four operations are "
        f"the signatures {codes(operation.name for operation in OPERATIONS)}."
    )
    yield table(("Protocol", "Route", "Key"), [(name, code(route), key) for name, route, key in protocol_routes()])
    yield "### gRPC"
    yield "Where `AUTOENCODER_GRPC_PORT` is set:"
    yield table(("Method", "Key"), [(code(name), key) for name, key in grpc_methods()])
