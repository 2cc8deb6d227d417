"""The service on Ray Serve: a real cluster of several nodes, real HTTP, a node killed under load."""

import io
import json
import shutil
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx2 as httpx
import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

from service.api.access import hash_key
from service.api.ray_serve import Reports, Scale, _placed, _reason, check_replica
from service.cli import app
from service.errors import ConfigurationError, NotReady
from service.runtime import ModelManager
from service.runtime.loaded_model import load_version
from service.schemas import INSTANCES
from service.settings import Settings
from tests.api import samples
from tests.api.processes import ServiceProcess, running
from tests.api.raw import chunk, connect, head
from tests.ray_cluster import NODE, await_true, processes_of, ray_cluster

KEY = "a key of these tests"
on_a_cluster = [pytest.mark.tf, pytest.mark.slow, pytest.mark.cluster, pytest.mark.filterwarnings("ignore")]

# --- without a cluster ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--host", "0.0.0.0"], "can be reached from other machines"),
        (["--workers", "2"], "say --min-replicas instead of --workers"),
        (["--min-replicas", "3", "--max-replicas", "2"], "--max-replicas must not be less"),
        (["--store", "nowhere"], "cannot be served"),
    ],
)
def test_what_cannot_be_is_one_sentence(fake_store: Path, options: list[str], sentence: str) -> None:
    """Known before a cluster is looked for."""
    result = CliRunner().invoke(app, ["serve", "--engine", "ray", "--store", str(fake_store), *options])
    assert result.exit_code == 1
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1


def test_options_of_replicas_are_for_ray(fake_store: Path) -> None:
    """Without it they would do nothing."""
    result = CliRunner().invoke(app, ["serve", "--store", str(fake_store), "--max-replicas", "2"])
    assert (result.exit_code, "--engine ray" in result.stderr) == (1, True)


def test_a_cluster_that_is_not_there(fake_store: Path) -> None:
    """Known at once, not after the minutes that Ray tries."""
    pytest.importorskip("ray", reason="pip install 'autoencoder-service[ray]'")
    arguments = ["serve", "--engine", "ray", "--store", str(fake_store), "--address", "127.0.0.1:1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "No Ray cluster answers at 127.0.0.1:1" in result.stderr


def test_where_it_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port of its own on a new cluster; on one where Ray Serve runs, nobody without a key."""
    monkeypatch.chdir(tmp_path)
    own = _placed(Settings(store="store", port=0), runs_already=False, on_new_cluster=True)
    assert own.port > 0
    assert own.store == tmp_path / "store"
    with pytest.raises(ConfigurationError, match="name it by --port"):
        _placed(Settings(port=0), runs_already=False, on_new_cluster=False)
    with pytest.raises(ConfigurationError, match="AUTOENCODER_KEY_HASHES"):
        _placed(Settings(), runs_already=True, on_new_cluster=False)
    keys = Settings(store="s3://bucket/models", key_hashes=(hash_key(KEY),))
    assert _placed(keys, runs_already=True, on_new_cluster=False).store == "s3://bucket/models"


def test_scale_is_checked() -> None:
    """At least one replica, and no more at least than at most."""
    assert Scale(2, 5).max_replicas == 5
    with pytest.raises(ConfigurationError):
        Scale(2, 1)


def test_reports_are_those_of_replicas_that_live() -> None:
    """What says nothing any more is left out after a while."""
    now = 0.0
    reports = Reports(clock=lambda: now)
    reports.exchange("a", b"1")
    assert reports.exchange("b", b"2") == {"a": b"1", "b": b"2"}
    now = 29.0
    reports.exchange("b", b"3")
    now = 31.0
    assert reports.exchange("b", b"4") == {"b": b"4"}


@pytest.mark.parametrize(
    ("reason", "has_failures", "healthy"),
    [
        (None, True, True),
        ("No model is loaded yet.", False, True),
        ("No version of model 'pumps' is available.", True, False),
    ],
)
def test_health_is_what_another_process_could_do_better(reason: Any, has_failures: bool, healthy: bool) -> None:
    """An empty store makes no replica ill; a version that does not load does, where nothing else answers."""
    manager = cast("ModelManager", SimpleNamespace(not_ready_reason=reason, has_failures=has_failures))
    if healthy:
        check_replica(manager)
    else:
        with pytest.raises(NotReady):
            check_replica(manager)


def test_reason_of_a_failed_start() -> None:
    """Our own error, of all that Ray Serve reports."""
    stack = 'Traceback (most recent call last):\n  File "x.py"\nservice.errors.NotReady: No version is available.\nEnd.'
    assert _reason(stack) == "No version is available."
    assert _reason("") == "see the logs of the cluster"


# --- on one ---------------------------------------------------------------------------------------------------------


@dataclass
class Live:
    cluster: Any
    store: Path
    process: ServiceProcess
    http: httpx.Client

    def post(self, path: str, **arguments: Any) -> httpx.Response:
        return self.http.post(path, **arguments)

    def replicas(self) -> dict[str, set[str]]:
        """Loaded versions of ``digits`` by replica, as /metrics has them."""
        found: dict[str, set[str]] = {}
        for family in text_string_to_metric_families(self.http.get("/metrics").text):
            for sample in family.samples:
                if sample.name == "autoencoder_version_loaded" and sample.labels["model"] == "digits":
                    found.setdefault(sample.labels["replica"], set())
                    if sample.value:
                        found[sample.labels["replica"]].add(sample.labels["version"])
        return found


@pytest.fixture(scope="module")
def live(trained_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """The command on a cluster of two nodes with a replica each. ``digits`` 2 is not published yet."""
    store = Path(shutil.copytree(trained_store, tmp_path_factory.mktemp("ray") / "store"))
    shutil.move(store / "digits/2", store.parent / "digits-2")
    with ray_cluster(2) as cluster, socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        sock.close()
        command = ["service.cli", "serve", "--engine", "ray", "--address", cluster.address, "--port", str(port)]
        command += ["--min-replicas", "2", "--store", str(store), "--default-model", "digits", "--log-format", "json"]
        keys = {"AUTOENCODER_KEY_HASHES": hash_key(KEY), "AUTOENCODER_WATCH_INTERVAL_S": "0.5"}
        headers = {"X-API-Key": KEY}
        with (
            running(command, user=None, **keys) as process,
            httpx.Client(base_url=process.url, timeout=30, trust_env=False, headers=headers) as http,
        ):
            yield Live(cluster, store, process, http)


class Load:
    """Rows one by one from several threads, over connections of their own; a broken one is opened again."""

    def __init__(self, url: str, path: str, rows: list[Any], right: Callable[[int, dict[str, Any]], bool]) -> None:
        self.answers: Counter[str] = Counter()
        self.last_failure_at = 0.0
        self.wrong: list[str] = []
        self._url, self._path, self._rows, self._right = url, path, rows, right
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(seed,)) for seed in range(4)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, at: int) -> None:
        while not self._stop.is_set():
            with (
                httpx.Client(base_url=self._url, timeout=20, trust_env=False, headers={"X-API-Key": KEY}) as http,
            ):
                while not self._stop.is_set():
                    at = (at + 1) % len(self._rows)
                    try:
                        answer = http.post(self._path, json={"instances": [self._rows[at]]})
                    except httpx.TransportError as error:
                        self._failed(type(error).__name__)
                        break
                    if answer.status_code != 200:
                        self._failed(str(answer.status_code))
                        continue
                    self.answers["right" if self._right(at, answer.json()) else "wrong"] += 1

    def _failed(self, kind: str) -> None:
        self.answers[kind] += 1
        self.last_failure_at = time.monotonic()


class TestLive:
    """One service for all of these, in this order."""

    pytestmark = on_a_cluster

    def test_scores_are_those_of_the_signature(self, live: Live) -> None:
        """In one request and row by row, on whatever replica."""
        rows = samples.payments(40)
        bare = load_version(live.store / "payments/1").run("anomaly_score", {INSTANCES: rows})["score"]
        path = "/models/payments/anomaly-score"
        at_once = live.post(path, json={"instances": rows.tolist()}).json()["scores"]
        one_by_one = [live.post(path, json={"instances": [row]}).json()["scores"][0] for row in rows.tolist()]
        np.testing.assert_allclose(at_once, bare, rtol=1e-5)
        np.testing.assert_allclose(one_by_one, bare, rtol=1e-5)

    def test_contract(self, live: Live) -> None:
        """Operations, headers, problems, keys and deadlines are those of the service without Ray."""
        body = {"instances": samples.digits(2).tolist()}
        for operation in samples.OPERATIONS:
            answer = live.post(f"/{operation}", json=body, headers={"X-Request-ID": "mine-1"})
            assert answer.status_code == 200
            assert (answer.headers["x-model-name"], answer.headers["x-model-version"]) == ("digits", "1")
            assert answer.headers.get_list("x-request-id") == ["mine-1"]
        samples.assert_problem(live.post("/encode", json={"instances": [[1, 2]]}), 422)
        samples.assert_problem(live.post("/encode", content=b"{", headers={"Content-Type": "application/json"}), 400)
        samples.assert_problem(live.post("/models/nothing/encode", json=body), 404)
        samples.assert_problem(live.http.get("/nothing"), 404)
        samples.assert_problem(live.post("/encode", content=b"x", headers={"Content-Type": "text/plain"}), 415)
        samples.assert_problem(live.post("/encode", json=body, headers={"X-API-Key": "no"}), 401)
        assert live.http.get("/readyz").json() == {"ready": True}
        assert live.http.get("/v1/models/digits").status_code == 200
        assert live.http.get("/openapi.json").json()["info"]["title"] == "Autoencoder Service"

    def test_encodings(self, live: Live) -> None:
        """npy, Arrow and compressed JSON give the numbers that JSON gives."""
        rows = samples.payments(20)
        path = "/models/payments/anomaly-score"
        expected = live.post(path, json={"instances": rows.tolist()}, headers={"Accept-Encoding": "gzip"}).json()
        packed = io.BytesIO()
        np.save(packed, rows)
        npy = {"Content-Type": "application/x-npy", "Accept": "application/x-npy"}
        answer = live.post(path, content=packed.getvalue(), headers=npy)
        np.testing.assert_allclose(np.load(io.BytesIO(answer.content)), expected["scores"], rtol=1e-5)
        table = pa.table(samples.in_columns(rows))
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        arrow = dict.fromkeys(("Content-Type", "Accept"), "application/vnd.apache.arrow.stream")
        answer = live.post(path, content=sink.getvalue().to_pybytes(), headers=arrow)
        scored = pa.ipc.open_stream(answer.content).read_all()
        np.testing.assert_allclose(scored["scores"].to_numpy(), expected["scores"], rtol=1e-5)

    def test_a_stream_is_answered_while_it_is_sent(self, live: Live) -> None:
        """The answer to a line is there before the next line is sent; all are those of one request."""
        rows = samples.payments(50).tolist()
        path = "/models/payments/anomaly-score"
        lines = [json.dumps(row).encode() + b"\n" for row in rows]
        with connect(live.process.url) as connection:
            given = {"Content_Type": "application/x-ndjson", "Transfer_Encoding": "chunked", "X_API_Key": KEY}
            connection.send(head(path, **given) + chunk(lines[0]))
            with HTTPResponse(connection.sock) as response:
                response.begin()
                scores = [json.loads(response.readline())["score"]]
                for line in lines[1:]:
                    connection.send(chunk(line))
                    scores.append(json.loads(response.readline())["score"])
                connection.send(chunk(b""))
                assert response.read() == b""
        whole = live.post(path, json={"instances": rows}).json()["scores"]
        np.testing.assert_allclose(scores, whole, rtol=1e-5)

    def test_metrics_are_those_of_all_replicas(self, live: Live) -> None:
        """Whichever replica is asked."""
        await_true(lambda: len(live.replicas()) == 2, "one replica does not report")

    def test_a_version_is_published_under_load(self, live: Live) -> None:
        """Every replica takes it; no request fails, and each is answered by the version that it names."""
        rows = samples.digits(8)
        shutil.copytree(live.store.parent / "digits-2", live.store.parent / "loadable/digits/2")
        models = (live.store / "digits/1", live.store.parent / "loadable/digits/2")
        scores = [load_version(path).run("anomaly_score", {INSTANCES: rows})["score"] for path in models]

        def right(at: int, answer: dict[str, Any]) -> bool:
            expected = scores[answer["model"]["version"] - 1][at]
            return bool(np.isclose(answer["scores"][0], expected, rtol=1e-5))

        with Load(live.process.url, "/anomaly-score", rows.tolist(), right) as load:
            time.sleep(1)
            shutil.move(live.store.parent / "digits-2", live.store / "digits/2")
            await_true(lambda: list(live.replicas().values()) == [{"1", "2"}] * 2, "a replica has no version 2")
            time.sleep(0.5)
        assert set(load.answers) == {"right"}
        assert load.answers["right"] > 50
        versions = {live.post("/encode", json={"instances": rows.tolist()}).json()["model"]["version"] for _ in "0123"}
        assert versions == {2}

    def test_a_node_is_killed_under_load(self, live: Live) -> None:
        """What it was answering fails; no answer is wrong, and soon two replicas answer everything again."""
        rows = samples.payments(50)
        scores = load_version(live.store / "payments/1").run("anomaly_score", {INSTANCES: rows})["score"]
        doomed = next(node for node in live.cluster.worker_nodes if processes_of(node, "ServeReplica"))
        live.cluster.add_node(**NODE)

        def right(at: int, answer: dict[str, Any]) -> bool:
            return bool(np.isclose(answer["scores"][0], scores[at], rtol=1e-5))

        before = set(live.replicas())
        with Load(live.process.url, "/models/payments/anomaly-score", rows.tolist(), right) as load:
            time.sleep(1)
            live.cluster.remove_node(doomed, allow_graceful=False)
            nodes = live.cluster.worker_nodes
            await_true(lambda: all(processes_of(node, "ServeReplica") for node in nodes), "no replica in its place")
            with httpx.Client(
                base_url=live.process.url, timeout=10, trust_env=False, headers=live.http.headers
            ) as http:
                live.http = http
                await_true(lambda: len(set(live.replicas()) - before) == 1, "the new replica does not report")
            answered = load.answers["right"]
            time.sleep(1.5)
            recovered_for_s = time.monotonic() - load.last_failure_at
        assert load.answers["wrong"] == 0
        assert load.answers["right"] > answered
        assert recovered_for_s > 1
        assert load.answers["right"] > 20 * (load.answers.total() - load.answers["right"])

    def test_stop(self, live: Live) -> None:
        """SIGTERM ends the application and Ray Serve with exit code 0; the cluster stays."""
        live.process.process.terminate()
        assert live.process.process.wait(60) == 0
        assert not any(processes_of(node, "ServeReplica") for node in live.cluster.worker_nodes)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{live.process.url}/livez", trust_env=False)
