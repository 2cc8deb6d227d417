"""The reference pages of settings, metrics, errors and alerts; those of routes and commands have modules."""

import json
import re
from pathlib import Path
from typing import Any

import yaml
from prometheus_client import Counter, Histogram
from prometheus_client.metrics import MetricWrapperBase

from service import errors
from service import settings as settings_module
from service.api.errors import PROBLEM_TYPE, PROTOCOL_STATUS, STATUS, problem, status_of
from service.api.grpc.methods import CODES
from service.api.openapi import COMPONENTS, STATUSES
from service.errors import AutoencoderError, InvalidRows, RowProblem
from service.settings import ENV_PREFIX, FILE_VARIABLE, Settings
from service.telemetry import Telemetry
from tools.docs.markdown import code, codes, page, prose, table

ALERTS = Path(__file__).parents[2] / "deploy" / "observability" / "alerts.yml"
UNITS = {"_bytes": "bytes", "_ms": "milliseconds", "_s": "seconds", "_rows": "rows", "_requests": "requests"}
_TREE_LINE = re.compile(r"^[│├└─ ]+ (\w+)(?: {2,}(.+))?$", re.M)


# --- settings -------------------------------------------------------------------------------------------------------


def settings_page() -> str:
    properties = Settings.model_json_schema()["properties"]
    rows = []
    for name, field in Settings.model_fields.items():
        shown = "" if field.default in (None, ()) else str(field.default)
        shown = shown.lower() if isinstance(field.default, bool) else shown
        default = code(shown) + _in_larger_units(name, field.default)
        rows.append((code(ENV_PREFIX + name.upper()), _value(name, properties[name]), default, field.description or ""))
    sources = prose(settings_module.__doc__).partition("\n\n")[2]
    return page(
        "Settings",
        prose(Settings.__doc__).partition(". ")[2],
        sources,
        f"In the file that `{FILE_VARIABLE}` names, names have no prefix and small letters: `port = 8000`. Where "
        "copies of versions of an object store are kept: [The local cache](../stores.md#the-local-cache).",
        table(("Variable", "Value", "Default", "Meaning"), rows),
    )


def _value(name: str, schema: dict[str, Any]) -> str:
    """What a setting may be, in words."""
    forms = [form for form in schema.get("anyOf", [schema]) if form.get("type") != "null"]
    form = forms[0]
    if "enum" in form:
        return codes(form["enum"])
    kind = form.get("type")
    if kind == "boolean":
        return "`true` or `false`"
    if kind == "array":
        pattern = "SHA-256 in hexadecimal" if "pattern" in form["items"] else "text"
        return f"{pattern}; several with commas between them"
    if kind not in ("integer", "number"):
        return "text"
    unit = next((f" of {unit}" for ending, unit in UNITS.items() if name.endswith(ending)), "")
    return f"{'whole number' if kind == 'integer' else 'number'}{unit}{_range(form)}"


def _range(form: dict[str, Any]) -> str:
    if "minimum" in form and "maximum" in form:
        return f", {form['minimum']} to {form['maximum']}"
    if "minimum" in form:
        return f", {form['minimum']} or more"
    return f", more than {form['exclusiveMinimum']:g}" if "exclusiveMinimum" in form else ""


def _in_larger_units(name: str, default: object) -> str:
    if not name.endswith("_bytes") or not isinstance(default, int):
        return ""
    power, unit = next((power, unit) for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")) if default >= 2**power)
    return f" ({default / 2**power:g} {unit})"


# --- metrics --------------------------------------------------------------------------------------------------------


def metrics() -> list[MetricWrapperBase]:
    """The metrics that the service itself counts."""
    return [each for each in vars(Telemetry()).values() if isinstance(each, MetricWrapperBase)]


def metric_name(metric: MetricWrapperBase) -> str:
    """As Prometheus has it."""
    return f"{metric._name}_total" if isinstance(metric, Counter) else metric._name


def metrics_page() -> str:
    rows = [
        (code(metric_name(each)), each._type or "", codes(each._labelnames), each._documentation) for each in metrics()
    ]
    buckets = [
        (code(each._name), ", ".join(f"{edge:g}" for edge in each._upper_bounds if edge != float("inf")))
        for each in metrics()
        if isinstance(each, Histogram)
    ]
    own = {each._name for each in metrics()}
    process = [
        (code(family.name + ("_total" if family.type == "counter" else "")), family.type, family.documentation)
        for family in Telemetry().registry.collect()
        if family.name not in own
    ]
    return page(
        "Metrics",
        "`GET /metrics` answers in Prometheus' text format; where keys are set it needs one. A histogram has the names "
        "`…_bucket`, `…_sum` and `…_count`. With several workers the numbers are those of all.",
        table(("Name", "Type", "Labels", "Meaning"), rows),
        "## Buckets",
        "Upper edges; the last bucket has none.",
        table(("Histogram", "Upper edges"), buckets),
        "## The process",
        "With one worker also what the Prometheus client library says of the process (Linux):" if process else "",
        table(("Name", "Type", "Meaning"), process) if process else "",
    )


# --- errors ---------------------------------------------------------------------------------------------------------


def errors_page() -> str:
    meanings = dict(_TREE_LINE.findall(errors.__doc__ or ""))
    rows = [(code(kind.__name__), *_statuses(kind), meanings.get(kind.__name__, "")) for kind in error_types()]
    status, body, headers = problem(
        InvalidRows([RowProblem(3, "amount", "must be a finite number")]), "01c8b0d2f4a64ac0"
    )
    example = json.dumps(json.loads(body), indent=2)
    fields = [(code(name), _problem_field(schema)) for name, schema in COMPONENTS["Problem"]["properties"].items()]
    return page(
        "Errors",
        f"Every error of the service's own routes is `{PROBLEM_TYPE}` (RFC 9457). `type` is always `about:blank`: the "
        "status says what kind of problem it is, `detail` what is wrong, and neither holds what was sent.",
        f"```json\n{example}\n```",
        table(("Field", "Value"), fields),
        "429 and 503 have `Retry-After` (seconds), 401 has `WWW-Authenticate: Bearer`; this answer has status "
        f"{status}{' and no header of its own' if not headers else ''}.",
        "## Statuses",
        table(("Status", "Meaning"), [(code(status), text) for status, text in STATUSES.items()]),
        "Beside these: 403 for a key that may not do this, 405 for a method that the route does not have, 408 and 431 "
        "for headers that come too late or are too large.",
        "## Errors in the code",
        "`service/errors.py` has one tree of errors; the nearest class with a status decides. "
        "The third column is that of the TensorFlow Serving and Open Inference routes, which answer "
        '`{"error": "<text>"}`, with the code over gRPC. Errors without a status end commands, not requests.',
        table(("Error", "Status", "Protocols", "Meaning"), rows),
    )


def error_types(root: type[AutoencoderError] = AutoencoderError) -> list[type[AutoencoderError]]:
    """The errors of ``service.errors``, depth first; those of other rooms are not part of the tree there."""
    below = [kind for kind in root.__subclasses__() if kind.__module__ == errors.__name__]
    return [each for kind in below for each in (kind, *error_types(kind))]


def _statuses(kind: type[AutoencoderError]) -> tuple[str, str]:
    """As the service's own routes and as those of other protocols answer it; nothing for errors of the command line."""
    if not any(base in STATUS for base in kind.__mro__):
        return "", ""
    error = kind([]) if issubclass(kind, InvalidRows) else kind("")
    status = status_of(error, PROTOCOL_STATUS)
    return str(status_of(error)), f"{status}, {code(CODES[status].name)}" if status in CODES else str(status)


def _problem_field(schema: dict[str, Any]) -> str:
    if schema["type"] != "array":
        return {"string": "text", "integer": "whole number"}[schema["type"]]
    names = codes(schema["items"]["properties"])
    return f"at most {schema['maxItems']} objects of {names}: what is wrong with which value"


# --- alerts ---------------------------------------------------------------------------------------------------------


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


def alerts_page() -> str:
    parts = []
    for rule in alerts():
        notes = rule["annotations"]
        parts += [
            f"## {rule['alert']}",
            f"{rule['labels']['severity'].capitalize()}, after {rule['for']}. {code(notes['summary'])}",
            " ".join(notes.get("description", "").split()),
            f"```\n{rule['expr'].strip()}\n```",
            f"[What to do](../how-to/operator.md#{rule['alert'].lower()})",
        ]
    return page(
        "Alerts",
        "Rules for Prometheus in [deploy/observability/alerts.yml](../../deploy/observability/alerts.yml), which "
        "`docker compose --profile observability up` loads; `promtool test rules` checks them against "
        "[alerts_test.yml](../../deploy/observability/alerts_test.yml).",
        *parts,
    )
