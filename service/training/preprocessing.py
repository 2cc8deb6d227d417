"""From raw rows to what the network sees, and back, inside the graph: numbers scaled, labels and times spread out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.schemas import CATEGORIES, INSTANCES, TIMESTAMPS, ColumnType, InputSchema, Rows, row_count
from service.training.clock import Clock, fit_clock
from service.training.config import TrainingConfig
from service.training.layout import Layout, plain_layout
from service.training.quiet import tf
from service.training.scaling import Scaled, Scaling, fit_scaling
from service.training.vocabulary import LabelLookup, fit_vocabularies

VALUES_PER_BATCH = 2**20


@dataclass(frozen=True, slots=True, eq=False)
class ScaledRows:
    """Rows as the network sees them."""

    inputs: NDArray[np.float32]
    """(rows, *layout.shape), missing values filled in."""
    targets: NDArray[np.float32]
    """The same with NaN where a value is missing: nothing is to be reconstructed there."""


@dataclass(frozen=True, slots=True, eq=False)
class Preprocessing:
    """Fitted on the training rows."""

    layout: Layout
    scaling: Scaling
    """Of the values after labels and times are spread out; in the shape of the layout."""
    numbers: int
    """Values of a row of ``instances``."""
    lookup: LabelLookup | None = None
    clocks: tuple[Clock, ...] = ()

    def scale(self, rows: Rows, dtype: Any = tf.float32) -> Scaled:
        """Raw rows, scaled: (rows, *layout.shape)."""
        if self.lookup is None and not self.clocks:
            return self.scaling.scale(rows[INSTANCES], dtype)
        parts, observed = list[Any](), list[Any]()
        if self.numbers:
            parts.append(tf.cast(rows[INSTANCES], tf.float64))
        if self.lookup is not None:
            labels, present = self.lookup.spread_out(rows[CATEGORIES])
            observed = [tf.ones_like(part, tf.bool) for part in parts] + [present]
            parts.append(labels)
        for number, clock in enumerate(self.clocks):
            parts.append(clock.spread_out(tf.convert_to_tensor(rows[TIMESTAMPS])[:, number]))
        observed += [tf.ones_like(part, tf.bool) for part in parts[len(observed) :]]
        scaled = self.scaling.scale(tf.concat(parts, axis=1), dtype)
        return Scaled(scaled.values, tf.logical_and(scaled.observed, tf.concat(observed, axis=1)))

    def unscale(self, scaled: Any) -> dict[str, Any]:
        """Raw rows of scaled ones: finite numbers, the most probable labels, times."""
        if self.lookup is None and not self.clocks:
            return {INSTANCES: self.scaling.unscale(scaled)}
        values, rows = self.scaling.widen(scaled), dict[str, Any]()
        if self.numbers:
            rows[INSTANCES] = self.scaling.unscale(scaled)[:, : self.numbers]
        start = self.numbers
        if self.lookup is not None:
            rows[CATEGORIES] = self.lookup.gather_up(values[:, start : start + self.lookup.width])
            start += self.lookup.width
        times = []
        for clock in self.clocks:
            times.append(clock.gather_up(values[:, start : start + clock.width]))
            start += clock.width
        if times:
            rows[TIMESTAMPS] = tf.stack(times, axis=1)
        return rows

    def scale_all(self, rows: Rows) -> ScaledRows:
        """Scale raw rows batch by batch with the graph's own code."""
        count = row_count(rows)
        inputs = np.empty((count, *self.layout.shape), np.float32)
        targets = inputs
        size = max(1, VALUES_PER_BATCH // max(1, len(self.layout.owner)))
        for start in range(0, count, size):
            batch = {name: tf.constant(array[start : start + size]) for name, array in rows.items()}
            scaled, observed = (each.numpy() for each in self.scale(batch)[:2])
            inputs[start : start + size] = scaled
            if not observed.all():
                targets = inputs.copy() if targets is inputs else targets
            if targets is not inputs:
                targets[start : start + size] = np.where(observed, scaled, np.float32(np.nan))
        return ScaledRows(inputs, targets)


def fit_preprocessing(rows: Rows, schema: InputSchema, config: TrainingConfig) -> Preprocessing:
    """Fit on raw training rows."""
    if CATEGORIES not in rows and TIMESTAMPS not in rows:
        return Preprocessing(
            plain_layout(schema), fit_scaling(rows[INSTANCES], schema, config), int(np.prod(schema.row_shape))
        )
    numbers = schema.row_shape[0]
    parts = [fit_scaling(rows[INSTANCES], schema, config)] if numbers else []
    bounded = config.scaling == "minmax"
    owner, blocks, lookup = list(range(numbers)), [], None
    if CATEGORIES in rows:
        gaps = [column.may_be_missing for column in schema.columns_of(ColumnType.CATEGORICAL)]
        vocabularies = fit_vocabularies(rows[CATEGORIES], gaps)
        for vocabulary in vocabularies:
            blocks.append(vocabulary.block(len(owner), weighted=not bounded))
            owner += [_next(owner)] * vocabulary.width
        lookup = LabelLookup(vocabularies)
        spread = np.concatenate([1 / block.weights.astype(np.float64) for block in blocks])
        parts.append(Scaling(np.zeros_like(spread), spread, np.zeros_like(spread), bounded=bounded))
    clocks = tuple(fit_clock(times) for times in rows.get(TIMESTAMPS, np.empty((0, 0), np.int64)).T)
    for clock, times in zip(clocks, rows.get(TIMESTAMPS, np.empty((0, 0), np.int64)).T, strict=True):
        parts.append(_clock_scaling(clock, times, config))
        owner += [_next(owner)] * clock.width
    layout = Layout((len(owner),), np.array(owner), tuple(blocks))
    return Preprocessing(layout, _join(parts), numbers, lookup, clocks)


def _next(owner: Sequence[int]) -> int:
    return owner[-1] + 1 if owner else 0


def _clock_scaling(clock: Clock, times: NDArray[np.int64], config: TrainingConfig) -> Scaling:
    """So that the variances of a clock's values sum to 1, as that of a number does."""
    values = clock.spread_out(tf.constant(times)).numpy()
    schema = InputSchema(kind="tabular", row_shape=(clock.width,))
    fitted = fit_scaling(values, schema, config)
    if fitted.bounded:
        return fitted
    return Scaling(fitted.center, fitted.spread * np.sqrt(clock.width), fitted.typical, bounded=False)


def _join(parts: Sequence[Scaling]) -> Scaling:
    center, spread, typical = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("center", "spread", "typical")
    )
    return Scaling(center, spread, typical, bounded=parts[0].bounded)
