"""Draws the pictures of the explanations: ``python -m tools.docs.pictures docs/images``. Takes about a minute.

Everything in them comes from models that are trained here, on the digits that come with scikit-learn, and from the
rooms of the service itself: its signatures, p-values and drift.
"""

import csv
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray

from service.runtime.drift import ROWS_AT_ONCE, Drift, DriftMonitor
from service.runtime.loaded_model import LoadedModel
from service.schemas import INSTANCES
from service.scoring import conformal_p_values
from service.training.charts import BLUE, GREEN, ORANGE
from service.training.gate import false_alarms
from service.words import ANOMALY_SCORE, DENOISE, ENCODE, RECONSTRUCT

INK, GREY = "#1d2733", "#8a94a3"
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "pictures",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.facecolor": "white",
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}
BRIGHTEST = 16
"""Of a pixel of the digits."""
DIVISIONS = 200
"""How often the held-back rows are divided anew to show what holds on average."""
DARKER = 1.15
MEASURES = ("ink", "height", "side", "tall", "wide", "slant")

Images = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Digits:
    """A model of the bundled digits with the rows that it was not fitted on."""

    loaded: LoadedModel
    calibration: Images
    test: Images
    test_labels: NDArray[np.intp]

    def scored(self, images: Images) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        results = self.loaded.run(ANOMALY_SCORE.name, {INSTANCES: images})
        return results["score"], results["p_value"]


def main(target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, mpl.rc_context(STYLE):
        digits = _digits(Path(folder))
        for name, draw in DIGIT_PICTURES.items():
            _save(draw(digits), target / name)
        _save(drift(Path(folder)), target / "drift.svg")


def _digits(store: Path) -> Digits:
    from sklearn.datasets import load_digits

    from service.training.config import load_config
    from service.training.data import read_dataset
    from service.training.split import split_rows
    from service.training.train import train

    config = load_config("demo")
    result = train(config, source="digits", store=store, model="digits")
    images = read_dataset("digits").rows[INSTANCES]
    split = split_rows(len(images), config)
    return Digits(
        loaded=_loaded(store, "digits", result.version),
        calibration=images[split.calibration],
        test=images[split.test],
        test_labels=load_digits().target[split.test],
    )


def _loaded(store: Path, model: str, version: int) -> LoadedModel:
    from service.runtime.loaded_model import load_version

    return load_version(store / model / str(version))


# --- what an autoencoder does ---------------------------------------------------------------------------------------


def reconstructions(digits: Digits) -> Figure:
    """What is sent, what comes back and where they differ, with the score: four ordinary rows, four that are not."""
    sent = np.concatenate([digits.test[:4], _damaged(digits.test[4:8])])
    back = digits.loaded.run(RECONSTRUCT.name, {INSTANCES: sent})["reconstruction"]
    scores, p_values = digits.scored(sent)
    lines = [
        ("sent", sent, "gray", BRIGHTEST),
        ("reconstruction", back, "gray", BRIGHTEST),
        ("difference", np.abs(sent - back), "inferno", BRIGHTEST),
    ]
    figure = _grid(lines)
    for axes, score, p_value in zip(figure.axes[-len(sent) :], scores, p_values, strict=True):
        axes.set_title(f"score {score:.3f}\np {p_value:.3f}", y=-0.62, fontsize=8)
    return figure


def denoised(digits: Digits) -> Figure:
    clean = digits.test[:8]
    noisy = np.clip(clean + np.random.default_rng(0).normal(0, 3, clean.shape), 0, BRIGHTEST).astype(np.float32)
    back = digits.loaded.run(DENOISE.name, {INSTANCES: noisy})["denoised"]
    return _grid([(name, images, "gray", BRIGHTEST) for name, images in (("noisy", noisy), ("denoised", back))])


def latent_map(digits: Digits) -> Figure:
    """Held-back rows in the two widest directions of their latents. The colours were not known in training."""
    latents = digits.loaded.run(ENCODE.name, {INSTANCES: digits.test})["latent"].astype(np.float64)
    centred = latents - latents.mean(axis=0)
    _, spread, directions = np.linalg.svd(centred, full_matrices=False)
    across, upwards = (centred @ directions[:2].T).T
    explained = spread**2 / np.sum(spread**2)
    figure, axes = _figure(4.2)
    for digit in range(10):
        chosen = digits.test_labels == digit
        colour = mpl.colormaps["tab10"](digit)
        axes.scatter(across[chosen], upwards[chosen], s=14, color=colour, label=str(digit), linewidths=0)
    axes.set_xlabel(f"widest direction of the latents ({explained[0]:.0%} of the variance)")
    axes.set_ylabel(f"second widest ({explained[1]:.0%})")
    axes.legend(title="digit", loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)
    return figure


def _damaged(images: Images) -> Images:
    """With a blot of two by three pixels where mostly nothing is."""
    blotted = images.copy()
    blotted[:, 1:4, 0:2] = BRIGHTEST
    return blotted


def _grid(lines: Sequence[tuple[str, Images, str, float]]) -> Figure:
    count = len(lines[0][1])
    figure = Figure(figsize=(0.95 * count, 1.15 * len(lines) + 0.3), layout="constrained")
    grid = np.atleast_2d(figure.subplots(len(lines), count, squeeze=False))
    for (name, images, colours, most), line in zip(lines, grid, strict=True):
        for image, axes in zip(images, line, strict=True):
            axes.imshow(image, cmap=colours, vmin=0, vmax=most)
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, fontsize=9)
    return figure


# --- scores, p-values, calibration ----------------------------------------------------------------------------------


def score_distribution(digits: Digits) -> Figure:
    """Scores of calibration rows with the threshold, one row's p-value as the share on its right, and damaged rows."""
    calibration = np.asarray(digits.loaded.manifest.calibrated.scores)
    damaged, _ = digits.scored(_damaged(digits.test))
    scores, p_values = digits.scored(digits.test)
    shown = int(np.argmin(np.abs(p_values - 0.1)))
    everything = np.concatenate([calibration, damaged])
    bins = np.geomspace(everything.min() * 0.95, everything.max() * 1.05, 46)
    figure, axes = _figure()
    _histogram(axes, calibration, bins, GREY, "calibration rows")
    is_beyond = calibration >= scores[shown]
    _histogram(
        axes,
        calibration[is_beyond],
        bins,
        BLUE,
        f"of these, at least as high as\nthe score of one row: p = {p_values[shown]:.2f}",
        out_of=len(calibration),
    )
    _histogram(axes, damaged, bins, ORANGE, "test rows with a blot", alpha=0.6)
    axes.axvline(scores[shown], color=BLUE, linewidth=1.2)
    threshold, rate = digits.loaded.manifest.calibrated.threshold, digits.loaded.manifest.calibrated.false_alarm_rate
    axes.axvline(threshold, color=INK, linestyle="--", label=f"threshold (false-alarm rate {rate:.0%})")
    axes.set(xscale="log", xlabel="anomaly score", ylabel="share of rows")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.legend(fontsize=8.5)
    return figure


def _histogram(
    axes: Axes,
    scores: NDArray[Any],
    bins: NDArray[np.float64],
    colour: str,
    label: str,
    *,
    out_of: int = 0,
    alpha: float = 1.0,
) -> None:
    weights = np.full(len(scores), 1 / (out_of or len(scores)))
    axes.hist(scores, bins=bins.tolist(), weights=weights, color=colour, label=label, alpha=alpha)


def calibration(digits: Digits) -> Figure:
    """False-alarm rate asked for against the one seen: on the test rows, and on average over many divisions."""
    rows, tests = len(digits.calibration), len(digits.test)
    found = false_alarms(rows, digits.scored(digits.test)[1])
    nominal = found.nominal
    scores = np.concatenate([digits.scored(digits.calibration)[0], digits.scored(digits.test)[0]])
    random = np.random.default_rng(0)
    average = np.zeros(len(nominal))
    for _ in range(DIVISIONS):
        mixed = random.permutation(scores)
        average += np.array(false_alarms(rows, conformal_p_values(mixed[rows:], mixed[:rows])).empirical) / DIVISIONS
    figure, axes = _figure(4.0)
    axes.fill_between(
        nominal, found.low, found.high, color=BLUE, alpha=0.2, linewidth=0, label="where 95 % of such tests lie"
    )
    axes.plot(nominal, nominal, color=INK, linestyle=":", linewidth=1, label="as promised")
    axes.plot(nominal, found.empirical, color=ORANGE, label=f"seen on the {tests} test rows")
    axes.plot(nominal, average, color=GREEN, label=f"mean over {DIVISIONS} divisions of the same rows")
    axes.set(xscale="log", yscale="log", xlabel="false-alarm rate asked for", ylabel="false-alarm rate seen")
    axes.set_ylim(bottom=1 / (2 * tests))
    axes.legend(fontsize=8.5)
    return figure


# --- drift ----------------------------------------------------------------------------------------------------------


def drift(folder: Path) -> Figure:
    """Six measures of each digit as a table; live rows as they were, and as a scanner that draws darker gives them."""
    from service.training.config import load_config
    from service.training.data import read_dataset
    from service.training.split import split_rows
    from service.training.train import train

    images = read_dataset("digits").rows[INSTANCES]
    table = _measures(images)
    source = folder / "measures.csv"
    with source.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(MEASURES)
        writer.writerows(table.tolist())
    config = load_config("dense", latent_dim=3, epochs=30)
    result = train(config, source=str(source), store=folder, model="measures")
    loaded = _loaded(folder, "measures", result.version)
    split = split_rows(len(table), config)
    live = table[np.concatenate([split.validation, split.calibration, split.test])]
    moved = _measures(np.minimum(images * np.float32(DARKER), BRIGHTEST))[
        np.concatenate([split.validation, split.calibration, split.test])
    ]
    return _draw_drift(loaded, live, moved)


def _draw_drift(loaded: LoadedModel, live: Images, moved: Images) -> Figure:
    reference = loaded.manifest.reference[0]
    figure = Figure(figsize=(7.4, 3.5), layout="constrained")
    shares, bars = figure.subplots(1, 2, width_ratios=[1.25, 1])
    places = np.arange(len(reference.shares))
    named = (("training", reference.shares, GREY), ("before", _shares(live, reference), BLUE))
    for shift, (name, heights, colour) in zip(
        (-0.27, 0.0, 0.27), (*named, ("after", _shares(moved, reference), ORANGE)), strict=True
    ):
        shares.bar(places + shift, heights, width=0.27, color=colour, label=name)
    shares.set(xlabel="tenth of the training rows, by ink", ylabel="share of rows", xticks=places)
    shares.set_xticklabels([str(at + 1) for at in places])
    shares.legend(fontsize=8.5)
    drifts = [_watched(loaded, rows) for rows in (live, moved)]
    lines = np.arange(len(MEASURES))[::-1]
    for height, found, colour in zip((0.19, -0.19), drifts, (BLUE, ORANGE), strict=True):
        indices = [each.psi or 0.0 for each in found]
        bars.barh(lines + height, indices, height=0.36, color=colour)
        for line, index, each in zip(lines, indices, found, strict=True):
            bars.text(index + 0.02, line + height, f"KS {each.ks:.2f}", va="center", fontsize=7.5)
    for edge in (0.1, 0.25):
        bars.axvline(edge, color=INK, linestyle=":", linewidth=1)
    bars.set_yticks(lines, MEASURES)
    bars.set_xlabel("population stability index")
    bars.set_xlim(right=max(each.psi or 0.0 for found in drifts for each in found) * 1.25)
    return figure


def _shares(rows: Images, reference: Any) -> NDArray[np.float64]:
    bins = np.searchsorted(np.asarray(reference.edges), rows[:, 0], side="left")
    return np.bincount(bins, minlength=len(reference.shares)) / len(rows)


def _watched(loaded: LoadedModel, rows: Images) -> tuple[Drift, ...]:
    """Drift of the features as the service reports it, of rows that come slowly enough to be counted all."""
    monitor = DriftMonitor(loaded.manifest, window_rows=len(rows) + 1)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        batch = {INSTANCES: rows[start : start + ROWS_AT_ONCE]}
        monitor.observe(batch, loaded.run(ANOMALY_SCORE.name, batch))
        time.sleep(0.2)
    report = monitor.report()
    if report.sampled_rows != len(rows):
        raise RuntimeError(f"{report.sampled_rows} of {len(rows)} rows were counted")
    return report.features


def _measures(images: Images) -> Images:
    """Ink, centre of gravity, extent and slant of each image, (rows, 6)."""
    total = np.maximum(images.sum(axis=(1, 2)), 1)
    down, right = np.mgrid[: images.shape[1], : images.shape[2]]
    height, side = ((images * place).sum(axis=(1, 2)) / total for place in (down, right))
    away_down, away_right = down - height[:, None, None], right - side[:, None, None]
    moments = [(images * product).sum(axis=(1, 2)) / total for product in (away_down**2, away_right**2)]
    slant = (images * away_down * away_right).sum(axis=(1, 2)) / total
    return np.stack([total / images[0].size, height, side, *np.sqrt(moments), slant], axis=1).astype(np.float32)


# --- files ----------------------------------------------------------------------------------------------------------

DIGIT_PICTURES: dict[str, Callable[[Digits], Figure]] = {
    "reconstructions.png": reconstructions,
    "denoised.png": denoised,
    "latent-map.svg": latent_map,
    "score-distribution.svg": score_distribution,
    "calibration.svg": calibration,
}


def _figure(height: float = 3.4) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.6, height), layout="constrained")
    return figure, figure.subplots()


def _save(figure: Figure, path: Path) -> None:
    # Without library version and date, so that the same run gives the same bytes.
    unsaid = {"Date": None, "Creator": None} if path.suffix == ".svg" else {"Software": None}
    figure.savefig(path, dpi=120, metadata=unsaid)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
