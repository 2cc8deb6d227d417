"""``autoencoder score`` of a table with one reading a row: each reading has the score of its point."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from service.cli import app
from service.codecs import Options
from service.runtime.loaded_model import load_version
from service.schemas import INSTANCES
from service.words import POINT_ERRORS
from tests.conftest import readings
from tests.pipelines.test_files import read, write

pytestmark = pytest.mark.tf

POINTS = 400
FAULT = slice(240, 300)


def table(points: int = POINTS, *, minutes: int = 60) -> pd.DataFrame:
    """Readings that go on after those of training, with a fault, a name and an id of each."""
    values = readings(points, seed=3).astype(np.float64).round(3)
    values[FAULT, 0] += 60
    frame = pd.DataFrame(values, columns=["load", "warm"])
    times = np.datetime64("2026-04-01", "s") + np.arange(points) * np.timedelta64(minutes, "m")
    frame.insert(0, "time", times.astype("datetime64[ns]"))  # pandas writes others wrongly as JSON
    frame.insert(0, "id", [f"00{row}" for row in range(points)])
    return frame


def score(series_store: Path, *arguments: object) -> Result:
    chosen = ["--store", series_store, "--model", "boiler"]
    return CliRunner().invoke(app, [str(argument) for argument in ("score", *arguments, *chosen)])


def expected(series_store: Path, frame: pd.DataFrame) -> dict[str, np.ndarray]:
    """What the service answers for the points of a series."""
    loaded = load_version(series_store / "boiler/1")
    points = frame[["load", "warm"]].to_numpy(np.float32)
    window = loaded.schema.row_shape[0]
    rows = {INSTANCES: np.stack([points[at : at + window] for at in range(len(points) - window + 1)])}
    return loaded.judge_points(loaded.run(POINT_ERRORS, rows), rows, Options())[0]


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".ndjson", ".feather"])
def test_each_reading_has_the_score_of_its_point(series_store: Path, tmp_path: Path, suffix: str) -> None:
    """As over HTTP, beside all columns as they came; and the stretch with the fault is named."""
    frame = table()
    source, target = write(tmp_path / f"in{suffix}", frame), tmp_path / f"out{suffix}"
    done = score(series_store, source, target)
    assert done.exit_code == 0, done.output
    scored, wanted = read(target), expected(series_store, frame)
    assert list(scored) == [*frame, "anomaly_score", "p_value", "is_anomaly"]
    np.testing.assert_allclose(scored["anomaly_score"], wanted["score"], rtol=1e-4)
    np.testing.assert_array_equal(scored["is_anomaly"], wanted["is_anomaly"])
    assert scored["is_anomaly"][FAULT].all()
    assert scored["is_anomaly"][:200].mean() < 0.05
    first, _, rest = done.output.strip().splitlines()[-1].partition(" to ")
    assert "2026-04-10 00:00:00" <= first <= "2026-04-11 00:00:00"
    assert "2026-04-13 12:00:00" <= rest <= "2026-04-14 12:00:00"


def test_text_of_a_csv_file_stays_as_it_was(series_store: Path, tmp_path: Path) -> None:
    source, target = write(tmp_path / "in.csv", table()), tmp_path / "out.csv"
    assert score(series_store, source, target).exit_code == 0
    before, after = (path.read_text().splitlines() for path in (source, target))
    assert [line.rsplit(",", 3)[0] for line in after] == before


def test_readings_are_brought_to_the_steps_of_training(series_store: Path, tmp_path: Path) -> None:
    """Two an hour: both have the score of their hour, that of their mean."""
    frame = table(2 * POINTS, minutes=30)
    values = frame[["load", "warm"]].to_numpy()
    target = tmp_path / "out.csv"
    assert score(series_store, write(tmp_path / "in.csv", frame), target).exit_code == 0
    scores = read(target)["anomaly_score"].to_numpy()
    places = (np.arange(2 * POINTS) + 1) // 2
    hourly = pd.DataFrame(values, columns=["load", "warm"]).groupby(places).mean()
    np.testing.assert_allclose(scores, expected(series_store, hourly)["score"][places], rtol=1e-3)


def test_a_threshold_of_the_caller(series_store: Path, tmp_path: Path) -> None:
    source, target = write(tmp_path / "in.csv", table()), tmp_path / "out.csv"
    done = score(series_store, source, target, "--threshold", 1e9)
    assert "Nothing is flagged." in done.output
    assert not read(target)["is_anomaly"].any()


def gap(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(load=frame["load"].where(frame.index != 7))


@pytest.mark.parametrize(
    ("frame", "options", "sentence"),
    [
        (table().drop(columns="warm"), (), 'no column "warm"'),
        (gap(table()), (), "A reading is missing at row 8"),
        (table().drop(index=range(20, 25)), (), "A reading is missing at row 21"),
        (table(20).iloc[:5], (), "The series has 5 points"),
        (table(minutes=240), (), "trained on steps of 1 h"),
        (table().iloc[::-1], (), "earlier than the row before it"),
        (table(), ("--timestamp", "when"), 'no column "when"'),
        (table(), ("--explain", 2), "without --resume, --explain"),
        (table(), ("--false-discovery-rate", 0.1), "resemble each other"),
        (table().assign(p_value=0), (), "has a column 'p_value' already"),
    ],
)
def test_what_does_not_fit_is_said(
    series_store: Path, tmp_path: Path, frame: pd.DataFrame, options: tuple[object, ...], sentence: str
) -> None:
    """One sentence, and no output."""
    target = tmp_path / "out.csv"
    done = score(series_store, write(tmp_path / "in.csv", frame), target, *options)
    assert done.exit_code == 1
    assert sentence in done.output
    assert len(done.output.strip().splitlines()) == 1
    assert not target.exists()
