"""Charts of a version: PNG files beside it, and in the report SVG that follows the reader's light or dark mode."""

import io
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray

from service.codecs.answers import label_text
from service.schemas import INSTANCES, Array
from service.store import Calibration
from service.training.evidence import Evidence, blocks, find_directions
from service.training.gate import BAND, false_alarms

if TYPE_CHECKING:
    from service.training.fit import History

INK = "#123456"
"""Stands for the reader's text colour while matplotlib draws; no chart uses it for anything else."""
BLUE, ORANGE, GREEN = "#3b82c4", "#e07b39", "#3a9b6b"
STYLE = "<style>svg{color:#1d2733}@media (prefers-color-scheme:dark){svg{color:#dfe5ec}}</style>"
SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "savefig.transparent": True,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}
MAX_POINTS = 2_000
CHANNELS_DRAWN = 3
IMAGES = 8
COLUMNS = 12
LABELS = 6
POINTS = 1_000


@mpl.rc_context(SETTINGS)
def losses(history: "History") -> Figure:
    figure, axes = _figure()
    epochs = range(1, len(history.train_loss) + 1)
    axes.plot(epochs, history.train_loss, label="rows that are fitted", color=BLUE)
    axes.plot(epochs, history.validation_loss, label="rows that only stop the training", color=ORANGE)
    axes.axvline(history.best_epoch, color=INK, linestyle=":", label=f"kept: epoch {history.best_epoch}")
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss")
    if min(*history.train_loss, *history.validation_loss) > 0:
        axes.set_yscale("log")
    axes.legend(loc="best")
    return figure


@mpl.rc_context(SETTINGS)
def score_histogram(calibration: Calibration, test_scores: NDArray[np.float32]) -> Figure:
    figure, axes = _figure()
    both = np.concatenate([np.array(calibration.scores), test_scores.astype(np.float64)])
    # On a logarithmic axis, where scores are usually spread over orders of magnitude, no score may be zero or less.
    is_log = bool(both.min() > 0)
    bins = np.geomspace(both.min(), both.max() * 1.001, 50) if is_log else np.linspace(both.min(), both.max(), 50)
    parts = (("calibration rows", calibration.scores, BLUE), ("test rows", test_scores, ORANGE))
    for label, scores, colour in parts:
        weights = np.full(len(scores), 1 / len(scores))
        axes.hist(scores, bins=bins.tolist(), weights=weights, alpha=0.55, label=label, color=colour)
    rate = f"threshold, false-alarm rate {calibration.false_alarm_rate:.2%}"
    axes.axvline(calibration.threshold, color=INK, linestyle="--", label=rate)
    if is_log:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("anomaly score")
    axes.set_ylabel("share of rows")
    axes.legend(loc="best")
    return figure


@mpl.rc_context(SETTINGS)
def calibration_curve(calibration: Calibration, p_values: NDArray[np.float32]) -> Figure:
    """Nominal against empirical false-alarm rate on test rows, and where the curve lies when the promise holds."""
    found = false_alarms(calibration.rows, p_values)
    figure, axes = _figure(4.2)
    axes.fill_between(
        found.nominal, found.low, found.high, color=BLUE, alpha=0.2, linewidth=0, label=f"{BAND:.0%} band by chance"
    )
    axes.plot(found.nominal, found.nominal, color=INK, linestyle=":", linewidth=1, label="as promised")
    axes.plot(found.nominal, found.empirical, color=ORANGE, label="on test rows")
    axes.set(xscale="log", yscale="log", xlabel="false-alarm rate asked for", ylabel="false-alarm rate seen")
    axes.set_ylim(bottom=max(found.nominal[0] / 3, 1 / (2 * len(p_values))))
    axes.legend(loc="best")
    return figure


@mpl.rc_context(SETTINGS)
def latent_map(evidence: Evidence) -> Figure:
    figure, axes = _figure(4.6)
    chosen = np.linspace(0, evidence.count - 1, min(MAX_POINTS, evidence.count)).astype(int)
    # The most unusual rows are drawn last, on top.
    chosen = chosen[np.argsort(-evidence.p_values[chosen], kind="stable")]
    directions = find_directions(evidence.latents[: evidence.count])
    projected = directions.project(evidence.latents[chosen])
    across = projected[:, 0]
    upwards = projected[:, 1] if projected.shape[1] > 1 else np.zeros(len(chosen))
    colours = np.log10(evidence.p_values[chosen])
    drawn = axes.scatter(across, upwards, c=colours, cmap="coolwarm_r", s=9, rasterized=True, linewidths=0)
    bar = figure.colorbar(drawn, ax=axes)
    bar.set_label("p-value, as a power of ten")
    axes.set_xlabel(f"widest direction ({directions.explained[0]:.0%} of the variance)")
    if len(directions.explained) > 1:
        axes.set_ylabel(f"second widest ({directions.explained[1]:.0%})")
    return figure


@mpl.rc_context(SETTINGS)
def series(observed: NDArray[np.float32], rebuilt: NDArray[np.float32]) -> Figure:
    """One window (steps, channels): observed and reconstructed, a panel a channel."""
    channels = min(CHANNELS_DRAWN, observed.shape[1])
    figure = Figure(figsize=(4.2, 0.4 + 1.3 * channels), layout="constrained")
    for channel, axes in enumerate(figure.subplots(channels, 1, squeeze=False, sharex=True)[:, 0]):
        axes.plot(observed[:, channel], color=BLUE, linewidth=1.2, label="observed")
        axes.plot(rebuilt[:, channel], color=ORANGE, linewidth=1.2, label="reconstructed")
    axes.set_xlabel("step")
    return figure


def levels(image: NDArray[Any], *, low: float, high: float) -> NDArray[np.float64]:
    """An image (height, width[, channels]) as levels from 0 (``low``) to 1, grey or with three channels."""
    scaled = np.asarray(np.clip((np.nan_to_num(image).astype(np.float64) - low) / max(high - low, 1e-30), 0, 1))
    if scaled.ndim < 3:
        return scaled
    return np.asarray(scaled[..., :3] if scaled.shape[-1] >= 3 else scaled[..., 0])


def picture(image: NDArray[Any], *, low: float, high: float) -> bytes:
    """A PNG of one image (height, width[, channels]), a pixel a pixel; ``low`` is black."""
    from PIL import Image

    pixels = np.rint(levels(image, low=low, high=high) * 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, format="PNG", optimize=True)
    return file.getvalue()


def _figure(height: float = 3.4) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, height), layout="constrained")
    return figure, figure.subplots()


@mpl.rc_context(SETTINGS)
def svg(figure: Figure) -> str:
    """The picture without library version and date, so that the same run gives the same bytes."""
    file = io.StringIO()
    figure.savefig(file, format="svg", dpi=110, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    start = svg.index("<svg")
    end_of_tag = svg.index(">", start) + 1
    return svg[start:end_of_tag] + STYLE + svg[end_of_tag:].replace(INK, "currentColor")


def draw_plots(folder: Path, evidence: Evidence, history: "History", calibration: Calibration) -> None:
    """Write the PNG files into ``folder``."""
    figures = {
        **({"losses": losses(history)} if history.train_loss else {}),
        "score_histogram": score_histogram(calibration, evidence.scores),
        "reconstructions": (_images if evidence.schema.kind == "image" else _columns)(evidence),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        # No library version inside: the same run gives the same bytes.
        metadata = {"Software": None}
        figure.savefig(folder / f"{name}.png", format="png", transparent=False, facecolor="white", metadata=metadata)


def _images(evidence: Evidence) -> Figure:
    """Inputs above, their reconstructions below."""
    count = min(IMAGES, evidence.count)
    figure = Figure(figsize=(1.2 * count, 3), layout="constrained")
    pairs = (("input", evidence.rows[INSTANCES]), ("reconstruction", evidence.rebuilt["reconstruction"]))
    for (name, images), line in zip(pairs, figure.subplots(2, count, squeeze=False), strict=True):
        for image, axes in zip(images, line, strict=False):
            low, high = evidence.schema.value_range or (float(np.nanmin(image)), float(np.nanmax(image)))
            axes.imshow(levels(image, low=low, high=high), cmap="gray", vmin=0, vmax=1)
            axes.set_axis_off()
        line[0].set_title(name, loc="left")
    return figure


def _columns(evidence: Evidence) -> Figure:
    """A panel for each of the first columns: input across, reconstruction upwards, the diagonal being perfect.

    For labels, how often each of the most frequent ones is the input and the reconstruction.
    """
    panels = [(block, at) for block in blocks(evidence) for at in range(len(block.names))][:COLUMNS]
    wide = min(4, len(panels))
    figure = Figure(figsize=(2.6 * wide, 2.6 * -(-len(panels) // wide)), layout="constrained")
    grid = figure.subplots(-(-len(panels) // wide), wide, squeeze=False).ravel()
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for axes, (block, at) in zip(grid, panels, strict=False):
        draw = _draw_labels if block.is_label else _draw_numbers
        draw(axes, block.observed[:POINTS, at], block.rebuilt[:POINTS, at])
        axes.set_title(block.names[at][:24].replace("$", r"\$"), fontsize="small")
    figure.supxlabel("input")
    figure.supylabel("reconstruction")
    return figure


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
    axes.legend(loc="best", fontsize="x-small")
