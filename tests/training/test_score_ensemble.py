"""The score of tables: distances as plain numpy has them, robust to anomalies in training, finite for any row."""

from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

from service.training import Reporter, load_config
from tests.conftest import table_rows
from tests.training.conftest import table_dataset

if TYPE_CHECKING:
    from service.training.score import EnsembleScore, Passed
    from service.training.train import TrainedModel

pytestmark = pytest.mark.tf


def passed(scaled: NDArray[np.float64]) -> "Passed":
    """As if through a network that keeps the first column and nothing else."""
    from service.training.score import Passed

    return Passed(scaled, np.ones(scaled.shape, bool), scaled[:, :1], scaled * np.eye(scaled.shape[1])[0])


def score(fitted: "EnsembleScore", rows: "Passed") -> NDArray[np.float64]:
    scores: NDArray[np.float64] = fitted(rows).numpy()
    return scores


def normal(rows: int, *, seed: int, columns: int = 5) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=(rows, columns))


def test_neighbours_are_those_of_numpy() -> None:
    """Near is the mean of the least distances in units of the local scale; a missing value adds nothing."""
    from service.training.score_parts import NEAREST, Neighbours, ranges

    coreset, rows = normal(50, seed=0), normal(7, seed=1)
    observed = np.random.default_rng(2).random(rows.shape) > 0.3
    spread = ranges(coreset[:40])
    fitted = Neighbours.fit(coreset, 40, spread=spread)

    def nearest(apart: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
        distances = np.sqrt(np.square(apart / spread).sum(axis=2))
        order = np.argsort(distances, axis=1)
        return np.take_along_axis(distances, order, axis=1), order

    own = nearest(coreset[:, None] - coreset)[0][:, 1:6].mean(axis=1)
    distances, order = nearest(np.where(observed[:, None], rows[:, None] - coreset, 0.0))
    *near, far = fitted(rows, observed).numpy().T
    for found, count in zip(near, NEAREST, strict=True):
        scale = np.exp(np.log(own[order[:, :count]]).mean(axis=1))
        np.testing.assert_allclose(found, distances[:, :count].mean(axis=1) / np.sqrt(scale), rtol=1e-6)
    by_number = np.take_along_axis(distances, np.argsort(order, axis=1), axis=1)
    least = np.sort(by_number[:, :32].reshape(7, 2, 16).min(axis=2), axis=1)
    np.testing.assert_allclose(far, least[:, 0], rtol=1e-6)


def test_a_rare_value_does_not_stretch_the_bulk() -> None:
    """The bulk of a column is nine tenths of it; of a column with one value and exceptions it is the range."""
    from service.training.score_parts import bulk_ranges, ranges

    even = np.linspace(0, 10, 1001)
    stretched = np.where(np.arange(1001) == 0, 500.0, even)
    rare = (np.arange(1001) < 20).astype(float)
    columns = np.stack([even, stretched, rare, np.zeros(1001)], axis=1)
    np.testing.assert_allclose(ranges(columns), [10, 500, 1, 1], rtol=1e-3)
    np.testing.assert_allclose(bulk_ranges(columns), [9, 9, 1, 1], rtol=1e-2)


def test_what_is_near_among_sparse_rows_is_far_among_dense_ones() -> None:
    """The same distance from a cloud ten times as dense scores higher."""
    from service.training.score import EnsembleScore

    dense, sparse = 0.1 * normal(500, seed=0, columns=2), normal(500, seed=1, columns=2) + 10
    rows = np.random.default_rng(2).permutation(np.concatenate([dense, sparse]))
    fitted = EnsembleScore.fit(passed(rows), trim=0.0)
    beside_dense, beside_sparse = score(fitted, passed(np.array([[0.0, 1.0], [10.0, 11.0]])))
    assert beside_dense > beside_sparse


def test_a_row_of_the_coreset_can_be_left_out() -> None:
    """Otherwise training rows would have the distance 0 from themselves, and everything else would look strange."""
    from service.training.score_parts import Neighbours, ranges

    coreset = normal(40, seed=0)
    fitted = Neighbours.fit(coreset, 40, spread=ranges(coreset))
    everywhere = np.ones(coreset.shape, bool)
    near = fitted(coreset, everywhere, np.arange(40, dtype=np.int32)).numpy()[0, :2]
    without = Neighbours(fitted.coreset[1:], fitted.spread, 39, fitted.sparseness[1:])
    np.testing.assert_allclose(near, without(coreset[:1], everywhere[:1]).numpy()[0, :2])
    assert (near > fitted(coreset[:1], everywhere[:1]).numpy()[0, :2]).all()


def test_tails_count_what_lies_as_far_out() -> None:
    """Of each column the rarer side; a missing value counts nothing, and ties count as they do in training."""
    from service.training.score_parts import Tails

    training = np.stack([np.arange(10.0), np.where(np.arange(10) < 8, 0.0, 1.0), np.full(10, 3.0)], axis=1)
    rows = np.array([[8.0, 1.0, 3.0], [4.5, 0.0, 3.0], [-1.0, np.nan, 7.0]])
    found = Tails.fit(np.random.default_rng(0).permutation(training))(np.nan_to_num(rows), ~np.isnan(rows)).numpy()
    shares = np.array([[3, 3, 11], [6, 9, 11], [1, 11, 1]]) / 11
    np.testing.assert_allclose(found, -np.log(shares).sum(axis=1))


def test_tails_do_not_take_rounding_for_rare() -> None:
    """A constant column that comes back in another precision is the same column."""
    from service.training.score_parts import Tails

    fitted = Tails.fit(np.full((300, 2), [np.float32(0.1), np.float32(9.7)], np.float64))
    assert fitted(np.array([[0.1, 9.7]]), np.ones((1, 2), bool)).numpy() == pytest.approx(0.0, abs=1e-9)


def test_tails_of_many_rows_keep_few_quantiles() -> None:
    """Their number is bounded, and the ends of each column stay: nothing seen in training is beyond them."""
    from service.training.score_parts import MAX_QUANTILES, Tails

    rows = normal(5000, seed=0, columns=3)
    fitted = Tails.fit(rows)
    assert fitted.quantiles.shape == (3, MAX_QUANTILES)
    np.testing.assert_array_equal(fitted.quantiles[:, [0, -1]], np.stack([rows.min(axis=0), rows.max(axis=0)], axis=1))


def test_mahalanobis_is_scikit_learns() -> None:
    """Within the directions that are kept it is the distance under the Ledoit-Wolf covariance."""
    from sklearn.covariance import LedoitWolf

    from service.training.score_parts import Mahalanobis

    rows = normal(400, seed=0, columns=12) @ normal(12, seed=1, columns=12)
    expected = np.sqrt(LedoitWolf().fit(rows).mahalanobis(rows[:20]))
    np.testing.assert_allclose(Mahalanobis.fit(rows)(rows[:20]).numpy(), expected, rtol=1e-6)


def test_mahalanobis_of_very_wide_rows_stays_small() -> None:
    """Of 3,000 columns and 1,100 rows 256 directions are kept, and a row far from all of them is far."""
    from service.training.score_parts import MAX_DIRECTIONS, Mahalanobis

    rows = normal(1100, seed=0, columns=3000)
    fitted = Mahalanobis.fit(rows)
    assert fitted.directions.shape == (3000, MAX_DIRECTIONS)
    new, strange = (
        fitted(normal(20, seed=1, columns=3000)).numpy(),
        fitted(3 * normal(20, seed=2, columns=3000)).numpy(),
    )
    assert strange.min() > new.max()


def test_a_typical_row_scores_about_log_two() -> None:
    """A new normal row is below 1.31 nine times in ten, whatever the units; a strange one far above."""
    from service.training.score import EnsembleScore

    fitted = EnsembleScore.fit(passed(1000 * normal(2000, seed=0)), trim=0.05)
    scores = score(fitted, passed(1000 * normal(1000, seed=1)))
    assert np.median(scores) == pytest.approx(np.log(2), abs=0.15)
    assert 0.8 < (scores < np.log1p(np.e)).mean() < 0.97
    assert score(fitted, passed(np.full((1, 5), 8000.0)))[0] > 4


def test_a_cluster_of_anomalies_in_training_does_not_hide_itself() -> None:
    """Two in a hundred training rows are one dense cluster: others of it still score above nearly all normal rows."""
    from service.training.score import EnsembleScore

    cluster = 4 + 0.01 * normal(20, seed=1)
    rows = np.random.default_rng(2).permutation(np.concatenate([normal(980, seed=0), cluster]))
    strange, usual = passed(4 + 0.01 * normal(20, seed=3)), passed(normal(500, seed=4))
    trusting, wary = (EnsembleScore.fit(passed(rows), trim=trim) for trim in (0.0, 0.05))
    assert np.median(score(wary, strange)) > np.quantile(score(wary, usual), 0.99)
    assert np.median(score(wary, strange)) > np.median(score(trusting, strange))


@pytest.mark.parametrize("rows", [4, 9, 40])
def test_few_rows_and_duplicates_are_enough(rows: int) -> None:
    """Scores are finite and in order with a handful of training rows, even where all but one are the same."""
    from service.training.score import EnsembleScore

    few = np.zeros((rows, 3))
    few[0] = 1.0
    fitted = EnsembleScore.fit(passed(few), trim=0.05)
    scores = score(fitted, passed(np.array([[0.0, 0, 0], [5.0, 5, 5], [900.0, 900, 900]])))
    assert np.isfinite(scores).all()
    assert (np.diff(scores) > 0).all()


def test_the_configuration_chooses() -> None:
    """Tables have the ensemble by default, and the reconstruction error where it is asked for; the score has a name."""
    from service.training.train import train_model

    rows = table_dataset(table_rows(400, seed=1))
    plain = train_model(rows, load_config("dense", hidden=(8,), epochs=2, score="reconstruction"), Reporter())
    assert plain.graph.score.name == "reconstruction error"
    default = train_model(rows, load_config("dense", hidden=(8,), epochs=2), Reporter())
    assert default.graph.score.name == "neighbours, latent and residual, tails"


def test_calibration_rows_are_no_part_of_the_score(table_model: "TrainedModel") -> None:
    """No calibration row is in the coreset: its p-value would not hold."""
    from service.training.score import EnsembleScore

    fitted = table_model.graph.score
    assert isinstance(fitted, EnsembleScore)
    split = table_model.split
    held_back = {name: table_model.dataset.rows[name][split.calibration] for name in table_model.dataset.rows}
    scaled = table_model.graph.run(held_back).scaled.numpy() / fitted.parts.by_range.spread
    stored = {row.tobytes() for row in fitted.parts.by_range.coreset.astype(np.float32)}
    assert not any(row.tobytes() in stored for row in scaled.astype(np.float32))
