"""Convolutions over a grid, the pixels of an image or the steps of a window: each halves it, the decoder doubles it.

A side that is odd is rounded up on the way down and cut back on the way up, so that any size comes back as it was.
Layers of stride 2 do this without pooling: on a processor they cost a quarter of convolutions at full size.
"""

import math
from typing import Any

from service.schemas import InputSchema
from service.training.config import TrainingConfig, conv_filters, grid_shape
from service.training.quiet import keras

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
    filters, sizes = conv_filters(config, schema), _grid_sizes(schema, config)
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


def _grid_sizes(schema: InputSchema, config: TrainingConfig) -> list[tuple[int, ...]]:
    """The grid before each convolution, and after the last."""
    sizes = [grid_shape(schema)]
    for _ in conv_filters(config, schema):
        sizes.append(tuple(-(-size // 2) for size in sizes[-1]))
    return sizes


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
