"""Calibration: scores of rows that the training never saw, through the graph that is exported."""

import numpy as np
from numpy.typing import NDArray

from service.errors import TrainingFailed
from service.scoring import conformal_threshold
from service.store import Calibration
from service.training.config import MAX_CALIBRATION_ROWS, TrainingConfig
from service.training.graph import ServingGraph, compile_for_rows, map_rows


def calibrate(graph: ServingGraph, instances: NDArray[np.float32], config: TrainingConfig) -> Calibration:
    """Score raw rows (at most 10,000, drawn with the seed) and take the threshold of the false-alarm rate from them.

    Raises:
        TrainingFailed: a score is not finite.
    """
    if len(instances) > MAX_CALIBRATION_ROWS:
        drawn = np.random.default_rng([config.seed, 2]).choice(len(instances), MAX_CALIBRATION_ROWS, replace=False)
        instances = instances[np.sort(drawn)]
    scores = np.sort(map_rows(compile_for_rows(graph.scores, graph.schema), instances))
    if not np.isfinite(scores).all():
        raise TrainingFailed("The model gives calibration rows scores that are not finite.")
    return Calibration(
        rows=len(scores),
        false_alarm_rate=config.false_alarm_rate,
        threshold=float(conformal_threshold(scores, config.false_alarm_rate)),
        scores=tuple(float(score) for score in scores),
    )
