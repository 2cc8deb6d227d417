"""The network: scaled row -> latent -> reconstruction. Built of standard Keras layers, so that any tool can load it."""

import math
import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.runtime.quiet import keras
from service.schemas import InputSchema
from service.training.config import TrainingConfig, conv_filters, grid_shape, hidden_widths, latent_width
from service.training.preprocessing import Layout, plain_layout

LATENT = "latent"
RECONSTRUCTION = "reconstruction"
HIDDEN = r"(encoder|decoder)_\d+"
ENCODER_PATH, DECODER_PATH = "encoder_path", "decoder_path"
MAX_PCA_ROWS = 100_000


@dataclass(frozen=True, slots=True)
class Autoencoder:
    """Views of one set of weights. All take scaled rows (rows, *row_shape) without missing values."""

    network: Any
    """Scaled rows -> reconstructions (rows, *row_shape), scaled."""
    encoder: Any
    """Scaled rows -> latent (rows, latent_dim)."""
    decoder: Any
    """Latent (rows, latent_dim) -> reconstructions (rows, *row_shape), scaled."""
    whole: Any
    """Scaled rows -> [latent, reconstruction, *what the dense hidden layers give], in one pass."""
    latent_dim: int
    refiner: Any | None = None
    """Of denoisers: [scaled rows, their reconstructions] -> denoised rows (rows, *row_shape); see ``fit_refiner``."""

    @property
    def variables(self) -> list[Any]:
        """All that was learnt."""
        return [*self.network.variables, *(self.refiner.variables if self.refiner else ())]

    def denoise(self, rows: Any, reconstructions: Any) -> Any:
        """The rows (rows, *row_shape) without noise; both in scaled units."""
        return reconstructions if self.refiner is None else self.refiner([rows, reconstructions], training=False)


def in_float64(autoencoder: Autoencoder) -> Autoencoder:
    """A copy that computes in float64, with the same weights."""

    def copy(layer: Any) -> Any:
        return type(layer).from_config({**layer.get_config(), "dtype": "float64"})

    def copied(model: Any) -> Any:
        clone = keras.models.clone_model(model, clone_function=copy)
        clone.set_weights([weight.astype("float64") for weight in model.get_weights()])
        return clone

    refiner = None if autoencoder.refiner is None else copied(autoencoder.refiner)
    return replace(_views(copied(autoencoder.network), autoencoder.latent_dim), refiner=refiner)


def build_autoencoder(schema: InputSchema, config: TrainingConfig, layout: Layout | None = None) -> Autoencoder:
    """Convolutions where the configuration has them, then dense layers; the decoder mirrors the encoder.

    ``layout``: of the scaled rows, where it is not a value a feature.

    Raises:
        ConfigurationError: the latent would not be narrower than a row, or there is no grid to convolve over.
    """
    layout = layout or plain_layout(schema)
    inputs = keras.Input(layout.shape, name="scaled")
    latent_dim, widths = latent_width(config, schema.features), hidden_widths(config, schema.features)
    convolves, is_flat = bool(conv_filters(config, schema)), len(layout.shape) == 1
    hidden = encode_grid(inputs, schema, config) if convolves else inputs
    flat = hidden if is_flat else keras.layers.Flatten(name="flat")(hidden)
    hidden = _hidden_layers(flat, widths, config, prefix="encoder")
    activation, name = output_activation(schema, config), RECONSTRUCTION if is_flat else "pixels"
    has_path = has_linear_path(schema, config, layout)
    if has_path:
        latent = _beside(flat, hidden, width=latent_dim, name=LATENT, path=ENCODER_PATH)
    else:
        latent = keras.layers.Dense(latent_dim, activation=config.latent_activation, name=LATENT)(hidden)
    hidden = _hidden_layers(latent, widths[::-1], config, prefix="decoder")
    if has_path:
        last = _beside(latent, hidden, width=len(layout.owner), name=name, path=DECODER_PATH)
    elif convolves:
        last = decode_grid(hidden, schema, config, activation=activation)
    elif layout.labels:
        last = _by_feature(hidden, layout, activation)
    else:
        last = keras.layers.Dense(len(layout.owner), activation=activation, name=name)(hidden)
    outputs = last if is_flat else keras.layers.Reshape(schema.row_shape, name=RECONSTRUCTION)(last)
    return _views(keras.Model(inputs, outputs, name="autoencoder"), latent_dim)


def build_refiner(schema: InputSchema) -> Any:
    """[Scaled rows, their reconstructions] -> denoised rows, at first the reconstructions; for rows with a grid."""
    rows, reconstructions = (keras.Input(schema.row_shape, name=name) for name in ("noisy", "reconstructed"))
    denoised = refine_grid(rows, reconstructions, schema)
    return keras.Model([rows, reconstructions], denoised, name="refiner")


def has_linear_path(schema: InputSchema, config: TrainingConfig, layout: Layout) -> bool:
    """Whether rows also go to the latent and back past the hidden layers: see ``start_as_pca``; not labels."""
    is_linear = config.latent_activation == output_activation(schema, config) == "linear" and not layout.labels
    widths = hidden_widths(config, schema.features)
    return config.linear_path and is_linear and bool(widths) and not conv_filters(config, schema)


def start_as_pca(autoencoder: Autoencoder, rows: NDArray[np.float32], *, seed: int) -> None:
    """Let the linear path of a network that has one be PCA, and the hidden layers add nothing yet.

    Training then only has to find what PCA misses, and early stopping keeps PCA where it finds nothing: rows too few or
    too wide for a network of this size do not make it worse than its baseline. The layers that join the two start at
    zero, as the last layers of residual blocks do (Goyal et al., arXiv 1706.02677, section 5.1).

    Args:
        rows: scaled training rows, (rows, *row_shape) without gaps.
    """
    names = {layer.name for layer in autoencoder.network.layers}
    if not {ENCODER_PATH, DECODER_PATH} <= names:
        return
    mean, axes = principal_axes(rows.reshape(len(rows), -1), autoencoder.latent_dim, seed=seed)
    autoencoder.network.get_layer(ENCODER_PATH).set_weights([axes.T, -mean @ axes.T])
    autoencoder.network.get_layer(DECODER_PATH).set_weights([axes, mean])


def principal_axes(
    rows: NDArray[np.float32], components: int, *, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean (features,) and principal axes (components, features); zeros where there are fewer rows than components."""
    from sklearn.decomposition import PCA

    pca = PCA(min(components, *rows.shape), random_state=seed).fit(rows[:MAX_PCA_ROWS])
    axes = np.zeros((components, rows.shape[1]), np.float32)
    axes[: pca.n_components_] = pca.components_
    return pca.mean_.astype(np.float32), axes


def _beside(straight: Any, hidden: Any, *, width: int, name: str, path: str) -> Any:
    """The sum of a linear map of ``straight`` and one of ``hidden`` that starts at zero."""
    linear = keras.layers.Dense(width, name=path)(straight)
    curved = keras.layers.Dense(width, kernel_initializer="zeros", use_bias=False, name=f"{name}_hidden")(hidden)
    return keras.layers.Add(name=name)([linear, curved])


def _by_feature(hidden: Any, layout: Layout, activation: str) -> Any:
    """Numbers and times as they come, the probabilities of each column's labels times their weights."""
    parts, scale = list[Any](), np.ones(len(layout.owner))

    def add(width: int, name: str, activation: str) -> None:
        if width:
            parts.append(keras.layers.Dense(width, activation=activation, name=name)(hidden))

    add(layout.first_label, "numbers", activation)
    for number, block in enumerate(layout.labels, start=1):
        add(len(block.weights), f"labels_{number}", "softmax")
        scale[block.start : block.stop] = block.weights
    add(len(layout.owner) - layout.labels[-1].stop, "times", activation)
    together = keras.layers.Concatenate(name="features")(parts) if len(parts) > 1 else parts[0]
    return keras.layers.Rescaling(scale, name=RECONSTRUCTION)(together)


def _views(network: Any, latent_dim: int) -> Autoencoder:
    latent = network.get_layer(LATENT).output
    hidden = [layer.output for layer in network.layers if re.fullmatch(HIDDEN, layer.name)]
    return Autoencoder(
        network=network,
        encoder=keras.Model(network.input, latent, name="encoder"),
        decoder=keras.Model(latent, network.output, name="decoder"),
        whole=keras.Model(network.input, [latent, network.output, *hidden], name="whole"),
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


KERNEL = 4
"""Twice the stride: every output of a transposed convolution has as many inputs as its neighbours, no checkerboard."""
REFINING_LAYERS, REFINING_FILTERS, REFINING_KERNEL = 3, 16, 3
"""Without a stride: 5,000 multiplications a value."""


def encode_grid(rows: Any, schema: InputSchema, config: TrainingConfig) -> Any:
    """Rows (rows, *row_shape) as features of the smallest grid, (rows, *grid, filters)."""
    grid = grid_shape(schema)
    convolution = _convolution(grid)
    tensor = keras.layers.Reshape((*grid, _channels(schema)), name="grid")(rows)
    for number, filters in enumerate(conv_filters(config, schema), start=1):
        name = f"encoder_conv_{number}"
        tensor = convolution(filters, KERNEL, 2, padding="same", activation=config.activation, name=name)(tensor)
        tensor = _with_dropout(tensor, config, name)
    return tensor


def decode_grid(hidden: Any, schema: InputSchema, config: TrainingConfig, *, activation: str) -> Any:
    """The mirror: (rows, anything) to values (rows, *grid, channels) after ``activation``."""
    filters, sizes = conv_filters(config, schema), [grid_shape(schema)]
    for _ in filters:  # the grid before each convolution, and after the last
        sizes.append(tuple(-(-size // 2) for size in sizes[-1]))
    transposed = (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose)[len(sizes[0]) - 1]
    smallest = (*sizes[-1], filters[-1])
    tensor = keras.layers.Dense(math.prod(smallest), activation=config.activation, name="decoder_flat")(hidden)
    tensor = keras.layers.Reshape(smallest, name="decoder_grid")(tensor)
    for level in range(len(filters) - 1, 0, -1):
        name = f"decoder_conv_{level}"
        layer = transposed(filters[level - 1], KERNEL, 2, padding="same", activation=config.activation, name=name)
        tensor = _with_dropout(_cut(layer(tensor), sizes[level], name), config, name)
    last = transposed(_channels(schema), KERNEL, 2, padding="same", activation=activation, name="pixels")
    return _cut(last(tensor), sizes[0], "pixels")


def refine_grid(rows: Any, reconstructions: Any, schema: InputSchema) -> Any:
    """Reconstructions with a correction by what convolutions at full size see in them and in the (noisy) rows.

    Both, and what comes back: (rows, *row_shape). The correction starts at zero.
    """
    grid = grid_shape(schema)
    convolution = _convolution(grid)
    both = [keras.layers.Reshape((*grid, _channels(schema)))(each) for each in (rows, reconstructions)]
    tensor = keras.layers.Concatenate()(both)
    for _ in range(REFINING_LAYERS):
        tensor = convolution(REFINING_FILTERS, REFINING_KERNEL, padding="same", activation="relu")(tensor)
    last = convolution(_channels(schema), REFINING_KERNEL, padding="same", kernel_initializer="zeros")
    return keras.layers.Add()([reconstructions, keras.layers.Reshape(schema.row_shape)(last(tensor))])


def _convolution(grid: tuple[int, ...]) -> Any:
    return (keras.layers.Conv1D, keras.layers.Conv2D)[len(grid) - 1]


def _channels(schema: InputSchema) -> int:
    return math.prod(schema.row_shape[len(grid_shape(schema)) :])


def _cut(tensor: Any, grid: tuple[int, ...], name: str) -> Any:
    """The grid without the last line of a side that was rounded up."""
    over = tuple((0, have - want) for have, want in zip(tensor.shape[1:-1], grid, strict=True))
    if not any(end for _, end in over):
        return tensor
    cropping = keras.layers.Cropping1D(over[0]) if len(over) == 1 else keras.layers.Cropping2D(over)
    cropping.name = f"{name}_cut"
    return cropping(tensor)


def _with_dropout(tensor: Any, config: TrainingConfig, name: str) -> Any:
    return keras.layers.Dropout(config.dropout, name=f"{name}_dropout")(tensor) if config.dropout else tensor
