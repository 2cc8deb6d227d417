"""Measuring a live service with a real load generator."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import rows, wrk
from benchmarks.cli import bench
from benchmarks.load import WORKLOADS, body_of
from benchmarks.resilience import measure_overload, measure_swaps
from benchmarks.soak import Sample, SoakReport, measure_soak
from benchmarks.target import Target
from service.codecs.json_rows import decode_json
from service.errors import ConfigurationError
from service.schemas import Column, ColumnType, InputSchema
from service.settings import Settings
from service.store import Store
from service.words import ANOMALY_SCORE
from tests.fakes import load_fake, publish_fake
from tests.live import LiveService, serve_live

needs_wrk = pytest.mark.skipif(not wrk.is_installed(), reason="needs wrk: apt-get install wrk")


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    """Two versions of one fake model."""
    with serve_live(Settings(store=two_versions(tmp_path_factory), port=0), load=load_fake) as service:
        yield service


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    """The same, taking only short bodies."""
    settings = Settings(store=two_versions(tmp_path_factory), port=0, max_json_bytes=1000)
    with serve_live(settings, load=load_fake) as service:
        yield service


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    """The same with a queue that is full soon."""
    settings = Settings(store=two_versions(tmp_path_factory), port=0, max_queue_requests=4)
    with serve_live(settings, load=load_fake) as service:
        yield service


def two_versions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bench") / "store"
    root.mkdir()
    for _ in range(2):
        publish_fake(Store(root), model="pumps")
    return root


def test_random_rows_are_rows_of_the_model() -> None:
    """Of every type of column: the codec takes them."""
    schema = InputSchema(
        kind="tabular",
        row_shape=(2,),
        columns=(
            Column(name="size", minimum=3, maximum=5),
            Column(name="colour", type=ColumnType.CATEGORICAL, categories=("red", "blue")),
            Column(name="new", type=ColumnType.BOOLEAN),
            Column(name="sold", type=ColumnType.TIMESTAMP),
        ),
    )
    decoded = decode_json(rows.json_body(rows.random_rows(schema, 50)), schema, operation=ANOMALY_SCORE)[0]
    sizes = decoded["instances"][:, 0]
    assert len(sizes) == 50
    assert 3 <= sizes.min() < sizes.max() <= 5
    assert set(decoded["categories"].ravel()) == {b"red", b"blue"}


def test_rows_without_names_are_short_in_json() -> None:
    """Four decimals, as people send them, and not the 17 digits of a float32 in float64."""
    schema = InputSchema(kind="tabular", row_shape=(784,))
    assert len(rows.json_body(rows.random_rows(schema, 100))) < 8 * 100 * 784


def test_every_workload_has_a_body_that_the_service_takes(live: LiveService) -> None:
    """JSON, npy and Arrow, in the number of rows that the workload says."""
    target = Target.find(live.url)
    for workload in WORKLOADS:
        body = body_of(workload, target.schema)
        assert body is not None
        answer = live.post(
            f"/models/pumps/{workload.operation}", content=body, headers=target.headers(workload.media_type)
        )
        assert answer.status_code == 200
        result = answer.json()["scores" if workload.operation == ANOMALY_SCORE.path else "errors"]
        assert len(result) == workload.rows


def test_a_service_that_does_not_answer_is_named() -> None:
    """One sentence with what to do, and no trace."""
    result = CliRunner().invoke(bench, ["load", "--url", "http://127.0.0.1:9"])
    assert result.exit_code == 1
    assert "autoencoder serve" in result.output
    assert "Traceback" not in result.output


def test_a_model_that_is_not_there_is_named(live: LiveService) -> None:
    """With those that are."""
    with pytest.raises(ConfigurationError, match="no model 'valves'; it has pumps"):
        Target.find(live.url, model="valves")


@needs_wrk
@pytest.mark.slow
def test_load_prints_and_writes_every_workload(live: LiveService, tmp_path: Path) -> None:
    """Requests were answered, none was refused where one connection asks."""
    out = tmp_path / "figures.json"
    result = CliRunner().invoke(bench, ["load", "--url", live.url, "--seconds", "1", "--out", str(out)])
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())["workloads"]
    assert [each["workload"] for each in found] == [workload.name for workload in WORKLOADS]
    assert all(each["requests_s"] > 0 and each["p50_ms"] <= each["p99_ms"] for each in found)
    assert found[0]["refused"] == found[0]["broken"] == 0


@needs_wrk
@pytest.mark.slow
def test_swaps_are_checked_answer_by_answer(live: LiveService) -> None:
    """Production moves while the service is loaded, nothing fails, and it ends where it was."""
    Store(live.service.settings.store).set_alias("pumps", "production", 2)
    report = measure_swaps(Target.find(live.url), (1, 2), seconds=3, admin_key=None)
    assert report.swaps >= 2
    assert report.checked > 10
    assert report.wrong == report.swapping.refused == report.swapping.broken == 0
    assert report.p99_ratio > 0
    assert Store(live.service.settings.store).aliases("pumps")["production"] == 2


@pytest.mark.slow
def test_a_soak_asks_in_many_ways_and_fails_in_none(live: LiveService) -> None:
    """Rows that must be refused are, all others are answered, while production moves; memory is looked at."""
    report = measure_soak(Target.find(live.url), seconds=4, versions=(1, 2))
    assert report.failed == ()
    assert report.requests > 50
    assert report.swaps >= 2
    assert len(report.samples) >= 3
    assert all(sample.memory > 2**20 and sample.descriptors > 0 for sample in report.samples)


@pytest.mark.slow
def test_a_soak_of_what_refuses_good_rows_says_so(strict: LiveService) -> None:
    """Only short bodies are taken there: what is refused is counted, by what it was."""
    report = measure_soak(Target.find(strict.url), seconds=2)
    assert any(failure.startswith("scores as JSON") and failure.endswith("413") for failure in report.failed)


def test_growth_is_a_slope() -> None:
    """Two MiB in each minute, however often it was looked at."""
    samples = tuple(Sample(float(at), 1e8 + 2**20 * at / 30, 20) for at in range(100, 700, 7))
    assert SoakReport(1, (), 0, samples).growth_bytes_min == pytest.approx(2 * 2**20)
    assert SoakReport(1, (), 0, samples[:2]).growth_bytes_min is None


@needs_wrk
@pytest.mark.slow
def test_an_overload_is_refused_and_passes(crowded: LiveService) -> None:
    """A full queue refuses, nothing breaks, and the service answers again afterwards."""
    report = measure_overload(Target.find(crowded.url), factor=4, seconds=2)
    assert report.overload.refused > 0
    assert report.overload.broken == 0
    assert report.overload.good_s > 0
    assert report.recovery_s is not None
    assert report.memory_most is None or report.memory_most > 0
    assert np.isfinite(report.goodput_share)


@needs_wrk
@pytest.mark.slow
def test_a_service_that_refuses_the_bulk_is_no_measure(strict: LiveService) -> None:
    """One sentence, instead of ratios to nothing."""
    with pytest.raises(ConfigurationError, match=r"refuses every request of 1,024 rows \(0\.0 MiB"):
        measure_overload(Target.find(strict.url), factor=2, seconds=1)
