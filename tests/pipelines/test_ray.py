"""Scoring on a real Ray cluster of several nodes, one of which is killed."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from click.testing import CliRunner
from pyarrow import parquet

from service.cli import app
from service.errors import DataError
from service.pipelines import Scorer
from service.pipelines.files import Job, run
from tests.conftest import COLUMNS, table_rows
from tests.ray_cluster import NODE, await_true, processes_of, ray_cluster

ray = pytest.importorskip("ray", reason="pip install 'autoencoder-service[ray]'")

pytestmark = [pytest.mark.tf, pytest.mark.slow, pytest.mark.cluster, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without CPUs and two nodes of one."""
    with ray_cluster(2) as started:
        ray.init(address=started.address, log_to_driver=False, logging_level="error")
        yield started
        ray.shutdown()


def frame(count: int) -> pd.DataFrame:
    rows = pd.DataFrame(table_rows(count, seed=11), columns=list(COLUMNS))
    rows.insert(0, "id", np.arange(count))
    return rows


@pytest.fixture(scope="module")
def scorer(trained_store: Path) -> Scorer:
    return Scorer(str(trained_store), "payments")


def test_a_dataset(cluster: Any, scorer: Scorer) -> None:
    """Scored by the scorer as a callable class, with the version that was settled here."""
    from service.pipelines.ray import score_dataset

    rows = frame(500)
    scored = score_dataset(ray.data.from_pandas(rows), scorer, workers=2, batch_size=100).to_pandas()
    scored = scored.sort_values("id", ignore_index=True)
    np.testing.assert_allclose(scored["anomaly_score"], scorer(rows)["anomaly_score"], rtol=1e-5)


def test_the_command_on_a_cluster(cluster: Any, tmp_path: Path, trained_store: Path, scorer: Scorer) -> None:
    """A bad row ends it with the same sentence as without Ray; then it goes on where it was."""
    rows = frame(1000)
    bad = rows.copy()
    bad.loc[903, "age"] = np.inf
    parquet.write_table(pa.Table.from_pandas(bad), tmp_path / "in.parquet", row_group_size=100)
    arguments = [
        "score",
        tmp_path / "in.parquet",
        tmp_path / "out.csv",
        "--store",
        trained_store,
        "--model",
        "payments",
    ]
    arguments += ["--engine", "ray", "--address", cluster.address, "--part-rows", 100, "--workers", 2]
    refused = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert refused.exit_code == 1
    assert 'in.parquet: row 904, column "age" must be a finite number' in refused.stderr
    done = CliRunner().invoke(app, [*map(str, arguments), "--resume", "--errors", "null"])
    assert done.exit_code == 1
    assert "model, version or options" in done.stderr
    parquet.write_table(pa.Table.from_pandas(rows), tmp_path / "good.parquet", row_group_size=100)
    good = [str(argument).replace("in.parquet", "good.parquet").replace("out", "other") for argument in arguments]
    done = CliRunner().invoke(app, good)
    assert done.exit_code == 0, done.output
    scored = pd.read_csv(tmp_path / "other.csv")
    assert scored["id"].tolist() == rows["id"].tolist()
    np.testing.assert_allclose(scored["anomaly_score"], scorer(rows)["anomaly_score"], rtol=1e-5)


def test_a_node_is_killed(cluster: Any, tmp_path: Path, scorer: Scorer) -> None:
    """In the middle of the run, while it scores: nothing is lost, nothing is there twice."""
    from service.pipelines.ray import ray_engine

    rows = frame(100_000)
    parquet.write_table(pa.Table.from_pandas(rows), tmp_path / "in.parquet", row_group_size=200)
    job = Job(str(tmp_path / "in.parquet"), f"{tmp_path}/out/", part_rows=200)
    doomed = cluster.add_node(**NODE)
    assert sum(node["Alive"] and "CPU" in node["Resources"] for node in ray.nodes()) == 3
    outcomes: list[Any] = []
    thread = threading.Thread(target=lambda: outcomes.append(run(job, scorer, work=ray_engine(cluster.address))))
    thread.start()
    await_true(lambda: bool(busy_scorers(doomed)) and parts_of(tmp_path) >= 20, "the node does not take part")
    cluster.remove_node(doomed, allow_graceful=False)
    assert parts_of(tmp_path) < 450, "the run was nearly over before the node was killed"
    thread.join(240)
    assert [outcome.rows for outcome in outcomes] == [100_000]
    scored = parquet.read_table(tmp_path / "out").to_pandas()
    assert scored["id"].tolist() == rows["id"].tolist()
    np.testing.assert_allclose(scored["anomaly_score"], scorer(rows)["anomaly_score"], rtol=1e-5)
    assert not list((tmp_path / "out").glob(".*"))


def busy_scorers(node: Any) -> list[Any]:
    """Workers of the node that hold the model and have worked with it."""
    return [worker for worker in processes_of(node, "PartScorer") if worker.cpu_times().user > 2]


def parts_of(folder: Path) -> int:
    return len(list((folder / "out").glob("part-*")))


def test_errors_come_back_as_ours(cluster: Any, tmp_path: Path, scorer: Scorer) -> None:
    """A part that cannot be scored ends the run with its own error, not with one of Ray's."""
    from service.pipelines.ray import ray_engine

    rows = frame(100)
    rows.loc[42, "age"] = np.inf
    parquet.write_table(pa.Table.from_pandas(rows), tmp_path / "in.parquet")
    with pytest.raises(DataError, match="row 43"):
        run(Job(str(tmp_path / "in.parquet"), f"{tmp_path}/out/"), scorer, work=ray_engine(cluster.address, workers=1))
