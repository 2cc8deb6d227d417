"""One table has one score for each row, however it is written: property tests over many dialects and formats."""

import tempfile
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pyarrow import feather, parquet

from service.pipelines import Scorer
from service.pipelines.files import Job, run
from service.schemas import Rows
from service.training.data import read_dataset
from tests.tables.test_field import assert_same, scored_rows

SEEDS = st.integers(0, 2**32 - 1)
LABELS = ("red", "blue", "NA", "null", "0,5", 'say "hi"', " padded ", "two\nlines", "ä;b|c\td", "1.000")
FIRST, LAST = datetime(2020, 1, 1), datetime(2024, 12, 31)

ALWAYS: dict[str, Any] = {"amount": 1.25, "count": 3, "paid": True, "kind": "red", "when": FIRST}
"""A row that shows the decimal mark, in front of the others."""


def random_rows(seed: int, count: int) -> list[dict[str, Any]]:
    """Behind ``ALWAYS``, rows of all that may stand in these columns; one in ten cells is missing."""
    random = np.random.default_rng(seed)
    drawn: dict[str, Callable[[], Any]] = {
        "amount": lambda: int(random.integers(-9_999_999, 9_999_999)) / 100,
        "count": lambda: int(random.integers(0, 5_000_000)),
        "paid": lambda: bool(random.integers(2)),
        "kind": lambda: str(random.choice(LABELS)),
        "when": lambda: FIRST + timedelta(seconds=int(random.integers(0, 150_000_000))),
    }
    rows = [{name: None if random.random() < 0.1 else draw() for name, draw in drawn.items()} for _ in range(count)]
    return [ALWAYS, *rows]


@st.composite
def dialects(draw: st.DrawFn) -> dict[str, Any]:
    """How a CSV file may be written."""
    decimal = draw(st.sampled_from(".,"))
    return {
        "delimiter": draw(st.sampled_from(",;\t|")),
        "decimal": decimal,
        "thousands": draw(st.sampled_from(["", {".": ",", ",": "."}[decimal], "'"])),
        "blanks": draw(st.sampled_from(["", " "])),
        "end": draw(st.sampled_from(["\n", "\r\n"])),
        "encoding": draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"])),
        "hint": draw(st.booleans()),
        "index": draw(st.booleans()),
        "empty_columns": draw(st.integers(0, 2)),
        "quote_all": draw(st.booleans()),
        "german_times": draw(st.booleans()),
        "missing": draw(st.sampled_from(["", "NA", "NaN", "null"])),
    }


def csv_bytes(table: Sequence[dict[str, Any]], form: dict[str, Any]) -> bytes:
    def number(text: str) -> str:
        return text.translate(str.maketrans({",": form["thousands"], ".": form["decimal"]}))

    def cell(name: str, value: Any) -> str:
        if value is None:
            return "" if name == "kind" else str(form["missing"])
        if name == "when":
            return f"{value:%d.%m.%Y %H:%M:%S}" if form["german_times"] else f"{value:%Y-%m-%dT%H:%M:%SZ}"
        if name in ("amount", "count"):
            return number(f"{value:,.2f}" if name == "amount" else f"{value:,}")
        return str(value)

    def written(text: str) -> str:
        special = {form["delimiter"], '"', "\n", "\r"} & set(text) or text != text.strip()
        if special or (form["quote_all"] and text):
            text = '"' + text.replace('"', '""') + '"'
        return f"{form['blanks']}{text}{form['blanks']}"

    def line(number: str, cells: Sequence[str]) -> str:
        cells = [*([number] if form["index"] else []), *cells, *[""] * form["empty_columns"]]
        return str(form["delimiter"]).join(map(written, cells))

    lines = [f"sep={form['delimiter']}"] if form["hint"] else []
    lines += [line("", list(table[0]))]
    lines += [line(str(at), [cell(*each) for each in row.items()]) for at, row in enumerate(table)]
    return str(form["end"]).join([*lines, ""]).encode(form["encoding"])


def write_all(folder: Path, table: Sequence[dict[str, Any]], forms: Sequence[dict[str, Any]]) -> list[Path]:
    """The same rows in CSV of each form, and in the other formats."""
    types = {"count": pa.int64(), "paid": pa.bool_(), "kind": pa.string(), "when": pa.timestamp("ms", "UTC")}
    columns = {name: [row[name] for row in table] for name in table[0]}
    arrow = pa.table({name: pa.array(cells, types.get(name, pa.float64())) for name, cells in columns.items()})
    parquet.write_table(arrow, folder / "a.parquet", row_group_size=7)
    feather.write_feather(arrow, folder / "a.arrow", chunksize=7)
    (folder / "a.ndjson").write_bytes(b"\n".join(map(orjson.dumps, table)))
    paths = [folder / "a.parquet", folder / "a.arrow", folder / "a.ndjson"]
    for at, form in enumerate(forms):
        paths.append(folder / f"{at}.csv")
        paths[-1].write_bytes(csv_bytes(table, form))
    return paths


bounded = settings(max_examples=60, deadline=None, phases=[Phase.explicit, Phase.generate], derandomize=True)


@pytest.mark.slow
@bounded
@given(SEEDS, dialects(), dialects())
def test_training_and_scoring_read_the_same_rows(seed: int, one: dict[str, Any], other: dict[str, Any]) -> None:
    """Whatever the encoding, and of every encoding the same."""
    expected: Rows | None = None
    with tempfile.TemporaryDirectory() as folder:
        for path in write_all(Path(folder), random_rows(seed, 20), [one, other]):
            dataset = read_dataset(str(path))
            expected = expected or dataset.rows
            assert_same(dataset.rows, expected)
            assert_same(scored_rows(path, dataset.schema), expected)


@pytest.mark.tf
@pytest.mark.timeout(1200)
def test_a_row_has_one_score(tmp_path: Path) -> None:
    """A version that is trained once scores the same random files alike in every dialect and format."""
    from service.training import load_config
    from service.training.train import train

    source = write_all(tmp_path, random_rows(0, 300), [])[0]
    (tmp_path / "store").mkdir()
    config = load_config(latent_dim=2, hidden=(8,), epochs=2)
    train(config, source=str(source), store=tmp_path / "store", model="m", verify=lambda path: None)
    scorer = Scorer(str(tmp_path / "store"), "m")

    @settings(bounded, max_examples=20)
    @given(SEEDS, dialects(), dialects())
    def scores_agree(seed: int, one: dict[str, Any], other: dict[str, Any]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            scores = []
            for path in write_all(Path(folder), random_rows(seed, 20), [one, other]):
                run(Job(str(path), f"{folder}/out.parquet"), scorer)
                scores.append(parquet.read_table(f"{folder}/out.parquet")["anomaly_score"].to_numpy())
            for each in scores[1:]:
                np.testing.assert_allclose(each, scores[0], rtol=1e-5)

    scores_agree()
