"""The OpenAPI document of the operation routes, and the pages that show it without internet."""

from contextlib import suppress
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np
import orjson
from fastapi import FastAPI, Request, Response
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

from service import codecs
from service.api.errors import PROBLEM_TYPE
from service.errors import AutoencoderError
from service.runtime import ModelManager, Target
from service.schemas import ColumnType, InputSchema
from service.words import ANOMALY_SCORE, DENOISE, ENCODE, JSON, OPERATIONS, RECONSTRUCT, Operation

Json = dict[str, Any]

PREFIXES = ("", "/models/{model}", "/models/{model}/versions/{version}", "/models/{model}/aliases/{alias}")

STATUSES = {
    400: "The body is not parseable.",
    401: "No API key, or a wrong one.",
    404: "No such model, version or alias.",
    406: "No such encoding of answers.",
    409: "This version was not trained for that, or is not loaded.",
    413: "The body, its rows or what it decompresses to is over a limit.",
    415: "No such encoding of requests.",
    422: "Parsed, but not rows of this model; names rows and columns.",
    429: "The queue is full; try again after `Retry-After` seconds.",
    500: "The model failed on these rows.",
    503: "Not ready, or stopping.",
    504: "The deadline passed.",
}

SUMMARIES = {
    ENCODE: "Rows to latents",
    RECONSTRUCT: "Rows to reconstructions and their errors",
    DENOISE: "Noisy rows to clean ones",
    ANOMALY_SCORE: "Rows to anomaly scores, p-values and flags",
}

_ANY_ROW: Json = {
    "description": "A (nested) array of the model's row shape, or an object for a model with named columns.",
    "anyOf": [{"type": "array", "items": {}}, {"type": "object"}, {"type": "number"}],
}
_NUMBERS: Json = {"type": "array", "items": {"type": "number"}}
_NESTED: Json = {"type": "array", "items": _ANY_ROW}

_RESULT_SCHEMAS: dict[str, Json] = {
    "latents": {"type": "array", "items": _NUMBERS},
    "reconstructions": _NESTED,
    "errors": _NUMBERS,
    "denoised": _NESTED,
    "scores": _NUMBERS,
    "p_values": _NUMBERS,
    "is_anomaly": {"type": "array", "items": {"type": "boolean"}},
}

COMPONENTS: dict[str, Json] = {
    "Rows": {
        "type": "object",
        "description": "Rows, one by one (`instances`) or column by column (`inputs`): exactly one of the two.",
        "properties": {
            "instances": {"type": "array", "items": _ANY_ROW, "minItems": 1},
            "inputs": {
                "description": "Values by column, or the whole array with the rows first.",
                "anyOf": [{"type": "object", "additionalProperties": {"type": "array"}}, {"type": "array"}],
            },
        },
        "oneOf": [{"required": ["instances"]}, {"required": ["inputs"]}],
    },
    "ModelVersion": {
        "type": "object",
        "description": "The version that really ran.",
        "properties": {"name": {"type": "string"}, "version": {"type": "integer"}},
        "required": ["name", "version"],
    },
    "Contribution": {
        "type": "object",
        "properties": {
            "feature": {"description": "Column name, or index of the value in the row."},
            "observed": {"description": "The value that was sent."},
            "expected": {"description": "The value that would be typical here."},
            "share": {"type": "number", "description": "Share of the score; those of all features sum to 1."},
        },
        "required": ["feature", "observed", "expected", "share"],
    },
    "Problem": {
        "type": "object",
        "description": "RFC 9457. Never echoes input.",
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "request_id": {"type": "string"},
            "errors": {
                "type": "array",
                "maxItems": 10,
                "items": {
                    "type": "object",
                    "properties": {
                        "row": {"type": ["integer", "null"]},
                        "column": {"type": ["string", "integer", "null"]},
                        "problem": {"type": "string"},
                    },
                    "required": ["row", "column", "problem"],
                },
            },
        },
        "required": ["type", "title", "status", "detail", "request_id"],
    },
}

_OPTIONS: dict[str, Json] = {
    "threshold": {"type": "number", "description": "Overrides the version's threshold; not with a rate."},
    "false_alarm_rate": {
        "type": "number",
        "exclusiveMinimum": 0,
        "exclusiveMaximum": 1,
        "description": "Overrides the version's false-alarm rate; not with `threshold`.",
    },
    "false_discovery_rate": {
        "type": "number",
        "exclusiveMinimum": 0,
        "exclusiveMaximum": 1,
        "description": "Flags rows of this request by the Benjamini-Hochberg procedure: of those flagged, at most this "
        "share is normal in expectation. Not with `threshold` or `false_alarm_rate`, nor for NDJSON.",
    },
    "explain": {
        "description": "How many contributions to give with each row; for image models also `map`.",
        "anyOf": [{"type": "integer", "minimum": 1}, {"const": "map"}],
    },
}

_SERIES: Json = {
    "description": "Points of a whole series, evenly spaced and at least a window long; the answer has one entry a "
    "point. One by one, as arrays, objects by channel or, of one channel, numbers; or an object with an array for each "
    "channel.",
    "anyOf": [
        {"type": "array", "items": _ANY_ROW, "minItems": 1},
        {"type": "object", "additionalProperties": {"type": "array"}},
    ],
}


class Example(NamedTuple):
    """Names and a row for the examples of the document. As served for a model that is loaded, they work."""

    model: str = "digits"
    version: int = 1
    alias: str = "production"
    row: Any = (0.1, 0.2, 0.3)

    @classmethod
    def of_loaded(cls, manager: ModelManager) -> "Example":
        """The version that answers for the default model, else for the first one; made up where none is loaded."""
        name = None
        with suppress(AutoencoderError):
            name = manager.acquire(Target()).name
        for model in manager.models.values():
            if model.default_version is not None and model.name == (name or model.name):
                row = example_row(model.loaded[model.default_version].schema)
                return cls(model.name, model.default_version, next(iter(model.serving), "production"), row)
        return cls()


def example_row(schema: InputSchema) -> Any:
    """A row that a model takes, as in JSON: zeros, or for named columns something in the middle of each."""
    if not schema.columns:
        return np.zeros(schema.row_shape).tolist()
    row: Json = {}
    for column in schema.columns:
        match column.type:
            case ColumnType.CATEGORICAL:
                row[column.name] = next(iter(column.categories), "")
            case ColumnType.TIMESTAMP:
                row[column.name] = "2026-01-01T12:00:00Z"
            case ColumnType.BOOLEAN:
                row[column.name] = True
            case _:
                row[column.name] = float(f"{((column.minimum or 0) + (column.maximum or 0)) / 2:.4g}")
    return row


def install_openapi(app: FastAPI, manager: ModelManager | None) -> None:
    """Complete the document with the operations, and serve it with its page from the package itself.

    Args:
        manager: Whose models the examples are for; None where no stranger may know them.
    """
    example: Example | None = None
    text = b""

    def document() -> Json:
        nonlocal example, text
        now = Example() if manager is None else Example.of_loaded(manager)
        if app.openapi_schema is None or now != example:
            app.openapi_schema, example = _document(app, now), now
            text = orjson.dumps(app.openapi_schema)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        document()
        return Response(text, media_type=JSON)

    static = files("service.api") / "static"
    app.mount("/docs/static", StaticFiles(directory=str(static / "swagger-ui")), name="docs-static")
    app.mount("/redoc/static", StaticFiles(directory=str(static / "redoc")), name="redoc-static")

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        root = request.scope.get("root_path", "")
        return get_swagger_ui_html(
            openapi_url=f"{root}/openapi.json",
            title=app.title,
            swagger_js_url=f"{root}/docs/static/swagger-ui-bundle.js",
            swagger_css_url=f"{root}/docs/static/swagger-ui.css",
            swagger_favicon_url="data:,",
        )

    @app.get("/redoc", include_in_schema=False)
    async def redoc(request: Request) -> HTMLResponse:
        root = request.scope.get("root_path", "")
        return get_redoc_html(
            openapi_url=f"{root}/openapi.json",
            title=app.title,
            redoc_js_url=f"{root}/redoc/static/redoc.standalone.js",
            redoc_favicon_url="data:,",
            with_google_fonts=False,
        )

    @app.get("/", include_in_schema=False)
    async def start(request: Request) -> Response:
        return Response(status_code=307, headers={"Location": f"{request.scope.get('root_path', '')}/ui"})


def _document(app: FastAPI, example: Example) -> Json:
    document = get_openapi(
        title=app.title, version=app.version, summary=app.summary, routes=app.routes, openapi_version="3.1.0"
    )
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    # FastAPI's own 422 echoes input; ours does not, and has another shape.
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas |= COMPONENTS
    for operation in OPERATIONS:
        schemas[f"{_title(operation)}Request"] = _request_schema(operation)
        schemas[f"{_title(operation)}Answer"] = _answer_schema(operation)
    document["components"]["examples"] = {"rows": {"summary": "One row", "value": {"instances": [example.row]}}}
    document["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    document["security"] = [{}, {"bearer": []}, {"header": []}]
    for path, item in document["paths"].items():
        for method, described in item.items():
            statuses = [] if path in ("/livez", "/readyz") else [401]
            if "{" in path:
                statuses += [404, 422, 500, 503]
            if path.endswith("/drift"):
                statuses += [409]
            if method in ("put", "delete", "post"):  # of aliases; the operations are described elsewhere
                statuses += [400, 403, 409, 413]
            for status in statuses:
                described["responses"][str(status)] = _problem(STATUSES.get(status, "Not an admin key."))
    operations = {
        f"{prefix}/{operation.path}": {"post": _operation(operation, prefix, example)}
        for prefix in PREFIXES
        for operation in OPERATIONS
    }
    document["paths"] = {**operations, **document["paths"]}
    return document


_PATH: dict[str, Json] = {
    "model": {"type": "string"},
    "version": {"type": "integer", "minimum": 1, "maximum": 10**18 - 1},
    "alias": {"type": "string"},
}
_PASSTHROUGH: Json = {"type": "boolean", "description": "Arrow: give the request's columns beside the results."}
_HEADER_PARAMETERS: list[Json] = [
    {
        "name": "X-Timeout-Ms",
        "in": "header",
        "required": False,
        "schema": {"type": "integer", "minimum": 1, "maximum": 999_999_999},
        "description": "Deadline of this request where it is sooner than the service's own.",
    },
]
_HEADERS: Json = {
    "X-Model-Name": {"schema": {"type": "string"}},
    "X-Model-Version": {"schema": {"type": "string"}},
    "X-Request-ID": {"schema": {"type": "string"}},
    "X-Flagged-Rows": {
        "schema": {"type": "string"},
        "description": "Indices of the rows that the answer flags, with commas; of many the first 50, then `...`.",
    },
}
_BINARY: Json = {"schema": {"type": "string", "format": "binary"}}


def _operation(operation: Operation, prefix: str, example: Example) -> Json:
    in_path = [part.strip("{}") for part in prefix.split("/") if part.startswith("{")]
    paths = [
        {"name": name, "in": "path", "required": True, "schema": _PATH[name], "example": getattr(example, name)}
        for name in in_path
    ]
    # Options travel in the query where the body is not JSON.
    options = {**(_OPTIONS if operation is ANOMALY_SCORE else {}), "passthrough": _PASSTHROUGH}
    queries = [{"name": name, "in": "query", "required": False, "schema": form} for name, form in options.items()]
    request = {"$ref": f"#/components/schemas/{_title(operation)}Request"}
    answer = {"$ref": f"#/components/schemas/{_title(operation)}Answer"}
    requests: Json = {JSON: {"schema": request, "examples": {"rows": {"$ref": "#/components/examples/rows"}}}}
    requests |= {kind: _BINARY for kind in codecs.REQUEST_TYPES if kind != JSON}
    answers: Json = {JSON: {"schema": answer}}
    answers |= {kind: _BINARY for kind in codecs.answer_types(operation) if kind != JSON}
    return {
        "tags": ["operations"],
        "summary": SUMMARIES[operation],
        "operationId": "_".join([operation.name, *in_path]),
        "parameters": [*paths, *queries, *_HEADER_PARAMETERS],
        "requestBody": {"required": True, "content": requests},
        "responses": {
            "200": {"description": "One entry a row, in order.", "headers": _HEADERS, "content": answers},
            **{str(status): _problem(text) for status, text in STATUSES.items()},
        },
    }


def _request_schema(operation: Operation) -> Json:
    if operation is not ANOMALY_SCORE:
        return {"$ref": "#/components/schemas/Rows"}
    forms = {**COMPONENTS["Rows"]["properties"], "series": _SERIES}
    return {
        "type": "object",
        "description": "Rows, or of a model of series a whole series: exactly one of `instances`, `inputs`, `series`.",
        "properties": {**forms, **_OPTIONS},
        "oneOf": [{"required": [name]} for name in forms],
    }


def _answer_schema(operation: Operation) -> Json:
    names = [name for name, _ in operation.results]
    properties: Json = {"model": {"$ref": "#/components/schemas/ModelVersion"}}
    properties |= {name: _RESULT_SCHEMAS[name] for name in names}
    required = ["model", *names]
    if operation is ANOMALY_SCORE:
        least = "With `false_discovery_rate` the least score that is flagged, null where none is."
        properties |= {
            "threshold": {"type": ["number", "null"], "description": least},
            "false_alarm_rate": {"type": "number"},
            "false_discovery_rate": {"type": "number", "description": "As given; only where it was."},
            "calibration_rows": {"type": "integer", "description": "With `false_discovery_rate`."},
            "warning": {"type": "string", "description": "Why `false_discovery_rate` can flag no row, where it is so."},
        }
        required += ["threshold", "false_alarm_rate"]
        contribution = {"$ref": "#/components/schemas/Contribution"}
        properties["contributions"] = {"type": "array", "items": {"type": "array", "items": contribution}}
        properties["error_maps"] = _NESTED
    return {"type": "object", "properties": properties, "required": required}


def _title(operation: Operation) -> str:
    return operation.name.title().replace("_", "")


def _problem(description: str) -> Json:
    schema = {"$ref": "#/components/schemas/Problem"}
    return {"description": description, "content": {PROBLEM_TYPE: {"schema": schema}}}
