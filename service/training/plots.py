"""Pictures beside a version: losses, score histogram, reconstructions. PNG, drawn without a display."""

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from service.codecs.answers import label_text
from service.schemas import (
    CATEGORIES,
    INSTANCES,
    TIMESTAMPS,
    Array,
    InputSchema,
    Rows,
    times_as_numbers,
)
from service.store import Calibration
from service.training.fit import History

IMAGES = 8
COLUMNS = 12
LABELS = 6
POINTS = 1_000
GREY_DIMENSIONS = 2


def draw_plots(
    folder: Path,
    *,
    history: History,
    calibration: Calibration,
    test_scores: NDArray[np.float32],
    rows: Rows,
    reconstructions: Rows,
    schema: InputSchema,
) -> None:
    """Write the three PNG files into ``folder``. ``rows`` are raw test rows and ``reconstructions`` theirs."""
    folder.mkdir(parents=True, exist_ok=True)
    _save(_losses(history), folder / "losses.png")
    _save(_scores(calibration, test_scores), folder / "score_histogram.png")
    if schema.kind == "image":
        figure = _images(rows[INSTANCES], reconstructions[INSTANCES], schema)
    else:
        figure = _columns(rows, reconstructions, schema)
    _save(figure, folder / "reconstructions.png")


def _save(figure: Figure, path: Path) -> None:
    # No library version inside: the same run gives the same bytes.
    figure.savefig(path, format="png", metadata={"Software": None})


def _losses(history: History) -> Figure:
    figure, axes = _figure("Loss by epoch")
    epochs = range(1, len(history.train_loss) + 1)
    axes.plot(epochs, history.train_loss, label="train")
    axes.plot(epochs, history.validation_loss, label="validation")
    axes.axvline(history.best_epoch, color="grey", linestyle=":", label=f"kept: epoch {history.best_epoch}")
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss")
    if min(*history.train_loss, *history.validation_loss) > 0:
        axes.set_yscale("log")
    axes.legend()
    return figure


def _scores(calibration: Calibration, test_scores: NDArray[np.float32]) -> Figure:
    figure, axes = _figure("Anomaly scores of normal rows")
    both = np.concatenate([np.array(calibration.scores), test_scores.astype(np.float64)])
    positive = np.maximum(both, max(both.max(), 1e-30) * 1e-9)
    bins = np.geomspace(positive.min(), positive.max() * 1.001, 50)
    for label, scores in (("calibration", positive[: calibration.rows]), ("test", positive[calibration.rows :])):
        axes.hist(scores, bins=bins.tolist(), weights=np.full(len(scores), 1 / len(scores)), alpha=0.5, label=label)
    rate = f"{calibration.false_alarm_rate:.2%}"
    axes.axvline(max(calibration.threshold, bins[0]), color="black", linestyle="--", label=f"threshold at {rate}")
    axes.set_xscale("log")
    axes.set_xlabel("anomaly score")
    axes.set_ylabel("share of rows")
    axes.legend()
    return figure


def _images(rows: NDArray[np.float32], reconstructions: NDArray[np.float32], schema: InputSchema) -> Figure:
    """Inputs above, their reconstructions below."""
    count = min(IMAGES, len(rows))
    figure = Figure(figsize=(1.2 * count, 3), layout="constrained")
    grid = np.atleast_2d(figure.subplots(2, count, squeeze=False))
    for name, images, line in (("input", rows, grid[0]), ("reconstruction", reconstructions, grid[1])):
        for image, axes in zip(images, line, strict=False):
            axes.imshow(_picture(image, schema), cmap="gray", vmin=0, vmax=1)
            axes.set_axis_off()
        line[0].set_title(name, loc="left")
    return figure


def _picture(image: NDArray[np.float32], schema: InputSchema) -> NDArray[np.float64]:
    low, high = schema.value_range or (float(np.nanmin(image)), float(np.nanmax(image)))
    scaled = np.clip((image.astype(np.float64) - low) / max(high - low, 1e-30), 0, 1)
    if scaled.ndim == GREY_DIMENSIONS or scaled.shape[-1] in {3, 4}:
        return scaled
    return np.asarray(scaled[..., 0])


def _columns(rows: Rows, reconstructions: Rows, schema: InputSchema) -> Figure:
    """A panel for each of the first columns: input across, reconstruction upwards, the diagonal being perfect.

    For labels, how often each of the most frequent ones is the input and the reconstruction.
    """
    panels = list(islice(_panels(rows, reconstructions), COLUMNS))
    names = [column.name for column in schema.ordered_columns]
    wide = min(4, len(panels))
    figure = Figure(figsize=(2.6 * wide, 2.6 * -(-len(panels) // wide)), layout="constrained")
    grid = figure.subplots(-(-len(panels) // wide), wide, squeeze=False).ravel()
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for position, (axes, (across, upwards)) in enumerate(zip(grid, panels, strict=False)):
        draw = _draw_labels if across.dtype.kind == "O" else _draw_numbers
        draw(axes, across, upwards)
        name = names[position] if names else f"column {position + 1}"
        axes.set_title(name[:24].replace("$", r"\$"), fontsize="small")
    figure.supxlabel("input")
    figure.supylabel("reconstruction")
    return figure


def _panels(rows: Rows, reconstructions: Rows) -> Iterator[tuple[Array, Array]]:
    for name in (INSTANCES, CATEGORIES, TIMESTAMPS):
        if name not in rows:
            continue
        pairs = (each[name].reshape(len(each[name]), -1).T for each in (rows, reconstructions))
        for across, upwards in zip(*pairs, strict=True):
            is_time = name == TIMESTAMPS
            yield (times_as_numbers(across), times_as_numbers(upwards)) if is_time else (across, upwards)


def _draw_numbers(axes: Any, across: Array, upwards: Array) -> None:
    axes.scatter(across, upwards, s=4, alpha=0.4)
    if not np.isnan(across).all():
        axes.axline((float(np.nanmedian(across)),) * 2, slope=1, color="grey", linewidth=0.8)


def _draw_labels(axes: Any, across: Array, upwards: Array) -> None:
    frequent = [label for label, _ in Counter(across.tolist()).most_common(LABELS)]
    places = np.arange(len(frequent))
    for shift, labels, name in ((-0.2, across, "input"), (0.2, upwards, "reconstruction")):
        axes.bar(places + shift, [np.mean(labels == label) for label in frequent], width=0.4, label=name)
    texts = [(label_text(label) or "missing")[:10].replace("$", r"\$") for label in frequent]
    axes.set_xticks(places, texts, rotation=30, fontsize="x-small")
    axes.legend(fontsize="x-small")


def _figure(title: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    return figure, axes
