"""How a model is trained: every choice by name, and presets of them. Imports no TensorFlow."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from service.errors import ConfigurationError
from service.schemas import Frozen

Activation = Literal["linear", "relu", "leaky_relu", "elu", "selu", "gelu", "silu", "tanh", "sigmoid"]
Loss = Literal["mean_squared_error", "mean_absolute_error", "huber", "binary_crossentropy"]
CorruptionKind = Literal["none", "gaussian", "masking", "salt_and_pepper"]

MAX_CALIBRATION_ROWS = 10_000
"""More calibration rows than these add nothing; a random sample of them is used."""
DEFAULT_LIMITS = (2_500, 5_000, 5_000)
"""Most validation, calibration and test rows where no split was asked for: the rest is better used for fitting."""


def _positive(widths: tuple[int, ...]) -> tuple[int, ...]:
    if any(width < 1 for width in widths):
        raise ValueError("every width must be at least 1")
    return widths


Widths = Annotated[tuple[int, ...], AfterValidator(_positive)]


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

    hidden: Widths | None = None
    """Widths of the encoder's layers before the latent; the decoder mirrors them. None: see ``hidden_widths``."""
    latent_dim: int | None = Field(default=None, ge=1)
    """Always less than the number of features. None: see ``latent_width``."""
    activation: Activation = "relu"
    latent_activation: Activation = "linear"
    output_activation: Literal["auto", "linear", "sigmoid"] = "auto"
    """auto: sigmoid for pixels in [0, 1], linear for standardised columns."""
    scaling: Literal["auto", "standard", "minmax"] = "auto"
    """auto: columns to mean 0 and standard deviation 1, images from their value range to [0, 1]."""

    loss: Loss = "mean_squared_error"
    learning_rate: float = Field(default=1e-3, gt=0, lt=10)
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

    false_alarm_rate: float = Field(default=0.01, gt=0, lt=1)
    split: SplitShares | None = None
    """None: 60/10/15/15 %, with at most 2,500 validation, 5,000 calibration and 5,000 test rows."""
    max_rows: int | None = Field(default=None, ge=10)
    """Use a random sample of so many rows when there are more."""
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
    "dense": {},
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
"""``demo``: the bundled digits in seconds. ``dense``: tables and arrays. ``keras-tutorial``: the simplest autoencoder
of "Building Autoencoders in Keras" (F. Chollet, Keras blog, 2016): 784-32-784, Adam, binary cross-entropy."""


def load_config(preset: str = "dense", **overrides: Any) -> TrainingConfig:
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


def settle(config: TrainingConfig, *, features: int, rows: int) -> TrainingConfig:
    """The configuration with what depends on the shape of the data chosen: ``rows`` are those to be fitted.

    Raises:
        ConfigurationError: it does not fit the data.
    """
    chosen = {
        "latent_dim": latent_width(config, features),
        "hidden": hidden_widths(config, features),
        "batch_size": batch_rows(config, rows),
    }
    return config.model_copy(update=chosen)


def latent_width(config: TrainingConfig, features: int) -> int:
    """Width of the latent: as configured, else a third of the features, from 1 to 32.

    Raises:
        ConfigurationError: it would not be narrower than a row, so that the identity could be learned.
    """
    if config.latent_dim is None:
        return min(32, max(1, round(features / 3)))
    if config.latent_dim >= features:
        raise ConfigurationError(
            f"latent_dim must be less than the number of features of a row, which is {features}, "
            f"but it is {config.latent_dim}."
        )
    return config.latent_dim


def batch_rows(config: TrainingConfig, rows: int) -> int:
    """Rows of a step: as configured, else a fiftieth of the training rows, from 8 to 512."""
    return config.batch_size or min(512, max(8, rows // 50))


def hidden_widths(config: TrainingConfig, features: int) -> tuple[int, ...]:
    """Encoder widths: as configured, else two layers of about four and two times the features, within limits."""
    if config.hidden is not None:
        return config.hidden
    return (min(512, max(32, 4 * features)), min(256, max(16, 2 * features)))
