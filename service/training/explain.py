"""Which features made a row anomalous, and what they should have been. Graph code, in scaled units."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.training.layout import Layout
from service.training.quiet import tf
from service.training.scaling import Scaled
from service.training.score import Passed, squared_errors


def counterfactual_shares(
    passed: Passed,
    *,
    typical: NDArray[np.float32],
    layout: Layout,
    score: Callable[[Scaled], Any],
) -> tuple[Any, Any]:
    """Share of each feature in the score (rows, features) and what was expected (rows, values), for rows of columns.

    The contribution of a feature is how far the score falls at most when that feature alone, all of its scaled values
    at once, is replaced by a typical one: its reconstruction, or what it was in one of the rows ``typical``
    (candidates, values); the one with the lowest score is the expected one. A wrong value also spoils the
    reconstruction of the columns that correlate with it, so that squared errors smear the blame over them; repairing
    an innocent column leaves the score high, and so it gets none. A missing value contributes nothing.

    After the reconstruction-based contribution of Alcala and Qin (Automatica 45, 2009), with a search in place of
    its closed form for linear models.
    """

    def one_row(row: tuple[Any, Any, Any]) -> tuple[Any, Any]:
        values, present, rebuilt = row
        candidates = tf.concat([rebuilt[None], tf.cast(typical, rebuilt.dtype)], axis=0)
        scores, base = _scores_of_variants(values, present, candidates, layout, score)
        is_there = tf.gather(present, first)
        fall = tf.where(is_there, tf.maximum(base - tf.reduce_min(scores, axis=1), 0.0), 0.0)
        best = tf.gather(tf.argmin(scores, axis=1), layout.owner)
        return fall, tf.where(present, tf.gather(tf.transpose(candidates), best, batch_dims=1), rebuilt)

    first = np.searchsorted(layout.owner, np.arange(layout.features))

    # Row by row, so that memory does not grow with the batch.
    falls, expected = tf.map_fn(
        one_row,
        (passed.scaled, passed.observed, passed.reconstruction),
        fn_output_signature=(passed.scaled.dtype, passed.scaled.dtype),
        parallel_iterations=1,
    )
    falls = tf.ensure_shape(falls, (None, layout.features))
    expected = tf.ensure_shape(expected, (None, len(layout.owner)))
    return _shares(falls, otherwise=error_shares(passed, layout)), expected


def error_shares(passed: Passed, layout: Layout) -> Any:
    """Share of each feature in the squared error of its row: (rows, *row_shape), or (rows, columns)."""
    squares = squared_errors(passed)
    if not layout.is_plain:
        by_value = tf.math.unsorted_segment_sum(tf.transpose(squares), layout.owner, layout.features)
        squares = tf.ensure_shape(tf.transpose(by_value), (None, layout.features))
    return _shares(squares, otherwise=tf.ones_like(squares) / float(np.prod(squares.shape[1:])))


def _scores_of_variants(
    values: Any, present: Any, candidates: Any, layout: Layout, score: Callable[[Scaled], Any]
) -> tuple[Any, Any]:
    """Scores (features, candidates) of one row with one feature replaced, and the score of the row as it is."""
    features, count, width = layout.features, candidates.shape[0], len(layout.owner)
    itself = (np.arange(features)[:, None] == layout.owner)[:, None, :]
    variants = tf.where(itself, candidates, values)
    batch = tf.concat([tf.reshape(variants, (features * count, width)), values[None]], axis=0)
    scores = score(Scaled(batch, tf.broadcast_to(present, tf.shape(batch))))
    return tf.reshape(scores[:-1], (features, count)), scores[-1]


def _shares(parts: Any, *, otherwise: Any) -> Any:
    """Each row divided by its sum; ``otherwise`` where that is zero."""
    axes = list(range(1, parts.shape.rank))
    # Divided by the greatest first: the sum of very large parts must not overflow, nor that of small ones vanish.
    greatest = tf.reduce_max(parts, axis=axes, keepdims=True)
    relative = tf.math.divide_no_nan(parts, greatest)
    total = tf.reduce_sum(relative, axis=axes, keepdims=True)
    return tf.where(greatest > 0, tf.math.divide_no_nan(relative, total), otherwise)
