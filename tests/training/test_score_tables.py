"""The score of tables: a sum over features, robust to anomalies in training, finite for any row, without its rows."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from service.schemas import INSTANCES, InputSchema
from service.training import Reporter, load_config
from tests.conftest import table_rows
from tests.training.conftest import export_model, table_dataset

if TYPE_CHECKING:
    from service.training.score import DenoisingScore, Passed
    from service.training.train import TrainedModel

pytestmark = pytest.mark.tf


def passed(scaled: NDArray[np.float32], observed: NDArray[np.bool_] | None = None) -> "Passed":
    from service.training.score import Passed

    everywhere = np.ones(scaled.shape, bool)
    return Passed(scaled, everywhere if observed is None else observed, scaled[:, :1], scaled)


def fit(rows: NDArray[np.float32], *, trim: float = 0.05, epochs: int = 40) -> "DenoisingScore":
    from service.training.denoiser import Denoiser
    from service.training.preprocessing import plain_layout
    from service.training.score import DenoisingScore
    from service.training.score_parts import Tails

    layout = plain_layout(InputSchema(kind="tabular", row_shape=(rows.shape[1],)))
    config = load_config("dense", epochs=epochs, trim=trim)
    denoiser = Denoiser.fit(rows, np.ones(rows.shape, bool), layout, config, Reporter())
    return DenoisingScore(denoiser, Tails.fit(rows))


def score(fitted: "DenoisingScore", rows: NDArray[np.float32]) -> NDArray[np.float32]:
    scores: NDArray[np.float32] = fitted(passed(rows)).numpy()
    return scores


def normal(rows: int, *, seed: int, columns: int = 5) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


def test_tails_count_what_lies_as_far_out() -> None:
    """Of each column the rarer side, and ties count as they do in training."""
    from service.training.score_parts import Tails

    columns = [np.arange(1000) / 100, np.where(np.arange(1000) < 800, 0.0, 1.0), np.full(1000, 3.0)]
    rows = np.array([[8.0, 1.0, 3.0], [5.0, 0.0, 3.0], [-1.0, 0.5, 7.0]], np.float32)
    fitted = Tails.fit(np.random.default_rng(0).permutation(np.stack(columns, axis=1).astype(np.float32)))
    shares = np.array([[0.2, 0.2, 1], [0.5, 0.8, 1], [1 / 129, 0.2, 1 / 129]])
    found = fitted(rows).numpy()
    np.testing.assert_allclose(found / found[0, 0], -np.log(shares) / -np.log(0.2), atol=0.1)


def test_tails_do_not_take_rounding_for_rare() -> None:
    """A constant column that comes back in another precision is the same column."""
    from service.training.score_parts import Tails

    fitted = Tails.fit(np.full((300, 2), [0.1, 9.7], np.float32))
    np.testing.assert_allclose(fitted(np.array([[0.1 + 1e-8, 9.7 - 1e-7]])).numpy(), 0.0, atol=1e-9)


@pytest.mark.parametrize(
    ("draw", "apart_at_most"),
    [
        (lambda random, shape: random.normal(size=shape), 0.05),
        (lambda random, shape: random.lognormal(sigma=2, size=shape), 0.05),
        (lambda random, shape: random.poisson(2, shape), 0.01),
        (lambda random, shape: np.where(random.random(shape) < 0.9, 0, random.exponential(size=shape)), 0.05),
        (lambda random, shape: random.normal(random.choice([0, 100], shape), 1), 0.5),
    ],
)
def test_tails_are_those_of_the_quantiles(draw: Callable[..., Any], apart_at_most: float) -> None:
    """Nearly, and the more so the closer values lie: of two heaps far apart, one has few cells."""
    from service.training.score_parts import MAX_QUANTILES, Tails

    random = np.random.default_rng(0)
    rows = draw(random, (2000, 2)).astype(np.float32)
    given = np.concatenate([draw(random, (2000, 2)), [[-1e6, 1e6], [1e6, -1e6]]]).astype(np.float32)
    quantiles = np.quantile(rows, (np.arange(MAX_QUANTILES) + 0.5) / MAX_QUANTILES, axis=0).astype(np.float32)

    def rarity(values: Any) -> Any:
        beyond = [(quantiles <= values[:, None]).sum(axis=1), (quantiles >= values[:, None]).sum(axis=1)]
        return -np.log((np.minimum(*beyond) + 1) / (MAX_QUANTILES + 1))

    expected = rarity(given) / rarity(rows).mean()
    apart = np.abs(Tails.fit(rows)(given).numpy() - expected)
    assert apart.mean() < apart_at_most
    np.testing.assert_allclose(apart[-2:] / expected[-2:], 0, atol=0.3 * apart_at_most + 0.01)


def test_tails_keep_no_value_of_a_row() -> None:
    """What is kept of a column are the places of cells, and how rare they are."""
    from service.training.score_parts import CELLS, Tails

    rows = normal(5000, seed=0, columns=3)
    fitted = Tails.fit(rows)
    assert fitted.rarities.shape == (3 * CELLS,)
    assert not np.isin(rows, [fitted.centers, fitted.units, fitted.starts, fitted.cells_a_place]).any()


def test_mahalanobis_is_scikit_learns() -> None:
    """Within the directions that are kept it is the distance under the Ledoit-Wolf covariance."""
    from sklearn.covariance import LedoitWolf

    from service.training.score_parts import Mahalanobis

    rows = (normal(400, seed=0, columns=12) @ normal(12, seed=1, columns=12)).astype(np.float64)
    expected = np.sqrt(LedoitWolf().fit(rows).mahalanobis(rows[:20]))
    np.testing.assert_allclose(Mahalanobis.fit(rows)(rows[:20]).numpy(), expected, rtol=1e-6)


def test_mahalanobis_of_very_wide_rows_stays_small() -> None:
    """Of 3,000 columns and 1,100 rows 256 directions are kept, and a row far from all of them is far."""
    from service.training.score_parts import MAX_DIRECTIONS, Mahalanobis

    fitted = Mahalanobis.fit(normal(1100, seed=0, columns=3000).astype(np.float64))
    assert fitted.directions.shape == (3000, MAX_DIRECTIONS)
    new, strange = (
        fitted(normal(20, seed=1, columns=3000)).numpy(),
        fitted(3 * normal(20, seed=2, columns=3000)).numpy(),
    )
    assert strange.min() > new.max()


def test_a_usual_row_scores_about_one() -> None:
    """Whatever the units; a strange one scores far above."""
    for unit in (0.01, 1000.0):
        fitted = fit(unit * normal(2000, seed=0))
        scores = score(fitted, unit * normal(1000, seed=1))
        assert np.mean(scores) == pytest.approx(1, abs=0.1)
        assert score(fitted, np.full((1, 5), 8 * unit, np.float32))[0] > 2 * np.quantile(scores, 0.999)


def test_what_breaks_the_relation_between_columns_is_strange() -> None:
    """Values that are usual each by itself and not together."""
    cause = normal(2000, seed=0, columns=1)
    fitted = fit(np.concatenate([cause, cause], axis=1) + 0.05 * normal(2000, seed=1, columns=2))
    usual, broken = np.array([[1, 1], [-1, -1]], np.float32), np.array([[1, -1], [-1, 1]], np.float32)
    assert score(fitted, broken).min() > 10 * score(fitted, usual).max()


def test_a_cluster_of_anomalies_in_training_does_not_hide_itself() -> None:
    """Two in a hundred training rows are one dense cluster: others of it still score above 95 % of normal rows."""
    cluster = 4 + 0.01 * normal(20, seed=1)
    fitted = fit(np.random.default_rng(2).permutation(np.concatenate([normal(980, seed=0), cluster])))
    usual = np.quantile(score(fitted, normal(500, seed=4)), 0.95)
    assert np.median(score(fitted, 4 + 0.01 * normal(20, seed=3))) > usual


@pytest.mark.parametrize("rows", [4, 9, 40])
def test_few_rows_and_duplicates_are_enough(rows: int) -> None:
    """Scores are finite and in order with a handful of training rows, even where all but one are the same."""
    few = np.zeros((rows, 3), np.float32)
    few[0] = 1.0
    scores = score(fit(few, epochs=10), np.array([[0.0, 0, 0], [5.0, 5, 5], [900.0, 900, 900]], np.float32))
    assert np.isfinite(scores).all()
    assert (np.diff(scores) > 0).all()


def test_the_parts_of_the_features_make_the_score() -> None:
    """Their mean is the score, a missing value has none, and the share of each is what `explain` gives."""
    fitted, rows = fit(normal(500, seed=0), epochs=5), normal(50, seed=1)
    observed = np.random.default_rng(2).random(rows.shape) > 0.3
    parts = fitted.parts(passed(rows, observed)).numpy()
    assert (parts[observed] > 0).all()
    assert not parts[~observed].any()
    np.testing.assert_allclose(fitted(passed(rows, observed)).numpy(), parts.mean(axis=1), rtol=1e-6)


def test_explain_gives_the_parts_of_the_score(table_model: "TrainedModel") -> None:
    """A contribution times the score is what its feature adds to it."""
    from service.training.score import DenoisingScore

    graph, rows = table_model.graph, {INSTANCES: table_rows(30, seed=5)}
    assert isinstance(graph.score, DenoisingScore)
    parts = graph.score.parts(graph.run(rows)).numpy()
    contribution = graph.explain(rows)["contribution"].numpy()
    np.testing.assert_allclose(contribution * graph.scores(rows).numpy()[:, None] * 6, parts, rtol=1e-4)


def test_the_configuration_chooses() -> None:
    """Tables have the network by default, and the reconstruction error where it is asked for; the score has a name."""
    from service.training.train import train_model

    rows = table_dataset(table_rows(400, seed=1))
    plain = train_model(rows, load_config("dense", hidden=(8,), epochs=2, score="reconstruction"), Reporter())
    assert plain.graph.score.name == "reconstruction error"
    default = train_model(rows, load_config("dense", hidden=(8,), epochs=2), Reporter())
    assert default.graph.score.name == "denoising network"


def test_a_version_holds_no_training_row(tmp_path: Path) -> None:
    """Neither the values of unusual rows nor two neighbouring ones of any row, raw or scaled, are in its SavedModel."""
    from service.training.train import train_model

    rows = table_rows(400, seed=1)
    unusual = np.arange(0, 400, 40)
    rows[unusual] *= np.float32(7.7)
    trained = train_model(table_dataset(rows), load_config("dense", hidden=(8,), epochs=2), Reporter())
    export_model(trained, tmp_path)
    files = (tmp_path / "saved_model.pb", *(tmp_path / "variables").iterdir())
    content = b"".join(file.read_bytes() for file in files)

    def is_held(values: NDArray[np.floating]) -> bool:
        return any(np.ascontiguousarray(values, kind).tobytes() in content for kind in (np.float32, np.float64))

    center, seen = trained.graph.preprocessing.scaling.center, np.union1d(trained.split.train, trained.split.validation)
    assert is_held(center[:2])
    scaled = trained.graph.run({INSTANCES: rows}).scaled.numpy()
    for table in (rows, scaled):
        assert not any(is_held(table[row, at : at + 2]) for row in seen for at in range(5))
        assert not any(is_held(table[row, at : at + 1]) for row in np.intersect1d(seen, unusual) for at in range(6))


@pytest.mark.parametrize("level", [0.15, 0.5, 1.0, 3.0])
def test_noise_of_any_level_is_removed(level: float) -> None:
    """Ten columns with two causes behind them: more than half of the noise can be told apart."""
    random = np.random.default_rng(3)
    mix = random.normal(size=(2, 10)) / np.sqrt(2)

    def draw(count: int) -> NDArray[np.float32]:
        rows = random.normal(size=(count, 2)) @ mix + 0.05 * random.normal(size=(count, 10))
        return np.asarray(rows, np.float32)

    fitted, clean = fit(draw(3000)), draw(500)
    spread = clean.std(axis=0)
    noisy = clean + level * spread * random.normal(size=clean.shape).astype(np.float32)
    left = (fitted.denoised(passed(noisy.astype(np.float32))).numpy() - clean) / spread
    assert np.mean(np.square(left)) < 0.5 * level**2


def test_a_row_without_noise_is_hardly_moved_by_denoising() -> None:
    """And one with gaps or values far out stays finite."""
    rows = normal(2000, seed=0)
    fitted, clean = fit(rows), normal(300, seed=1)
    moved = fitted.denoised(passed(clean)).numpy() - clean
    assert np.mean(np.square(moved)) < 0.02
    assert np.isfinite(fitted.denoised(passed(np.full((1, 5), 1e30, np.float32)))).all()
