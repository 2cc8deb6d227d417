"""The examples of docs/pipelines.md, each in a process of its own, give the scores of the signature.

So do the ways over HTTP: a score is the same number wherever it comes from.
"""

import io
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from pyarrow import dataset, parquet

from service.client import Client
from service.runtime.loaded_model import load_version
from service.store import Store
from tests.conftest import COLUMNS, table_rows
from tests.live import LiveService

pytestmark = pytest.mark.tf
PAGE = (Path(__file__).parents[2] / "docs/pipelines.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"<!-- example: (\S+) -->\n```python\n(.*?)```", PAGE, flags=re.S))
BEAM = Path(sys.prefix) / "beam"
"""Where `make clients` puts what Beam needs in other versions."""
COUNT = 500


@pytest.fixture(scope="module")
def rows() -> NDArray[np.float32]:
    return table_rows(COUNT, seed=21)


@pytest.fixture(scope="module")
def expected(trained_store: Path, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores by the bare signature, one row at a time."""
    loaded = load_version(trained_store / "payments" / "1")
    return np.concatenate([loaded.run("anomaly_score", {"instances": row[None]})["score"] for row in rows])


@pytest.fixture
def folder(tmp_path: Path, trained_store: Path, rows: NDArray[np.float32]) -> Path:
    """Where the examples find their store and rows."""
    (tmp_path / "model_store").symlink_to(trained_store)
    table = pa.table({"id": np.arange(COUNT), **dict(zip(COLUMNS, rows.T.copy(), strict=True))})
    parquet.write_table(table, tmp_path / "rows.parquet")
    return tmp_path


def assert_same(scored: pd.DataFrame, expected: NDArray[np.float32]) -> None:
    assert sorted(scored["id"]) == list(range(COUNT))
    np.testing.assert_allclose(scored.sort_values("id")["anomaly_score"], expected, rtol=1e-5)


def run_example(name: str, folder: Path, *, replaced: tuple[str, str] = ("", ""), **environment: str) -> None:
    text = EXAMPLES[name]
    assert replaced[0] in text
    script = f"if __name__ == '__main__':\n{re.sub('^', '    ', text.replace(*replaced), flags=re.M)}"
    (folder / "example.py").write_text(script)
    paths = [environment.pop("BEFORE", ""), os.environ.get("PYTHONPATH", ""), str(Path(__file__).parents[2])]
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    quiet |= {"PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "example.py"], cwd=folder, env={**os.environ, **quiet, **environment}, capture_output=True,
        check=False, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()[-3000:]


def scored_files(folder: Path, kind: str = "parquet") -> pd.DataFrame:
    frame: pd.DataFrame = dataset.dataset(folder, format=kind).to_table().to_pandas()
    return frame


def test_there_are_examples() -> None:
    """One for each framework that the page names."""
    assert set(EXAMPLES) == {"scorer", "dask", "ray", "ray-train", "spark", "spark-udf", "beam"}


@pytest.mark.slow
def test_scorer(folder: Path, expected: NDArray[np.float32]) -> None:
    """A pandas frame in a program."""
    run_example("scorer", folder)
    assert_same(pd.read_parquet(folder / "scored.parquet"), expected)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("dask") is None, reason="dask is not installed")
def test_dask(folder: Path, expected: NDArray[np.float32]) -> None:
    """Partition by partition."""
    run_example("dask", folder)
    assert_same(scored_files(folder / "scored"), expected)


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.skipif(find_spec("ray") is None, reason="pip install 'autoencoder-service[ray]'")
def test_ray(folder: Path, expected: NDArray[np.float32]) -> None:
    """A Ray data set."""
    run_example("ray", folder)
    assert_same(scored_files(folder / "scored"), expected)


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.skipif(find_spec("ray") is None, reason="pip install 'autoencoder-service[ray]'")
def test_ray_trains(tmp_path: Path, rows: NDArray[np.float32]) -> None:
    """Several models, each a task."""
    for name in ("payments", "pumps"):
        parquet.write_table(
            pa.table(dict(zip(COLUMNS, rows[:200].T.copy(), strict=True))), tmp_path / f"{name}.parquet"
        )
    run_example("ray-train", tmp_path, replaced=('load_config("auto")', 'load_config("auto", epochs=2)'))
    assert {name: Store(tmp_path / "models").versions(name) for name in ("payments", "pumps")} == {
        "payments": [1],
        "pumps": [1],
    }


@pytest.mark.slow
@pytest.mark.skipif(find_spec("pyspark") is None or not shutil.which("java"), reason="pyspark, openjdk-17-jre-headless")
@pytest.mark.parametrize("name", ["spark", "spark-udf"])
def test_spark(name: str, folder: Path, expected: NDArray[np.float32]) -> None:
    """A Spark data frame, whole and by columns."""
    run_example(name, folder)
    assert_same(scored_files(folder / "scored"), expected)


@pytest.mark.slow
@pytest.mark.skipif(not BEAM.exists(), reason="make clients")
def test_beam(folder: Path, expected: NDArray[np.float32]) -> None:
    """A Beam pipeline, in the versions of protobuf and pyarrow that Beam asks for."""
    run_example("beam", folder, BEFORE=str(BEAM))
    (folder / "all.ndjson").write_bytes(b"".join(file.read_bytes() for file in (folder / "scored").glob("*.ndjson")))
    assert_same(pd.read_json(folder / "all.ndjson", lines=True, precise_float=True), expected)


def test_http(service: LiveService, rows: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    """JSON by rows and by columns, npy and Arrow."""
    path = "/models/payments/anomaly-score"
    by_rows = service.post(path, json={"instances": rows.tolist()}).json()["scores"]
    by_columns = {name: column.tolist() for name, column in zip(COLUMNS, rows.T, strict=True)}
    npy = io.BytesIO()
    np.save(npy, rows)
    as_npy = {"Content-Type": "application/x-npy", "Accept": "application/x-npy"}
    kind = "application/vnd.apache.arrow.stream"
    sink = pa.BufferOutputStream()
    table = pa.table(dict(zip(COLUMNS, rows.T.copy(), strict=True)))
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    arrow = service.post(path, content=sink.getvalue().to_pybytes(), headers={"Content-Type": kind, "Accept": kind})
    answers: list[Any] = [
        by_rows,
        service.post(path, json={"inputs": by_columns}).json()["scores"],
        np.load(io.BytesIO(service.post(path, content=npy.getvalue(), headers=as_npy).content)),
        pa.ipc.open_stream(arrow.content).read_all()["scores"].to_numpy(),
    ]
    for scores in answers:
        np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_client(service: LiveService, rows: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    """A frame through the client."""
    with Client(service.url) as client:
        answer = client.anomaly_score(pd.DataFrame(rows, columns=list(COLUMNS)), model="payments")
    np.testing.assert_allclose(np.asarray(answer.scores), expected, rtol=1e-5)
