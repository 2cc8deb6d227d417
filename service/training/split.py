"""Which rows are fitted, which stop the training, which calibrate the score and which test the result."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.errors import ConfigurationError
from service.store import RowCounts
from service.training.config import DEFAULT_LIMITS, SplitShares, TrainingConfig


@dataclass(frozen=True, slots=True)
class Split:
    """Row numbers; the four have none in common. Only ``train`` and ``validation`` are seen while fitting."""

    train: NDArray[np.intp]
    validation: NDArray[np.intp]
    calibration: NDArray[np.intp]
    test: NDArray[np.intp]

    @property
    def counts(self) -> RowCounts:
        return RowCounts(
            train=len(self.train),
            validation=len(self.validation),
            calibration=len(self.calibration),
            test=len(self.test),
        )


def split_rows(rows: int, config: TrainingConfig, *, blocks: NDArray[np.intp] | None = None) -> Split:
    """Shuffle ``rows`` row numbers with the seed and divide them; at least one row goes to each part.

    Rows that share readings must not be told apart: where ``blocks`` numbers the block of each row, whole blocks are
    shuffled and divided.

    The shuffle is what makes calibration and later normal rows exchangeable, which the p-values rest on.

    Raises:
        ConfigurationError: the shares leave too few rows to fit.
    """
    if blocks is not None:
        return split_blocks(blocks, config)
    order = np.random.default_rng([config.seed, 1]).permutation(rows)
    shares = config.split or SplitShares()
    limits = DEFAULT_LIMITS if config.split is None else (rows, rows, rows)
    held_back = [
        max(1, min(round(rows * share), limit))
        for share, limit in zip((shares.validation, shares.calibration, shares.test), limits, strict=True)
    ]
    validation, calibration, test, train = np.split(order, np.cumsum(held_back))
    if len(train) < 2:
        raise ConfigurationError(f"The split leaves {len(train)} of {rows} rows for fitting; at least 2 are needed.")
    return Split(train=train, validation=validation, calibration=calibration, test=test)


def split_blocks(blocks: NDArray[np.intp], config: TrainingConfig) -> Split:
    """Row numbers by their blocks, which are shuffled and divided as rows are otherwise."""
    numbers = np.unique(blocks)
    order = np.random.default_rng([config.seed, 1]).permutation(numbers)
    shares = config.split or SplitShares()
    # Of few blocks that calibrate, one in a quiet stretch would make thresholds that the rest of the series exceeds.
    wanted = ((shares.validation, 1), (shares.calibration, min(4, len(order) // 3)), (shares.test, 1))
    held_back = [max(least, round(len(order) * share)) for share, least in wanted]
    validation, calibration, test, train = (
        np.flatnonzero(np.isin(blocks, part)) for part in np.split(order, np.cumsum(held_back))
    )
    if len(train) < 2:
        raise ConfigurationError(f"The split leaves {len(train)} of {len(blocks)} windows for fitting.")
    return Split(train=train, validation=validation, calibration=calibration, test=test)
