"""How a model is trained: every choice by name, and presets of them. Imports no TensorFlow."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from service.errors import ConfigurationError
from service.schemas import Frozen, InputSchema

Activation = Literal["linear", "relu", "leaky_relu", "elu", "selu", "gelu", "silu", "tanh", "sigmoid"]
Loss = Literal["mean_squared_error", "mean_absolute_error", "huber", "binary_crossentropy"]
CorruptionKind = Literal["none", "gaussian", "masking", "salt_and_pepper"]

MAX_CALIBRATION_ROWS = 10_000
"""More calibration rows than these add nothing; a random sample of them is used."""
MAX_BATCH_VALUES = 2**22
DEFAULT_LIMITS = (2_500, 5_000, 5_000)
"""Most validation, calibration and test rows where no split was asked for: the rest is better used for fitting."""


Widths = tuple[Annotated[int, Field(ge=1)], ...]


class SplitShares(Frozen):
    """Shares of the rows for fitting, early stopping, calibration and the final test. They sum to 1."""

    train: float = Field(default=0.6, gt=0, lt=1)
    validation: float = Field(default=0.1, gt=0, lt=1)
    calibration: float = Field(default=0.15, gt=0, lt=1)
    test: float = Field(default=0.15, gt=0, lt=1)

    @model_validator(mode="after")
    def _sum(self) -> Self:
        if abs(self.train + self.validation + self.calibration + self.test - 1) > 1e-6:
            raise ValueError("the four shares must sum to 1")
        return self


class TrainingConfig(Frozen):
    """One training run. ``None`` means: chosen from the rows, as the field says."""

    preset: str = "dense"
    """Name of the preset that this started from; for the records."""

    network: Literal["dense", "conv"] = "dense"
    """conv: strided convolutions over the pixels of an image or the steps of a window, before the dense layers."""
    filters: Widths | None = None
    """Filters of the convolutions (conv), each halving the grid. None: see ``conv_filters``."""
    hidden: Widths | None = None
    """Widths of the encoder's dense layers before the latent; the decoder mirrors them. None: see ``hidden_widths``."""
    linear_path: bool = True
    """Rows also go to the latent and back past the hidden layers, starting as PCA; where the outputs are linear."""
    latent_dim: Literal["auto"] | Annotated[int, Field(ge=1)] | None = None
    """Always less than the number of features. auto: see ``service.training.latent``. None: see ``latent_width``."""
    activation: Activation = "relu"
    latent_activation: Activation = "linear"
    output_activation: Literal["auto", "linear", "sigmoid"] = "auto"
    """auto: sigmoid for pixels in [0, 1], linear for standardised columns."""
    scaling: Literal["auto", "standard", "minmax"] = "auto"
    """auto: columns to mean 0 and standard deviation 1, images from their value range to [0, 1]."""

    loss: Loss = "mean_squared_error"
    learning_rate: float = Field(default=1e-3, gt=0, lt=10)
    schedule: Literal["constant", "cosine"] = "constant"
    """cosine: the learning rate rises during the first thirtieth of all steps and falls to 0 with the last."""
    epochs: int = Field(default=100, ge=1, le=100_000)
    batch_size: int | None = Field(default=None, ge=1, le=65_536)
    """Rows of a step. None: see ``batch_rows``."""
    patience: int | None = Field(default=10, ge=1)
    """Epochs without a better validation loss before training stops with the best weights. None: all epochs."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of hidden units dropped in a training step."""
    weight_decay: float = Field(default=0.0, ge=0, lt=1)
    """Decoupled from the gradient (AdamW); biases are left alone."""

    corruption: CorruptionKind = "none"
    """Noise on the inputs in training, the clean row being the target: the model learns to remove it."""
    corruption_level: float = Field(default=0.3, gt=0, le=10)
    """Standard deviation in scaled units (gaussian), or share of values hit (masking, salt_and_pepper)."""

    score: Literal["auto", "network", "reconstruction"] = "auto"
    """The anomaly score. network: of tables that of a denoiser, of images that of hidden layers; auto: the same. Series
    have the reconstruction error."""
    trim: float = Field(default=0.05, ge=0, lt=0.5)
    """Share of a batch of training rows, those worst denoised, that the score does not learn from."""
    false_alarm_rate: float = Field(default=0.01, gt=0, lt=1)
    split: SplitShares | None = None
    """None: 60/10/15/15 %, with at most 2,500 validation, 5,000 calibration and 5,000 test rows."""
    max_rows: int | None = Field(default=None, ge=10)
    """Use a random sample of this many rows when there are more."""
    seed: int = Field(default=0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.loss == "binary_crossentropy" and self.output_activation == "linear":
            raise ValueError("binary_crossentropy needs output_activation sigmoid")
        if self.loss == "binary_crossentropy" and self.scaling == "standard":
            raise ValueError("binary_crossentropy needs values in [0, 1]: scaling minmax")
        if self.corruption in {"masking", "salt_and_pepper"} and self.corruption_level >= 1:
            raise ValueError("corruption_level is a share of the values here: it must be below 1")
        return self


PRESETS: dict[str, dict[str, Any]] = {
    "auto": {},
    "dense": {},
    "conv": {
        "network": "conv",
        "hidden": (512,),
        "activation": "gelu",
        "learning_rate": 2e-3,
        "schedule": "cosine",
        "epochs": 60,
        "patience": 60,
    },
    "demo": {
        "hidden": (256, 128),
        "latent_dim": 12,
        "activation": "gelu",
        "epochs": 60,
        "batch_size": 32,
        "patience": 12,
        "corruption": "gaussian",
        "corruption_level": 0.25,
    },
    "keras-tutorial": {
        "hidden": (),
        "latent_dim": 32,
        "latent_activation": "relu",
        "output_activation": "sigmoid",
        "scaling": "minmax",
        "loss": "binary_crossentropy",
        "learning_rate": 1e-3,
        "epochs": 50,
        "batch_size": 256,
        "patience": None,
    },
}
"""``auto``: what suits the kind of rows, see ``PRESET_OF_KIND``. ``demo``: the bundled digits in seconds. ``dense``:
tables and arrays. ``conv``: images. ``keras-tutorial``: the simplest autoencoder
of "Building Autoencoders in Keras" (F. Chollet, Keras blog, 2016): 784-32-784, Adam, binary cross-entropy."""

PRESET_OF_KIND = {"tabular": "dense", "image": "conv", "timeseries": "dense"}


def load_config(preset: str = "auto", **overrides: Any) -> TrainingConfig:
    """A preset with some fields replaced; an override of ``None`` keeps the preset's value.

    Raises:
        ConfigurationError: no such preset or field, or a value that makes no sense.
    """
    if preset not in PRESETS:
        raise ConfigurationError(f"There is no preset '{preset}'; there are {', '.join(sorted(PRESETS))}.")
    chosen = {name: value for name, value in overrides.items() if value is not None}
    try:
        return TrainingConfig.model_validate({"preset": preset, **PRESETS[preset], **chosen})
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        raise ConfigurationError(f"{field}: {reason}." if field else f"{reason}.") from error


def settle(config: TrainingConfig, schema: InputSchema, *, rows: int) -> TrainingConfig:
    """The configuration with what depends on the data chosen: ``rows`` are those to be fitted.

    Raises:
        ConfigurationError: it does not fit the data.
    """
    config, features = resolve(config, schema), schema.features
    chosen = {
        "filters": conv_filters(config, schema),
        "latent_dim": "auto" if config.latent_dim == "auto" else latent_width(config, features),
        "hidden": hidden_widths(config, features),
        "batch_size": batch_rows(config, rows, features),
    }
    return config.model_copy(update=chosen)


def resolve(config: TrainingConfig, schema: InputSchema) -> TrainingConfig:
    """The preset ``auto`` as the one of the kind of rows; what was set explicitly stays."""
    if config.preset != "auto":
        return config
    explicit = {name: getattr(config, name) for name in config.model_fields_set - {"preset"}}
    return load_config(PRESET_OF_KIND[schema.kind], **explicit)


def latent_width(config: TrainingConfig, features: int) -> int:
    """Width of the latent: as configured, else a third of the features, from 1 to 32.

    Raises:
        ConfigurationError: it would not be narrower than a row, so that the identity could be learned.
    """
    if config.latent_dim == "auto":
        raise ValueError("a latent chosen from the rows must be settled before the network is built")
    if config.latent_dim is None:
        return min(32, max(1, round(features / 3)))
    if config.latent_dim >= features:
        raise ConfigurationError(
            f"latent_dim must be less than the number of features of a row, which is {features}, "
            f"but it is {config.latent_dim}."
        )
    return config.latent_dim


def batch_rows(config: TrainingConfig, rows: int, features: int) -> int:
    """Rows of a step: as configured, else a fiftieth of the training rows, from 8 to 512 (conv: 256).

    Very wide rows get fewer, so that what the layers hold of a batch stays within about a gigabyte.
    """
    most = min(256 if config.network == "conv" else 512, max(8, MAX_BATCH_VALUES // features))
    return config.batch_size or min(most, max(8, rows // 50))


def conv_filters(config: TrainingConfig, schema: InputSchema) -> tuple[int, ...]:
    """Filters of each convolution: as configured, else 16, 32 and then 64 until the grid is at most 7 wide.

    Raises:
        ConfigurationError: rows of columns have no grid to convolve over.
    """
    if config.network != "conv":
        return ()
    if schema.kind == "tabular":
        raise ConfigurationError(
            "Convolutions are for images and series; columns have no neighbours: use preset dense."
        )
    if config.filters is not None:
        return config.filters
    halvings = max(1, math.ceil(math.log2(max(grid_shape(schema)) / 7)))
    return tuple(min(64, 16 * 2**level) for level in range(halvings))


def grid_shape(schema: InputSchema) -> tuple[int, ...]:
    """Height and width of an image, the steps of a window."""
    return schema.row_shape[: 1 if schema.kind == "timeseries" else 2]


def hidden_widths(config: TrainingConfig, features: int) -> tuple[int, ...]:
    """Encoder widths: as configured, else two layers of about four and two times the features, within limits."""
    if config.hidden is not None:
        return config.hidden
    return (min(512, max(32, 4 * features)), min(256, max(16, 2 * features)))
