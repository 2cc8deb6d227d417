"""Series: an even grid, a window that fits the period, blocks that keep splits apart, and what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service.errors import ConfigurationError, DataError
from service.training import load_config
from service.training.data import read_dataset
from service.training.series import Windows, fit_point_scale, read_series
from service.training.split import split_rows


def write(path: Path, *, points: int = 240, step_s: int = 300, skip: tuple[int, ...] = (), period: int = 12) -> Path:
    lines = ["when,value,note"]
    for at in range(points):
        if at not in skip:
            time = np.datetime64("2026-03-01T00:00:00") + np.timedelta64(at * step_s, "s")
            lines.append(f"{str(time).replace('T', ' ')},{np.sin(2 * np.pi * at / period):.5f},x")
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_window_is_the_period(tmp_path: Path) -> None:
    """Found from the series where none was asked for, and the times are not a channel."""
    series = read_series(write(tmp_path / "a.csv", points=900), drop=["note"])
    assert (series.channels, series.window) == (("value",), 12)
    assert read_series(write(tmp_path / "a.csv", points=900), drop=["note"], window=20).window == 20


def test_gaps_become_missing_points(tmp_path: Path) -> None:
    """A reading that was not taken leaves its place in the grid empty, and rows may lack values then."""
    series = read_series(write(tmp_path / "a.csv", skip=(50, 51, 130)), drop=["note"])
    assert len(series.values) == 240
    assert np.flatnonzero(np.isnan(series.values[:, 0])).tolist() == [50, 51, 130]
    assert series.schema().may_be_missing


def test_times_that_wander_are_brought_to_the_grid(tmp_path: Path) -> None:
    """Readings a little early or late stand at the nearest step."""
    random = np.random.default_rng(0)
    seconds = np.arange(170) * 60 + random.integers(-10, 11, 170)
    path = tmp_path / "a.csv"
    path.write_text("t,v\n" + "\n".join(f"{at},{n}" for n, at in enumerate(seconds)) + "\n")
    series = read_series(path, timestamp="t")
    np.testing.assert_array_equal(series.values[:, 0], np.arange(170))


def test_without_times_lines_are_even(tmp_path: Path) -> None:
    """All columns are channels."""
    np.savetxt(
        tmp_path / "a.csv", np.random.default_rng(0).normal(size=(200, 3)), delimiter=",", header="a,b,c", comments=""
    )
    assert read_series(tmp_path / "a.csv").channels == ("a", "b", "c")


def test_no_window_is_in_two_parts_of_the_split(tmp_path: Path) -> None:
    """Windows overlap; none of one part shares a reading with one of another."""
    dataset = read_dataset(str(write(tmp_path / "a.csv", points=900)), drop=["note"], windows=Windows(length=10))
    assert dataset.series is not None
    assert dataset.blocks is not None
    split = split_rows(len(dataset.rows["instances"]), load_config(), blocks=dataset.blocks)
    parts = (split.train, split.validation, split.calibration, split.test)
    owners = [set(dataset.blocks[part].tolist()) for part in parts]
    assert sum(map(len, owners)) == len(set().union(*owners)) == len(dataset.series.blocks)
    assert all(end - start >= 10 for start, end in dataset.series.blocks)
    assert sum(map(len, parts)) == len(dataset.rows["instances"])
    first = dataset.series.blocks[int(dataset.blocks[0])][0]
    np.testing.assert_array_equal(dataset.rows["instances"][0], dataset.series.values[first : first + 10])


def test_stride_takes_every_other_window(tmp_path: Path) -> None:
    """Fewer rows of the same series."""
    path = write(tmp_path / "a.csv", points=900)
    dense, sparse = (
        read_dataset(str(path), drop=["note"], windows=Windows(length=10, stride=stride)) for stride in (1, 2)
    )
    assert len(sparse.rows["instances"]) == pytest.approx(len(dense.rows["instances"]) / 2, rel=0.1)


@pytest.mark.parametrize(
    ("text", "options", "sentence"),
    [
        ("t,v\n1,2\n2,3\n", {}, "has 2 points; at least 160"),
        ("v\n" + "1\n" * 170 + "x\n", {}, '"v" holds something other than numbers'),
        ("t,v\n" + "".join(f"{100 - n},{n}\n" for n in range(170)), {"timestamp": "t"}, "Row 2 is earlier"),
        ("t,v\n" + "5,1\n" * 170, {"timestamp": "t"}, "All times are the same"),
        ("t,v\n" + "".join(f"{n**8},{n}\n" for n in range(170)), {"timestamp": "t"}, "too uneven"),
        ("t,v\n" + "".join(f"{n},\n" for n in range(170)), {"timestamp": "t"}, "something other|no values"),
        ("t,v\n" + "".join(f"{n},1\n" for n in range(170)), {"timestamp": "when"}, 'no column "when"'),
        ("t\n" + "".join(f"{n}\n" for n in range(170)), {"timestamp": "t"}, "No column of readings"),
        ("t,v\n" + "".join(f"{n},{n % 7}\n" for n in range(170)), {"window": 60}, "from 2 to 4 are possible"),
    ],
)
def test_what_is_no_series_is_said_in_a_sentence(
    tmp_path: Path, text: str, options: dict[str, str | int], sentence: str
) -> None:
    """Naming the row or the column where there is one."""
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=sentence):
        read_series(tmp_path / "a.csv", **options)  # type: ignore[arg-type]


def test_too_few_blocks_for_a_split() -> None:
    """Nothing would be left to fit."""
    with pytest.raises(ConfigurationError, match="leaves 0 of 30 windows"):
        split_rows(30, load_config(), blocks=np.repeat(np.arange(3), 10))


def test_windows_without_a_reading_are_left_out(tmp_path: Path) -> None:
    """A window with any reading stays; a gap of two windows takes no row, and no point of calibration."""
    whole, gap = (
        read_dataset(str(write(tmp_path / "a.csv", points=900, skip=skip)), drop=["note"], windows=Windows(length=10))
        for skip in ((), tuple(range(400, 425)))
    )
    assert not np.isnan(gap.rows["instances"]).all(axis=(1, 2)).any()
    assert np.isnan(gap.rows["instances"]).any()
    assert 0 < len(whole) - len(gap) <= 16
    assert gap.blocks is not None
    assert len(gap.blocks) == len(gap)


@pytest.mark.tf
def test_points_without_a_reading_do_not_calibrate(tmp_path: Path) -> None:
    """Their error is none, which would make every reading look strange."""
    from service.training import Reporter
    from service.training.evaluate import calibrate_points
    from service.training.train import train_model

    dataset = read_dataset(str(write(tmp_path / "a.csv", points=900)), drop=["note"], windows=Windows(length=10))
    config = load_config("auto", epochs=1)
    trained = train_model(dataset, config, Reporter())
    assert dataset.series is not None
    assert "independent stretches of time" in " ".join(trained.warnings)
    values = dataset.series.values.copy()
    values[5:20] = np.nan
    calibration, scale = calibrate_points(
        trained.graph, replace(dataset.series, values=values), dataset.rows, config, held_back=[0]
    )
    assert calibration.rows == len(dataset.series.block(0)) - 15
    assert scale.error > 0


def test_what_is_typical_is_so_by_the_hour(tmp_path: Path) -> None:
    """Medians of the hours of the day, without those held back; scores are averaged over half a day on either side."""
    series = read_series(write(tmp_path / "a.csv", points=1200, period=288), drop=["note"])
    scale = fit_point_scale(series, error=0.5, held_back=[0, 1])
    assert (len(scale.typical), scale.slot_points, scale.span, scale.error) == (24, 12, 144, 0.5)
    hours = (np.arange(1200) // 12) % 24
    kept = np.arange(1200) >= series.blocks[2][0]
    expected = [np.median(series.values[kept & (hours == hour), 0]) for hour in range(24)]
    np.testing.assert_allclose([value for (value,) in scale.typical], expected)
    assert scale.spread[0] < 0.05 * series.values.var()


def test_what_is_typical_without_a_day(tmp_path: Path) -> None:
    """Less than a day, or no times: one median, and an average over no more than a quarter of the series."""
    short = fit_point_scale(read_series(write(tmp_path / "a.csv"), drop=["note"]), error=0, held_back=[0])
    assert (len(short.typical), short.span) == (1, 60)
    np.savetxt(
        tmp_path / "b.csv", np.random.default_rng(0).normal(size=(400, 2)), delimiter=",", header="a,b", comments=""
    )
    lines = read_series(tmp_path / "b.csv", window=8)
    untimed = fit_point_scale(
        replace(lines, values=lines.values * np.array([1, 0], np.float32)), error=0, held_back=[0]
    )
    assert (len(untimed.typical), untimed.span) == (1, 8)
    assert untimed.spread[0] > 0.5
    assert 0 < untimed.spread[1] < 1e-6


def test_an_hour_without_a_reading_lies_between_its_neighbours(tmp_path: Path) -> None:
    """Also across midnight."""
    series = read_series(write(tmp_path / "a.csv", points=300, period=288), drop=["note"])
    values = np.arange(300, dtype=np.float32)[:, None] // 12 % 24
    values[276:288] = np.nan
    scale = fit_point_scale(replace(series, values=values), error=0, held_back=[])
    assert [value for (value,) in scale.typical] == [*range(23), 11]
