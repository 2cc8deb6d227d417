"""The score of images: directions in hidden layers as plain numpy has them, and errors that those overlook."""

from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

from service.training import Reporter, load_config
from service.training.data import read_dataset

if TYPE_CHECKING:
    from service.training.graph import ServingGraph
    from service.training.score import Passed

pytestmark = pytest.mark.tf


def normal(*shape: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def passed(hidden: NDArray[np.float32], *, error: float = 0.01) -> "Passed":
    """Images of 2 x 2 with the reconstruction error of about ``error`` each, of one hidden layer."""
    from service.training.score import Passed

    scaled = np.zeros((len(hidden), 2, 2), np.float32)
    off = np.sqrt(error * np.random.default_rng(9).uniform(0.5, 1.5, (len(hidden), 1, 1))).astype(np.float32)
    return Passed(scaled, np.ones(scaled.shape, bool), hidden[:, :2], scaled + off, (hidden,))


def test_directions_are_those_of_numpy() -> None:
    """The mean distance of the 5 nearest of unit length; how long a vector is plays no part."""
    from service.training.score_parts import Directions

    kept, new = normal(40, 6, seed=0), normal(7, 6, seed=1)
    unit_kept, unit_new = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (kept, new))
    apart = np.sort(np.linalg.norm(unit_new[:, None] - unit_kept, axis=2), axis=1)
    found = Directions.fit(kept)(3 * new).numpy()
    np.testing.assert_allclose(found, apart[:, :5].mean(axis=1), rtol=1e-5)


def test_a_stored_row_is_left_out_itself() -> None:
    from service.training.score_parts import Directions

    kept = normal(30, 4, seed=0)
    fitted = Directions.fit(kept)
    without = Directions(fitted.axes, fitted.coreset[1:])
    np.testing.assert_allclose(fitted(kept[:1], stored=True), without(kept[:1]), rtol=1e-5)
    assert fitted(kept[:1]).numpy()[0] < without(kept[:1]).numpy()[0]


@pytest.mark.parametrize("rows", [2, 4, 9])
def test_few_images_and_black_ones_have_finite_scores(rows: int) -> None:
    """A black image may give nothing at all in a hidden layer, which then has no direction."""
    from service.training.score import HiddenLayersScore

    fitted = HiddenLayersScore.fit(passed(np.zeros((rows, 4), np.float32), error=0.0))
    scores = fitted(passed(np.concatenate([np.zeros((1, 4), np.float32), normal(3, 4, seed=0)]))).numpy()
    assert np.isfinite(scores).all()


def test_both_an_unusual_direction_and_a_great_error_score_high() -> None:
    """A typical image scores about 0.8. One of another kind is found though it is reconstructed well; and one with
    a flaw, which the hidden layers overlook, by its error."""
    from service.training.score import HiddenLayersScore

    usual = np.array([4, 1, 0, 0], np.float32) + 0.2 * normal(500, 4, seed=0)
    fitted = HiddenLayersScore.fit(passed(usual))
    new = fitted(passed(np.array([4, 1, 0, 0], np.float32) + 0.2 * normal(300, 4, seed=1))).numpy()
    assert np.median(new) == pytest.approx(0.8, abs=0.2)
    other_kind = fitted(passed(np.array([[0, 0, 3, 1]], np.float32), error=0.003)).numpy()
    flawed = fitted(passed(np.array([[4, 1, 0, 0]], np.float32), error=1.0)).numpy()
    assert min(other_kind[0], flawed[0]) > new.max()


def test_alone_and_in_a_batch_an_image_scores_the_same() -> None:
    from service.training.score import HiddenLayersScore

    fitted = HiddenLayersScore.fit(passed(normal(300, 16, seed=0)))
    rows = passed(normal(64, 16, seed=1))
    together = fitted(rows).numpy()
    alone = np.concatenate([fitted(rows[at : at + 1]).numpy() for at in range(64)])
    np.testing.assert_allclose(alone, together, rtol=1e-5)


def test_a_kind_of_digit_that_was_never_seen_is_found() -> None:
    """Trained without the ones, which are the simplest digits: their reconstruction error is no sign of them.
    Alone and in a batch the scores of such small images are the same to the last digit."""
    from dataclasses import replace

    from sklearn.datasets import load_digits
    from sklearn.metrics import roc_auc_score

    from service.schemas import INSTANCES
    from service.training.graph import compile_for_rows, run_rows
    from service.training.score import ReconstructionScore
    from service.training.train import train_model

    images, labels = load_digits().images.astype(np.float32), load_digits().target
    digits = read_dataset("digits")
    known = replace(digits, rows={INSTANCES: images[labels != 1]})
    graph = train_model(known, load_config("demo", epochs=15), Reporter()).graph

    def auroc(graph: "ServingGraph") -> float:
        scores = run_rows(compile_for_rows(graph.scores, graph.schema), {INSTANCES: images})
        return float(roc_auc_score(labels == 1, scores))

    function = compile_for_rows(graph.scores, graph.schema)
    assert graph.serving.network.output.dtype == "float64"
    alone = np.concatenate([run_rows(function, {INSTANCES: image[None]}) for image in images[:200]])
    for size in (3, 8, 50, 200):
        batches = [run_rows(function, {INSTANCES: images[at : at + size]}) for at in range(0, 200, size)]
        np.testing.assert_array_equal(np.concatenate(batches)[:200], alone)
    assert graph.score.name == "neighbours in hidden layers, and reconstruction error"
    assert auroc(graph) > 0.9 > auroc(replace(graph, score=ReconstructionScore())) + 0.02
