"""The network: scaled row -> latent -> reconstruction. Built of standard Keras layers, so that any tool can load it."""

from dataclasses import dataclass
from typing import Any

from service.schemas import InputSchema
from service.training.config import TrainingConfig, hidden_widths, latent_width
from service.training.quiet import keras

LATENT = "latent"
RECONSTRUCTION = "reconstruction"


@dataclass(frozen=True, slots=True)
class Autoencoder:
    """Views of one set of weights. All take scaled rows (rows, *row_shape) without missing values."""

    network: Any
    """Scaled rows -> reconstructions (rows, *row_shape), scaled."""
    encoder: Any
    """Scaled rows -> latent (rows, latent_dim)."""
    both: Any
    """Scaled rows -> [latent, reconstruction], in one pass."""
    latent_dim: int


def in_float64(autoencoder: Autoencoder) -> Autoencoder:
    """A copy that computes in float64, with the same weights."""

    def copy(layer: Any) -> Any:
        return type(layer).from_config({**layer.get_config(), "dtype": "float64"})

    network = keras.models.clone_model(autoencoder.network, clone_function=copy)
    network.set_weights([weight.astype("float64") for weight in autoencoder.network.get_weights()])
    return _views(network, autoencoder.latent_dim)


def build_autoencoder(schema: InputSchema, config: TrainingConfig) -> Autoencoder:
    """A dense autoencoder; the decoder mirrors the encoder.

    Raises:
        ConfigurationError: the latent would not be narrower than a row.
    """
    inputs = keras.Input(schema.row_shape, name="scaled")
    features = 1
    for size in schema.row_shape:
        features *= size
    latent_dim, widths = latent_width(config, features), hidden_widths(config, features)
    is_flat = len(schema.row_shape) == 1
    hidden = inputs if is_flat else keras.layers.Flatten(name="flat")(inputs)
    hidden = _hidden_layers(hidden, widths, config, prefix="encoder")
    latent = keras.layers.Dense(latent_dim, activation=config.latent_activation, name=LATENT)(hidden)
    hidden = _hidden_layers(latent, widths[::-1], config, prefix="decoder")
    last = keras.layers.Dense(
        features, activation=output_activation(schema, config), name=RECONSTRUCTION if is_flat else "pixels"
    )(hidden)
    outputs = last if is_flat else keras.layers.Reshape(schema.row_shape, name=RECONSTRUCTION)(last)
    return _views(keras.Model(inputs, outputs, name="autoencoder"), latent_dim)


def _views(network: Any, latent_dim: int) -> Autoencoder:
    latent = network.get_layer(LATENT).output
    return Autoencoder(
        network=network,
        encoder=keras.Model(network.input, latent, name="encoder"),
        both=keras.Model(network.input, [latent, network.output], name="both"),
        latent_dim=latent_dim,
    )


def output_activation(schema: InputSchema, config: TrainingConfig) -> str:
    if config.output_activation != "auto":
        return config.output_activation
    bounded = config.loss == "binary_crossentropy" or config.scaling == "minmax"
    return "sigmoid" if bounded or (schema.kind == "image" and config.scaling == "auto") else "linear"


def _hidden_layers(tensor: Any, widths: tuple[int, ...], config: TrainingConfig, *, prefix: str) -> Any:
    for number, width in enumerate(widths, start=1):
        tensor = keras.layers.Dense(width, activation=config.activation, name=f"{prefix}_{number}")(tensor)
        if config.dropout:
            tensor = keras.layers.Dropout(config.dropout, name=f"{prefix}_{number}_dropout")(tensor)
    return tensor
