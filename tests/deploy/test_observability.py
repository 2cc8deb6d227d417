"""Alert rules and dashboard name metrics that exist, and a real Prometheus takes all of it."""

import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import yaml

from service.telemetry import METRICS_CONTENT_TYPE, P_VALUE_EDGES, Telemetry

OBSERVABILITY = Path(__file__).parents[2] / "deploy" / "observability"
RULES: dict[str, Any] = yaml.safe_load((OBSERVABILITY / "alerts.yml").read_text())
DASHBOARD: dict[str, Any] = json.loads((OBSERVABILITY / "grafana" / "dashboards" / "service.json").read_text())

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None, reason="Prometheus is not installed"
)


def rule_expressions() -> list[str]:
    return [rule["expr"] for group in RULES["groups"] for rule in group["rules"]]


def dashboard_expressions() -> list[str]:
    """As Grafana sends them: variables replaced."""
    expressions = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    return [text.replace("$model", ".*").replace("$__rate_interval", "10s") for text in expressions]


def used_telemetry() -> Telemetry:
    """A process that has seen a bit of everything: a request that worked, one that failed, one refused."""
    telemetry = Telemetry()
    telemetry.models_changed({("digits", 1)}, ready=True)
    telemetry.request_finished("anomaly-score", "digits", 200, 0.004)
    telemetry.request_finished("anomaly-score", "digits", 500, 0.004)
    telemetry.rows_answered("anomaly-score", "digits", 3)
    for stage in ("decode", "encode"):
        telemetry.stage_took(stage, 0.001)
    telemetry.batch_ran(3, 0.001, 0.002)
    telemetry.queue_changed(1, 3, 768)
    telemetry.refused("queue_full")
    telemetry.rows_scored("digits", 1, np.asarray([0.002, 0.4, 0.9], np.float32), np.asarray([True, False, False]))
    telemetry.loop_lagged(0.001)
    return telemetry


def test_every_metric_that_is_looked_at_exists() -> None:
    """A renamed metric would leave an empty panel, or an alert that never fires."""
    exposed = set(re.findall(r"^(autoencoder_\w+)", used_telemetry().exposition().decode(), re.MULTILINE))
    named = set(re.findall(r"(?<!:)\bautoencoder_\w+", "\n".join(rule_expressions() + dashboard_expressions())))
    assert len(named) > 10
    assert named <= exposed


def test_p_values_are_cut_at_edges_of_the_metric() -> None:
    """The share of small p-values is a sum of buckets: it must be all those up to 0.01."""
    [expression] = [text for text in rule_expressions() if text.count("[1h]") == 2 and "p_value_up_to" in text]
    buckets = re.search(r'p_value_up_to=~"([^"]+)"', expression)
    assert buckets is not None
    assert buckets[1].split("|") == [str(edge) for edge in P_VALUE_EDGES if edge <= 0.01]


def test_every_alert_has_a_fault_in_the_rule_tests() -> None:
    """alerts_test.yml makes each alert fire once."""
    tests = yaml.safe_load((OBSERVABILITY / "alerts_test.yml").read_text())["tests"]
    fired = {check["alertname"] for test in tests for check in test["alert_rule_test"] if check.get("exp_alerts")}
    assert fired == {rule["alert"] for group in RULES["groups"] for rule in group["rules"] if "alert" in rule}


@needs_prometheus
def test_alerts_fire_on_their_faults_only() -> None:
    """promtool runs alerts_test.yml."""
    answer = subprocess.run(
        ["promtool", "test", "rules", "alerts_test.yml"], cwd=OBSERVABILITY, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr


@contextmanager
def serving(telemetry: Telemetry) -> Iterator[str]:
    """``host:port`` of a server whose every answer is the exposition."""

    class Exposition(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", METRICS_CONTENT_TYPE)
            self.end_headers()
            self.wfile.write(telemetry.exposition())

        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Exposition)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[httpx2.Client]:
    """A client of a Prometheus that runs with our configuration, but scrapes ``target`` and does so often."""
    config = yaml.safe_load((OBSERVABILITY / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "200ms", "evaluation_interval": "200ms"}
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [target]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    shutil.copy(OBSERVABILITY / "alerts.yml", folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = ["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=tsdb"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={address}"], cwd=folder, stdout=log, stderr=log)
    try:
        with httpx2.Client(base_url=f"http://{address}", trust_env=False) as client:
            yield client
    finally:
        process.terminate()
        process.wait(timeout=20)


def query(client: httpx2.Client, expression: str) -> list[dict[str, Any]]:
    response = client.get("/api/v1/query", params={"query": expression})
    if response.status_code == 503:
        return []  # it listens already, and reads its log still
    answer = response.json()
    assert answer["status"] == "success", f"{expression}: {answer}"
    result: list[dict[str, Any]] = answer["data"]["result"]
    return result


def eventually(client: httpx2.Client, expression: str) -> list[dict[str, Any]]:
    """The result of ``expression`` once it has one."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            if result := query(client, expression):
                return result
        except httpx2.TransportError:
            pass  # it is still starting
        time.sleep(0.1)
    raise AssertionError(f"No result for {expression}")


@pytest.mark.slow
@needs_prometheus
def test_real_prometheus_answers_every_panel(tmp_path: Path) -> None:
    """Prometheus scrapes the exposition, takes the rules, and has an answer to each expression of the dashboard."""
    with serving(used_telemetry()) as target, prometheus(tmp_path, target) as client:
        [ready] = eventually(client, 'autoencoder_ready{job="autoencoder"}')
        assert ready["value"][1] == "1"
        [rows] = query(client, "sum(autoencoder_scored_rows_total)")
        assert rows["value"][1] == "3"
        for expression in dashboard_expressions():
            eventually(client, expression)
        groups = client.get("/api/v1/rules").json()["data"]["groups"]
        health = {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}
        assert len(health) == len(rule_expressions())
        assert set(health.values()) == {"ok"}
