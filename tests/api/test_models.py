"""Model routes, aliases that take effect at once, failed versions, probes, metrics and the offline documentation."""

import re
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.api.access import hash_key
from service.api.errors import status_of
from service.errors import InvalidVersion, StoreReadOnly
from service.runtime.loaded_model import LoadedModel
from service.settings import Settings
from service.store import ASSETS, MANIFEST, Store
from tests.api.samples import assert_problem, digits, payments
from tests.conftest import COLUMNS
from tests.fakes import MODEL, Gate, load_fake, publish_fake
from tests.live import LiveService, serve_live

Serve = Callable[..., LiveService]

JSON = {"Content-Type": "application/json"}
ROWS = [[1.0, 2.0]]
WAIT_S = 30


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.01)


def version_of(service: LiveService, path: str = "/encode") -> int:
    response = service.post(path, json={"instances": ROWS})
    assert response.status_code == 200, response.text
    version: int = response.json()["model"]["version"]
    return version


def load_but(*bad: int) -> Callable[[Path], LoadedModel]:
    """A loader for which some versions are damaged."""

    def load(path: Path) -> LoadedModel:
        if int(path.name) in bad:
            raise InvalidVersion("variables/variables.index is not what was published.")
        return load_fake(path)

    return load


def test_a_model_of_another_program_is_explained(serve: Serve, tmp_path: Path) -> None:
    """What ``model.export("store/ae/1")`` leaves: failed, with the command, wherever one looks."""
    root = tmp_path / "store"
    (root / "ae" / "1").mkdir(parents=True)
    (root / "ae" / "1" / "saved_model.pb").touch()
    service = serve(root, load=load_fake)
    command = "`autoencoder import ae/1 --rows ROWS`"
    wait_until(lambda: bool(service.get("/models").json()["models"]))
    (listed,) = service.get("/models").json()["models"][0]["versions"]
    assert (listed["version"], listed["state"]) == (1, "failed")
    ready = service.get("/readyz")
    assert ready.status_code == 503
    assert service.get("/models/ae").json()["version"] is None
    absent = service.get("/models/ae/versions/1")
    assert absent.status_code == 404
    refused = service.post("/models/ae/encode", json={"instances": ROWS})
    assert refused.status_code == 503
    for text in (listed["reason"], ready.json()["reason"], absent.json()["detail"], refused.json()["detail"]):
        assert command in text


# --- what is in the store ---------------------------------------------------------------------------------------------


@pytest.mark.tf
def test_models_lists_all_of_the_store(service: LiveService) -> None:
    """Every model with its versions, their state, aliases and the default version."""
    answer = service.get("/models").json()
    models = {model["name"]: model for model in answer["models"]}
    assert set(models) == {"digits", "payments"}
    assert [version["version"] for version in models["digits"]["versions"]] == [1, 2]
    assert all(version["state"] == "available" for model in models.values() for version in model["versions"])
    assert models["digits"]["aliases"] == {"stable": 1}
    assert models["digits"]["default_version"] == 2
    assert answer["default_model"] == "digits"
    assert answer["store_problem"] is None


@pytest.mark.tf
def test_a_model_shows_its_default_version_in_full(service: LiveService, trained_store: Path) -> None:
    """Schema, calibration, metrics and model card, as the manifest has them."""
    detail = service.get("/models/payments").json()["version"]
    manifest = Store(trained_store).manifest("payments", 1)
    assert detail["model"] == "payments"
    assert detail["state"] == "available"
    assert [column["name"] for column in detail["input"]["columns"]] == list(COLUMNS)
    assert detail["latent_dim"] == manifest.latent_dim
    assert detail["metrics"] == manifest.model_dump(mode="json")["metrics"]
    assert detail["calibration"]["rows"] == manifest.calibrated.rows
    assert detail["calibration"]["threshold"] == manifest.calibrated.threshold
    assert detail["calibration"]["quantiles"]["1"] == max(manifest.calibrated.scores)
    assert detail["model_card"].startswith("#")
    assert set(detail["signatures"]) == {"encode", "reconstruct", "denoise", "anomaly_score", "explain"}
    assert "scores" not in detail["calibration"]


@pytest.mark.tf
def test_a_version_is_shown_with_its_aliases(service: LiveService) -> None:
    """``/models/{m}/versions/{v}``."""
    detail = service.get("/models/digits/versions/1").json()
    assert (detail["version"], detail["aliases"]) == (1, ["stable"])
    assert detail["corruption"]["kind"] == "gaussian"
    assert detail["input"]["row_shape"] == [8, 8]


@pytest.mark.parametrize("path", ["/models/nothing", "/models/pumps/versions/9", "/models/nothing/versions/1"])
def test_unknown_models_and_versions_are_404(fake_service: LiveService, path: str) -> None:
    """No such model, no such version."""
    assert_problem(fake_service.get(path), 404)


@pytest.mark.parametrize("version", ["0", "x", "-1", "1" * 30])
def test_what_is_no_version_number_is_refused(fake_service: LiveService, version: str) -> None:
    """Not an echo, not a 500."""
    response = fake_service.get(f"/models/pumps/versions/{version}")
    assert_problem(response, 422)


def test_a_version_that_is_not_loaded_is_retired(fake_store: Path, serve: Serve) -> None:
    """It is in the store and shown, but the policy leaves it there."""
    service = serve(fake_store, load=load_fake, keep_versions=1)
    states = {version["version"]: version["state"] for version in service.get("/models/pumps").json()["versions"]}
    assert states == {1: "retired", 2: "available"}
    assert service.get("/models/pumps/versions/1").json()["state"] == "retired"


def test_the_port_is_open_while_models_are_loaded(fake_store: Path) -> None:
    """Live and not ready; what needs a model says so; ready as soon as it is."""
    gate = Gate()

    def load(path: Path) -> LoadedModel:
        gate()
        return load_fake(path)

    with serve_live(Settings(store=fake_store, port=0), load=load, opens_at_once=True) as service:
        gate.await_call()
        assert service.get("/livez").status_code == 200
        assert service.get("/readyz").status_code == 503
        for path in ("/encode", "/models/pumps/encode", "/models/pumps/versions/1/encode"):
            answer = assert_problem(service.post(path, json={"instances": [[1, 2]]}), 503)
            assert answer["detail"]
        assert service.post("/v1/models/pumps:predict", json={"instances": [[1, 2]]}).status_code == 503
        gate.opened.set()
        wait_until(lambda: service.get("/readyz").status_code == 200)
        assert service.post("/encode", json={"instances": [[1, 2]]}).status_code == 200


def test_a_version_that_loads_is_shown_as_loading(fake_store: Path, serve: Serve) -> None:
    """The old one answers meanwhile; the new one when it is warm."""
    gate = Gate()
    gate.opened.set()

    def load(path: Path) -> LoadedModel:
        if path.name == "3":
            gate()
        return load_fake(path)

    service = serve(fake_store, load=load, watch_interval_s=0.05)
    gate.opened.clear()
    publish_fake(Store(fake_store))
    gate.await_call()
    states = {version["version"]: version["state"] for version in service.get("/models/pumps").json()["versions"]}
    assert states == {1: "available", 2: "available", 3: "loading"}
    assert version_of(service) == 2
    gate.opened.set()
    wait_until(lambda: version_of(service) == 3)
    states = {version["version"]: version["state"] for version in service.get("/models/pumps").json()["versions"]}
    assert states == {1: "retired", 2: "available", 3: "available"}


def test_a_failed_version_shows_its_reason_and_the_last_good_one_serves(fake_store: Path, serve: Serve) -> None:
    """In the listing, in its detail, and as 409 to who asks for it by number."""
    service = serve(fake_store, load=load_but(2))
    shown = {version["version"]: version for version in service.get("/models/pumps").json()["versions"]}
    assert shown[2]["state"] == "failed"
    assert shown[2]["reason"] == "variables/variables.index is not what was published."
    assert shown[1]["state"] == "available"
    assert service.get("/models/pumps/versions/2").json()["state"] == "failed"
    assert version_of(service) == 1
    assert service.get("/readyz").status_code == 200
    problem = assert_problem(service.post("/models/pumps/versions/2/encode", json={"instances": ROWS}), 409)
    assert "failed" in problem["detail"]


def test_a_reason_never_shows_a_path(fake_store: Path, serve: Serve) -> None:
    """Whatever stopped the load, the listing names no folder of the machine."""

    def load(path: Path) -> LoadedModel:
        if path.name == "2":
            raise OSError(5, "Input/output error", str(path))
        return load_fake(path)

    service = serve(fake_store, load=load)
    text = service.get("/models").text
    assert "loading failed: OSError" in text
    assert str(fake_store) not in text


def test_a_damaged_manifest_is_shown_too(fake_store: Path, serve: Serve) -> None:
    """The version is failed; its detail is a problem and not a crash."""
    manifest = fake_store / MODEL / "2" / MANIFEST
    manifest.chmod(0o644)
    manifest.write_bytes(manifest.read_bytes().replace(b'"fake"', b'"fool"'))
    service = serve(fake_store, load=load_fake)
    assert service.get("/models/pumps").json()["versions"][1]["state"] == "failed"
    response = service.get("/models/pumps/versions/2")
    assert_problem(response, 500)


def test_a_store_that_goes_away_is_a_problem_and_not_the_end(fake_store: Path, serve: Serve) -> None:
    """What is loaded goes on serving; ``/models`` says what is wrong, without the path; later all is well."""
    service = serve(fake_store, load=load_fake, watch_interval_s=0.05)
    away = fake_store.rename(fake_store.with_name("away"))
    wait_until(lambda: service.get("/models").json()["store_problem"] is not None)
    assert str(fake_store) not in service.get("/models").text
    assert version_of(service) == 2
    assert service.get("/readyz").status_code == 200
    away.rename(fake_store)
    wait_until(lambda: service.get("/models").json()["store_problem"] is None)
    assert version_of(service) == 2


# --- aliases ----------------------------------------------------------------------------------------------------------


def test_promoting_takes_effect_at_once(fake_store: Path, serve: Serve) -> None:
    """The next request is answered by the promoted version; then back again."""
    service = serve(fake_store, load=load_fake, watch_interval_s=3600)
    answer = service.http.put("/models/pumps/aliases/production", json={"version": 1}).json()
    assert answer == {"model": "pumps", "alias": "production", "version": 1, "previous": None, "serving": 1}
    assert version_of(service) == version_of(service, "/models/pumps/aliases/production/encode") == 1
    answer = service.http.put("/models/pumps/aliases/production", json={"version": 2}).json()
    assert (answer["version"], answer["previous"], answer["serving"]) == (2, 1, 2)
    assert version_of(service) == 2
    assert Store(fake_store).aliases(MODEL) == {"production": 2}


def test_an_alias_loads_the_version_that_it_names(fake_store: Path, serve: Serve) -> None:
    """A retired version is in memory when the promotion is answered."""
    service = serve(fake_store, load=load_fake, keep_versions=1, watch_interval_s=3600)
    assert service.http.put("/models/pumps/aliases/old", json={"version": 1}).json()["serving"] == 1
    assert version_of(service, "/models/pumps/aliases/old/encode") == 1
    assert version_of(service, "/models/pumps/versions/1/encode") == 1
    assert version_of(service) == 2


def test_deleting_an_alias_takes_effect_at_once(fake_store: Path, serve: Serve) -> None:
    """Its routes are 404; without ``production`` the highest version answers."""
    service = serve(fake_store, load=load_fake, watch_interval_s=3600)
    service.http.put("/models/pumps/aliases/production", json={"version": 1})
    answer = service.http.delete("/models/pumps/aliases/production").json()
    assert answer == {"model": "pumps", "alias": "production", "version": None, "previous": 1, "serving": None}
    assert version_of(service) == 2
    assert_problem(service.post("/models/pumps/aliases/production/encode", json={"instances": ROWS}), 404)
    assert_problem(service.http.delete("/models/pumps/aliases/production"), 404)


def test_promoting_a_version_that_fails_leaves_the_good_one(fake_store: Path, serve: Serve) -> None:
    """The alias names the bad one, the answer says which one serves."""
    service = serve(fake_store, load=load_but(2), watch_interval_s=3600)
    service.http.put("/models/pumps/aliases/production", json={"version": 1})
    answer = service.http.put("/models/pumps/aliases/production", json={"version": 2}).json()
    assert (answer["version"], answer["serving"]) == (2, 1)
    assert version_of(service) == 1
    assert service.get("/models/pumps").json()["serving"] == {"production": 1}


def test_promotions_under_load_lose_no_request(fake_store: Path, serve: Serve) -> None:
    """Every answer names a version, and its numbers are of that version: a fake reconstructs its own number."""
    service = serve(fake_store, load=load_fake, watch_interval_s=3600)
    failures: list[Any] = []
    stop = threading.Event()
    seen: set[int] = set()

    def ask() -> None:
        while not stop.is_set():
            response = service.post("/reconstruct", json={"instances": ROWS})
            answer = response.json()
            if response.status_code != 200 or answer["reconstructions"] != [[answer["model"]["version"]] * 2]:
                failures.append(answer)
            else:
                seen.add(answer["model"]["version"])

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for at in range(30):
        assert service.http.put("/models/pumps/aliases/production", json={"version": 1 + at % 2}).status_code == 200
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert seen == {1, 2}


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/models/nothing/aliases/production", {"version": 1}, 404),
        ("/models/pumps/aliases/production", {"version": 9}, 404),
        ("/models/pumps/aliases/production", {"version": 0}, 422),
        ("/models/pumps/aliases/production", {"version": "1e3"}, 422),
        ("/models/pumps/aliases/production", {"version": None}, 422),
        ("/models/pumps/aliases/production", {}, 422),
        ("/models/pumps/aliases/production", [], 422),
        ("/models/pumps/aliases/UPPER", {"version": 1}, 422),
        ("/models/pumps/aliases/..%2f..", {"version": 1}, 404),
    ],
)
def test_wrong_alias_changes_are_refused(fake_service: LiveService, path: str, body: Any, status: int) -> None:
    """Nothing changes, and the answer echoes nothing."""
    response = fake_service.http.put(path, json=body)
    assert_problem(response, status)
    assert "1e3" not in response.text
    assert fake_service.get("/models/pumps").json()["aliases"] == {}


def test_an_alias_change_that_is_no_json_is_400(fake_service: LiveService) -> None:
    """The same as on the operations."""
    response = fake_service.http.put("/models/pumps/aliases/production", content=b'{"version": secret', headers=JSON)
    assert_problem(response, 400)
    assert "secret" not in response.text


def test_an_alias_change_has_a_small_body(fake_service: LiveService) -> None:
    """Megabytes for one number are refused with 413."""
    response = fake_service.http.put("/models/pumps/aliases/production", content=b" " * 2_000_000, headers=JSON)
    assert_problem(response, 413)


def test_a_read_only_store_is_409(fake_store: Path, serve: Serve) -> None:
    """Promoting is for who may write to the store."""
    assert status_of(StoreReadOnly("The store is read-only.")) == 409
    service = serve(fake_store, load=load_fake, watch_interval_s=3600)
    folder = fake_store / MODEL
    folder.chmod(0o500)
    try:
        if _is_writable(folder):  # as it is for root
            return
        problem = assert_problem(service.http.put("/models/pumps/aliases/production", json={"version": 1}), 409)
        assert str(fake_store) not in problem["detail"]
    finally:
        folder.chmod(0o755)


def _is_writable(folder: Path) -> bool:
    try:
        (folder / ".probe").touch()
        (folder / ".probe").unlink()
    except OSError:
        return False
    return True


def test_only_admin_keys_change_aliases(fake_store: Path, serve: Serve) -> None:
    """401 without a key, 403 with a caller's, 200 with an admin's."""
    service = serve(fake_store, load=load_fake, key_hashes=[hash_key("caller")], admin_key_hashes=[hash_key("admin")])
    path = "/models/pumps/aliases/production"
    for change in (partial(service.http.put, path, json={"version": 1}), partial(service.http.delete, path)):
        assert_problem(change(), 401)
        assert_problem(change(headers={"X-API-Key": "wrong"}), 401)
        assert_problem(change(headers={"X-API-Key": "caller"}), 403)
        assert change(headers={"X-API-Key": "admin"}).status_code == 200


# --- probes -----------------------------------------------------------------------------------------------------------


def test_probes_of_a_service_that_serves(fake_service: LiveService) -> None:
    """Live and ready."""
    assert fake_service.get("/livez").json() == {"live": True}
    assert fake_service.get("/readyz").json() == {"ready": True}


@pytest.mark.parametrize("settings", [{}, {"default_model": "nothing"}])
def test_a_service_without_its_default_model_is_live_and_not_ready(
    fake_store: Path, tmp_path: Path, serve: Serve, settings: dict[str, str]
) -> None:
    """503 with the reason; ready when the first version is published."""
    empty = tmp_path / "empty"
    empty.mkdir()
    service = serve(fake_store if settings else empty, load=load_fake, watch_interval_s=0.05, **settings)
    assert service.get("/livez").status_code == 200
    response = service.get("/readyz")
    assert response.status_code == 503
    assert response.json()["ready"] is False
    assert response.json()["reason"]
    publish_fake(service.service.manager.store, model=settings.get("default_model", MODEL))
    wait_until(lambda: service.get("/readyz").status_code == 200)


def test_a_model_whose_only_version_is_bad_is_not_ready(fake_store: Path, serve: Serve) -> None:
    """Nothing good has ever been loaded."""
    service = serve(fake_store, load=load_but(1, 2))
    assert service.get("/readyz").status_code == 503
    assert_problem(service.post("/encode", json={"instances": ROWS}), 503)


def test_several_models_without_a_default_are_ready(tmp_path: Path, serve: Serve) -> None:
    """Routes that name a model answer; those that do not are 404 and say why."""
    root = tmp_path / "two"
    root.mkdir()
    for model in ("pumps", "valves"):
        publish_fake(Store(root), model=model)
    service = serve(root, load=load_fake)
    assert service.get("/readyz").status_code == 200
    assert version_of(service, "/models/valves/encode") == 1
    assert "name one" in assert_problem(service.post("/encode", json={"instances": ROWS}), 404)["detail"]
    assert service.get("/models").json()["default_model"] is None


# --- metrics ----------------------------------------------------------------------------------------------------------


def metrics_of(service: LiveService) -> dict[str, float]:
    text = service.get("/metrics").text
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def test_metrics_count_requests_rows_and_scores(fake_store: Path, serve: Serve) -> None:
    """By operation, model and status; rows; alerts; stages; loaded versions."""
    service = serve(fake_store, load=load_fake)
    service.post("/anomaly-score", json={"instances": [[0, 0], [9, 9]]})
    service.post("/encode", json={"instances": [[0]]})
    found = metrics_of(service)
    assert found['autoencoder_requests_total{model="pumps",operation="anomaly_score",status="200"}'] == 1
    assert found['autoencoder_requests_total{model="pumps",operation="encode",status="422"}'] == 1
    assert found['autoencoder_rows_total{model="pumps",operation="anomaly_score"}'] == 2
    assert found['autoencoder_anomalies_total{model="pumps",version="2"}'] == 1
    assert sum(value for name, value in found.items() if name.startswith("autoencoder_scored_rows_total")) == 2
    assert found['autoencoder_version_loaded{model="pumps",version="1"}'] == 1
    assert found["autoencoder_ready"] == 1
    assert found["autoencoder_queue_rows"] == 0
    for stage in ("decode", "queue", "model", "encode"):
        assert found[f'autoencoder_stage_seconds_count{{stage="{stage}"}}'] >= 1


def test_metric_labels_are_bounded(fake_store: Path, serve: Serve) -> None:
    """Names, paths and ids that callers make up do not become series."""
    service = serve(fake_store, load=load_fake)

    def ask(token: str) -> None:
        service.post(f"/models/{token}/encode", json={"instances": ROWS})
        service.post(f"/models/pumps/aliases/{token}/encode", json={"instances": ROWS})
        service.post(f"/{token}", json={}, headers={"X-Request-ID": token, "Content-Type": f"x/{token}"})
        service.post("/encode", json={token: 1}, headers={"X-Request-ID": token})

    ask("first")
    before = set(metrics_of(service))
    for number in range(50):
        ask(f"token{number}")
    assert set(metrics_of(service)) == before
    assert "token" not in service.get("/metrics").text


def test_metrics_are_the_prometheus_text_format(fake_service: LiveService) -> None:
    """The content type that Prometheus asks for, and every series with its type."""
    response = fake_service.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    series = {line.split("{")[0].split(" ")[0] for line in response.text.splitlines() if not line.startswith("#")}
    typed = set(re.findall(r"^# TYPE (\S+)", response.text, re.MULTILINE))
    for name in series:
        assert any(name == known or name.startswith(known + "_") for known in typed)


# --- documentation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("route", "refers"), [("/docs", "url: '/openapi.json'"), ("/redoc", 'spec-url="/openapi.json"')]
)
def test_docs_need_no_internet(fake_service: LiveService, route: str, refers: str) -> None:
    """The page loads its script and style from the service, and nothing else from anywhere."""
    page = fake_service.get(route)
    assert page.headers["content-type"].startswith("text/html")
    loaded = re.findall(r"""(?:src|href)=["']([^"']+)["']""", page.text)
    assert loaded
    for address in loaded:
        assert address.startswith((f"{route}/static/", "data:"))
        if address.startswith("/"):
            assert fake_service.get(address).status_code == 200
    assert "http://" not in page.text
    assert "https://" not in page.text
    assert refers in page.text


def test_the_start_page_leads_to_the_console(fake_service: LiveService) -> None:
    """``/`` redirects."""
    response = fake_service.get("/")
    assert (response.status_code, response.headers["location"]) == (307, "/ui")


def test_openapi_names_no_other_host(fake_service: LiveService) -> None:
    """The document refers to nothing outside of itself."""
    assert not re.findall(r"https?://", fake_service.get("/openapi.json").text)


def test_deep_json_is_400(fake_service: LiveService) -> None:
    """Depth 30,000 in the body of an alias change."""
    response = fake_service.http.put("/models/pumps/aliases/production", content=b"[" * 30_000, headers=JSON)
    assert_problem(response, 400)


def test_a_path_prefix_is_in_the_links(fake_store: Path, serve: Serve) -> None:
    """Behind a proxy that strips ``/models-api``."""
    service = serve(fake_store, load=load_fake, root_path="/models-api")
    assert version_of(service) == 2
    page = service.get("/docs").text
    assert "url: '/models-api/openapi.json'" in page
    assert 'src="/models-api/docs/static/swagger-ui-bundle.js"' in page
    assert service.get("/docs/static/swagger-ui-bundle.js").status_code == 200
    assert service.get("/").headers["location"] == "/models-api/ui"


# --- real models ------------------------------------------------------------------------------------------------------


@pytest.mark.tf
def test_real_versions_swap_without_a_mixed_answer(store: Path, serve: Serve) -> None:
    """Promote back and forth: each answer has the scores of the version that it names."""
    service = serve(store, default_model="digits", watch_interval_s=3600)
    rows = digits(3).tolist()
    known = {
        version: service.post(f"/models/digits/versions/{version}/anomaly-score", json={"instances": rows}).json()
        for version in (1, 2)
    }
    for at in range(6):
        service.http.put("/models/digits/aliases/production", json={"version": 1 + at % 2})
        answer = service.post("/anomaly-score", json={"instances": rows}).json()
        assert answer["model"]["version"] == 1 + at % 2
        np.testing.assert_allclose(answer["scores"], known[1 + at % 2]["scores"], rtol=1e-5)


@pytest.mark.tf
def test_a_damaged_real_version_is_refused_and_the_old_one_serves(store: Path, serve: Serve) -> None:
    """One flipped bit in the variables of the newest version, before the service starts."""
    file = next((store / "digits" / "2" / "variables").glob("*.data-*"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.chmod(0o644)
    file.write_bytes(content)
    service = serve(store, default_model="digits", keep_versions=2)
    answer = service.post("/encode", json={"instances": digits(1).tolist()}).json()
    assert answer["model"]["version"] == 1
    shown = service.get("/models/digits").json()["versions"][1]
    assert (shown["version"], shown["state"]) == (2, "failed")
    assert "variables" in shown["reason"]
    assert service.post("/models/payments/encode", json={"instances": payments(1).tolist()}).status_code == 200
    assert ASSETS not in service.get("/models").text
