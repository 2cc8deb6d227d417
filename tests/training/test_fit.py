"""The fit loop: reproducible, stopped in time, untroubled by gaps."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from service.errors import TrainingFailed
from service.training import SilentReporter, TrainingConfig, load_config
from service.training.progress import Epoch
from tests.conftest import table_rows
from tests.training.conftest import table_dataset

if TYPE_CHECKING:
    from service.training.train import TrainedModel

pytestmark = pytest.mark.tf

SMALL = load_config("dense", latent_dim=2, hidden=(16,), epochs=3, dropout=0.1, corruption="masking", weight_decay=1e-3)


class Listener(SilentReporter):
    def __init__(self) -> None:
        self.epochs: list[Epoch] = []

    def epoch(self, epoch: Epoch) -> None:
        self.epochs.append(epoch)


def fit_small(config: TrainingConfig, *, rows: Any = None, reporter: SilentReporter | None = None) -> "TrainedModel":
    from service.training.train import train_model

    rows = table_rows(400, seed=5) if rows is None else rows
    return train_model(table_dataset(rows), config, reporter or SilentReporter())


def weights(trained: "TrainedModel") -> bytes:
    return b"".join(weight.tobytes() for weight in trained.graph.trained.network.get_weights())


def test_same_seed_same_weights() -> None:
    """Bit for bit, with dropout, noise and weight decay; another seed gives others."""
    first, again = fit_small(SMALL), fit_small(SMALL)
    other = fit_small(SMALL.model_copy(update={"seed": 1}))
    assert weights(first) == weights(again) != weights(other)
    assert first.calibration == again.calibration


def test_stops_early_and_keeps_the_best_epoch() -> None:
    """Training ends ``patience`` epochs after the best, and the best weights are the ones that stay."""
    from service.training.fit import scale_rows

    listener = Listener()
    config = load_config("dense", latent_dim=2, hidden=(16,), epochs=200, patience=2, learning_rate=0.05)
    trained = fit_small(config, reporter=listener)
    losses = [epoch.validation_loss for epoch in listener.epochs]
    assert len(losses) < 200
    assert trained.history.best_epoch == 1 + int(np.argmin(losses)) == len(losses) - 2
    rows = scale_rows(trained.graph.scaling, trained.dataset.instances[trained.split.validation]).inputs
    kept = float(np.mean(np.square(trained.graph.trained.network(rows) - rows)))
    assert kept == pytest.approx(min(losses), rel=1e-4)


def test_without_patience_all_epochs_run() -> None:
    """The tutorial's preset never stops early, and keeps what it ends with."""
    config = load_config("dense", latent_dim=2, hidden=(16,), epochs=9, learning_rate=0.2)
    trained = fit_small(config.model_copy(update={"patience": None}))
    assert len(trained.history.train_loss) == trained.history.best_epoch == 9


@pytest.mark.parametrize("loss", ["mean_squared_error", "mean_absolute_error", "huber", "binary_crossentropy"])
def test_learns_with_gaps(loss: str) -> None:
    """Rows with missing values, every loss: the loss is finite and falls."""
    rows = table_rows(400, seed=5)
    rows[np.random.default_rng(0).random(rows.shape) < 0.2] = np.nan
    history = fit_small(load_config("dense", latent_dim=2, hidden=(16,), epochs=5, loss=loss), rows=rows).history
    assert np.isfinite(history.train_loss).all()
    assert history.train_loss[-1] < history.train_loss[0]


def test_a_loss_that_is_not_finite_ends_the_run() -> None:
    """Nothing is published of a run that diverged."""
    from service.training.fit import ScaledRows, fit

    trained = fit_small(SMALL)
    bad = np.full((20, 6), np.inf, np.float32)
    rows = ScaledRows(bad, bad)
    graph = trained.graph
    with pytest.raises(TrainingFailed, match="smaller learning rate"):
        fit(graph.trained, graph.scaling, SMALL, train=rows, validation=rows, reporter=SilentReporter())


def test_weight_decay_shrinks_the_weights() -> None:
    """Decoupled decay pulls the weights towards zero."""
    sizes = [
        sum(float(np.abs(weight).sum()) for weight in trained.graph.trained.network.get_weights())
        for trained in (
            fit_small(load_config("dense", latent_dim=2, hidden=(16,), epochs=20, weight_decay=decay))
            for decay in (0.0, 0.9)
        )
    ]
    assert sizes[1] < 0.99 * sizes[0]
