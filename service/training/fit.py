"""Fitting the network: clean rows as targets, corrupted ones as inputs, stopped before it overfits.

An epoch is one call into TensorFlow: for networks of this size, Keras' own loop takes several times as long. Shuffling
and noise depend on the seed and the number of the epoch only.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import TrainingFailed
from service.training.architecture import Autoencoder
from service.training.config import TrainingConfig, batch_rows
from service.training.corruption import Corruptor
from service.training.progress import Epoch, Reporter
from service.training.quiet import keras, tf
from service.training.scaling import Scaling

VALIDATION_BATCH_ROWS = 1024


@dataclass(frozen=True, slots=True)
class ScaledRows:
    """Rows as the network sees them."""

    inputs: NDArray[np.float32]
    """(rows, *row_shape), missing values filled in."""
    targets: NDArray[np.float32]
    """The same with NaN where a value is missing: nothing is to be reconstructed there."""


@dataclass(frozen=True, slots=True)
class History:
    """Losses by epoch; ``best_epoch`` counts from 1 and is the one whose weights were kept."""

    train_loss: tuple[float, ...]
    validation_loss: tuple[float, ...]
    best_epoch: int
    fit_s: float


def make_reproducible(seed: int) -> None:
    """Same seed, same machine, same weights. Changes this process for good; call it before the network is built."""
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


def scale_rows(scaling: Scaling, instances: NDArray[np.float32]) -> ScaledRows:
    """Scale raw rows with the graph's own preprocessing."""
    inputs = np.empty(instances.shape, np.float32)
    size = max(1, 2**20 // max(1, instances[0].size))
    for start in range(0, len(instances), size):
        inputs[start : start + size] = scaling.scale(tf.constant(instances[start : start + size]))[0].numpy()
    missing = np.isnan(instances)
    return ScaledRows(inputs, np.where(missing, np.float32(np.nan), inputs) if missing.any() else inputs)


def limits_of(rows: ScaledRows) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Least and greatest scaled value of each feature."""
    return rows.inputs.min(axis=0), rows.inputs.max(axis=0)


def fit(
    autoencoder: Autoencoder,
    scaling: Scaling,
    config: TrainingConfig,
    *,
    train: ScaledRows,
    validation: ScaledRows,
    reporter: Reporter,
) -> History:
    """Fit in place. With a patience, the weights are those of the epoch with the least validation loss.

    Raises:
        TrainingFailed: the loss is not finite any more.
    """
    network = autoencoder.network
    corruptor = Corruptor(config, scaling, limits=limits_of(train))
    fit_epoch = _epoch_function(network, corruptor, config, train)
    validate = _validation_function(network, config, validation)
    train_losses, validation_losses = list[float](), list[float]()
    best_epoch, best_weights = 0, network.get_weights()
    started = time.monotonic()
    for number in range(1, config.epochs + 1):
        train_losses.append(fit_epoch(number))
        validation_losses.append(validate())
        if not (math.isfinite(train_losses[-1]) and math.isfinite(validation_losses[-1])):
            raise TrainingFailed("The loss is not a finite number any more; try a smaller learning rate.")
        reporter.epoch(Epoch(number, config.epochs, train_losses[-1], validation_losses[-1]))
        if config.patience is None or validation_losses[-1] < min(validation_losses[:-1], default=math.inf):
            best_epoch, best_weights = number, network.get_weights()
        elif number - best_epoch >= config.patience:
            break
    network.set_weights(best_weights)
    return History(tuple(train_losses), tuple(validation_losses), best_epoch, time.monotonic() - started)


def _epoch_function(
    network: Any, corruptor: Corruptor, config: TrainingConfig, rows: ScaledRows
) -> Callable[[int], float]:
    """A function that fits one epoch, given its number, and returns the mean loss."""
    inputs, targets = tf.constant(rows.inputs), tf.constant(rows.targets)
    optimizer, count = _optimizer(config), len(rows.inputs)
    variables, size = network.trainable_variables, batch_rows(config, count)
    optimizer.build(variables)

    def step(batch: Any, noise_seed: Any) -> Any:
        with tf.GradientTape() as tape:
            noisy = corruptor.corrupt(tf.gather(inputs, batch), noise_seed)
            loss = _loss(config, tf.gather(targets, batch), network(noisy, training=True))
        optimizer.apply(tape.gradient(loss, variables), variables)
        return loss * tf.cast(tf.size(batch), tf.float32)

    @tf.function(autograph=False)  # type: ignore[untyped-decorator]
    def epoch(order: Any, number: Any) -> Any:
        def body(start: Any, total: Any) -> tuple[Any, Any]:
            loss = step(order[start : start + size], [config.seed, number * count + start])
            return start + size, total + loss

        return tf.while_loop(lambda start, _: start < count, body, (tf.constant(0, tf.int64), 0.0))[1] / count

    def fit_epoch(number: int) -> float:
        order = np.random.default_rng([config.seed, 3, number]).permutation(count)
        return float(epoch(tf.constant(order), tf.constant(number, tf.int64)))

    return fit_epoch


def _validation_function(network: Any, config: TrainingConfig, rows: ScaledRows) -> Callable[[], float]:
    """A function that returns the mean loss on clean rows."""
    inputs, targets = tf.constant(rows.inputs), tf.constant(rows.targets)

    @tf.function(autograph=False)  # type: ignore[untyped-decorator]
    def summed(inputs: Any, targets: Any) -> Any:
        loss = _loss(config, targets, network(inputs, training=False))
        return loss * tf.cast(tf.shape(inputs)[0], tf.float32)

    def validate() -> float:
        starts = range(0, len(rows.inputs), VALIDATION_BATCH_ROWS)
        batches = [slice(start, start + VALIDATION_BATCH_ROWS) for start in starts]
        return sum(float(summed(inputs[batch], targets[batch])) for batch in batches) / len(rows.inputs)

    return validate


def _optimizer(config: TrainingConfig) -> Any:
    optimizer = keras.optimizers.Adam(config.learning_rate, weight_decay=config.weight_decay or None)
    if config.weight_decay:
        optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizer


def _loss(config: TrainingConfig, targets: Any, reconstructions: Any) -> Any:
    """Mean over the values that are there, of the configured loss of each."""
    present = tf.logical_not(tf.math.is_nan(targets))
    # Filled before the difference: a NaN would come back through the gradient of the branch not taken.
    filled = tf.where(present, targets, tf.stop_gradient(reconstructions))
    losses = tf.where(present, _LOSSES[config.loss](filled, reconstructions), 0.0)
    return tf.math.divide_no_nan(tf.reduce_sum(losses), tf.reduce_sum(tf.cast(present, losses.dtype)))


def _huber(targets: Any, reconstructions: Any) -> Any:
    distance = tf.abs(targets - reconstructions)
    return tf.where(distance <= 1, 0.5 * tf.square(distance), distance - 0.5)


_LOSSES: dict[str, Any] = {
    "mean_squared_error": lambda targets, reconstructions: tf.square(targets - reconstructions),
    "mean_absolute_error": lambda targets, reconstructions: tf.abs(targets - reconstructions),
    "huber": _huber,
    "binary_crossentropy": lambda targets, reconstructions: keras.ops.binary_crossentropy(
        tf.clip_by_value(targets, 0.0, 1.0), reconstructions
    ),
}
