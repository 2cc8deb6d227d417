"""Preprocessing: there and back, gaps, constants, and numbers of any size."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from service.schemas import InputSchema
from service.training import load_config
from tests.conftest import table_rows

pytestmark = pytest.mark.tf

MAX = float(np.finfo(np.float32).max)


def fitted(rows: NDArray[np.float32], **overrides: Any) -> Any:
    from service.training.scaling import fit_scaling

    schema = InputSchema(kind="tabular", row_shape=rows.shape[1:])
    return fit_scaling(rows, schema, load_config("dense", **overrides))


def test_columns_are_standardised() -> None:
    """Training rows have mean 0 and standard deviation 1 in every column."""
    rows = table_rows(2000, seed=2)
    scaled = fitted(rows).scale(rows)[0].numpy()
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(scaled.std(axis=0), 1, atol=1e-4)


@pytest.mark.parametrize("scaling", ["standard", "minmax"])
def test_there_and_back(scaling: str) -> None:
    """Unscaling undoes scaling, also far outside of what was seen."""
    rows = table_rows(500, seed=2)
    scaler = fitted(rows, scaling=scaling)
    for values in (rows, rows * 1e6, -rows * 1e20):
        np.testing.assert_allclose(scaler.unscale(scaler.scale(values)[0]).numpy(), values, rtol=2e-3, atol=1e-2)


def test_scale_grows_with_the_value_to_the_end() -> None:
    """A stranger value is farther out, and the largest float32 is still finite."""
    scaler = fitted(np.array([[0.0, 1e-30], [1e-3, 3e-30], [2e-3, 2e-30]], np.float32))
    values = np.geomspace(1e-4, MAX, 300).astype(np.float32)
    scaled = scaler.scale(np.stack([values, values], axis=1))[0].numpy()
    assert np.isfinite(scaled).all()
    assert (np.diff(scaled, axis=0) > 0).all()
    assert np.isfinite(scaler.unscale(np.array([[1e30, -1e30], [3e38, -3e38]], np.float32)).numpy()).all()


def test_scale_is_smooth_where_it_turns_logarithmic() -> None:
    """Neither value nor slope jumps at ten standard deviations."""
    scaler = fitted(np.array([[-1.0], [1.0]], np.float32))
    values = np.array([[9.99], [10.0], [10.01]], np.float32)
    np.testing.assert_allclose(scaler.scale(values)[0].numpy(), values, atol=1e-4)


def test_missing_values_become_the_median_and_are_known() -> None:
    """The median stands in, and the mask says where."""
    rows = table_rows(501, seed=2)
    scaler = fitted(rows)
    scaled, observed, _ = scaler.scale(np.full((1, 6), np.nan, np.float32))
    np.testing.assert_allclose(scaler.unscale(scaled).numpy()[0], np.median(rows, axis=0), rtol=1e-4)
    assert not observed.numpy().any()


def test_constant_columns_have_spread_one() -> None:
    """No division by zero, and a new value shows."""
    scaler = fitted(np.array([[5.0, 0.1], [5.0, 0.1], [5.0, 0.1]], np.float32))
    np.testing.assert_allclose(scaler.scale(np.array([[6.0, 0.1]], np.float32))[0].numpy(), [[1.0, 0.0]], atol=1e-6)


def test_images_use_their_value_range() -> None:
    """Pixels go from the range to [0, 1], whatever was seen of it."""
    from service.training.scaling import fit_scaling

    schema = InputSchema(kind="image", row_shape=(2, 2), value_range=(0.0, 255.0))
    scaling = fit_scaling(np.full((4, 2, 2), 100, np.float32), schema, load_config())
    assert scaling.bounded
    np.testing.assert_allclose(scaling.scale(np.full((1, 2, 2), 51, np.float32))[0].numpy(), 0.2, atol=1e-6)


@pytest.mark.parametrize("stranger", [1e9, np.nan])
def test_a_far_value_leaves_the_others_as_they_are(stranger: float) -> None:
    """To the last digit, in the graph as it is served: else a constant column would have a range, and a tiny one."""
    import tensorflow as tf

    rows = table_rows(500, seed=2)
    rows[:, 1] = 5.1
    scaler = fitted(rows)
    for dtype in (tf.float32, tf.float64):
        scale = tf.function(lambda values, dtype=dtype: scaler.scale(values, dtype)[0])
        changed = rows.copy()
        changed[::3, 0] = stranger
        plain, beside = scale(tf.constant(rows)).numpy(), scale(tf.constant(changed)).numpy()
        np.testing.assert_array_equal(beside[:, 1:], plain[:, 1:])
        np.testing.assert_array_equal(np.ptp(beside[:, 1]), 0)


def test_gaps_are_found_in_batches_of_any_size() -> None:
    """Compiled as it is served: every gap in any row and column, and none where there is none."""
    import tensorflow as tf

    rng, scaler = np.random.default_rng(3), fitted(table_rows(500, seed=2))
    scale = tf.function(scaler.scale, input_signature=[tf.TensorSpec((None, 6), tf.float32)])
    for count in (1, 5, 64, 300):
        rows = rng.normal(size=(count, 6)).astype(np.float32)
        rows[rng.random(rows.shape) < 0.2] = np.nan
        scaled, observed, gaps = scale(tf.constant(rows))
        np.testing.assert_array_equal(observed.numpy(), ~np.isnan(rows))
        assert set(np.flatnonzero(np.isnan(rows).any(axis=1))) <= set(gaps.rows.numpy()[:, 0])
        np.testing.assert_array_equal(gaps.observed.numpy(), observed.numpy()[gaps.rows.numpy()[:, 0]])
        assert np.isfinite(scaled.numpy()).all()


def test_errors_are_the_same_with_known_gaps_as_with_any() -> None:
    """Looking only at rows that may have gaps gives what looking at every value gives, digit by digit."""
    import tensorflow as tf

    from service.training.score import Passed, mean_squared_error, squared_errors

    rng, scaler = np.random.default_rng(3), fitted(table_rows(500, seed=2))
    rows = table_rows(300, seed=4)
    rows[rng.random(rows.shape) < 0.02] = np.nan
    rows[::50, 2] = 1e30
    scaled = scaler.scale(tf.constant(rows))
    rebuilt = tf.constant(rng.normal(size=rows.shape).astype(np.float32))
    everywhere, known = (
        Passed(scaled.values, scaled.observed, rebuilt[:, :1], rebuilt, gaps=gaps) for gaps in (None, scaled.gaps)
    )
    assert scaled.gaps is not None
    assert 0 < len(scaled.gaps.rows) < 100
    for errors in (squared_errors, mean_squared_error):
        np.testing.assert_array_equal(errors(known).numpy(), errors(everywhere).numpy())
    assert (squared_errors(known).numpy()[np.isnan(rows)] == 0).all()
