"""From raw rows to what the network sees, and back, inside the graph: numbers scaled, labels and times spread out.

The network, the score and PCA see scaled values; which of them tell of which feature is known here, as a ``Layout``. A
numeric or boolean column is one scaled value. A categorical column is a block: the most frequent labels have a value
each, the others share a few, then come one for labels that training never saw and, where labels may be missing, one for
those. A timestamp column has a value for its place in time and two for each cycle. Such values are small enough for a
whole block to count like one number. Features are in the order of the columns of ``instances``, ``categories`` and
``timestamps``.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.runtime.quiet import tf
from service.runtime.signature import in_batches
from service.schemas import (
    CATEGORIES,
    INSTANCES,
    MISSING_TIMESTAMP,
    TIMESTAMPS,
    Array,
    ColumnType,
    InputSchema,
    Rows,
    row_count,
)
from service.training.config import TrainingConfig
from service.training.scaling import LINEAR_LIMIT, Scaled, Scaling, fit_scaling

OWN_LABELS = 64
"""Labels of a column with a value of their own."""
SHARED_VALUES = 16
"""Values that the less frequent labels share."""
LEAST_ENTROPY = 0.1
"""Keeps the loss of a column that hardly varies from drowning the others."""
DAY_MS = 86_400_000
CYCLES_MS = (31_556_952_000, 7 * DAY_MS, DAY_MS)
"""The mean Gregorian year, the week, the day."""
EARLIEST_MS, LATEST_MS = -62_135_596_800_000, 253_402_300_799_999
VALUES_PER_BATCH = 2**20


@dataclass(frozen=True, slots=True, eq=False)
class LabelBlock:
    """The scaled values of one categorical column: one is its weight, the others are 0."""

    start: int
    weights: NDArray[np.float32]
    """Scaled value of each position where it applies; probability times weight is its reconstruction."""
    entropy: float
    """Of the training labels, in nats; above 0. The cross-entropy is divided by it, to count like a squared error."""

    @property
    def stop(self) -> int:
        return self.start + len(self.weights)


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    shape: tuple[int, ...]
    """Of one scaled row."""
    owner: NDArray[np.intp]
    """(values of a row,): number of the feature that each value belongs to; ascending."""
    labels: tuple[LabelBlock, ...] = ()

    @property
    def features(self) -> int:
        return int(self.owner[-1]) + 1

    @property
    def is_plain(self) -> bool:
        """Whether each value is a feature by itself."""
        return self.features == len(self.owner)

    @property
    def first_label(self) -> int:
        """Where the label blocks begin; they follow each other."""
        return self.labels[0].start if self.labels else len(self.owner)

    @property
    def sizes(self) -> NDArray[np.intp]:
        """Values of each feature."""
        return np.bincount(self.owner)

    @property
    def first(self) -> NDArray[np.intp]:
        """(features,): where the values of each begin."""
        return np.searchsorted(self.owner, np.arange(self.features))

    def by_feature(self, values: Any) -> Any:
        """Sums over the values of each feature, (rows, features) from (rows, values)."""
        if self.is_plain:
            return values
        summed = tf.math.unsorted_segment_sum(tf.transpose(values), self.owner, self.features)
        return tf.ensure_shape(tf.transpose(summed), (None, self.features))


def plain_layout(schema: InputSchema) -> Layout:
    """Each value of a row by itself: numbers, pixels, steps."""
    return Layout(schema.row_shape, np.arange(math.prod(schema.row_shape)))


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The labels of one column in training."""

    labels: tuple[bytes, ...]
    """Distinct, the most frequent first, not empty."""
    counts: NDArray[np.int64]
    may_be_missing: bool

    @property
    def known(self) -> int:
        """Values for labels that were seen."""
        return min(len(self.labels), OWN_LABELS + SHARED_VALUES)

    @property
    def width(self) -> int:
        return self.known + 1 + self.may_be_missing

    @property
    def positions(self) -> NDArray[np.int64]:
        """The value of each label in the block; the less frequent ones are dealt out in turn."""
        ranks = np.arange(len(self.labels))
        if len(ranks) <= self.known:
            return ranks
        return np.where(ranks < OWN_LABELS, ranks, OWN_LABELS + (ranks - OWN_LABELS) % SHARED_VALUES)

    def block(self, start: int, *, weighted: bool) -> LabelBlock:
        """Its scaled values from ``start`` on.

        A weight is 1 / sqrt(share * (known - 1)), the chi-square metric of multiple correspondence analysis (Greenacre,
        Theory and Applications of Correspondence Analysis, 1984): the block's variances sum to 1, as that of a number
        does, and a rare label lies far out. At most ``LINEAR_LIMIT``, which is also where new labels lie.
        """
        shares = np.bincount(self.positions, self.counts, minlength=self.known) / max(1, self.counts.sum())
        entropy = float(-np.sum(shares * np.log(np.maximum(shares, 1e-12))))
        weights = np.ones(self.width, np.float32)
        if weighted:
            spread = np.sqrt(np.maximum(shares * max(1, self.known - 1), LINEAR_LIMIT**-2))
            weights[: self.known] = 1 / spread
            weights[self.known] = LINEAR_LIMIT
        return LabelBlock(start, weights, max(entropy, LEAST_ENTROPY))


def fit_vocabularies(categories: Array, may_be_missing: Sequence[bool]) -> tuple[Vocabulary, ...]:
    """One for each column of (rows, columns) labels."""
    found = list[Vocabulary]()
    for column, gaps in zip(categories.T, may_be_missing, strict=True):
        counted = Counter(column.tolist())
        counted.pop(b"", None)
        # Ties by the label itself, so that the order does not depend on that of the rows.
        ordered = sorted(counted.items(), key=lambda entry: (-entry[1], entry[0]))
        counts = np.array([count for _, count in ordered], np.int64)
        found.append(Vocabulary(tuple(label for label, _ in ordered), counts, gaps))
    return tuple(found)


class LabelLookup:
    """Labels (rows, columns) to values (rows, width of all blocks) of 0 and 1, and back. Builds graph when traced."""

    def __init__(self, vocabularies: Sequence[Vocabulary]) -> None:
        widths = [vocabulary.width for vocabulary in vocabularies]
        starts = np.concatenate([[0], np.cumsum(widths)[:-1]])
        self._vocabularies, self._starts = tuple(vocabularies), starts
        self._column_of = np.repeat(np.arange(len(widths)), widths)
        self._new_at = np.array([start + each.known for start, each in zip(starts, vocabularies, strict=True)])
        keys, values = list[bytes](), list[int]()
        for number, (start, vocabulary) in enumerate(zip(starts, vocabularies, strict=True)):
            entries = dict(zip(vocabulary.labels, (start + vocabulary.positions).tolist(), strict=True))
            if vocabulary.may_be_missing:
                entries[b""] = start + vocabulary.width - 1
            keys += [self._prefix(number) + label for label in entries]
            values += entries.values()
        initializer = tf.lookup.KeyValueTensorInitializer(tf.constant(keys, tf.string), tf.constant(values, tf.int64))
        self.table = tf.lookup.StaticHashTable(initializer, default_value=-1)
        """To be tracked by what is exported."""

    @property
    def width(self) -> int:
        return len(self._column_of)

    def spread_out(self, categories: Any) -> tuple[Any, Any]:
        """Values of 0 and 1 (float64), and where a label is there (bool), both (rows, width)."""
        prefixes = tf.constant([self._prefix(number) for number in range(len(self._vocabularies))])
        keys = tf.strings.join([tf.broadcast_to(prefixes, tf.shape(categories)), categories])
        found = self.table.lookup(keys)
        positions = tf.where(found < 0, tf.constant(self._new_at, tf.int64), found)
        values = tf.equal(tf.gather(positions, self._column_of, axis=1), np.arange(self.width))
        return tf.cast(values, tf.float64), tf.gather(tf.not_equal(categories, b""), self._column_of, axis=1)

    def gather_up(self, values: Any) -> Any:
        """The most probable known label of each column, (rows, columns), of values (rows, width)."""
        columns = []
        for start, vocabulary in zip(self._starts.tolist(), self._vocabularies, strict=True):
            best = tf.argmax(values[:, start : start + vocabulary.known], axis=1)
            columns.append(tf.gather(tf.constant(vocabulary.labels[: vocabulary.known]), best))
        return tf.stack(columns, axis=1)

    @staticmethod
    def _prefix(number: int) -> bytes:
        return b"%d:" % number


@dataclass(frozen=True, slots=True)
class Clock:
    """The times of one column in training."""

    latest: int
    """Later times count as this one: a row is not strange for coming after the training."""
    cycles: tuple[int, ...]
    """Periods in milliseconds, the longest first; those of which the training rows span a whole one."""

    @property
    def width(self) -> int:
        return 1 + 2 * len(self.cycles)

    def spread_out(self, times: Any) -> Any:
        """(rows,) to (rows, width) float64: days since the latest, sine and cosine of each cycle; NaN if missing."""
        days = tf.cast(tf.minimum(times, self.latest) - self.latest, tf.float64) / DAY_MS
        parts = [days]
        for period in self.cycles:
            angle = tf.cast(tf.math.floormod(times, period), tf.float64) * (2 * np.pi / period)
            parts += [tf.sin(angle), tf.cos(angle)]
        values = tf.stack(parts, axis=1)
        return tf.where(tf.equal(times, MISSING_TIMESTAMP)[:, None], tf.constant(np.nan, tf.float64), values)

    def gather_up(self, values: Any) -> Any:
        """The time (rows,) of values (rows, width): the one nearest to the place in time that fits the cycles."""
        limit = (LATEST_MS - EARLIEST_MS) / DAY_MS
        time = tf.clip_by_value(values[:, 0], -limit, limit) * DAY_MS + self.latest
        for number, period in enumerate(self.cycles):
            angle = tf.atan2(values[:, 1 + 2 * number], values[:, 2 + 2 * number])
            off = angle / (2 * np.pi) - time / period
            time += (off - tf.round(off)) * period
        return tf.cast(tf.clip_by_value(tf.round(time), EARLIEST_MS, LATEST_MS), tf.int64)


def fit_clock(times: NDArray[np.int64]) -> Clock:
    """Fit on (rows,) milliseconds. A cycle counts where the rows span a whole one and differ in their place in it."""
    present = times[times != MISSING_TIMESTAMP]
    if not len(present):
        return Clock(0, ())
    earliest, latest = int(present.min()), int(present.max())
    cycles = (period for period in CYCLES_MS if latest - earliest >= period and np.ptp(present % period) > 0)
    return Clock(latest, tuple(cycles))


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
        """Raw rows, scaled batch by batch with the graph's own code."""
        inputs, observed = in_batches(
            lambda part: self.scale({name: tf.constant(array[part]) for name, array in rows.items()})[:2],
            row_count(rows),
            size=max(1, VALUES_PER_BATCH // max(1, len(self.layout.owner))),
        )
        return ScaledRows(inputs, inputs if observed.all() else np.where(observed, inputs, np.float32(np.nan)))


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
        values = clock.spread_out(tf.constant(times)).numpy()
        fitted = fit_scaling(values, InputSchema(kind="tabular", row_shape=(clock.width,)), config)
        # So that the variances of a clock's values sum to 1, as that of a number does.
        spread = fitted.spread if fitted.bounded else fitted.spread * np.sqrt(clock.width)
        parts.append(replace(fitted, spread=spread))
        owner += [_next(owner)] * clock.width
    layout = Layout((len(owner),), np.array(owner), tuple(blocks))
    center, spread, typical = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("center", "spread", "typical")
    )
    return Preprocessing(layout, Scaling(center, spread, typical, bounded=parts[0].bounded), numbers, lookup, clocks)


def _next(owner: Sequence[int]) -> int:
    return owner[-1] + 1 if owner else 0
