"""Calibration: scores of rows that the training never saw, through the graph that is exported."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from service.errors import TrainingFailed
from service.schemas import Rows, row_count, take_rows
from service.scoring import conformal_threshold
from service.store import Calibration
from service.training.config import MAX_CALIBRATION_ROWS, TrainingConfig
from service.training.graph import ServingGraph, compile_for_rows, compile_for_series, map_rows
from service.training.quiet import tf


def calibrate(graph: ServingGraph, rows: Rows, config: TrainingConfig) -> Calibration:
    """Score raw rows (at most 10,000, drawn with the seed) and take the threshold of the false-alarm rate from them.

    Raises:
        TrainingFailed: a score is not finite.
    """
    count = row_count(rows)
    if count > MAX_CALIBRATION_ROWS:
        drawn = np.random.default_rng([config.seed, 2]).choice(count, MAX_CALIBRATION_ROWS, replace=False)
        rows = take_rows(rows, np.sort(drawn))
    return _calibration(map_rows(compile_for_rows(graph.scores, graph.schema), rows), config)


def calibrate_points(graph: ServingGraph, blocks: Sequence[NDArray[np.float32]], config: TrainingConfig) -> Calibration:
    """The same for points of a series: ``blocks`` (points, channels) that no fitted window reaches into.

    Scores of neighbouring points resemble each other, so that the blocks tell less than their number of points
    promises: p-values hold on average over long series like them, not for each stretch.

    Raises:
        TrainingFailed: a score is not finite.
    """
    function = compile_for_series(graph.point_scores, graph.schema)
    scores = np.concatenate([function(tf.constant(block)).numpy() for block in blocks])
    if len(scores) > MAX_CALIBRATION_ROWS:
        scores = np.random.default_rng([config.seed, 4]).choice(scores, MAX_CALIBRATION_ROWS, replace=False)
    return _calibration(scores, config)


def _calibration(scores: NDArray[np.float32], config: TrainingConfig) -> Calibration:
    scores = np.sort(scores)
    if not np.isfinite(scores).all():
        raise TrainingFailed("The model gives calibration rows scores that are not finite.")
    return Calibration(
        rows=len(scores),
        false_alarm_rate=config.false_alarm_rate,
        threshold=float(conformal_threshold(scores, config.false_alarm_rate)),
        scores=tuple(float(score) for score in scores),
    )
