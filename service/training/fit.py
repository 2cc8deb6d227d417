"""Fitting the network: clean rows as targets, corrupted ones as inputs, stopped before it overfits.

An epoch is one call into TensorFlow: for networks of this size, Keras' own loop takes several times as long. Shuffling
and noise depend on the seed and the number of the epoch only.
"""

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.errors import TrainingFailed
from service.runtime.quiet import keras, tf
from service.schemas import InputSchema
from service.training.architecture import Autoencoder, build_refiner
from service.training.checkpoint import Checkpoint, FitState
from service.training.config import TrainingConfig, batch_rows, conv_filters
from service.training.preprocessing import Layout, Preprocessing, ScaledRows
from service.training.progress import Epoch, Reporter
from service.training.scaling import Scaling

Loss: TypeAlias = Callable[[Any, Any], Any]
"""Targets with NaN where nothing is to be reconstructed, and reconstructions, to a scalar."""

REFINING_STEPS = 2000
"""Of the optimizer; never more passes over the rows than the autoencoder was given."""
REFINING_BATCH, REFINING_RATE = 128, 4e-3
"""Most rows of a step, and the most of the learning rate: twice the conv preset's."""
SECONDS_BETWEEN_NOTES = 5.0
VALIDATION_BATCH_ROWS = 1024
ROWS_A_DEVICE = 256
"""With fewer rows a step, moving gradients between devices takes longer than computing them."""
LEAST_PROBABILITY = 1e-7
WARM_UP_PART = 30
"""The learning rate rises for this part of all steps: Adam's first steps are long ones."""


class Corruptor:
    """Corrupts scaled rows (rows, *row_shape).

    gaussian adds normal noise, and keeps bounded values in [0, 1]; masking replaces a share of the values by what a
    missing one becomes (black for pixels, the median otherwise); salt_and_pepper by the least or the greatest value.

    Source: Vincent et al., Stacked denoising autoencoders (JMLR 11, 2010), section 3.3.
    """

    def __init__(
        self, config: TrainingConfig, scaling: Scaling, *, limits: tuple[NDArray[np.float32], NDArray[np.float32]]
    ) -> None:
        """``limits``: least and greatest scaled value of each feature in training, in the shape of a row."""
        self._kind, self._level = config.corruption, config.corruption_level
        self._bounded = scaling.bounded
        median = (scaling.typical - scaling.center) / scaling.spread
        self._blank = np.zeros_like(limits[0]) if scaling.bounded else median.astype(np.float32)
        self._low, self._high = limits

    def corrupt(self, rows: Any, seed: Any) -> Any:
        """The rows with noise; the same for the same two integers ``seed``."""
        shape = tf.shape(rows)
        if self._kind == "none":
            return rows
        if self._kind == "gaussian":
            noisy = rows + tf.random.stateless_normal(shape, seed, stddev=self._level)
            return tf.clip_by_value(noisy, 0.0, 1.0) if self._bounded else noisy
        draw = tf.random.stateless_uniform(shape, seed)
        if self._kind == "masking":
            return tf.where(draw < self._level, self._blank, rows)
        noisy = tf.where(draw < self._level, self._high, rows)
        return tf.where(draw < self._level / 2, self._low, noisy)


@dataclass(frozen=True, slots=True)
class History:
    """Losses by epoch; ``best_epoch`` is the one whose weights were kept, counted from 1; 0: as it started."""

    train_loss: tuple[float, ...]
    validation_loss: tuple[float, ...]
    best_epoch: int
    fit_s: float


def make_reproducible(seed: int) -> None:
    """Same seed, same machine, same weights. Changes this process for good; call it before the network is built."""
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


def use_devices() -> str:
    """The name of what the run computes on. GPUs are told to take memory only as it is needed."""
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        try:
            tf.config.experimental.set_memory_growth(gpu, True)
        except RuntimeError:  # it is in use already, by an earlier run of this process
            continue
    if not gpus:
        return f"CPU ({os.cpu_count()} cores)"
    name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", gpus[0].name)
    return f"GPU ({f'{len(gpus)} x ' if len(gpus) > 1 else ''}{name})"


def limits_of(rows: ScaledRows) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Least and greatest scaled value of each feature."""
    return rows.inputs.min(axis=0), rows.inputs.max(axis=0)


def fit(
    autoencoder: Autoencoder,
    preprocessing: Preprocessing,
    config: TrainingConfig,
    *,
    train: ScaledRows,
    validation: ScaledRows,
    reporter: Reporter,
    checkpoint: Checkpoint | None = None,
    devices: Sequence[str] | None = None,
) -> History:
    """Fit in place. With a patience, the weights are those of the epoch with the least validation loss.

    Args:
        checkpoint: where the run is kept, so that it can go on after a kill with the very same result.
        devices: share the rows of a large batch; by default the GPUs of this machine.

    Raises:
        TrainingFailed: the loss is not finite any more.
        ConfigurationError, StoreError: as of ``Checkpoint``.
    """
    network = autoencoder.network
    devices = [gpu.name for gpu in tf.config.list_logical_devices("GPU")] if devices is None else devices
    loss = row_loss(config, preprocessing.layout)
    corruptor = Corruptor(config, preprocessing.scaling, limits=limits_of(train))
    steps = math.ceil(len(train.inputs) / batch_rows(config, len(train.inputs), train.inputs[0].size))
    optimizer = adam(
        config.learning_rate, steps=config.epochs * steps, schedule=config.schedule, weight_decay=config.weight_decay
    )
    optimizer.build(network.trainable_variables)
    fit_epoch = _epoch_function(network, optimizer, config, loss, corruptor=corruptor, rows=train, devices=devices)
    validate = _validation_function(network, corruptor, config, validation, loss)
    variables = [*network.variables, *optimizer.variables]
    start_weights, start_loss = network.get_weights(), validate()
    state = (checkpoint.restore(variables) if checkpoint else None) or FitState(start_weights)
    started = time.monotonic() - state.seconds
    patience = config.epochs if config.patience is None else config.patience
    while state.epoch < config.epochs and state.epoch - state.best_epoch < patience:
        train_loss, validation_loss = fit_epoch(state.epoch + 1), validate()
        if not (math.isfinite(train_loss) and math.isfinite(validation_loss)):
            raise TrainingFailed("The loss is not a finite number any more; try a smaller learning rate.")
        state.train_losses.append(train_loss)
        state.validation_losses.append(validation_loss)
        if config.patience is None or validation_loss < state.best_loss:
            state.best_epoch, state.best, state.best_loss = state.epoch, network.get_weights(), validation_loss
        rate = float(optimizer.learning_rate)
        reporter.epoch(Epoch(state.epoch, config.epochs, train_loss, validation_loss, learning_rate=rate))
        state.seconds = time.monotonic() - started
        if checkpoint:
            checkpoint.save_if_due(state, lambda: [keras.ops.convert_to_numpy(variable) for variable in variables])
    if config.patience is not None and start_loss <= state.best_loss:
        # It started as PCA, and got no better than that.
        state.best_epoch, state.best = 0, start_weights
    network.set_weights(state.best)
    return History(tuple(state.train_losses), tuple(state.validation_losses), state.best_epoch, state.seconds)


def _epoch_function(
    network: Any,
    optimizer: Any,
    config: TrainingConfig,
    loss_of: Loss,
    *,
    corruptor: Corruptor,
    rows: ScaledRows,
    devices: Sequence[str],
) -> Callable[[int], float]:
    """A function that fits one epoch, given its number, and returns the mean loss."""
    inputs, targets = _constants(rows)
    count, variables = len(rows.inputs), network.trainable_variables
    size = batch_rows(config, count, rows.inputs[0].size)
    shares = max(1, min(len(devices), size // ROWS_A_DEVICE))

    def gradients(batch: Any, noisy: Any, share: int) -> list[Any]:
        """Loss and gradients of one share of the batch, weighted so that those of all shares add up to the batch's."""
        own = batch[share::shares]
        with tf.device(devices[share] if devices else None), tf.GradientTape() as tape:
            loss = loss_of(tf.gather(targets, own), network(noisy[share::shares], training=True))
            loss *= tf.cast(tf.size(own) / tf.size(batch), tf.float32)
            return [loss, *tape.gradient(loss, variables)]

    def step(batch: Any, noise_seed: Any) -> Any:
        noisy = corruptor.corrupt(tf.gather(inputs, batch), noise_seed)
        loss, *summed = map(tf.add_n, zip(*(gradients(batch, noisy, share) for share in range(shares)), strict=True))
        optimizer.apply(summed, variables)
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


def _constants(rows: ScaledRows) -> tuple[Any, Any]:
    """Inputs and targets as tensors; one for both where no value is missing."""
    inputs = tf.constant(rows.inputs)
    return inputs, inputs if rows.targets is rows.inputs else tf.constant(rows.targets)


def _validation_function(
    network: Any, corruptor: Corruptor, config: TrainingConfig, rows: ScaledRows, loss_of: Loss
) -> Callable[[], float]:
    """A function that returns the mean loss, with noise if there is some in training: the same at each call.

    On clean rows a denoiser gets worse from some epoch on while it still learns to denoise.
    """
    inputs, targets = _constants(rows)

    @tf.function(autograph=False)  # type: ignore[untyped-decorator]
    def summed(inputs: Any, targets: Any, start: Any) -> Any:
        noisy = corruptor.corrupt(inputs, [config.seed, -1 - start])
        loss = loss_of(targets, network(noisy, training=False))
        return loss * tf.cast(tf.shape(inputs)[0], tf.float32)

    def batch(start: int) -> tuple[Any, Any]:
        rows_of_batch = slice(start, start + VALIDATION_BATCH_ROWS)
        return inputs[rows_of_batch], targets[rows_of_batch]

    def validate() -> float:
        starts = range(0, len(rows.inputs), VALIDATION_BATCH_ROWS)
        return sum(float(summed(*batch(start), tf.constant(start))) for start in starts) / len(rows.inputs)

    return validate


def adam(rate: float, *, steps: int, schedule: str = "cosine", weight_decay: float = 0.0) -> Any:
    """Adam. The cosine of learning rates: Loshchilov and Hutter, SGDR (ICLR 2017), one period without restarts."""
    warm_up = max(1, steps // WARM_UP_PART)
    rates = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, steps - warm_up), warmup_target=rate, warmup_steps=warm_up
    )
    optimizer = keras.optimizers.Adam(rates if schedule == "cosine" else rate, weight_decay=weight_decay or None)
    if weight_decay:
        optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizer


def row_loss(config: TrainingConfig, layout: Layout) -> Loss:
    """The mean over the features that are there: the configured loss of numbers and times, cross-entropy of labels.

    A label's cross-entropy is divided by the entropy of its column, so that each column counts alike: always to guess
    the mean, or the labels' shares, costs 1.
    """
    of_number = _LOSSES[config.loss]
    # What part of its feature each value is, in the shape of a row.
    shares = (1 / layout.sizes[layout.owner]).astype(np.float32).reshape(layout.shape)
    of_all = _with_labels(of_number, layout) if layout.labels else of_number

    def loss(targets: Any, reconstructions: Any) -> Any:
        present = tf.logical_not(tf.math.is_nan(targets))
        # Filled before the difference: a NaN would come back through the gradient of the branch not taken.
        filled = tf.where(present, targets, tf.stop_gradient(reconstructions))
        each = tf.where(present, of_all(filled, reconstructions), 0.0)
        return tf.math.divide_no_nan(tf.reduce_sum(each), tf.reduce_sum(tf.where(present, shares, 0.0)))

    return loss


def _with_labels(of_number: Loss, layout: Layout) -> Loss:
    """The loss of each value: cross-entropy in the label blocks, ``of_number`` elsewhere."""
    weights = np.concatenate([block.weights for block in layout.labels])
    entropies = np.repeat([block.entropy for block in layout.labels], [len(block.weights) for block in layout.labels])
    first, last = layout.first_label, layout.labels[-1].stop

    def of_all(targets: Any, reconstructions: Any) -> Any:
        probabilities = tf.maximum(reconstructions[:, first:last] / weights, LEAST_PROBABILITY)
        surprise = -targets[:, first:last] / weights * tf.math.log(probabilities) / entropies.astype(np.float32)
        before, after = (
            of_number(targets[:, part], reconstructions[:, part]) for part in (slice(first), slice(last, None))
        )
        return tf.concat([before, surprise, after], axis=1)

    return of_all


_LOSSES: dict[str, Any] = {
    "mean_squared_error": lambda targets, reconstructions: tf.square(targets - reconstructions),
    "mean_absolute_error": lambda targets, reconstructions: tf.abs(targets - reconstructions),
    "huber": lambda targets, reconstructions: tf.where(
        tf.abs(targets - reconstructions) <= 1,
        0.5 * tf.square(tf.abs(targets - reconstructions)),
        tf.abs(targets - reconstructions) - 0.5,
    ),
    "binary_crossentropy": lambda targets, reconstructions: keras.ops.binary_crossentropy(
        tf.clip_by_value(targets, 0.0, 1.0), reconstructions
    ),
}


class Notes(Reporter):
    """Tells of an epoch now and then, in words: those that bars and curves show are the autoencoder's."""

    def __init__(self, reporter: Reporter, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._reporter, self._clock = reporter, clock
        self._last = clock()

    def epoch(self, epoch: Epoch) -> None:
        now = self._clock()
        if now - self._last >= SECONDS_BETWEEN_NOTES:
            self._last = now
            self._reporter.note(f"pass {epoch.number}/{epoch.of}  validation loss {epoch.validation_loss:.5g}")


def is_refined(schema: InputSchema, config: TrainingConfig) -> bool:
    """Whether denoised rows are more than reconstructions: of denoisers over a grid."""
    return config.corruption != "none" and bool(conv_filters(config, schema))


def fit_refiner(
    autoencoder: Autoencoder,
    preprocessing: Preprocessing,
    schema: InputSchema,
    config: TrainingConfig,
    *,
    train: ScaledRows,
    validation: ScaledRows,
    reporter: Reporter,
) -> Autoencoder:
    """The autoencoder with a refiner, fitted on rows with the noise of its own training; its weights stay as they are.

    Denoisers see the noisy row once more: what the latent has no room for, its neighbours in the row still tell. A
    reconstruction of a noisy row errs where the latent is too narrow for the clean one, and there the row itself knows
    better, noise and all; a few convolutions over both weigh one against the other. Latents, reconstructions and scores
    are those of a model without this.

    The refiner keeps the weights of the pass that denoises validation rows best, and corrects nothing where none is
    better than the reconstructions alone.

    Raises:
        TrainingFailed: the loss is not finite any more.
    """
    network, refiner = autoencoder.network, build_refiner(schema)
    batch = min(REFINING_BATCH, batch_rows(config, len(train.inputs), train.inputs[0].size))
    steps_a_pass = -(-len(train.inputs) // batch)
    passes = max(1, min(config.epochs, REFINING_STEPS // steps_a_pass))
    own = config.model_copy(
        update={
            "epochs": passes,
            "patience": passes,
            "batch_size": batch,
            "learning_rate": REFINING_RATE,
            "schedule": "cosine",
        }
    )
    network.trainable = False
    denoiser = keras.Model(network.input, refiner([network.input, network.output]), name="denoiser")
    whole = replace(autoencoder, network=denoiser)
    fit(whole, preprocessing, own, train=train, validation=validation, reporter=Notes(reporter))
    network.trainable = True
    return replace(autoencoder, refiner=refiner)
