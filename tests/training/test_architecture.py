"""Networks: what the presets build, and what is refused."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from service.errors import ConfigurationError
from service.schemas import InputSchema
from service.store import KERAS_MODEL
from service.training import load_config
from service.training.config import PRESETS

pytestmark = pytest.mark.tf

MNIST = InputSchema(kind="image", row_shape=(28, 28), value_range=(0.0, 255.0))


def test_keras_tutorial_is_784_32_784() -> None:
    """One Dense ReLU encoder, one Dense sigmoid decoder, and nothing else with weights."""
    from service.training.architecture import build_autoencoder

    config = load_config("keras-tutorial")
    network = build_autoencoder(MNIST, config).network
    dense = [layer for layer in network.layers if layer.weights]
    assert [(layer.units, layer.activation.__name__) for layer in dense] == [(32, "relu"), (784, "sigmoid")]
    assert dense[0].name == "latent"
    assert network.count_params() == 784 * 32 + 32 + 32 * 784 + 784
    assert (config.loss, config.epochs, config.batch_size, config.patience) == ("binary_crossentropy", 50, 256, None)


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("schema", [MNIST, InputSchema(kind="tabular", row_shape=(40,))])
def test_shapes(preset: str, schema: InputSchema) -> None:
    """Every preset takes images and columns, narrows them to the latent and gives back their shape."""
    from service.training.architecture import build_autoencoder

    if preset == "conv" and schema.kind == "tabular":
        with pytest.raises(ConfigurationError, match="use preset dense"):
            build_autoencoder(schema, load_config(preset))
        return
    autoencoder = build_autoencoder(schema, load_config(preset, dropout=0.2))
    latent, reconstruction, *_ = autoencoder.whole(np.zeros((3, *schema.row_shape), np.float32))
    assert latent.shape == (3, autoencoder.latent_dim)
    assert reconstruction.shape == (3, *schema.row_shape)


def test_output_activation_follows_the_scaling() -> None:
    """Pixels in [0, 1] come out of a sigmoid, standardised columns out of a linear layer."""
    from service.training.architecture import output_activation

    table = InputSchema(kind="tabular", row_shape=(40,))
    assert output_activation(MNIST, load_config()) == "sigmoid"
    assert output_activation(table, load_config()) == "linear"
    assert output_activation(table, load_config(scaling="minmax")) == "sigmoid"
    assert output_activation(MNIST, load_config(scaling="standard")) == "linear"


def test_latent_that_is_not_narrower_is_refused() -> None:
    """The tutorial's latent of 32 does not fit 20 columns."""
    from service.training.architecture import build_autoencoder

    with pytest.raises(ConfigurationError, match="which is 20"):
        build_autoencoder(InputSchema(kind="tabular", row_shape=(20,)), load_config("keras-tutorial"))


def test_keras_model_loads_without_our_code(digits_export: Path) -> None:
    """``model.keras`` holds standard layers only, and its latent has its name."""
    from service.runtime.quiet import keras

    network = keras.saving.load_model(digits_export / KERAS_MODEL, safe_mode=True)
    assert network.get_layer("latent").units == 12


@pytest.mark.parametrize(
    ("kind", "row_shape"),
    [
        ("image", (28, 28)),
        ("image", (8, 8, 1)),
        ("image", (33, 17, 3)),
        ("image", (1, 9)),
        ("image", (5, 100, 2)),
        ("timeseries", (64, 1)),
        ("timeseries", (51, 4)),
    ],
)
def test_convolutions_fit_any_grid(kind: Literal["image", "timeseries"], row_shape: tuple[int, ...]) -> None:
    """Odd sides, one or several channels, thin images and windows come back in their own shape."""
    from service.training.architecture import build_autoencoder

    schema = InputSchema(kind=kind, row_shape=row_shape)
    autoencoder = build_autoencoder(schema, load_config("conv", latent_dim=3, dropout=0.1))
    latent, reconstruction, *_ = autoencoder.whole(np.zeros((2, *row_shape), np.float32))
    assert latent.shape == (2, 3)
    assert reconstruction.shape == (2, *row_shape)
    kinds = {type(layer).__name__ for layer in autoencoder.network.layers}
    assert kinds & {"Conv1D", "Conv2D"}
    assert kinds & {"Conv1DTranspose", "Conv2DTranspose"}
