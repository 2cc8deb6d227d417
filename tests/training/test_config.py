"""Presets, overrides and what does not fit together."""

import subprocess
import sys

import pytest

from service.errors import ConfigurationError
from service.schemas import InputSchema
from service.training import PRESETS, load_config
from service.training.config import conv_filters, hidden_widths, latent_width, settle


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_are_valid(preset: str) -> None:
    """Every preset makes a configuration that names it."""
    assert load_config(preset).preset == preset


def test_overrides_replace_fields_and_none_keeps_them() -> None:
    """An option that was not given on the command line is None and changes nothing."""
    config = load_config("keras-tutorial", epochs=3, batch_size=None)
    assert (config.epochs, config.batch_size, config.loss) == (3, 256, "binary_crossentropy")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"epochs": 0}, "epochs: "),
        ({"no_such": 1}, "no_such: "),
        ({"loss": "binary_crossentropy", "scaling": "standard"}, "scaling minmax"),
        ({"corruption": "masking", "corruption_level": 1.0}, "must be below 1"),
        ({"split": {"train": 0.9, "validation": 0.1, "calibration": 0.1, "test": 0.1}}, "sum to 1"),
        ({"hidden": (0,)}, "greater than or equal to 1"),
    ],
)
def test_nonsense_is_refused_in_a_sentence(overrides: dict[str, object], sentence: str) -> None:
    """The sentence names the field or the rule, on one line."""
    with pytest.raises(ConfigurationError) as caught:
        load_config("dense", **overrides)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_preset_names_the_known_ones() -> None:
    """A typing error is answered with what there is."""
    with pytest.raises(ConfigurationError, match="auto, conv, demo, dense, keras-tutorial"):
        load_config("tutorial")


@pytest.mark.parametrize("features", [2, 3, 10, 64, 784, 10_000])
def test_default_latent_is_narrower_than_a_row(features: int) -> None:
    """However narrow the rows are, the identity cannot be learned."""
    assert 1 <= latent_width(load_config(), features) < features
    assert all(width >= 16 for width in hidden_widths(load_config(), features))


def test_latent_as_wide_as_a_row_is_refused() -> None:
    """A latent of the row's own width could copy it."""
    with pytest.raises(ConfigurationError, match="less than the number of features of a row, which is 10"):
        latent_width(load_config(latent_dim=10), 10)


def test_configuring_and_reading_import_no_tensorflow() -> None:
    """A wrong option or file is found in a moment, before TensorFlow starts."""
    check = (
        "import sys; import service.training, service.training.data, service.training.split;"
        "service.training.data.read_dataset('digits');"
        "sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_preset_follows_the_kind_of_rows_and_options_stay() -> None:
    """Images get convolutions, columns a dense network; what was set explicitly holds for both."""
    images = InputSchema(kind="image", row_shape=(28, 28))
    config = settle(load_config(epochs=7, false_alarm_rate=0.05), images, rows=1000)
    assert (config.preset, config.network, config.filters, config.hidden) == ("conv", "conv", (16, 32), (512,))
    assert (config.epochs, config.false_alarm_rate, config.schedule) == (7, 0.05, "cosine")
    table = InputSchema(kind="tabular", row_shape=(20,))
    assert settle(load_config(), table, rows=1000).network == "dense"
    assert settle(load_config("dense"), images, rows=1000).network == "dense"


@pytest.mark.parametrize(("side", "filters"), [(4, (16,)), (8, (16,)), (32, (16, 32, 64)), (224, (16, 32, 64, 64, 64))])
def test_convolutions_deepen_with_the_image(side: int, filters: tuple[int, ...]) -> None:
    """Until at most seven pixels are left on a side."""
    assert conv_filters(load_config("conv"), InputSchema(kind="image", row_shape=(side, side, 3))) == filters


def test_wide_images_get_small_batches() -> None:
    """A batch of large colour images must not fill the memory."""
    schema = InputSchema(kind="image", row_shape=(512, 512, 3))
    assert settle(load_config("conv"), schema, rows=10_000).batch_size == 8
