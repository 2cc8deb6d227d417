"""Denoisers see the noisy row once more: what the latent has no room for, its neighbours in the row still tell.

A reconstruction of a noisy row errs where the latent is too narrow for the clean one, and there the row itself knows
better, noise and all. A few convolutions over both weigh one against the other. The autoencoder is left as it is:
latents, reconstructions and scores are those of a model without this.
"""

import time
from collections.abc import Callable
from dataclasses import replace

from service.runtime.quiet import keras
from service.schemas import InputSchema
from service.training.architecture import Autoencoder, build_refiner
from service.training.config import TrainingConfig, batch_rows, conv_filters
from service.training.fit import fit
from service.training.preprocessing import Preprocessing, ScaledRows
from service.training.progress import Epoch, Reporter, SilentReporter

REFINING_STEPS = 2000
"""Of the optimizer; never more passes over the rows than the autoencoder was given."""
REFINING_BATCH, REFINING_RATE = 128, 4e-3
"""Most rows of a step, and the most of the learning rate: twice the conv preset's."""
SECONDS_BETWEEN_NOTES = 5.0


class Notes(SilentReporter):
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
