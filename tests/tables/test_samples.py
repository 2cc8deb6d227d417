"""``autoencoder sample``: tables that train as they stand, and whose odd rows are what they are said to be."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from service.cli import app
from service.cli.sample import NAMES
from service.tables.samples import SAMPLES


def sample(path: Path, *options: object) -> Result:
    return CliRunner().invoke(app, ["sample", str(path), *map(str, options)])


def test_payments(tmp_path: Path) -> None:
    """About two in a hundred are odd: most at night, of great amounts, or with more visits than their age allows."""
    done = sample(tmp_path / "payments.csv")
    assert done.exit_code == 0
    assert done.output.endswith(f"autoencoder train {tmp_path}/payments.csv --drop id,label\n")
    table = pd.read_csv(tmp_path / "payments.csv", parse_dates=["time"])
    assert list(table) == ["id", "time", "amount", "age", "visits", "country", "label"]
    assert len(table) == 3000
    odd = table[table["label"] == "odd"]
    assert 30 <= len(odd) <= 90
    strange = (table["time"].dt.hour < 7) | (table["amount"] > 600) | ((table["age"] < 21) & (table["visits"] >= 12))
    assert strange[odd.index].mean() > 0.8
    assert strange.drop(odd.index).mean() < 0.02


def test_series(tmp_path: Path) -> None:
    """Sixty days; three stretches of the last quarter are odd."""
    assert sample(tmp_path / "series.csv").exit_code == 0
    table = pd.read_csv(tmp_path / "series.csv", parse_dates=["time"])
    assert list(table) == ["time", "load", "temperature", "label"]
    assert (table["time"].diff()[1:] == pd.Timedelta(minutes=10)).all()
    odd = (table["label"] == "odd").to_numpy()
    starts = np.flatnonzero(np.diff(odd.astype(int)) == 1)
    assert len(starts) == 3
    assert starts.min() > 0.75 * len(table)
    assert table["load"][odd].diff().eq(0).sum() > 60


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_makes_the_same_again(tmp_path: Path, name: str) -> None:
    for at, seed in enumerate((1, 1, 2)):
        (tmp_path / str(at)).mkdir()
        assert sample(tmp_path / str(at) / f"{name}.csv", "--seed", seed, "--rows", 500).exit_code == 0
    first, second, other = ((tmp_path / str(at) / f"{name}.csv").read_text() for at in range(3))
    assert first == second
    assert first != other
    assert len(first.splitlines()) == 501


def test_nothing_is_written_over(tmp_path: Path) -> None:
    path = tmp_path / "series.csv"
    path.write_text("mine")
    refused = sample(path)
    assert refused.exit_code == 1
    assert "is there already" in refused.output
    assert path.read_text() == "mine"


def test_other_names_are_refused(tmp_path: Path) -> None:
    assert set(NAMES) == set(SAMPLES)
    for name in ("rows.csv", "payments.parquet"):
        assert "payments.csv and series.csv" in sample(tmp_path / name).output
        assert not (tmp_path / name).exists()
