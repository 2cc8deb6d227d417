"""The console's files, what a version shows of itself, and the service's last quarter of an hour."""

import gzip
import hashlib
import json
import re
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from service.api import console
from service.api.access import hash_key
from service.api.activity import KEPT_INTERVALS, METRICS, ActivityLog, Reading, outcome_of, quantile_ms, read
from service.scoring import conformal_threshold
from service.store import MODEL_CARD, Store
from service.telemetry import Telemetry
from tests.api.samples import assert_problem, payments
from tests.fakes import load_fake
from tests.live import LiveService

Serve = Callable[..., LiveService]

UI = Path(str(files("service.api") / "static" / "ui"))
ROOT = Path(__file__).parents[2]

# --- static files -----------------------------------------------------------------------------------------------------


def test_the_page_may_load_nothing_from_elsewhere(fake_service: LiveService) -> None:
    """A strict policy, no inline script or style, and only relative addresses."""
    page = fake_service.get("/ui")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'self';")
    assert "unsafe" not in policy
    assert "<style" not in page.text
    assert not re.findall(r"<script(?![^>]*src=)|\son\w+=|\sstyle=", page.text)
    for address in re.findall(r"""(?:src|href)=["']([^"']+)["']""", page.text):
        assert not address.startswith(("/", "http"))
        assert fake_service.get(f"/{address}").status_code == 200, address


def test_no_file_of_the_console_names_another_host() -> None:
    """Not even a library's; licences may, and namespaces are no addresses to load from."""
    for file in [*UI.rglob("*.js"), *UI.rglob("*.css"), *UI.rglob("*.html")]:
        text = re.sub(r"https?://(www\.w3\.org|github\.com/leeoniya)\S*", "", file.read_text(encoding="utf-8"))
        assert not re.findall(r"""["'(]https?://[a-z]""", text), file.name


@pytest.mark.parametrize("path", ["/ui", "/ui/console.js", "/ui/vendor/preact.js"])
def test_files_are_compressed_and_not_sent_twice(fake_service: LiveService, path: str) -> None:
    """gzip where it is accepted; 304 to who has it."""
    packed = fake_service.get(path, headers={"Accept-Encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    plain = fake_service.get(path, headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.content == packed.content
    assert plain.headers["vary"] == "Accept-Encoding"
    again = fake_service.get(path, headers={"If-None-Match": plain.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "path", ["/ui/nothing.js", "/ui/../app.py", "/ui/%2e%2e/%2e%2e/app.py", "/ui/vendor", "/ui/vendor/"]
)
def test_nothing_but_the_files_of_the_console_is_served(fake_service: LiveService, path: str) -> None:
    """404 for everything else."""
    assert fake_service.get(path).status_code == 404


def test_the_address_with_a_slash_leads_to_the_one_without(fake_store: Path, serve: Serve) -> None:
    """So that relative links hold, also behind a prefix."""
    service = serve(fake_store, load=load_fake, root_path="/models-api")
    response = service.get("/ui/")
    assert (response.status_code, response.headers["location"]) == (308, "/models-api/ui")
    assert service.get("/ui").status_code == 200


def test_vendored_libraries_are_the_locked_ones_with_their_licences() -> None:
    """Digests that `make vendor` wrote; no registry in the lock file."""
    digests = json.loads((ROOT / "tools/console/digests.json").read_text())
    vendored = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (UI / "vendor").iterdir()}
    assert vendored == digests["files"]
    lock = json.loads((ROOT / "tools/console/package-lock.json").read_text())
    packages = {name: entry["version"] for name, entry in lock["packages"].items() if name}
    assert packages == {f"node_modules/{name}": version for name, version in digests["packages"].items()}
    assert all("resolved" not in entry for entry in lock["packages"].values())
    assert {f"LICENSE-{name}.txt" for name in digests["packages"]} <= set(vendored)


def test_all_files_together_are_small() -> None:
    """Even everything at once stays under the bound of the first view."""
    assert sum(len(gzip.compress(file.content)) for file in console.console_files().values()) < 300_000


# --- what belongs to a version ----------------------------------------------------------------------------------------


@pytest.mark.tf
def test_the_calibration_says_what_each_rate_asks_of_the_threshold(service: LiveService, trained_store: Path) -> None:
    """All calibration scores in the histogram; thresholds as ``service.scoring`` has them."""
    shown = service.get("/models/payments/versions/1/calibration").json()
    calibration = Store(trained_store).manifest("payments", 1).calibrated
    assert sum(shown["histogram"]["counts"]) == shown["rows"] == calibration.rows
    assert len(shown["histogram"]["edges"]) == len(shown["histogram"]["counts"]) + 1
    assert shown["threshold"] == calibration.threshold
    for each in shown["thresholds"]:
        expected = float(conformal_threshold(calibration.scores, each["false_alarm_rate"]))
        assert each["threshold"] == pytest.approx(expected, rel=0.05)
    thresholds = [each["threshold"] for each in shown["thresholds"]]
    assert thresholds == sorted(thresholds, reverse=True)


@pytest.mark.tf
def test_the_sample_request_can_be_posted(service: LiveService) -> None:
    """As it stands."""
    sample = service.get("/models/digits/versions/2/sample-request")
    assert sample.headers["content-type"] == "application/json"
    assert service.post("/models/digits/versions/2/anomaly-score", json=sample.json()).status_code == 200


@pytest.mark.tf
def test_a_latent_has_its_place_on_the_map(service: LiveService) -> None:
    """A test row, encoded and projected with the map's own components, is one of the map's points."""
    space = service.get("/models/digits/versions/2/latent-map").json()
    sample = service.get("/models/digits/versions/2/sample-request").json()
    latents = np.array(service.post("/models/digits/versions/2/encode", json=sample).json()["latents"])
    places = (latents - space["mean"]) @ np.array(space["components"]).T[:, :2]
    points = np.column_stack([space["x"], space["y"]])
    nearest = np.linalg.norm(points[:, None] - places, axis=2).min(axis=0)
    assert (nearest < 0.01 * np.abs(points).max()).all()
    assert len(space["score"]) == len(points)
    assert space["tsne"] is not None
    assert sum(space["explained"]) <= 1.001


@pytest.mark.tf
def test_a_version_names_and_serves_its_exhibits(service: LiveService) -> None:
    """Each one that it names is there, with its digest as ETag; a table has no traversals."""
    for model, version in (("digits", 2), ("payments", 1)):
        base = f"/models/{model}/versions/{version}"
        named = service.get(base).json()["exhibits"]
        assert {"sample-request", "history", "latent-map", "plots/losses"} <= set(named)
        assert ("traversals" in named) == (model == "digits")
        for route in named:
            response = service.get(f"{base}/{route}")
            assert response.status_code == 200
            assert response.headers["x-content-type-options"] == "nosniff"
            again = service.get(f"{base}/{route}", headers={"If-None-Match": response.headers["etag"]})
            assert again.status_code == 304
    assert service.get("/models/digits/versions/2/traversals").content.startswith(b"\x89PNG")
    history = service.get("/models/digits/versions/2/history").json()
    assert len(history["train_loss"]) == len(history["validation_loss"]) >= history["best_epoch"] >= 1


@pytest.mark.parametrize("route", ["sample-request", "latent-map", "traversals", "history", "report", "plots/losses"])
def test_a_version_trained_before_has_none_and_says_so(fake_service: LiveService, route: str) -> None:
    """404 with a sentence; the version itself lists nothing."""
    problem = assert_problem(fake_service.get(f"/models/pumps/versions/1/{route}"), 404)
    assert "train again" in problem["detail"]
    assert fake_service.get("/models/pumps/versions/1").json()["exhibits"] == []


def test_an_unknown_plot_is_refused(fake_service: LiveService) -> None:
    """Names of plots are a fixed list, no paths."""
    assert_problem(fake_service.get("/models/pumps/versions/1/plots/..%2fmanifest"), 404)
    assert_problem(fake_service.get("/models/pumps/versions/1/plots/other"), 422)


def test_a_model_tells_where_a_roll_back_leads(fake_store: Path, serve: Serve) -> None:
    """``earlier``: empty at first, then the version that the alias named before."""
    service = serve(fake_store, load=load_fake)
    assert service.get("/models/pumps").json()["earlier"] == {}
    for version in (1, 2):
        service.http.put("/models/pumps/aliases/production", json={"version": version})
    assert service.get("/models/pumps").json()["earlier"] == {"production": 1}


def test_a_model_card_is_html_in_which_no_name_is_markup(fake_store: Path, serve: Serve) -> None:
    """Headings, tables and code; without title and pictures, which the page has itself."""
    cells = "| <img src=x onerror=alert(1)> | [go](javascript:alert(1)) |"
    card = f"# Model <b>x</b>\n\n## Rows\n\n| a | b |\n| --- | --- |\n{cells}\n"
    card += "\n![Losses](plots/losses.png)\n\n```\ncurl <url>\n```\n"
    path = fake_store / "pumps" / "1" / MODEL_CARD
    path.write_text(card, encoding="utf-8")
    answer = serve(fake_store, load=load_fake).get("/models/pumps/versions/1/model-card")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert set(re.findall(r"<(\w+)", answer.text)) == {
        "h3",
        "div",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "pre",
        "code",
    }
    assert "&lt;img" in answer.text
    assert "Model" not in answer.text


# --- activity ---------------------------------------------------------------------------------------------------------


def test_outcomes() -> None:
    """Statuses as people tell them apart."""
    assert [outcome_of(status) for status in (200, 304, 404, 422, 429, 500, 503, 504)] == [
        "ok", "ok", "rejected", "rejected", "refused", "failed", "refused", "refused",
    ]  # fmt: skip


def test_quantiles_of_a_histogram() -> None:
    """Linear within a bucket; nothing of nothing; over the last edge counts as that edge."""
    counts = {0.001: 0.0, 0.01: 100.0, float("inf"): 100.0}
    assert quantile_ms(counts, 0.5) == pytest.approx(5.5)
    assert quantile_ms({0.001: 0.0, float("inf"): 0.0}, 0.5) is None
    assert quantile_ms({0.001: 0.0, float("inf"): 10.0}, 0.99) == pytest.approx(1.0)


def test_the_window_is_bounded_and_holds_differences() -> None:
    """The last intervals only, each with the difference of two readings."""
    activity = ActivityLog(Telemetry())
    for at in range(KEPT_INTERVALS + 20):
        counts = {"requests_total": 10, "rows_total": 30, "scored_rows_total": 3, "anomalies_total": 1}
        reading = _reading({name: count * at for name, count in counts.items()})
        reading = {**reading, "request_seconds_bucket": {("0.01",): 2.0 * at}, "queue_rows": {(): 5.0}}
        activity.add(reading, now=2.0 * at, at=1000.0 + at)
    assert len(activity.intervals) == KEPT_INTERVALS
    last = activity.intervals[-1]
    assert (last.requests["ok"], last.events("rows_total"), last.events("scored_rows_total")) == (10, 30, 3)
    assert (last.events("anomalies_total"), last.gauge("queue_rows"), last.seconds) == (1, 5, 2)
    assert last.latency_ms["request"][0] == pytest.approx(5.0)
    assert last.latency_ms["model"] == (None, None)


def _reading(counts: dict[str, float]) -> Reading:
    samples: dict[str, dict[tuple[str, ...], float]] = {
        name: {("200",) if name == "requests_total" else (): count} for name, count in counts.items()
    }
    return {name: samples.get(name, {}) for name in METRICS}


def test_a_worker_that_took_its_counts_with_it_is_no_negative_traffic() -> None:
    """Counts may fall when a process is replaced."""
    activity = ActivityLog(Telemetry())
    for rows in (100.0, 40.0):
        activity.add(_reading({"requests_total": rows, "rows_total": rows}), now=rows, at=rows)
    assert activity.intervals[-1].events("rows_total") == 0
    assert activity.intervals[-1].requests["ok"] == 0


def test_a_reading_sums_the_metrics() -> None:
    """Over operations, models and statuses."""
    telemetry = Telemetry()
    telemetry.request_finished("encode", "a", 200, 0.002)
    telemetry.request_finished("anomaly_score", "b", 200, 0.002)
    telemetry.request_finished("anomaly_score", "b", 429, 0.002)
    telemetry.rows_answered("encode", "a", 7)
    telemetry.rows_answered("anomaly_score", "b", 5)
    telemetry.rows_scored("b", 1, np.array([0.5, 0.001], np.float32), np.array([False, True]))
    telemetry.queue_changed(1, 9, 100)
    reading = read(telemetry.families())
    assert reading["requests_total"] == {("200",): 2, ("429",): 1}
    sums = {"rows_total": 12, "scored_rows_total": 2, "anomalies_total": 1, "queue_rows": 9}
    assert {name: reading[name][()] for name in sums} == sums
    assert reading["request_seconds_bucket"]["+Inf",] == 3


@pytest.mark.tf
@pytest.mark.parametrize("keeps", [False, True])
def test_activity_shows_traffic_and_alerts(trained_store: Path, serve: Serve, keeps: bool) -> None:
    """An alert names its columns; their values only where the setting keeps them."""
    service = serve(trained_store, default_model="digits", alert_values=keeps)
    service.service.activity.interval_s = 0.05
    rows = payments(3).tolist()
    rows[1][0] = 50_000.0
    sent = {"instances": _named(rows)}
    answer = service.post("/models/payments/anomaly-score", json=sent, headers={"X-Request-ID": "order-7"})
    assert answer.json()["is_anomaly"][1]
    assert "1" in answer.headers["x-flagged-rows"].split(",")
    deadline = time.monotonic() + 30
    while True:
        shown = service.get("/activity").json()
        alert = next((alert for alert in shown["alerts"] if alert["row"] == 1 and alert["columns"]), None)
        if alert is not None and sum(shown["scored_rows"]) >= 3:
            break
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (alert["model"], alert["version"], alert["request_id"]) == ("payments", 1, "order-7")
    assert alert["values"] == (pytest.approx(sent["instances"][1]) if keeps else None)
    assert alert["columns"][0]["feature"] == "amount"
    assert set(alert["columns"][0]) == {"feature", "share"} | ({"observed", "expected"} if keeps else set())
    assert ("50000" in service.get("/activity").text) == keeps
    assert sum(shown["anomalies"]) >= 1
    assert any(value is not None for value in shown["latency"]["request"]["p99_ms"])


def _named(rows: list[list[float]]) -> list[dict[str, float]]:
    from tests.conftest import COLUMNS

    return [dict(zip(COLUMNS, row, strict=True)) for row in rows]


def test_activity_needs_a_key_and_the_console_does_not(fake_store: Path, serve: Serve) -> None:
    """The page is open, all that it shows is not."""
    service = serve(fake_store, load=load_fake, key_hashes=(hash_key("caller"),))
    assert service.get("/ui").status_code == 200
    assert_problem(service.get("/activity"), 401)
    assert_problem(service.get("/models/pumps/versions/1/calibration"), 401)
    assert service.get("/activity", headers={"X-API-Key": "caller"}).status_code == 200
