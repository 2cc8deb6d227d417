"""The fit loop: reproducible, stopped in time, untroubled by gaps."""

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from service.errors import TrainingFailed
from service.schemas import take_rows
from service.training import Reporter, TrainingConfig, load_config
from service.training.data import read_dataset
from service.training.progress import Epoch
from tests.conftest import table_rows
from tests.training.conftest import table_dataset

if TYPE_CHECKING:
    from service.training.train import TrainedModel

pytestmark = pytest.mark.tf

SMALL = load_config("dense", latent_dim=2, hidden=(16,), epochs=3, dropout=0.1, corruption="masking", weight_decay=1e-3)


class Listener(Reporter):
    def __init__(self) -> None:
        self.epochs: list[Epoch] = []

    def epoch(self, epoch: Epoch) -> None:
        self.epochs.append(epoch)


def fit_small(config: TrainingConfig, *, rows: Any = None, reporter: Reporter | None = None) -> "TrainedModel":
    from service.training.train import train_model

    rows = table_rows(400, seed=5) if rows is None else rows
    return train_model(table_dataset(rows), config, reporter or Reporter())


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
    listener = Listener()
    config = load_config("dense", latent_dim=2, hidden=(16,), epochs=200, patience=2, learning_rate=0.05)
    config = config.model_copy(update={"linear_path": False})
    trained = fit_small(config, reporter=listener)
    losses = [epoch.validation_loss for epoch in listener.epochs]
    assert len(losses) < 200
    assert trained.history.best_epoch == 1 + int(np.argmin(losses)) == len(losses) - 2
    rows = trained.graph.preprocessing.scale_all(take_rows(trained.dataset.rows, trained.split.validation)).inputs
    kept = float(np.mean(np.square(trained.graph.trained.network(rows) - rows)))
    assert kept == pytest.approx(min(losses), rel=1e-4)


def test_a_denoiser_is_judged_with_noise() -> None:
    """The epoch that is kept is the one that cleans noisy validation rows best, not the one that copies clean ones."""
    config = load_config("dense", latent_dim=3, hidden=(32,), epochs=30, patience=30, learning_rate=3e-3)
    clean = fit_small(config)
    noisy = fit_small(config.model_copy(update={"corruption": "gaussian", "corruption_level": 1.0}))
    assert min(noisy.history.validation_loss) > 3 * min(clean.history.validation_loss)
    assert noisy.history.best_epoch == 1 + int(np.argmin(noisy.history.validation_loss))


def test_without_patience_all_epochs_run() -> None:
    """The tutorial's preset never stops early, and keeps what it ends with."""
    config = load_config("dense", latent_dim=2, hidden=(16,), epochs=9, learning_rate=0.2)
    trained = fit_small(config.model_copy(update={"patience": None}))
    assert len(trained.history.train_loss) == trained.history.best_epoch == 9


def test_convolutions_learn_images_reproducibly() -> None:
    """Fitted twice by a cosine schedule the weights are the same, and better than they were."""
    from service.training.train import train_model

    dataset, config = read_dataset("digits", max_rows=300), load_config("conv", latent_dim=8, filters=(8,), epochs=12)
    first, again = (train_model(dataset, config, Reporter()) for _ in range(2))
    assert weights(first) == weights(again)
    assert first.history.train_loss[-1] < 0.5 * first.history.train_loss[0]


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
    from service.training.fit import fit
    from service.training.preprocessing import ScaledRows

    trained = fit_small(SMALL)
    bad = np.full((20, 6), np.inf, np.float32)
    rows = ScaledRows(bad, bad)
    graph = trained.graph
    with pytest.raises(TrainingFailed, match="smaller learning rate"):
        fit(graph.trained, graph.preprocessing, SMALL, train=rows, validation=rows, reporter=Reporter())


def test_weight_decay_shrinks_the_weights() -> None:
    """Decoupled decay pulls the weights towards zero."""
    sizes = [
        sum(float(np.abs(weight).sum()) for weight in trained.graph.trained.network.get_weights())
        for trained in (
            fit_small(
                load_config("dense", latent_dim=2, hidden=(16,), epochs=20, weight_decay=decay, linear_path=False)
            )
            for decay in (0.0, 0.9)
        )
    ]
    assert sizes[1] < 0.99 * sizes[0]


def test_starts_as_pca_and_keeps_it_where_nothing_is_better() -> None:
    """With a hopeless learning rate the model is PCA; with a good one it is better than its start."""
    hopeless = load_config("dense", latent_dim=2, hidden=(16,), epochs=4, learning_rate=5.0)
    trained = fit_small(hopeless)
    assert trained.history.best_epoch == 0
    assert trained.metrics.autoencoder.test == pytest.approx(trained.metrics.pca.test, rel=1e-3)
    assert any("No epoch was better" in warning for warning in trained.warnings)
    curved = table_rows(400, seed=5)
    curved[:, 0] = np.square(curved[:, 1]) / 50
    better = fit_small(hopeless.model_copy(update={"learning_rate": 3e-3, "epochs": 30}), rows=curved)
    assert better.history.best_epoch > 0
    assert better.metrics.autoencoder.test < better.metrics.pca.test


TWO_DEVICES = """
import sys
from pathlib import Path
import numpy as np
from service.runtime.quiet import tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from service.training import Reporter, load_config
from service.training.architecture import build_autoencoder
from service.training.fit import fit, make_reproducible
from service.training.preprocessing import fit_preprocessing
from tests.conftest import table_rows
from tests.training.conftest import table_dataset

dataset = table_dataset(table_rows(1537, seed=0))
config = load_config("dense", latent_dim=2, hidden=(16,), epochs=3, batch_size=512, corruption="gaussian")
preprocessing = fit_preprocessing(dataset.rows, dataset.schema, config)
rows = preprocessing.scale_all(dataset.rows)
weights = []
for devices in ((), ("CPU:0", "CPU:1")):
    make_reproducible(config.seed)
    network = build_autoencoder(dataset.schema, config, preprocessing.layout)
    fit(network, preprocessing, config, train=rows, validation=rows, reporter=Reporter(), devices=devices)
    weights.append(network.network.get_weights())
assert any(np.any(one != other) for one, other in zip(*weights)), "the second device had no share"
for one, other in zip(*weights):
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
"""


def test_two_devices_of_one_machine_give_what_one_gives() -> None:
    """The gradients of their shares add up to those of each batch, the last one included, which is of one row."""
    ended = subprocess.run(
        [sys.executable, "-c", TWO_DEVICES], capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stderr
