"""Categorical columns inside the graph: labels to blocks of scaled values, and back.

The most frequent labels of a column have a value each; the others share a few; then come one for labels that training
never saw and, where labels may be missing, one for those. One lookup serves all columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.schemas import Array
from service.training.layout import LabelBlock
from service.training.quiet import tf
from service.training.scaling import LINEAR_LIMIT

OWN_LABELS = 64
"""Labels of a column with a value of their own."""
SHARED_VALUES = 16
"""Values that the less frequent labels share."""
LEAST_ENTROPY = 0.1
"""Keeps the loss of a column that hardly varies from drowning the others."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What training saw of one column."""

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
        """Of each label; the less frequent ones are dealt out in turn."""
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
    return tuple(_fit_vocabulary(column, gaps) for column, gaps in zip(categories.T, may_be_missing, strict=True))


def _fit_vocabulary(column: Array, may_be_missing: bool) -> Vocabulary:
    from collections import Counter

    counted = Counter(column.tolist())
    counted.pop(b"", None)
    # Ties by the label itself, so that the order does not depend on that of the rows.
    ordered = sorted(counted.items(), key=lambda entry: (-entry[1], entry[0]))
    counts = np.array([count for _, count in ordered], np.int64)
    return Vocabulary(tuple(label for label, _ in ordered), counts, may_be_missing)


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
