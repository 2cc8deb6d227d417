"""The network that scores tables: a denoiser that is told how noisy a row is, and how far it moves one without noise.

Trained to remove noise of any level from training rows, it leaves a new row of their kind almost as it is, and moves
one that is not towards what training rows with such values were: Vincent et al., Extracting and Composing Robust
Features with Denoising Autoencoders (ICML 2008); the mean of a row's distance from there is the gradient of the
smoothed density (Alain and Bengio, JMLR 15, 2014). The preconditioning is that of Karras et al., Elucidating the Design
Space of Diffusion-Based Generative Models (NeurIPS 2022), table 1, for rows of deviation 1.
"""

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from service.runtime.quiet import tf
from service.runtime.signature import in_batches
from service.training.config import TrainingConfig
from service.training.fit import Notes, adam
from service.training.preprocessing import Layout
from service.training.progress import Epoch, Reporter

LEVELS = (0.07, 0.22, 0.98, 3.0)
"""Standard deviations of noise, in units of a feature's own, at which a row is scored."""
EXPECTED_LEVEL = 2
"""The level, by its place, at which the denoised row is what was expected instead."""
LEAST_LEVEL, GREATEST_LEVEL = 0.03, 4.0
WIDTH, LAYERS = 256, 2
NOISE_FEATURES = 4
STEPS_AN_EPOCH, MAX_STEPS = 20, 2_000
"""As many steps as the autoencoder may have epochs, times the first; 100 epochs, the default, give the second."""
BATCH, PASSES = 128, 10
LEARNING_RATE = 2e-3
LINEAR_LIMIT = 3.0
"""In deviations: beyond, a value counts with its logarithm."""
LEAST_SPREAD = 1e-3
"""In scaled units: a feature that varies by less is constant but for rounding."""
LEAST_ERROR = 1e-4
"""Share of the noise's own variance: no feature is denoised better than that in training."""
MOST_OF_LABELS = 100.0
"""The error of a label, in units of the usual one, from which on it counts with its logarithm."""
MAX_MEASURED_ROWS = 10_000
ESTIMATES = 3
"""Passes that estimate the noise of a row before it is removed."""

Array = NDArray[np.float32]


class Network:
    """Noisy rows (rows, values) and their levels -> what is to be added; hidden layers of one width, with residuals."""

    def __init__(self, values: int, *, seed: int) -> None:
        rng = np.random.default_rng([seed, 7])

        def weights(inputs: int, outputs: int, gain: float = 1.0) -> Any:
            drawn = rng.normal(scale=gain / np.sqrt(inputs), size=(inputs, outputs))
            return tf.Variable(drawn.astype(np.float32))

        def bias(outputs: int) -> Any:
            return tf.Variable(np.zeros(outputs, np.float32))

        self._rows, self._noise = weights(values, WIDTH), weights(2 * NOISE_FEATURES, WIDTH)
        self._hidden = [(weights(WIDTH, WIDTH), bias(WIDTH)) for _ in range(LAYERS - 1)]
        self._last, self._bias = weights(WIDTH, values, gain=0.1), (bias(WIDTH), bias(values))
        hidden = [variable for layer in self._hidden for variable in layer]
        self.variables = [self._rows, self._noise, *hidden, self._last, *self._bias]

    def first(self, rows: Any) -> Any:
        """The part of the first layer that does not depend on the level but by a factor: (rows, width)."""
        return tf.matmul(rows, self._rows)

    def __call__(self, first: Any, level: Any) -> Any:
        """From ``first`` of the rows times ``input_scale(level)``; the levels are (rows, 1), or (1, 1) for all."""
        phase = tf.math.log(level) * (np.pi / 4 * 2.0 ** np.arange(NOISE_FEATURES)).astype(np.float32)
        noise = tf.matmul(tf.concat([tf.sin(phase), tf.cos(phase)], axis=1), self._noise)
        hidden = tf.nn.silu(first + noise + self._bias[0])
        for matrix, bias in self._hidden:
            hidden += tf.nn.silu(tf.matmul(hidden, matrix) + bias)
        return tf.matmul(hidden, self._last) + self._bias[1]


def input_scale(level: Any) -> Any:
    return 1 / tf.sqrt(tf.square(level) + 1)


@dataclass(frozen=True, slots=True, eq=False)
class Denoiser:
    """Rows of scaled values -> the error of each feature, and what was expected in its place."""

    network: Network
    center: Array
    """(values,): the mean of each scaled value."""
    spread: Array
    """(values,): of the feature that the value is of, above 0; the variances of its values add up to its square."""
    usual: Array
    """(levels, features): mean squared error of each feature over training rows, above 0."""
    layout: Layout

    @classmethod
    def fit(
        cls, rows: Array, observed: NDArray[np.bool_], layout: Layout, config: TrainingConfig, reporter: Reporter
    ) -> Self:
        """From scaled training rows, (rows, values), a typical value standing where one was not ``observed``."""
        center = rows.mean(axis=0, dtype=np.float64)
        variance = np.square(rows - center.astype(np.float32)).mean(axis=0, dtype=np.float64)
        spread = np.sqrt(np.bincount(layout.owner, variance))[layout.owner]
        spread = np.where(spread > LEAST_SPREAD, spread, 1.0)
        denoiser = cls(
            Network(rows.shape[1], seed=config.seed),
            center.astype(np.float32),
            spread.astype(np.float32),
            usual=np.ones((len(LEVELS), layout.features), np.float32),
            layout=layout,
        )
        denoiser._train(rows, config, reporter)
        rows, observed = rows[:MAX_MEASURED_ROWS], observed[:MAX_MEASURED_ROWS, None, layout.first]
        squares = in_batches(lambda part: tf.transpose(denoiser._by_level(rows[part]), (1, 0, 2)), len(rows))
        usual = (squares * observed).sum(axis=0, dtype=np.float64) / np.maximum(observed.sum(axis=0), 1)
        variance = np.square(np.array(LEVELS))[:, None]
        least = LEAST_ERROR * variance / (1 + variance)
        return replace(denoiser, usual=np.maximum(usual, least).astype(np.float32))

    def errors(self, rows: Any, observed: Any) -> Any:
        """Squared error of each feature over the usual one, the mean of the levels: (rows, features), about 1.

        0 where a value is missing. A large error of a label counts with its logarithm: one that training hardly saw is
        denoised to another, and would outweigh all numbers together.
        """
        ratios = tf.reduce_mean(self._by_level(rows) / self.usual[:, None], axis=0)
        if self.layout.labels:
            is_label = np.isin(
                np.arange(self.layout.features), [self.layout.owner[each.start] for each in self.layout.labels]
            )
            ratios = tf.where(is_label, MOST_OF_LABELS * tf.math.log1p(ratios / MOST_OF_LABELS), ratios)
        if not self.layout.is_plain:
            observed = tf.gather(observed, self.layout.first, axis=1)
        return tf.where(observed, ratios, 0.0)

    def expected(self, rows: Any) -> Any:
        """The rows without noise of ``EXPECTED_LEVEL``, in scaled units: (rows, values)."""
        compressed = self._compress(rows)
        return self._without_noise(compressed, self.network.first(compressed), tf.constant([[LEVELS[EXPECTED_LEVEL]]]))

    def denoised(self, rows: Any) -> Any:
        """The rows without their noise, in scaled units: (rows, values). The level of each row is estimated.

        A row with noise of one level is moved about as far whatever level near or above it is taken for it: how far a
        row is moved, as a root mean square of its values, is the next estimate.
        """
        compressed = self._compress(rows)
        first = self.network.first(compressed)
        level = tf.ones_like(compressed[:, :1]) * LEVELS[EXPECTED_LEVEL]
        for _ in range(ESTIMATES):
            moved = self._moved(compressed, first, level)
            distance = tf.sqrt(tf.reduce_mean(tf.square(moved), axis=1, keepdims=True))
            level = tf.clip_by_value(distance, LEAST_LEVEL, GREATEST_LEVEL)
        return self._without_noise(compressed, first, level)

    def _without_noise(self, compressed: Any, first: Any, level: Any) -> Any:
        found = compressed + self._moved(compressed, first, level)
        size = tf.abs(found)
        wide = tf.sign(found) * (LINEAR_LIMIT + tf.math.expm1(tf.minimum(size, 10.0) - LINEAR_LIMIT))
        return tf.where(size > LINEAR_LIMIT, wide, found) * self.spread + self.center

    def _compress(self, rows: Any) -> Any:
        """In units of each feature's spread, beyond the limit as the logarithm."""
        standard = (tf.cast(rows, tf.float32) - self.center) / self.spread
        beyond = tf.nn.relu(tf.abs(standard) - LINEAR_LIMIT)
        return tf.clip_by_value(standard, -LINEAR_LIMIT, LINEAR_LIMIT) + tf.sign(standard) * tf.math.log1p(beyond)

    def _moved(self, rows: Any, first: Any, level: Any) -> Any:
        """How far the rows, taken for noisy ones of a level, are moved to be without noise: (rows, values)."""
        scale = input_scale(level)
        return level * scale * self.network(first * scale, level) - tf.square(level * scale) * rows

    def _by_level(self, rows: Any) -> Any:
        """Squared error of each feature at each level, (levels, rows, features)."""
        compressed, count = self._compress(rows), len(LEVELS)
        first = tf.tile(self.network.first(compressed), (count, 1))
        level = tf.repeat(tf.constant(LEVELS)[:, None], tf.shape(compressed)[0], axis=0)
        moved = self._moved(tf.tile(compressed, (count, 1)), first, level)
        return tf.reshape(self.layout.by_feature(tf.square(moved)), (count, -1, self.layout.features))

    def _train(self, rows: Array, config: TrainingConfig, reporter: Reporter) -> None:
        steps_a_pass = -(-min(MAX_STEPS, STEPS_AN_EPOCH * config.epochs) // PASSES)
        optimizer = adam(LEARNING_RATE, steps=PASSES * steps_a_pass)
        variables, table = self.network.variables, tf.constant(rows)
        optimizer.build(variables)
        lowest, highest = np.log(LEAST_LEVEL), np.log(GREATEST_LEVEL)
        trusted = max(1, round(BATCH * (1 - config.trim)))

        def step(number: Any) -> Any:
            seeds = [tf.stack([config.seed + 1, 3 * number + part]) for part in range(3)]
            chosen = tf.random.stateless_uniform((BATCH,), seeds[0], 0, len(rows), tf.int32)
            clean = self._compress(tf.gather(table, chosen))
            level = tf.exp(tf.random.stateless_uniform((BATCH, 1), seeds[1], lowest, highest))
            scale = input_scale(level)
            noisy = clean + level * tf.random.stateless_normal(tf.shape(clean), seeds[2])
            # What the network has to add, in units of its own deviation: c_out of the paper divides.
            target = (clean - noisy * tf.square(scale)) / (level * scale)
            with tf.GradientTape() as tape:
                found = self.network(self.network.first(noisy * scale), level)
                losses = tf.reduce_mean(tf.math.squared_difference(found, target), axis=1)
                # The rows that are worst denoised are not learnt from: of those that ought not to be there it is most.
                loss = -tf.reduce_mean(tf.math.top_k(-losses, trusted).values)
            optimizer.apply(tape.gradient(loss, variables), variables)
            return loss

        @tf.function(autograph=False)  # type: ignore[untyped-decorator]
        def run(start: Any) -> Any:
            def body(number: Any, total: Any) -> tuple[Any, Any]:
                return number + 1, total + step(number)

            end = start + steps_a_pass
            return tf.while_loop(lambda number, _: number < end, body, (start, 0.0))[1] / steps_a_pass

        notes = Notes(reporter)
        for number in range(PASSES):
            loss = float(run(tf.constant(number * steps_a_pass)))
            notes.epoch(Epoch(number + 1, PASSES, loss, loss, learning_rate=float(optimizer.learning_rate)))
