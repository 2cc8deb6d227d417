"""The OpenAPI document: valid, complete by the contract, and true of the service that serves it."""

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi.routing import APIRoute
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import booleans
from openapi_spec_validator import validate
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from service.store import Store
from tests.fakes import WIDTH, load_fake, publish_fake
from tests.live import LiveService

PREFIXES = ("", "/models/{model}", "/models/{model}/versions/{version}", "/models/{model}/aliases/{alias}")
RESULTS = {
    "encode": {"latents"},
    "reconstruct": {"reconstructions", "errors"},
    "denoise": {"denoised"},
    "anomaly-score": {"scores", "p_values", "is_anomaly", "threshold", "false_alarm_rate"},
}
STATUSES = {"400", "401", "404", "406", "409", "413", "415", "422", "429", "500", "503", "504"}
MEDIA_TYPES = {"application/json", "application/x-npy", "application/vnd.apache.arrow.stream", "application/x-ndjson"}
SERVICE_ROUTES = {
    ("get", "/livez"): {"200"},
    ("get", "/readyz"): {"200", "503"},
    ("get", "/models"): {"200", "401"},
    ("get", "/models/{model}"): {"200", "401", "404"},
    ("get", "/models/{model}/versions/{version}"): {"200", "401", "404"},
    ("put", "/models/{model}/aliases/{alias}"): {"200", "400", "401", "403", "404", "409", "413", "422"},
    ("delete", "/models/{model}/aliases/{alias}"): {"200", "401", "403", "404", "409"},
    ("post", "/models/{model}/aliases/{alias}/rollback"): {"200", "401", "403", "404", "409"},
    ("get", "/models/{model}/drift"): {"200", "401", "404", "409", "503"},
    ("get", "/metrics"): {"200", "401"},
    ("get", "/activity"): {"200", "401"},
    ("get", "/models/{model}/versions/{version}/sample-request"): {"200", "401", "404"},
    ("get", "/models/{model}/versions/{version}/calibration"): {"200", "401", "404"},
    ("get", "/models/{model}/versions/{version}/latent-map"): {"200", "401", "404"},
    ("get", "/models/{model}/versions/{version}/traversals"): {"200", "401", "404"},
    ("get", "/models/{model}/versions/{version}/history"): {"200", "401", "404"},
    ("get", "/models/{model}/versions/{version}/plots/{plot}"): {"200", "401", "404"},
    ("get", "/models/{model}/versions/{version}/report"): {"200", "401", "404"},
}
CHECKS: list[Any] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
UNDOCUMENTED = {"/", "/docs", "/redoc", "/openapi.json", "/ui", "/ui/", "/ui/{path:path}"}
"""Pages about the service, not routes of its contract."""


@pytest.fixture
def document(fake_service: LiveService) -> dict[str, Any]:
    response = fake_service.get("/openapi.json")
    assert response.status_code == 200
    document: dict[str, Any] = response.json()
    return document


def properties_of(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Properties of a schema, of what it refers to, and of all that it combines."""
    found: dict[str, Any] = dict(schema.get("properties", {}))
    if "$ref" in schema:
        found |= properties_of(document, document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]])
    for part in schema.get("allOf", []):
        found |= properties_of(document, part)
    return found


def test_the_document_is_valid(document: dict[str, Any]) -> None:
    """OpenAPI 3.1, by an independent validator; operation ids are unique."""
    validate(document)
    assert document["openapi"].startswith("3.1")
    ids = [described["operationId"] for item in document["paths"].values() for described in item.values()]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("operation", RESULTS)
def test_every_operation_is_documented(document: dict[str, Any], prefix: str, operation: str) -> None:
    """Route form x result arrays x statuses x encodings of the contract."""
    described = document["paths"][f"{prefix}/{operation}"]
    assert set(described) == {"post"}
    responses = described["post"]["responses"]
    assert set(responses) == STATUSES | {"200"}
    content = responses["200"]["content"]
    assert MEDIA_TYPES | ({"image/png"} if operation in ("reconstruct", "denoise") else set()) == set(content)
    schema = content["application/json"]["schema"]
    optional = {"contributions", "error_maps", "false_discovery_rate", "calibration_rows", "warning"}
    offered = set(properties_of(document, schema)) - optional
    assert offered == RESULTS[operation] | {"model"}
    assert set(responses["200"]["headers"]) == {"X-Model-Name", "X-Model-Version", "X-Request-ID", "X-Flagged-Rows"}
    assert set(described["post"]["requestBody"]["content"]) == MEDIA_TYPES | {"image/png", "image/jpeg"}
    names = {parameter["name"] for parameter in described["post"]["parameters"]}
    assert set(re.findall(r"{(\w+)}", prefix)) | {"X-Timeout-Ms"} <= names


def test_requests_and_options_are_described(document: dict[str, Any]) -> None:
    """``instances``, ``inputs``, and the options of ``anomaly-score`` in its body and its query."""
    for operation in RESULTS:
        described = document["paths"][f"/{operation}"]["post"]
        schema = described["requestBody"]["content"]["application/json"]["schema"]
        chosen = {"threshold", "false_alarm_rate", "false_discovery_rate", "explain"}
        options = chosen if operation == "anomaly-score" else set()
        forms = {"instances", "inputs"} | ({"series"} if options else set())
        assert set(properties_of(document, schema)) == forms | options
        query = {parameter["name"] for parameter in described["parameters"] if parameter["in"] == "query"}
        assert query == options | {"passthrough"}


@pytest.mark.parametrize(("route", "statuses"), SERVICE_ROUTES.items())
def test_service_routes_are_documented(document: dict[str, Any], route: tuple[str, str], statuses: set[str]) -> None:
    """With at least the statuses of the contract, every error a problem."""
    method, path = route
    responses = document["paths"][path][method]["responses"]
    assert statuses <= set(responses)


def test_every_error_is_a_problem(document: dict[str, Any]) -> None:
    """All documented errors but the probe's have the one schema."""
    for path, item in document["paths"].items():
        for described in item.values():
            for status, response in described["responses"].items():
                if status >= "400" and path != "/readyz":
                    schema = response["content"]["application/problem+json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/Problem"}, (path, status)


def test_429_has_retry_after_in_words(document: dict[str, Any]) -> None:
    """A caller must know where to look."""
    assert "Retry-After" in document["paths"]["/encode"]["post"]["responses"]["429"]["description"]


def test_nothing_is_served_that_is_not_documented(fake_service: LiveService, document: dict[str, Any]) -> None:
    """The routes of the application against the paths of the document."""
    app: Any = fake_service.server.config.app
    served = {
        (method.lower(), route.path)
        for route in routes_of(app)
        for method in route.methods or ()
        if route.path not in UNDOCUMENTED
    }
    operations = {("post", f"{prefix}/{operation}") for prefix in PREFIXES for operation in RESULTS}
    documented = {(method, path) for path, item in document["paths"].items() for method in item}
    assert served | operations <= documented
    # The wire protocols of other servers are served below FastAPI, each with its own tests.
    assert {path for _, path in documented - served - operations if not path.startswith(("/v1/", "/v2"))} == set()


def routes_of(router: Any) -> Iterator[APIRoute]:
    """All routes of a router and of those that it includes."""
    for route in router.routes:
        included = getattr(route, "original_router", None)
        if included is not None:
            yield from routes_of(included)
        elif isinstance(route, APIRoute):
            yield route


def test_statuses_of_the_document_are_explained(document: dict[str, Any]) -> None:
    """Each response says in words when it comes."""
    for item in document["paths"].values():
        for described in item.values():
            assert described["summary"]
            assert all(response["description"] for response in described["responses"].values())


@pytest.mark.slow
def test_the_document_is_true_of_the_service(fake_store: Path, serve: Callable[..., LiveService]) -> None:
    """schemathesis over the live service: no 5xx, no undocumented status, and answers that fit their schemas."""
    service = serve(fake_store, load=load_fake)
    schema: Any = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
    tested = 0
    for result in schema.get_all_operations():
        run_examples(result.ok())
        tested += 1
    assert tested >= len(RESULTS) * len(PREFIXES) + len(SERVICE_ROUTES)
    assert service.post("/encode", json={"instances": [[0.0] * WIDTH]}).status_code == 200


@pytest.mark.parametrize(
    ("operation", "options"),
    [
        *((operation, {}) for operation in RESULTS),
        ("anomaly-score", {"explain": 2, "threshold": 1.5}),
        ("anomaly-score", {"explain": 1, "false_alarm_rate": 0.1}),
        ("anomaly-score", {"false_discovery_rate": 0.1}),
    ],
)
def test_answers_fit_their_schemas(fake_service: LiveService, operation: str, options: dict[str, Any]) -> None:
    """Good rows with every option: the documented 200, with the documented arrays."""
    schema: Any = schemathesis.openapi.from_url(f"{fake_service.url}/openapi.json")
    case = schema[f"/models/{{model}}/{operation}"]["POST"].Case(
        path_parameters={"model": "pumps"},
        body={"instances": [[1.0, 2.0], [3.0, 4.0]], **options},
        media_type="application/json",
    )
    response = case.call()
    assert response.status_code == 200
    case.validate_response(response, checks=CHECKS)


def run_examples(operation: Any) -> None:
    """Generated requests, half of them to a model that exists."""

    @settings(
        max_examples=12,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(), known=booleans())
    def run(case: Any, known: bool) -> None:
        if known and "model" in case.path_parameters:
            case.path_parameters["model"] = "pumps"
        case.call_and_validate(checks=CHECKS)

    run()


@pytest.mark.parametrize("columns", [(), ("amount", "age")])
def test_examples_work_as_they_are_served(
    fake_store: Path, serve: Callable[..., LiveService], columns: tuple[str, ...]
) -> None:
    """The path and the body of each, as they stand: those of a model that is loaded."""
    publish_fake(Store(fake_store), model="cards", columns=columns)
    Store(fake_store).set_alias("cards", "stable", 1)
    service = serve(fake_store, load=load_fake, default_model="cards")
    for prefix, operation in itertools.product(PREFIXES, RESULTS):
        document = service.get("/openapi.json").json()
        described = document["paths"][f"{prefix}/{operation}"]["post"]
        inputs = {each["name"]: each["example"] for each in described["parameters"] if each["in"] == "path"}
        body = example_of(document, described)
        assert service.post(f"{prefix}/{operation}".format(**inputs), json=body).status_code == 200
    assert set(map(str, body["instances"][0])) == (set(columns) or {"0.0"})


def example_of(document: dict[str, Any], described: dict[str, Any]) -> Any:
    """The one example of the JSON body of an operation."""
    [(name, reference)] = described["requestBody"]["content"]["application/json"]["examples"].items()
    assert reference == {"$ref": f"#/components/examples/{name}"}
    return document["components"]["examples"][name]["value"]


def test_examples_name_no_model_to_strangers(fake_store: Path, serve: Callable[..., LiveService]) -> None:
    """Where keys are set, the document is open to everybody, and names of models and columns are not."""
    publish_fake(Store(fake_store), model="secret", columns=("salary",))
    service = serve(fake_store, load=load_fake, default_model="secret", key_hashes=["0" * 64])
    document = service.get("/openapi.json")
    assert "salary" not in document.text
    assert '"secret"' not in document.text
    assert set(example_of(document.json(), document.json()["paths"]["/anomaly-score"]["post"])) == {"instances"}
