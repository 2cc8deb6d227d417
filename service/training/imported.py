"""A version of a model that was trained elsewhere, by the steps of training that come after fitting.

What is published is a graph of our own (``frozen``), whatever the model was made with.
"""

import json
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import ConfigurationError, DataError
from service.runtime.quiet import tf
from service.schemas import INSTANCES, Column, InputSchema, take_rows
from service.store import MODEL_CARD, Manifest, RowCounts, Store
from service.tables.files import TABLES, find_files, kind_of
from service.training.architecture import Autoencoder
from service.training.config import SplitShares, TrainingConfig, load_config
from service.training.data import DIGITS, Dataset, check_dataset, read_dataset
from service.training.evaluate import scale_splits
from service.training.export import SAMPLE_ROWS, export
from service.training.fit import History, make_reproducible
from service.training.foreign import Foreign, called, first_line, joined, latent_of, named_outputs, of_keras, open_model
from service.training.frozen import FrozenGraph, cut, find_cuts, find_latent, freeze
from service.training.gate import Comparison, Promotion, hold_production, in_production, promote
from service.training.graph import build_graph
from service.training.preprocessing import Preprocessing, plain_layout
from service.training.progress import Reporter
from service.training.report import TrainingResult, model_card
from service.training.scaling import LinearScaling, fit_scaling
from service.training.series import Windows
from service.training.split import split_rows
from service.training.train import (
    TrainedModel,
    libraries,
    make_version,
    measure,
    open_target,
    verifier,
)

MARK = "latent_between_halves"
RECURRENT = ("lstm", "gru", "rnn", "conv1d", "time_distributed", "repeat_vector")
MAX_ROWS = 50_000
"""More say nothing new of a network that is not trained any more."""
SCALES = ("none", "standard", "minmax", "0-255")

# --- finding out ------------------------------------------------------------------------------------------------------


def find_parts(model: Foreign, row_shape: tuple[int, ...], *, layer: str | None = None) -> tuple[Autoencoder, str]:
    """The model cut at its latent, and words for where that is.

    Args:
        layer: gives the latent; None: what the model's encoder gives, or else the narrowest layer.

    Raises:
        ConfigurationError: it is no autoencoder of such rows, or cannot be frozen.
    """
    by_halves = layer is None and (model.call is None or _is_its_halves(model, row_shape))
    graph = trace(model, row_shape, by_halves=by_halves)
    features = int(np.prod(row_shape))
    latent = find_latent(find_cuts(graph, row_shape), features=features, layer=MARK if by_halves else layer)
    where = "what the encoder gives" if by_halves else f"layer {latent.layer or latent.tensor}"
    return cut(graph, latent, row_shape, keras=model.keras), where


def trace(model: Foreign, row_shape: tuple[int, ...], *, by_halves: bool) -> FrozenGraph:
    """The model frozen, from rows of a shape to what it gives of that shape.

    Raises:
        ConfigurationError: it cannot be called with such rows, gives nothing of their shape, or cannot be frozen.
    """
    features = int(np.prod(row_shape))

    def outputs(rows: Any) -> dict[str, Any]:
        if by_halves and model.halves is not None:
            encode, decode = model.halves
            return named_outputs(decode(tf.identity(latent_of(encode(rows)), name=MARK)))
        return named_outputs(called(model)(rows))

    try:
        given = outputs(tf.zeros((2, *row_shape), model.dtype))
    except Exception as error:
        raise ConfigurationError(
            f"The model cannot be called with rows of {_form(row_shape)}: {first_line(error)}"
        ) from error
    fitting = [name for name, value in given.items() if value.shape[0] == 2 and int(tf.size(value)) == 2 * features]
    if not fitting:
        shapes = ", ".join(f"{_form(value.shape[1:])}" for value in given.values())
        raise ConfigurationError(
            f"This is no autoencoder: it takes rows of {_form(row_shape)} and gives {shapes}, nothing of that size."
        )
    chosen = next((name for name in fitting if "recon" in name.lower() or "decod" in name.lower()), fitting[0])
    spec = tf.TensorSpec((None, *row_shape), model.dtype, name="rows")
    try:
        traced = tf.function(lambda rows: outputs(rows)[chosen], autograph=False).get_concrete_function(spec)
    except Exception as error:
        raise ConfigurationError(f"TensorFlow cannot make a graph of the model: {first_line(error)}") from error
    return freeze(traced)


def _form(shape: Sequence[Any]) -> str:
    sizes = [str(size) for size in shape]
    return f"shape ({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"


# --- rows -------------------------------------------------------------------------------------------------------------


def fit_rows(dataset: Dataset, shape: tuple[int | None, ...] | None, *, names: Sequence[str] = ()) -> Dataset:
    """The rows in the shape that the model takes, without those that have gaps.

    Args:
        names: of the columns of rows that have none.

    Raises:
        DataError: they cannot be brought to it.
    """
    schema, notes = dataset.schema, list(dataset.notes)
    for column in (*schema.categories, *schema.timestamps):
        raise DataError(
            f"Column {column.name} holds no numbers, and the model takes numbers only: leave it out with --drop."
        )
    values = dataset.rows[INSTANCES]
    wanted = _filled(shape, values.shape[1:])
    has_gaps = np.isnan(values.reshape(len(values), -1)).any(axis=1)
    blocks, series = dataset.blocks, dataset.series
    if has_gaps.any():
        notes.append(f"{int(has_gaps.sum())} rows with missing values were left out: the model takes none.")
        values, series = values[~has_gaps], None
        blocks = None if blocks is None else blocks[~has_gaps]
    columns = tuple(column.model_copy(update={"may_be_missing": False}) for column in schema.columns)
    if names and not columns:
        columns = _columns_named(names, values)
    if wanted != values.shape[1:]:
        columns, series = (), None
        values = _brought(values, wanted)
    kind = schema.kind if len(wanted) > 1 and schema.kind != "tabular" else "image" if len(wanted) > 1 else "tabular"
    fitted = InputSchema(
        kind=kind,
        row_shape=wanted,
        columns=columns,
        channels=schema.channels if kind == "timeseries" and wanted == schema.row_shape else (),
        value_range=(schema.value_range or (float(values.min()), float(values.max()))) if kind == "image" else None,
    )
    rows = {INSTANCES: values}
    return check_dataset(replace(dataset, rows=rows, schema=fitted, notes=tuple(notes), blocks=blocks, series=series))


def _filled(shape: tuple[int | None, ...] | None, given: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the model's rows, with what it leaves open as the rows have it."""
    if shape is None:
        return given
    known = int(np.prod([size for size in shape if size is not None]))
    opened = [at for at, size in enumerate(shape) if size is None]
    if len(shape) == len(given):
        filled = tuple(have if size is None else size for size, have in zip(shape, given, strict=True))
    elif len(opened) == 1 and known and int(np.prod(given)) % known == 0:
        filled = tuple(int(np.prod(given)) // known if size is None else size for size in shape)
    else:
        filled = tuple(size or 0 for size in shape)
    if int(np.prod(filled)) != int(np.prod(given)):
        sizes = tuple("any" if size is None else size for size in shape)
        raise DataError(f"The model takes rows of {_form(sizes)}, and those given are of {_form(given)}.")
    return filled


def _brought(values: NDArray[np.float32], wanted: tuple[int, ...]) -> NDArray[np.float32]:
    """Rows in another shape of as many values: channels moved to the front where that is what differs."""
    if values.ndim == 4 and wanted == (values.shape[3], *values.shape[1:3]):
        return np.ascontiguousarray(np.moveaxis(values, 3, 1))
    return values.reshape(len(values), *wanted)


def _columns_named(names: Sequence[str], values: NDArray[np.float32]) -> tuple[Column, ...]:
    if values.ndim != 2 or len(names) != values.shape[1]:
        raise DataError(f"{len(names)} columns are named, and a row has {_form(values.shape[1:])}.")
    return tuple(
        Column(name=name, minimum=float(column.min()), maximum=float(column.max()))
        for name, column in zip(names, values.T, strict=True)
    )


def schema_without_rows(shape: tuple[int | None, ...] | None, *, names: Sequence[str], scale: Any) -> InputSchema:
    """The form of a model's rows, as the model says it.

    Raises:
        ConfigurationError: it does not, or other columns are named.
    """
    sizes = tuple(size for size in shape or () if size is not None)
    if shape is None or len(sizes) < len(shape):
        raise ConfigurationError("The model leaves the shape of its rows open: --rows gives it.")
    if scale in ("standard", "minmax"):
        raise ConfigurationError(f"--scale {scale} is fitted on rows: give --rows, or a JSON file with the numbers.")
    if names and (len(sizes) > 1 or len(names) != sizes[0]):
        raise ConfigurationError(f"{len(names)} columns are named, and a row has {_form(sizes)}.")
    return InputSchema(
        kind="image" if len(sizes) > 1 else "tabular",
        row_shape=sizes,
        columns=tuple(Column(name=name) for name in names),
        value_range=(0.0, 255.0) if scale == "0-255" and len(sizes) > 1 else None,
    )


def as_series(schema: InputSchema, network: FrozenGraph) -> InputSchema:
    """The schema as that of a series where the network runs over steps: windows look like small pictures."""
    if schema.kind != "image" or len(schema.row_shape) != 2 or not _is_recurrent(network):
        return schema
    channels = tuple(f"channel {number}" for number in range(1, schema.row_shape[1] + 1))
    return schema.model_copy(update={"kind": "timeseries", "value_range": None, "channels": channels})


# --- scale ------------------------------------------------------------------------------------------------------------


def make_scaling(scale: Any, schema: InputSchema, train: NDArray[np.float32], config: TrainingConfig) -> LinearScaling:
    """From raw rows to what the model was trained on.

    Args:
        scale: ``none``, ``standard`` or ``minmax`` (fitted on the rows ``train``), ``0-255``, the name of a JSON
            file, or a fitted scaler with ``transform``, as those of scikit-learn.

    Raises:
        ConfigurationError: it is none of these, or no map of each value by itself.
    """
    flat = train.reshape(len(train), -1)
    typical = np.median(flat, axis=0).astype(np.float64).reshape(schema.row_shape)

    def linear(center: Any, spread: Any, *, bounded: bool = False) -> LinearScaling:
        center, spread = (_by_value(each, schema.row_shape) for each in (center, spread))
        if not (np.isfinite(center).all() and np.isfinite(spread).all() and (spread > 0).all()):
            raise ConfigurationError("A scale is made of finite numbers, and divides by numbers above 0.")
        return LinearScaling(center, spread, typical, bounded=bounded)

    if hasattr(scale, "transform"):
        return linear(*_of_scaler(scale, schema.features))
    if scale in ("standard", "minmax"):
        fitted = fit_scaling(train, schema, config.model_copy(update={"scaling": scale}))
        return linear(fitted.center, fitted.spread, bounded=fitted.bounded)
    if scale == "0-255":
        return linear(0.0, 255.0, bounded=True)
    if scale == "none":
        return linear(0.0, 1.0, bounded=schema.value_range == (0.0, 1.0))
    if not Path(scale).is_file():
        raise ConfigurationError(f"--scale takes {', '.join(SCALES)} or a JSON file; {scale} is none of these.")
    return linear(*_of_file(Path(scale)))


def _of_file(path: Path) -> tuple[Any, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        for center, spread in (("mean", "std"), ("center", "scale"), ("mean_", "scale_"), ("center_", "scale_")):
            if center in content and spread in content:
                return np.asarray(content[center], np.float64), np.asarray(content[spread], np.float64)
        low = np.asarray(content["min"], np.float64)
        return low, np.asarray(content["max"], np.float64) - low
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigurationError(
            f'{path.name} must hold an object with "mean" and "std", or "min" and "max": a number or a list each.'
        ) from error


def _of_scaler(scaler: Any, features: int) -> tuple[Any, Any]:
    """Centre and spread of a scaler that maps each value by itself and linearly, found by asking it."""
    try:
        with warnings.catch_warnings():
            # One that was fitted on a table misses the names of its columns.
            warnings.filterwarnings("ignore", ".*feature names", UserWarning)
            start, one, two = (
                np.asarray(scaler.transform(np.full((1, features), value, np.float64)), np.float64)[0]
                for value in (0, 1, 2)
            )
    except Exception as error:
        raise ConfigurationError(f"The scaler does not take rows of {features} values: {first_line(error)}") from error
    slope = one - start
    if slope.shape != (features,) or not np.allclose(two - one, slope, rtol=1e-6, atol=1e-12) or not np.all(slope > 0):
        raise ConfigurationError(f"{type(scaler).__name__} does not scale each value by itself and linearly.")
    return -start / slope, 1 / slope


def _by_value(values: Any, row_shape: tuple[int, ...]) -> NDArray[np.float64]:
    array = np.asarray(values, np.float64)
    if array.size not in (1, int(np.prod(row_shape))):
        raise ConfigurationError(f"The scale has {array.size} values, and a row {int(np.prod(row_shape))}.")
    shaped = np.broadcast_to(array, row_shape) if array.size == 1 else array.reshape(row_shape)
    return np.ascontiguousarray(shaped)


# --- making a version of it -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wishes:
    """The user's choices for a model that was trained elsewhere."""

    layer: str | None = None
    """Layer that gives the latent; None: found."""
    scale: Any = "none"
    names: Sequence[str] = ()
    """Of the columns of rows that have none."""
    denoises: bool = False
    """Whether it was trained to remove noise."""


def import_model(
    foreign: Foreign,
    config: TrainingConfig,
    wishes: Wishes,
    *,
    name: str,
    rows: Callable[[], Dataset] | None,
    store: Path | str,
    model: str,
    promotion: Promotion | None = None,
    labels: str | None = None,
    reporter: Reporter | None = None,
    verify: Callable[[Path], None] | None = None,
) -> TrainingResult:
    """Calibrate a model that was trained elsewhere with rows, and publish it as the next version of ``model``.

    Without rows the version is not calibrated: it encodes and reconstructs, and scores nothing.

    Args:
        config: what of it holds without training: split, seed, score and false-alarm rate.
        name: of the file or folder that it came from.
        rows: reads the rows, once the store is known to be there. None: there are none.

    Raises:
        ConfigurationError: it is no autoencoder, or cannot be served.
        DataError: the rows are none that it takes.
        TrainingFailed, StoreError: as of ``train``.
    """
    reporter = reporter or Reporter()
    if rows is None:
        if labels or config.score != "reconstruction":
            raise ConfigurationError("--labels and --score need --rows.")
        return _publish_without_rows(
            foreign, config, wishes, name=name, store=store, model=model, promotion=promotion, reporter=reporter,
            verify=verify,
        )  # fmt: skip
    make = partial(calibrated, foreign, config=config, wishes=wishes, name=name, reporter=reporter)
    return make_version(
        rows, make, store=store, model=model, promotion=promotion, labels=labels, reporter=reporter, verify=verify
    )


def import_config(**overrides: Any) -> TrainingConfig:
    """The part of a configuration that holds without training; an override of ``None`` keeps the default.

    Nothing is fitted but scales and references, so that more of the rows calibrate.
    """
    split = SplitShares(train=0.35, validation=0.05, calibration=0.4, test=0.2)
    chosen = {name: value for name, value in overrides.items() if value is not None}
    return load_config("dense", **{"score": "reconstruction", "split": split, "max_rows": MAX_ROWS, **chosen})


def open_parts(paths: Mapping[str, Path], *, trust: bool = False) -> Foreign:
    """Read ``model``, or ``encoder`` and ``decoder``. Errors as of ``open_model``."""
    if set(paths) == {"encoder", "decoder"}:
        return joined(open_model(paths["encoder"], trust=trust), open_model(paths["decoder"], trust=trust))
    if set(paths) != {"model"}:
        raise ConfigurationError("Give MODEL, or --encoder and --decoder.")
    return open_model(paths["model"], trust=trust)


def reader_of(
    foreign: Foreign, source: Mapping[str, Any], config: TrainingConfig, reporter: Reporter
) -> Callable[[], Dataset]:
    """A function that reads the rows as ``read_dataset`` does; tables become windows where the model takes such.

    Args:
        source: arguments of ``read_dataset``.
    """

    def read() -> Dataset:
        name, windows = source["source"], source.get("windows")
        is_table = name != DIGITS and not Path(name).is_dir() and kind_of(Path(find_files(name)[0])) in TABLES
        if is_table and foreign.row_shape is not None and (windows is not None or len(foreign.row_shape) == 2):
            windows = windows or Windows()
            windows = replace(windows, length=windows.length or foreign.row_shape[0])
        columns = source.get("columns", ()) if is_table or windows is not None else ()
        chosen = {**source, "windows": windows, "columns": columns}
        return read_dataset(**chosen, max_rows=config.max_rows, seed=config.seed, progress=reporter.rows)

    return read


def calibrated(
    foreign: Foreign, dataset: Dataset, *, config: TrainingConfig, wishes: Wishes, name: str, reporter: Reporter
) -> TrainedModel:
    """A model that was trained elsewhere with everything that a version needs. Errors as of ``import_model``."""
    reporter.stage("Finding the latent")
    make_reproducible(config.seed)
    dataset = fit_rows(dataset, foreign.row_shape, names=wishes.names)
    shape = dataset.schema.row_shape
    autoencoder, where = find_parts(foreign, shape, layer=wishes.layer)
    dataset = replace(dataset, schema=as_series(dataset.schema, autoencoder.network.graph))
    split = split_rows(len(dataset), config, blocks=dataset.blocks)
    train = take_rows(dataset.rows, split.train)
    scaling = make_scaling(wishes.scale, dataset.schema, train[INSTANCES], config)
    preprocessing = Preprocessing(plain_layout(dataset.schema), scaling, dataset.schema.width)
    splits = scale_splits(dataset, split, preprocessing)
    graph = build_graph(dataset.schema, autoencoder, preprocessing, precise=False, autoencoder_denoises=wishes.denoises)
    trained = measure(
        dataset,
        config,
        split=split,
        graph=graph,
        history=History((), (), 0, 0.0),
        splits=splits,
        reporter=reporter,
        latent_reason=_reason(autoencoder, where),
    )
    test = splits["test"].scaled.targets.astype(np.float64)
    spread = float(np.square(test - splits["train"].scaled.targets.mean(axis=0)).mean())
    warnings = trained.warnings
    if trained.metrics.autoencoder.test > spread:
        warnings = (
            f"It reconstructs rows worse than their mean would ({trained.metrics.autoencoder.test:.4g} against "
            f"{spread:.4g}): was it trained on scaled rows? --scale standard, minmax or 0-255 scales them.",
            *warnings,
        )
    return replace(trained, origin=_origin(foreign, wishes, name, where), warnings=warnings)


def _publish_without_rows(
    foreign: Foreign,
    config: TrainingConfig,
    wishes: Wishes,
    *,
    name: str,
    store: Path | str,
    model: str,
    promotion: Promotion | None,
    reporter: Reporter,
    verify: Callable[[Path], None] | None,
) -> TrainingResult:
    started, target = time.monotonic(), open_target(store, model)
    reporter.stage("Finding the latent")
    make_reproducible(config.seed)
    schema = schema_without_rows(foreign.row_shape, names=wishes.names, scale=wishes.scale)
    autoencoder, where = find_parts(foreign, schema.row_shape, layer=wishes.layer)
    schema = as_series(schema, autoencoder.network.graph)
    scaling = make_scaling(wishes.scale, schema, np.zeros((1, *schema.row_shape), np.float32), config)
    preprocessing = Preprocessing(plain_layout(schema), scaling, schema.width)
    # Numbers from 0 to 1 as the model sees them: no row in particular, for the golden outputs.
    random = np.random.default_rng(config.seed).uniform(size=(SAMPLE_ROWS, *schema.row_shape)).astype(np.float32)
    graph = build_graph(schema, autoencoder, preprocessing, precise=False, autoencoder_denoises=wishes.denoises)
    before = in_production(target, model) if promotion else None
    if promotion in ("auto", "never"):
        hold_production(target, model)
    metrics = {"latent_reason": _reason(autoencoder, where)}
    with target.stage(model) as staging, verifier(verify) as check:
        reporter.stage("Exporting")
        sample = {INSTANCES: scaling.unscale(tf.constant(random)).numpy()}
        blank = Manifest(
            model=model,
            version=1,
            created=datetime.now(UTC).replace(microsecond=0),
            input=schema,
            signatures=export(staging.path, graph, None, sample=sample),
            latent_dim=autoencoder.latent_dim,
            training={"seed": config.seed, **_origin(foreign, wishes, name, where), "score": graph.score.name},
            seed=config.seed,
            source="",
            source_sha256="",
            row_counts=RowCounts(train=0, validation=0, calibration=0, test=0),
            libraries=libraries(),
            metrics=metrics,
            calibration=None,
            digests={},
        )
        (staging.path / MODEL_CARD).write_text(model_card(blank), encoding="utf-8")
        reporter.stage("Verifying in a fresh process")
        number = staging.publish(
            lambda taken, digests: blank.model_copy(update={"version": taken, "digests": digests}),
            check,
        )
    reporter.stage(f"Published version {number} of {model}")
    comparison = Comparison(before, 0, ("The new version is not calibrated.",)) if before else None
    return TrainingResult(
        model=model,
        version=number,
        source="",
        rows=0,
        total_rows=0,
        latent_dim=autoencoder.latent_dim,
        metrics=metrics,
        threshold=None,
        false_alarm_rate=config.false_alarm_rate,
        warnings=(),
        decision=promote(target, model, promotion, comparison, version=number, before=before) if promotion else None,
        seconds=time.monotonic() - started,
    )


def _origin(foreign: Foreign, wishes: Wishes, name: str, where: str) -> dict[str, str]:
    scale = wishes.scale if isinstance(wishes.scale, str) else type(wishes.scale).__name__
    return {"imported": name, "format": foreign.format, "latent": where, "scale": Path(scale).name}


def _reason(autoencoder: Autoencoder, where: str) -> str:
    return f"The latent is {where}, {autoencoder.latent_dim} wide."


def _is_recurrent(graph: FrozenGraph) -> bool:
    """Whether the network runs over the steps of a window."""
    return any(
        node.op == "While" or any(word in node.name.lower() for word in RECURRENT) for node in graph.nodes.values()
    )


def _is_its_halves(model: Foreign, row_shape: tuple[int, ...]) -> bool:
    """Whether the model is its decoder after its encoder: one with noise or more steps is not."""
    encode, decode = model.halves or (None, None)
    if encode is None or decode is None:
        return False
    rows = tf.cast(tf.random.stateless_uniform((2, *row_shape), (1, 2)), model.dtype)
    try:
        whole, halves = (
            next(iter(named_outputs(found).values()))
            for found in (called(model)(rows), decode(latent_of(encode(rows))))
        )
        return bool(np.allclose(whole, halves, rtol=1e-4, atol=1e-5))
    except Exception:  # noqa: BLE001 - whatever it is, the whole model is asked then
        return False


def publish(
    network: Any,
    rows: Any,
    wishes: Wishes,
    config: TrainingConfig,
    *,
    store: Path | str,
    model: str,
    promotion: Promotion | None,
) -> TrainingResult:
    """A model in memory, or its file, as the next version of ``model``; see ``service.publish``."""
    reporter = Reporter()
    if isinstance(network, str | Path):
        foreign, name = open_model(Path(network)), Path(network).name
    elif isinstance(network, tuple):
        encoder, decoder = (of_keras(each, "Keras model") for each in network)
        foreign, name = joined(encoder, decoder), f"{network[0].name} and {network[1].name}"
    else:
        foreign, name = of_keras(network, "Keras model"), str(network.name)
    Store(store).create()
    with tempfile.TemporaryDirectory() as folder:
        read = None
        if rows is not None:
            source = {"source": _file_of(rows, Path(folder)), "columns": wishes.names}
            read = reader_of(foreign, source, config, reporter)
        return import_model(
            foreign, config, wishes, name=name, rows=read, store=store, model=model, promotion=promotion
        )


def _file_of(rows: Any, folder: Path) -> str:
    """The name of a file of rows: theirs, or one that arrays and tables are written to."""
    if isinstance(rows, str | Path):
        return str(rows)
    if hasattr(rows, "columns") or hasattr(rows, "column_names"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        is_pandas = hasattr(rows, "iloc")
        table = (
            pa.Table.from_pandas(rows, preserve_index=False) if is_pandas else getattr(rows, "to_arrow", lambda: rows)()
        )
        pq.write_table(table, folder / "rows.parquet")
        return str(folder / "rows.parquet")
    np.save(folder / "rows.npy", np.asarray(rows))
    return str(folder / "rows.npy")
