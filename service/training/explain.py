"""Which features made a row anomalous, and what they should have been. Graph code, in scaled units."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.training.quiet import tf
from service.training.score import squared_errors


def counterfactual_shares(
    scaled: Any,
    observed: Any,
    reconstruction: Any,
    quantiles: NDArray[np.float32],
    score: Callable[[Any, Any], Any],
) -> tuple[Any, Any]:
    """Share of each feature in the score and its expected value, both (rows, features), for rows of columns.

    The contribution of a feature is how far the score falls at most when the value of that feature alone is replaced
    by a typical one: its reconstruction, or one of its ``quantiles`` (quantiles, features) in training; the value with
    the lowest score is the expected one. A wrong value also spoils the reconstruction of the columns that correlate
    with it, so that squared errors smear the blame over them; repairing an innocent column leaves the score high, and
    so it gets none. A missing value contributes nothing.

    After the reconstruction-based contribution of Alcala and Qin (Automatica 45, 2009), with a search in place of
    its closed form for linear models.
    """

    def one_row(row: tuple[Any, Any, Any]) -> tuple[Any, Any]:
        values, present, rebuilt = row
        candidates = tf.concat([rebuilt[None], tf.cast(quantiles, rebuilt.dtype)], axis=0)
        scores, base = _scores_of_variants(values, present, candidates, score)
        fall = tf.where(present, tf.maximum(base - tf.reduce_min(scores, axis=1), 0.0), 0.0)
        best = tf.gather(tf.transpose(candidates), tf.argmin(scores, axis=1), batch_dims=1)
        return fall, tf.where(present, best, rebuilt)

    # Row by row, so that memory does not grow with the batch.
    falls, expected = tf.map_fn(
        one_row,
        (scaled, observed, reconstruction),
        fn_output_signature=(scaled.dtype, scaled.dtype),
        parallel_iterations=1,
    )
    width = scaled.shape[1:]
    falls, expected = tf.ensure_shape(falls, (None, *width)), tf.ensure_shape(expected, (None, *width))
    return _shares(falls, otherwise=error_shares(scaled, observed, reconstruction)), expected


def error_shares(scaled: Any, observed: Any, reconstruction: Any) -> Any:
    """Share of each value in the squared error of its row: (rows, *row_shape)."""
    squares = squared_errors(scaled, observed, reconstruction)
    return _shares(squares, otherwise=tf.ones_like(squares) / float(np.prod(squares.shape[1:])))


def _scores_of_variants(
    values: Any, present: Any, candidates: Any, score: Callable[[Any, Any], Any]
) -> tuple[Any, Any]:
    """Scores (features, candidates) of one row with one feature replaced, and the score of the row as it is."""
    features, count = values.shape[0], candidates.shape[0]
    itself = np.eye(features, dtype=bool)[:, None, :]
    variants = tf.where(itself, tf.transpose(candidates)[:, :, None], values)
    batch = tf.concat([tf.reshape(variants, (features * count, features)), values[None]], axis=0)
    scores = score(batch, tf.broadcast_to(present, tf.shape(batch)))
    return tf.reshape(scores[:-1], (features, count)), scores[-1]


def _shares(parts: Any, *, otherwise: Any) -> Any:
    """Each row divided by its sum; ``otherwise`` where that is zero."""
    axes = list(range(1, parts.shape.rank))
    # Divided by the greatest first: the sum of very large parts must not overflow, nor that of small ones vanish.
    greatest = tf.reduce_max(parts, axis=axes, keepdims=True)
    relative = tf.math.divide_no_nan(parts, greatest)
    total = tf.reduce_sum(relative, axis=axes, keepdims=True)
    return tf.where(greatest > 0, tf.math.divide_no_nan(relative, total), otherwise)
