"""Denoisers over a grid: what they give is better than the reconstruction, which stays as it is."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest

from service.schemas import INSTANCES, InputSchema
from service.training import Reporter, load_config
from service.training.data import read_dataset
from tests.training.conftest import export_model

if TYPE_CHECKING:
    from service.training.train import TrainedModel

pytestmark = pytest.mark.tf

LEVEL = 0.3


def train(corruption: Literal["none", "gaussian", "masking", "salt_and_pepper"] = "gaussian") -> "TrainedModel":
    from service.training.train import train_model

    config = load_config(
        "conv", latent_dim=8, filters=(8, 16), epochs=15, batch_size=32, corruption=corruption, corruption_level=LEVEL
    )
    return train_model(read_dataset("digits"), config, Reporter())


@pytest.fixture(scope="module")
def denoiser() -> "TrainedModel":
    return train()


def errors(trained: "TrainedModel", *, seed: int = 0) -> tuple[float, float]:
    """Of noisy test images, in grey levels squared: what `denoise` gives, and what `reconstruct` gives."""
    clean = trained.dataset.rows[INSTANCES][trained.split.test]
    noise = np.random.default_rng(seed).normal(scale=LEVEL * 16, size=clean.shape)
    noisy = {INSTANCES: np.clip(clean + noise, 0, 16).astype(np.float32)}
    denoised = trained.graph.denoise(noisy)["denoised"].numpy()
    reconstructed = np.clip(trained.graph.reconstruct(noisy)["reconstruction"].numpy(), 0, 16)
    return float(np.mean(np.square(denoised - clean))), float(np.mean(np.square(reconstructed - clean)))


def test_denoised_rows_are_better_than_reconstructions(denoiser: "TrainedModel") -> None:
    """What eight numbers cannot keep of an image, its noisy pixels still tell."""
    denoised, reconstructed = errors(denoiser)
    assert denoised < 0.9 * reconstructed


def test_the_measured_denoising_is_that_of_the_signature(denoiser: "TrainedModel") -> None:
    """The figure of the model card is what a caller gets, not that of the reconstruction."""
    measured = denoiser.metrics.denoising
    assert measured is not None
    denoised, reconstructed = (error / 16**2 for error in errors(denoiser))
    assert abs(measured.denoised - denoised) < abs(measured.denoised - reconstructed)


def test_the_autoencoder_is_left_as_it_is(denoiser: "TrainedModel") -> None:
    """Fitting the refiner changes no weight of the network, and leaves it trainable."""
    from service.training.evaluate import scale_splits
    from service.training.fit import fit_refiner

    graph = denoiser.graph
    splits = scale_splits(denoiser.dataset, denoiser.split, graph.preprocessing)
    before = [weight.copy() for weight in graph.trained.network.get_weights()]
    again = fit_refiner(
        graph.trained,
        graph.preprocessing,
        graph.schema,
        denoiser.config.model_copy(update={"epochs": 1}),
        train=splits["train"].scaled,
        validation=splits["validation"].scaled,
        reporter=Reporter(),
    )
    assert all(np.array_equal(one, other) for one, other in zip(before, again.network.get_weights(), strict=True))
    assert again.network.trainable_variables
    assert again.refiner is not graph.trained.refiner


def test_same_seed_same_denoised_rows(denoiser: "TrainedModel") -> None:
    """Trained twice, to the last digit."""
    assert errors(train()) == errors(denoiser)


def test_exported_and_in_float64_it_gives_the_same(denoiser: "TrainedModel", tmp_path: Path) -> None:
    """Small images are served in float64; the SavedModel has the refiner's weights too."""
    from service.runtime.quiet import tf

    export_model(denoiser, tmp_path)
    rows = denoiser.dataset.rows[INSTANCES][:32]
    served = tf.saved_model.load(str(tmp_path)).signatures["denoise"](instances=tf.constant(rows))["denoised"].numpy()
    trained, scaling = denoiser.graph.trained, denoiser.graph.preprocessing
    scaled = scaling.scale({INSTANCES: rows})[0]
    expected = scaling.unscale(trained.denoise(scaled, trained.network(scaled)))[INSTANCES].numpy()
    assert {variable.dtype for variable in denoiser.graph.serving.variables} == {"float64"}
    np.testing.assert_allclose(served, np.clip(expected, 0, 16), atol=1e-3)
    assert np.abs(served - denoiser.graph.reconstruct({INSTANCES: rows})["reconstruction"].numpy()).max() > 0.1


@pytest.mark.parametrize(
    ("kind", "row_shape"), [("image", (9, 7)), ("image", (8, 8, 3)), ("timeseries", (16, 1)), ("timeseries", (15, 4))]
)
def test_it_starts_with_the_reconstruction_in_any_shape(
    kind: Literal["image", "timeseries"], row_shape: tuple[int, ...]
) -> None:
    """Before it is fitted it corrects nothing: grey and colour, windows of one channel and of several."""
    from service.training.architecture import build_refiner

    refiner = build_refiner(InputSchema(kind=kind, row_shape=row_shape))
    rows, reconstructions = np.random.default_rng(0).random((2, 5, *row_shape)).astype(np.float32)
    assert np.array_equal(refiner([rows, reconstructions]).numpy(), reconstructions)


@pytest.mark.parametrize(("preset", "corruption"), [("conv", "none"), ("demo", "gaussian")])
def test_others_have_none(preset: str, corruption: Literal["none", "gaussian"]) -> None:
    """Models without noise in training, and networks without a grid, cost what they did."""
    from service.training.fit import is_refined

    config = load_config(preset, corruption=corruption, corruption_level=LEVEL)
    assert not is_refined(InputSchema(kind="image", row_shape=(8, 8)), config)


def test_passes_are_told_now_and_then() -> None:
    """In words, so that bars and curves stay those of the autoencoder."""
    from service.training.fit import Notes
    from service.training.progress import Epoch

    class Told(Reporter):
        def __init__(self) -> None:
            self.notes = list[str]()

        def note(self, text: str) -> None:
            self.notes.append(text)

    told, now = Told(), [0.0]
    notes = Notes(told, clock=lambda: now[0])
    for number in range(1, 5):
        now[0] += 3
        notes.epoch(Epoch(number, 4, 0.2, 0.1 / number))
    assert told.notes == ["pass 2/4  validation loss 0.05", "pass 4/4  validation loss 0.025"]
