"""Tables from the field: what trains can be scored, and means the same in every encoding."""

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import orjson
import polars as pl
import pyarrow as pa
import pytest
from pyarrow import feather, parquet

from service.codecs import table_rows
from service.codecs.json_rows import decode_json
from service.errors import DataError, InvalidRows
from service.pipelines.chunks import read_chunks
from service.schemas import ColumnType, InputSchema, Rows, joined
from service.tables.files import plan_parts
from service.tables.frames import model_columns
from service.tables.series import seconds_of
from service.tables.writing import Sink
from service.training.data import Dataset, read_dataset
from service.training.report import describe_rows
from service.training.series import Windows, read_series
from service.words import ANOMALY_SCORE

ROWS = 60
random = np.random.default_rng(0)
PEOPLE = random.integers(985, 89_557, ROWS)
VALUES = random.normal(0, 1, (ROWS, 2))


def write(path: Path, lines: Sequence[str], encoding: str = "utf-8") -> Path:
    path.write_bytes(("\n".join(lines) + "\n").encode(encoding))
    return path


def scored_rows(path: Path, schema: InputSchema, comma: bool = False) -> Rows:
    """The rows of a file as a model of this schema gets them from ``autoencoder score``; all of them fit."""
    parts = []
    for part in plan_parts([str(path)]):
        for chunk in read_chunks(part, schema, batch_rows=17, decimal_comma=comma):
            columns, problems = model_columns(chunk.columns, schema)
            rows, found = table_rows(columns, schema)
            assert not {**chunk.problems, **problems, **found}
            parts.append(rows)
    return joined(parts)


def assert_same(found: Rows, expected: Rows) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def trained_and_scored(path: Path) -> Dataset:
    """The training rows of a file, once scoring was seen to read the same ones."""
    dataset = read_dataset(str(path))
    assert_same(scored_rows(path, dataset.schema), dataset.rows)
    return dataset


def types_of(dataset: Dataset) -> dict[str, str]:
    return {column.name: column.type.value for column in dataset.schema.columns}


ENCODINGS: dict[str, Callable[[pa.Table, Path], object]] = {
    "rows.parquet": parquet.write_table,
    "rows.arrow": feather.write_feather,
    "rows.ndjson": lambda table, path: path.write_bytes(b"\n".join(map(orjson.dumps, table.to_pylist()))),
    "rows.csv": lambda table, path: write(
        path, [",".join(table.column_names), *(",".join(map(str, row.values())) for row in table.to_pylist())]
    ),
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_a_label_that_looks_like_nothing_is_a_label(tmp_path: Path, name: str) -> None:
    """NA is Namibia in every encoding; only an empty cell of a text column is missing."""
    table = pa.table({"country": ["NA", "null", "None", "DE"] * 15, "gdp": VALUES[:, 0]})
    ENCODINGS[name](table, tmp_path / name)
    dataset = trained_and_scored(tmp_path / name)
    assert not dataset.schema.columns[0].may_be_missing
    assert dataset.rows["categories"][:4, 0].tolist() == [b"NA", b"null", b"None", b"DE"]
    write(tmp_path / "gaps.csv", ["country,gdp", *(f"{['', 'NA', 'DE'][at % 3]},{at}" for at in range(ROWS))])
    assert trained_and_scored(tmp_path / "gaps.csv").rows["categories"][:2, 0].tolist() == [b"", b"NA"]


def test_numbers_may_be_spelled_as_nothing(tmp_path: Path) -> None:
    """Between numbers, booleans and times such a cell is missing, in training and in scoring."""
    lines = [f"{['NA', at][at % 2]},{['null', 'true'][at % 2]},{['', '2024-01-31'][at % 2]}" for at in range(ROWS)]
    dataset = trained_and_scored(write(tmp_path / "a.csv", ["a,ok,when", *lines]))
    assert types_of(dataset) == {"a": "numeric", "ok": "boolean", "when": "timestamp"}
    assert all(column.may_be_missing for column in dataset.schema.columns)


def test_marks_between_thousands(tmp_path: Path) -> None:
    """A comma before three digits in all cells stands between thousands, and a note says so."""
    lines = ["city\tpopulation\tarea", *(f"c{at % 7}\t{p:,}\t{p // 9:,}" for at, p in enumerate(PEOPLE))]
    dataset = trained_and_scored(write(tmp_path / "a.tsv", lines))
    np.testing.assert_array_equal(dataset.rows["instances"], np.stack([PEOPLE, PEOPLE // 9], axis=1))
    assert "population" in dataset.notes[0]
    assert "thousands" in dataset.notes[0]


@pytest.mark.parametrize(
    ("big", "small"),
    [("1,234,567", "0.52"), ("1.234.567", "0,52"), ("1'234'567", "0.52"), ("1 234 567", "0,52"), ("1234567", "-,5")],
)
def test_marks_between_thousands_beside_decimals(tmp_path: Path, big: str, small: str) -> None:
    """The columns of a file agree on their decimal mark."""
    lines = [f"{big};{small}" if at % 3 else f"2;{at}" for at in range(ROWS)]
    dataset = trained_and_scored(write(tmp_path / "a.csv", ["population;share", *lines]))
    assert types_of(dataset) == {"population": "numeric", "share": "numeric"}
    assert dataset.rows["instances"][1, 0] == 1_234_567
    assert dataset.rows["instances"][1, 1] == pytest.approx(float(small.replace(",", ".")))
    assert dataset.notes == ()


def test_three_decimals_are_no_thousands(tmp_path: Path) -> None:
    """Where a leading zero or a longer group shows that the comma is a decimal mark."""
    lines = [f"{value:.3f}".replace(".", ",") for value in np.abs(VALUES[:, 0]) / 2]
    dataset = trained_and_scored(write(tmp_path / "a.csv", ["a;b", *(f"{cell};1,5" for cell in lines)]))
    assert dataset.rows["instances"][:, 0].max() < 3


def test_a_file_of_few_rows_has_the_marks_of_training(tmp_path: Path) -> None:
    """A comma before three digits in all its cells is a decimal mark where it was one in training."""
    lines = [f"{abs(v):.3f};{abs(w):.1f}".replace(".", ",") for v, w in VALUES]
    dataset = trained_and_scored(write(tmp_path / "a.csv", ["a;b", *lines]))
    few = write(tmp_path / "few.csv", ["a;b", "1,234;5"])
    assert scored_rows(few, dataset.schema, dataset.decimal_comma)["instances"].tolist() == [[np.float32(1.234), 5.0]]
    assert scored_rows(few, dataset.schema)["instances"].tolist() == [[1234.0, 5.0]]


@pytest.mark.parametrize("tail", ["", ";;"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_decimal_commas_and_empty_columns(tmp_path: Path, tail: str, encoding: str) -> None:
    """What a spreadsheet writes; columns with neither name nor values are left out, and named in a note."""
    lines = [f"{a:.1f};{at % 9}{tail}".replace(".", ",") for at, a in enumerate(VALUES[:, 0])]
    dataset = trained_and_scored(write(tmp_path / "a.csv", [f"a;b{tail}", *lines], encoding))
    np.testing.assert_allclose(dataset.rows["instances"][:, 0], np.round(VALUES[:, 0], 1), atol=1e-6)
    assert [note.split(" has")[0] for note in dataset.notes] == (["Column 3", "Column 4"] if tail else [])


@pytest.mark.parametrize("quote", ["", '"'])
def test_blanks_around_cells_do_not_count(tmp_path: Path, quote: str) -> None:
    """Except within quotation marks, where they are text."""
    inside = f"{quote} a, b {quote}" if quote else "red"
    rows = [f" {at} ,2024-01-{1 + at % 28:02d} 00:15:00 , {[inside, 'blue'][at % 2]} " for at in range(ROWS)]
    dataset = trained_and_scored(write(tmp_path / "a.csv", ["a , when,\tkind".replace("\t", " "), *rows]))
    assert types_of(dataset) == {"a": "numeric", "when": "timestamp", "kind": "categorical"}
    assert set(dataset.rows["categories"][:, 0]) == {b" a, b " if quote else b"red", b"blue"}


def test_the_separator_that_a_spreadsheet_names(tmp_path: Path) -> None:
    """``sep=;`` on the first line is no row, and goes before what the header looks like."""
    dataset = trained_and_scored(
        write(tmp_path / "a.csv", ["sep=;", "a,x;b", *(f"{v:.3f};{w:.3f}" for v, w in VALUES)])
    )
    assert types_of(dataset) == {"a,x": "numeric", "b": "numeric"}
    assert len(dataset) == ROWS


@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
def test_row_numbers_are_no_column(tmp_path: Path, name: str) -> None:
    """A frame that was written with its index; pandas' own way in Parquet too."""
    lines = [f"{at},{v:.3f},{w:.3f}" for at, (v, w) in enumerate(VALUES)]
    dataset = trained_and_scored(write(tmp_path / "a.csv", [f"{name},a,b", *lines]))
    assert types_of(dataset) == {"a": "numeric", "b": "numeric"}
    assert "numbers of the rows" in dataset.notes[0]
    through(tmp_path / "a.csv", tmp_path / "out.csv", dataset.schema)
    header, *written = (tmp_path / "out.csv").read_text().splitlines()
    assert header == f"{name},a,b,score"
    assert [line.replace('"', "").rpartition(",")[0] for line in written] == lines
    frame = pa.table({"a": VALUES[:, 0], "b": VALUES[:, 1], "z": VALUES[:, 1]}).to_pandas().sort_values("a")
    frame.to_parquet(tmp_path / "a.parquet")
    dataset = trained_and_scored(tmp_path / "a.parquet")
    assert set(types_of(dataset)) == {"a", "b", "z"}
    assert "index" in dataset.notes[0]


def test_text_as_polars_writes_it(tmp_path: Path) -> None:
    """String views and categoricals train, are scored, and are written in every format."""
    kinds = [["u", "v", None][at % 3] for at in range(ROWS)]
    frame = pl.DataFrame(
        {
            "x": VALUES[:, 0],
            "s": kinds,
            "c": pl.Series(kinds, dtype=pl.Categorical),
            "e": pl.Series(kinds, dtype=pl.Enum(["u", "v"])),
        }
    )
    frame.write_ipc(tmp_path / "a.arrow")
    dataset = trained_and_scored(tmp_path / "a.arrow")
    assert list(types_of(dataset).values()) == ["numeric", "categorical", "categorical", "categorical"]
    columns, problems = model_columns(frame, dataset.schema)
    assert not problems
    assert_same(table_rows(columns, dataset.schema)[0], dataset.rows)
    for name in ENCODINGS:
        through(tmp_path / "a.arrow", tmp_path / f"out{Path(name).suffix}", dataset.schema)
        assert_same(scored_rows(tmp_path / f"out{Path(name).suffix}", dataset.schema), dataset.rows)


def through(source: Path, target: Path, schema: InputSchema) -> None:
    """Write what is kept of the rows of a file."""
    kind = target.suffix[1:]
    with target.open("wb") as file, Sink(file, kind) as sink:
        for part in plan_parts([str(source)]):
            for chunk in read_chunks(part, schema, batch_rows=17, as_text=kind == "csv"):
                sink.write(chunk.kept, pa.table({"score": np.zeros(chunk.rows)}), chunk.lines)


@pytest.mark.parametrize("source", ENCODINGS)
@pytest.mark.parametrize("target", ENCODINGS)
def test_integers_keep_their_digits(tmp_path: Path, source: str, target: str) -> None:
    """Above 2**53 too, whether the model knows the column or not; training says what float32 makes of them."""
    ids = [9_007_199_254_740_993 + at for at in range(ROWS)]
    table = pa.table({"account": ids, "x": VALUES[:, 0], "passed": [str(each) for each in ids]})
    ENCODINGS[source](table, tmp_path / source)
    dataset = read_dataset(str(tmp_path / source), drop=["passed"])
    assert any("account" in note and "lost" in note for note in dataset.notes)
    into = tmp_path / f"out{Path(target).suffix}"
    through(tmp_path / source, into, dataset.schema)
    assert ids_of(into, "account") == ids_of(into, "passed") == ids


def ids_of(path: Path, name: str) -> list[int]:
    """The integers of a column of a file, not by way of our own reader."""
    if path.suffix == ".csv":
        header, *lines = path.read_text().splitlines()
        return [int(line.split(",")[header.split(",").index(name)].strip('"')) for line in lines]
    if path.suffix == ".ndjson":
        return [int(orjson.loads(line)[name]) for line in path.read_bytes().splitlines()]
    table = parquet.read_table(path) if path.suffix == ".parquet" else feather.read_table(path)
    return [int(value) for value in table[name].to_pylist()]


def test_numbers_that_float32_makes_one_value(tmp_path: Path) -> None:
    """A serial number far from 0 is trained as a constant, and a note says so."""
    lines = [f"{2_000_000_000 + at % 61},{v:.3f}" for at, v in enumerate(VALUES[:, 0])]
    dataset = trained_and_scored(write(tmp_path / "a.csv", ["serial,x", *lines]))
    assert "lost" in dataset.notes[0]
    years = write(tmp_path / "b.csv", ["year,x", *(f"{2000 + at % 25},{at}" for at in range(ROWS))])
    assert read_dataset(str(years)).notes == ()


def test_seconds_are_no_milliseconds(tmp_path: Path) -> None:
    """A number of seconds where training had milliseconds is refused in every encoding, and in training too."""
    lines = [f"2024-01-{1 + at % 28:02d}T10:00:00Z,{v:.3f}" for at, v in enumerate(VALUES[:, 0])]
    schema = trained_and_scored(write(tmp_path / "a.csv", ["when,x", *lines])).schema
    body = b'{"instances": [{"when": 1704863700000, "x": 0}]}'
    rows, _ = decode_json(body, schema, operation=ANOMALY_SCORE)
    assert rows["timestamps"][0, 0] == 1_704_863_700_000
    with pytest.raises(InvalidRows) as refused:
        decode_json(body.replace(b"3700000", b"3700"), schema, operation=ANOMALY_SCORE)
    assert "not seconds" in refused.value.problems[0].problem
    _, problems = table_rows(pa.table({"when": [1704863700], "x": [0.0]}), schema)
    assert "not seconds" in problems[0].problem


@pytest.mark.parametrize(
    "form", ["{d:02d}.{m:02d}.2024 {h}:00", "2024/{m}/{d} {h:02d}:00", "2024-{m:02d}-{d:02d}T{h:02d}:00Z"]
)
def test_times_of_several_countries(tmp_path: Path, form: str) -> None:
    """A date with its day first between points, with slashes, or by ISO 8601."""
    cells = [form.format(d=1 + at % 28, m=1 + at % 12, h=at % 24) for at in range(ROWS)]
    dataset = trained_and_scored(
        write(tmp_path / "a.csv", ["when;x", *(f"{cell};{at}" for at, cell in enumerate(cells))])
    )
    assert dataset.schema.columns[0].type is ColumnType.TIMESTAMP
    assert dataset.rows["timestamps"][3, 0] == np.datetime64("2024-04-04T03:00", "ms").astype(int)


# --- series -----------------------------------------------------------------------------------------------------------


def hourly(days: int = 28, *, form: str = "{at:%Y-%m-%dT%H:%M:%SZ}", columns: str = "{v:.2f}") -> list[str]:
    """Lines of a time and a wave of one day."""
    first = datetime(2024, 1, 1, tzinfo=UTC)
    waves = [5 + math.sin(at / 24 * math.tau) for at in range(24 * days)]
    return [
        f"{form};{columns}".format(at=first + timedelta(hours=at), u=1704067200 + 3600 * at, v=wave, s=at)
        for at, wave in enumerate(waves)
    ]


SERIES_FORMS = {
    "iso": ("when;load", "{at:%Y-%m-%dT%H:%M:%SZ}"),
    "seconds": ("when;load", "{u}"),
    "milliseconds": ("when;load", "{u}000"),
    "german": ("Zeit;load", "{at:%d.%m.%Y %H:%M}"),
    "two columns": ("date;time;load", "{at:%Y-%m-%d};{at:%H:%M:%S}"),
    "two german columns": ("Datum;Uhrzeit;load", "{at:%d.%m.%Y};{at:%H:%M}"),
}


@pytest.mark.parametrize("name", SERIES_FORMS)
def test_times_of_a_series(tmp_path: Path, name: str) -> None:
    """However they are written; decimal commas are read too, and the terminal says step, channels and window."""
    header, form = SERIES_FORMS[name]
    lines = [line.rpartition(";")[0] + ";" + line.rpartition(";")[2].replace(".", ",") for line in hourly(form=form)]
    dataset = read_dataset(str(write(tmp_path / "a.csv", [header, *lines])), windows=Windows())
    assert dataset.series is not None
    assert (dataset.series.channels, dataset.series.window, dataset.series.step) == (("load",), 16, "1 h")
    assert dataset.series.values[6, 0] == pytest.approx(6, abs=1e-2)
    assert "672 points every 1 h; channels: load; windows of 16 steps" in describe_rows(dataset)


def test_a_gap_between_unix_times_stays_a_gap(tmp_path: Path) -> None:
    """It is not closed up."""
    lines = hourly(40, form="{u}")
    series = read_series(write(tmp_path / "a.csv", ["timestamp;value", *lines[:500], *lines[620:]]))
    assert len(series.values) == 960
    assert np.isnan(series.values[500:620]).all()
    assert "Unix times in seconds" in series.notes[0]


@pytest.mark.parametrize("key", ["ab", "12"])
@pytest.mark.parametrize("order", ["mixed", "one after the other"])
def test_several_series_in_one_table(tmp_path: Path, key: str, order: str) -> None:
    """Refused with the words that choose one; none is lost silently."""
    lines = [f"{line};{name}" for line in hourly() for name in key]
    if order != "mixed":
        lines.sort(key=lambda line: line[-1])
    path = write(tmp_path / "a.csv", ["when;value;sensor", *lines])
    with pytest.raises(DataError, match=f'"sensor" tells 2 series apart.*--where sensor={key[0]}.* --drop sensor'):
        read_series(path)
    series = read_series(path, where=[f"sensor={key[0]}"], drop=["sensor"])
    assert (len(series.values), series.channels, series.notes) == (672, ("value",), ())


def test_readings_of_one_time_are_merged_and_counted(tmp_path: Path) -> None:
    """Where no column tells series apart, their mean counts."""
    lines = [line for line in hourly() for _ in range(2)]
    series = read_series(write(tmp_path / "a.csv", ["when;value", *lines]))
    assert len(series.values) == 672
    assert "672 readings fell into a step of 1 h that had one already; the mean counts." in series.notes


def test_uneven_times_are_brought_to_a_step(tmp_path: Path) -> None:
    """The step is said; --step chooses another, and readings that share one are counted."""
    first = datetime(2024, 1, 1, tzinfo=UTC)
    at = [10 * n + random.integers(0, 50) / 60 for n in range(2000) if random.random() > 0.3]
    lines = [f"{first + timedelta(minutes=each):%Y-%m-%d %H:%M:%S},{math.sin(each / 200):.3f}" for each in at]
    path = write(tmp_path / "a.csv", ["timestamp,value", *lines])
    series = read_series(path)
    assert series.step == "10 min"
    assert any("steps of 10 min; --step" in note for note in series.notes)
    longer = read_series(path, step=seconds_of("30min"))
    assert (longer.step, len(longer.values)) == ("30 min", 667)
    assert any(
        f"{len(at) - np.sum(~np.isnan(longer.values))} readings fell into a step" in note for note in longer.notes
    )


@pytest.mark.parametrize("minutes", [15, 60])
def test_the_hour_that_comes_twice(tmp_path: Path, minutes: int) -> None:
    """Local times at the end of summer time are told apart by their order."""
    zone = ZoneInfo("Europe/Berlin")
    first = datetime(2024, 10, 20, tzinfo=UTC)
    local = [(first + timedelta(minutes=minutes * n)).astimezone(zone) for n in range(1500)]
    lines = [f"{each:%Y-%m-%d %H:%M:%S},{n}" for n, each in enumerate(local)]
    series = read_series(write(tmp_path / "a.csv", ["when,value", *lines]))
    np.testing.assert_array_equal(series.values[:, 0], np.arange(1500))
    lines[700], lines[710] = lines[710], lines[700]
    with pytest.raises(DataError, match="sort the file"):
        read_series(write(tmp_path / "b.csv", ["when,value", *lines]))


@pytest.mark.parametrize("name", ENCODINGS)
def test_a_series_of_every_format(tmp_path: Path, name: str) -> None:
    """The reader of tables serves series too."""
    lines = [line.split(";") for line in hourly()]
    table = pa.table({"when": [when for when, _ in lines], "value": [float(value) for _, value in lines]})
    ENCODINGS[name](table, tmp_path / name)
    series = read_series(tmp_path / name)
    assert (series.channels, series.step, len(series.values)) == (("value",), "1 h", 672)
