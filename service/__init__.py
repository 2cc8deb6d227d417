"""Serve, score and train autoencoders. Nothing heavy is imported here."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from service.training.report import TrainingResult

__version__ = "0.1.0"


def publish(
    network: Any,
    rows: Any = None,
    /,
    *,
    store: Any = "model_store",
    model: str,
    scale: Any = "none",
    columns: Sequence[str] = (),
    latent: str | None = None,
    denoises: bool = False,
    promote: Literal["auto", "always", "never"] = "auto",
    false_alarm_rate: float | None = None,
    seed: int | None = None,
) -> "TrainingResult":
    """Publish a Keras model that was trained elsewhere as the next version of ``model``. Imports TensorFlow.

    Args:
        network: the model, its encoder and decoder in a tuple, or the name of a file or folder.
        rows: ordinary rows that calibrate and test it: an array, a pandas, polars or Arrow table, or a file's name.
            None: the version encodes and reconstructs, and scores nothing.
        store: folder or URL of the store.
        scale: what the model expects of rows: ``standard``, ``minmax``, ``0-255``, a JSON file, or a fitted scaler of
            scikit-learn.
        columns: names of the columns of an array, or of those of a table to use, in the model's order.
        latent: layer that gives the latent; None: found.
        denoises: whether it was trained to remove noise.
        promote: when ``production`` names the new version.
        false_alarm_rate: share of normal rows that may be called anomalies; None: 0.01.

    Raises:
        ConfigurationError: it is no autoencoder, or cannot be served.
        DataError: the rows are none that it takes.
        StoreError: the store cannot be written.
    """
    from service.training.imported import Wishes, import_config
    from service.training.imported import publish as publish_version

    wishes = Wishes(latent, scale, names=columns, denoises=denoises)
    config = import_config(false_alarm_rate=false_alarm_rate, seed=seed)
    return publish_version(network, rows, wishes, config, store=store, model=model, promotion=promote)
