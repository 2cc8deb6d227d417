"""The scorer: any table in, the same table with the model's own numbers beside its columns."""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from service.errors import (
    InvalidOption,
    InvalidRows,
    InvalidVersion,
    ModelNotFound,
    OperationNotSupported,
    VersionNotFound,
)
from service.pipelines import Scorer
from service.schemas import Results
from service.store import Store
from service.words import PRODUCTION
from tests.conftest import COLUMNS, table_rows

pytestmark = pytest.mark.tf
ROWS = table_rows(50, seed=3)


@pytest.fixture(scope="module")
def payments(trained_store: Path) -> Scorer:
    return Scorer(str(trained_store), "payments")


@pytest.fixture(scope="module")
def expected(payments: Scorer) -> Results:
    """What the signature itself says of ``ROWS``."""
    return payments.load().run("anomaly_score", {"instances": ROWS})


def columns() -> dict[str, Any]:
    return {"id": np.arange(len(ROWS)), **dict(zip(COLUMNS, ROWS.T.copy(), strict=True))}


KINDS: dict[str, Callable[[], Any]] = {
    "arrow": lambda: pa.table(columns()),
    "batch": lambda: pa.RecordBatch.from_pydict({name: pa.array(values) for name, values in columns().items()}),
    "pandas": lambda: pd.DataFrame(columns(), index=np.arange(len(ROWS)) // 2),
    "polars": lambda: pl.DataFrame(columns()),
    "arrays": columns,
    "lists": lambda: {name: values.tolist() for name, values in columns().items()},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_kind_comes_back(kind: str, payments: Scorer, expected: Results) -> None:
    """With all its columns as they were, and the scores of the signature."""
    table = KINDS[kind]()
    scored = payments(table)
    assert type(scored) is type(table)
    for name in columns():
        assert list(scored[name]) == list(table[name])
    for column, output in (("anomaly_score", "score"), ("p_value", "p_value"), ("is_anomaly", "is_anomaly")):
        np.testing.assert_allclose(np.asarray(scored[column]), expected[output], rtol=1e-6)
    if isinstance(scored, pd.DataFrame):
        assert scored.index.equals(table.index)


def test_arrays_without_names(trained_store: Path) -> None:
    """Images as one array, or as a column of arrays."""
    scorer = Scorer(str(trained_store), "digits", version=1)
    images = np.random.default_rng(0).uniform(0, 16, (5, 8, 8))
    scored = scorer(images)
    wanted = scorer.load().run("anomaly_score", {"instances": images.astype(np.float32)})
    np.testing.assert_allclose(scored["anomaly_score"], wanted["score"], rtol=1e-6)
    in_a_column = scorer({"instances": images, "id": np.arange(5)})
    np.testing.assert_array_equal(in_a_column["anomaly_score"], scored["anomaly_score"])
    named = {f"p{at}": images.reshape(5, 64)[:, at] for at in range(64)}
    with pytest.raises(InvalidRows, match="'instances'"):
        scorer(named)
    latents = Scorer(str(trained_store), "digits", operation="encode")(images)["latent"]
    assert latents.shape == (5, Store(trained_store).manifest("digits", 2).latent_dim)


def test_many_rows_are_called_in_pieces(payments: Scorer) -> None:
    """A row's score does not depend on how many others came along."""
    many = table_rows(5000, seed=4)
    table = pa.table(dict(zip(COLUMNS, many.T.copy(), strict=True)))
    whole = payments(table)["anomaly_score"].to_numpy()
    apart = payments(table.slice(4990))["anomaly_score"].to_numpy()
    np.testing.assert_allclose(whole[4990:], apart, rtol=1e-5)


def test_other_operations(trained_store: Path, series_store: Path) -> None:
    """Named columns come back under the operation's name, latents as one column of lists."""
    latents = Scorer(str(trained_store), "payments", operation="encode")(pa.table(columns()))
    assert latents["latent"].type.list_size == 2
    made = Scorer(str(trained_store), "payments", operation="reconstruct")(pa.table(columns()))
    wanted = [*(f"reconstruction_{name}" for name in COLUMNS), "reconstruction_error"]
    assert sorted(made.column_names[7:]) == sorted(wanted)
    with pytest.raises(OperationNotSupported):
        Scorer(str(series_store), "boiler", operation="denoise")


def test_options(trained_store: Path, expected: Results) -> None:
    """The caller's threshold and explanations, as over HTTP."""
    threshold = float(np.median(expected["score"]))
    scored = Scorer(str(trained_store), "payments", threshold=threshold, explain=2)(pa.table(columns()))
    np.testing.assert_array_equal(scored["is_anomaly"].to_numpy(), expected["score"] > threshold)
    assert all(len(row) == 2 and row[0]["feature"] in COLUMNS for row in scored["contributions"].to_pylist())
    for wrong in ({"threshold": 1.0, "false_alarm_rate": 0.1}, {"errors": "ignore"}, {"operation": "predict"}):
        with pytest.raises(InvalidOption):
            Scorer(str(trained_store), "payments", **wrong)
    with pytest.raises(ModelNotFound):
        Scorer(str(trained_store), "nothing")
    with pytest.raises(VersionNotFound):
        Scorer(str(trained_store), "payments", version=9)


@pytest.mark.parametrize("kind", ["pandas", "lists", "arrow"])
def test_bad_rows_raise(kind: str, payments: Scorer) -> None:
    """Row and column are named, the value is not."""
    table = KINDS[kind]()
    if kind == "arrow":
        age = table["age"].to_pylist()
        table = table.set_column(table.column_names.index("age"), "age", pa.array([*age[:7], float("inf"), *age[8:]]))
    else:
        age = list(table["age"])
        table["age"] = [*age[:7], "secret", *age[8:]]
    with pytest.raises(InvalidRows, match=r"^Row 7, column age: must be a (finite )?number") as caught:
        payments(table)
    assert "secret" not in str(caught.value)


def test_bad_rows_become_null(trained_store: Path, expected: Results) -> None:
    """Only they, with the reason beside them; the others are scored as ever."""
    scorer = Scorer(str(trained_store), "payments", errors="null")
    table = columns()
    table["age"][[3, 49]] = np.nan
    table["visits"][3] = np.inf
    scored = scorer(pa.table(table))
    good = np.ones(50, bool)
    good[[3, 49]] = False
    np.testing.assert_allclose(scored["anomaly_score"].to_numpy()[good], expected["score"][good], rtol=1e-6)
    assert scored["is_anomaly"].null_count == 2
    assert scored["problem"].to_pylist()[3] == "age: may not be missing"
    assert scored["problem"].null_count == 48
    none_good = scorer({name: np.full(3, np.nan) for name in COLUMNS})
    assert [bool(np.isnan(score)) for score in none_good["anomaly_score"]] == [True] * 3


def test_no_rows(payments: Scorer) -> None:
    """An empty table comes back with its new columns, of the same types as ever."""
    scored = payments(pa.table(columns()).slice(0, 0))
    assert scored.num_rows == 0
    assert scored.schema == payments(pa.table(columns())).schema


def test_names(trained_store: Path, payments: Scorer) -> None:
    """Other names for the model's columns; nothing of the input is overwritten."""
    table = pa.table(columns())
    renamed = table.rename_columns([f"x_{name}" for name in table.column_names])
    with pytest.raises(InvalidRows, match="none of the model's columns"):
        payments(renamed)
    by_name = Scorer(str(trained_store), "payments", columns=tuple(f"x_{name}" for name in COLUMNS))
    assert by_name(renamed)["anomaly_score"].equals(payments(table)["anomaly_score"])
    with pytest.raises(InvalidOption, match="'anomaly_score'"):
        payments(payments(table))
    again = Scorer(str(trained_store), "payments", prefix="second_")(payments(table))
    assert again["second_anomaly_score"].equals(again["anomaly_score"])
    with pytest.raises(InvalidRows, match="age"):
        payments(table.drop_columns(["age"]))


def test_the_version_is_settled_once(store: Path) -> None:
    """Copies go on with the version that the first one chose, whatever the alias names by then."""
    scorer = Scorer(str(store), "digits")
    assert scorer.version == 2
    Store(store).set_alias("digits", PRODUCTION, 1)
    assert pickle.loads(pickle.dumps(scorer)) == scorer
    assert Scorer(**scorer.arguments()).version == 2
    assert Scorer(str(store), "digits").version == 1
    assert Scorer(str(store), "digits", alias="stable").version == 1
    assert len(pickle.dumps(scorer)) < 1000


def test_a_process_loads_a_version_once(trained_store: Path, payments: Scorer) -> None:
    """However many scorers of it there are."""
    assert Scorer(str(trained_store), "payments", prefix="x_").load() is payments.load()


def test_another_version_under_the_same_number(store: Path) -> None:
    """Is not taken for the one that the scorer was made for."""
    scorer = Scorer(str(store), "digits", version=1)
    shutil.rmtree(store / "digits" / "1")
    shutil.copytree(store / "payments" / "1", store / "digits" / "1")
    with pytest.raises(InvalidVersion, match="not the one"):
        scorer(np.zeros((1, 8, 8)))
