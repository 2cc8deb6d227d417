"""Pictures beside a version: losses, score histogram, reconstructions. PNG, drawn without a display."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from service.schemas import InputSchema
from service.store import Calibration
from service.training.fit import History

IMAGES = 8
COLUMNS = 12
POINTS = 1_000
GREY_DIMENSIONS = 2


def draw_plots(
    folder: Path,
    *,
    history: History,
    calibration: Calibration,
    test_scores: NDArray[np.float32],
    rows: NDArray[np.float32],
    reconstructions: NDArray[np.float32],
    schema: InputSchema,
) -> None:
    """Write the three PNG files into ``folder``. ``rows`` are raw test rows and ``reconstructions`` theirs."""
    folder.mkdir(parents=True, exist_ok=True)
    _save(_losses(history), folder / "losses.png")
    _save(_scores(calibration, test_scores), folder / "score_histogram.png")
    draw = _images if schema.kind == "image" else _columns
    _save(draw(rows, reconstructions, schema), folder / "reconstructions.png")


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


def _columns(rows: NDArray[np.float32], reconstructions: NDArray[np.float32], schema: InputSchema) -> Figure:
    """A panel for each of the first columns: input across, reconstruction upwards, the diagonal being perfect."""
    count = min(COLUMNS, rows.shape[1])
    wide = min(4, count)
    figure = Figure(figsize=(2.6 * wide, 2.6 * -(-count // wide)), layout="constrained")
    panels = figure.subplots(-(-count // wide), wide, squeeze=False).ravel()
    for position, axes in enumerate(panels):
        if position >= count:
            axes.set_axis_off()
            continue
        across, upwards = rows[:POINTS, position], reconstructions[:POINTS, position]
        axes.scatter(across, upwards, s=4, alpha=0.4)
        axes.axline((float(np.nanmedian(across)),) * 2, slope=1, color="grey", linewidth=0.8)
        name = schema.columns[position].name if schema.columns else f"column {position + 1}"
        axes.set_title(name[:24].replace("$", r"\$"), fontsize="small")
    figure.supxlabel("input")
    figure.supylabel("reconstruction")
    return figure


def _figure(title: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    return figure, axes
