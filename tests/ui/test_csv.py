"""The console reads CSV as training and ``autoencoder score`` do."""

import base64
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from playwright.sync_api import Browser

from service.codecs.json_rows import decode_json
from service.training.data import read_dataset
from service.words import ANOMALY_SCORE
from tests.tables.test_encodings import SEEDS, bounded, csv_bytes, dialects, random_rows
from tests.tables.test_field import assert_same

ReadCsv = Callable[[bytes, dict[str, Any]], dict[str, Any]]
MODULE = resources.files("service.api") / "static" / "ui" / "parts" / "csv.js"
READ = """async ([source, content, schema]) => {
  const module = await import(`data:text/javascript;base64,${source}`);
  const bytes = Uint8Array.from(atob(content), (sign) => sign.charCodeAt(0));
  return module.rowsOf(await module.textOfFile(new Blob([bytes])), schema);
}"""


@pytest.fixture(scope="module")
def read_csv(browser: Browser) -> ReadCsv:
    page = browser.new_page()
    source = base64.b64encode(MODULE.read_bytes()).decode()

    def read(content: bytes, schema: dict[str, Any]) -> dict[str, Any]:
        return dict(page.evaluate(READ, [source, base64.b64encode(content).decode(), schema]))

    return read


def test_the_console_reads_the_rows_of_training(read_csv: ReadCsv, tmp_path: Path) -> None:
    """In every dialect: the rows that it sends are those that training makes of the file."""

    @settings(bounded, max_examples=40)
    @given(SEEDS, dialects())
    def same(seed: int, form: dict[str, Any]) -> None:
        (tmp_path / "a.csv").write_bytes(csv_bytes(random_rows(seed, 20), form))
        dataset = read_dataset(str(tmp_path / "a.csv"))
        found = read_csv((tmp_path / "a.csv").read_bytes(), dataset.schema.model_dump(mode="json"))
        body = orjson.dumps({"instances": found["rows"]})
        assert_same(decode_json(body, dataset.schema, operation=ANOMALY_SCORE)[0], dataset.rows)
        assert found["ignored"] == []

    same()


@pytest.mark.parametrize(("text", "expected"), [("1,2\n3,4\n", [[1, 2], [3, 4]]), ("a;b\n1,5;2\n", [[1.5, 2]])])
def test_rows_without_names(read_csv: ReadCsv, text: str, expected: list[list[float]]) -> None:
    """A first line of numbers is a row."""
    found = read_csv(text.encode(), {"columns": []})
    np.testing.assert_array_equal(found["rows"], expected)
