"""What the training report says of columns and rows of every type."""

from typing import Any

import numpy as np
import pytest

from service.schemas import CATEGORIES, INSTANCES, TIMESTAMPS, InputSchema, Results, Rows
from service.training.evidence import Evidence, cells, feature_errors
from tests.training.mixed import MIXED, mixed_rows


def evidence_of(schema: InputSchema, rows: Rows, rebuilt: Results) -> Evidence:
    count = len(rows[INSTANCES])
    return Evidence(
        schema=schema,
        rows=rows,
        rebuilt={"error": np.arange(count, dtype=np.float32), **rebuilt},
        scores=np.arange(count, dtype=np.float32),
        p_values=np.full(count, 0.5, np.float32),
        latents=np.random.default_rng(0).normal(size=(count, 2)).astype(np.float32),
        latent_scores=np.arange(count, dtype=np.float32),
    )


@pytest.fixture
def orders() -> Evidence:
    """Rows of all types; age comes back as the mean, a quarter of countries as another, the rest unchanged."""
    rows = mixed_rows(400, seed=0)
    numbers, labels = rows[INSTANCES].copy(), rows[CATEGORIES].copy()
    numbers[:, 2] = np.nanmean(numbers[:, 2])
    labels[:100, 0] = b"XX"
    rebuilt: dict[str, Any] = {
        "reconstruction": numbers,
        f"reconstruction_{CATEGORIES}": labels,
        f"reconstruction_{TIMESTAMPS}": rows[TIMESTAMPS],
    }
    return evidence_of(MIXED, rows, rebuilt)


def test_error_by_column(orders: Evidence) -> None:
    """1 for a column that always comes back as its mean, 0 for a perfect one, and the share of labels missed."""
    errors = {feature.name: feature.error for feature in feature_errors(orders)}
    assert errors == pytest.approx(dict.fromkeys(errors, 0.0) | {"age": 1.0, "country": 0.25}, abs=1e-4)
    assert [feature.name for feature in feature_errors(orders) if feature.is_label] == ["country", "channel"]
    assert next(iter(errors)) == "age"


def test_cells_of_a_row(orders: Evidence) -> None:
    """Values as people read them, what changed most first; gaps are called missing."""
    row = int(np.flatnonzero(np.isnan(orders.rows[INSTANCES][:100, 2]))[0])
    shown = cells(orders, row)
    assert shown[0].column == "country"
    assert shown[0].reconstructed == "XX"
    named = {cell.column: cell for cell in shown}
    assert set(named) == {column.name for column in MIXED.columns}
    assert named["age"].observed == "missing"
    assert named["at"].observed.startswith("2020-")


def test_best_and_worst(orders: Evidence) -> None:
    """The rows shown are those with the least and with the greatest error."""
    assert orders.best.tolist() == [0, 1, 2, 3, 4, 5]
    assert orders.worst.tolist() == [399, 398, 397, 396, 395, 394]


def test_the_worst_pixel_of_ordinary_images() -> None:
    """A limit that at most the false-alarm rate of them exceeds; summed over channels, in raw units."""
    random = np.random.default_rng(0)
    images = random.uniform(0, 255, (199, 4, 6, 3)).astype(np.float32)
    rebuilt = images.copy()
    rebuilt[np.arange(199), 1, 2] += np.sqrt(np.arange(1, 200, dtype=np.float32))[:, None]
    schema = InputSchema(kind="image", row_shape=(4, 6, 3), value_range=(0.0, 255.0))
    found = evidence_of(schema, {INSTANCES: images}, {"reconstruction": rebuilt})
    assert found.pixel_error_limit(0.05) == pytest.approx(3 * 190, rel=1e-4)


def test_a_table_has_no_pixels(orders: Evidence) -> None:
    """And no limit of their errors."""
    assert orders.pixel_error_limit(0.05) is None
