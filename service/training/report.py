"""A version's facts in Markdown: the model card, of which the terminal shows a part and the report makes a page.

Names of models, columns and files come from strangers: every one goes through ``plain`` on its way into the text.
Imports no TensorFlow.
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.markdown import Markdown
from rich.text import Text

from service.codecs.answers import time_text
from service.schemas import Column, ColumnType
from service.store import Calibration, Manifest
from service.training.data import Dataset
from service.training.gate import Decision
from service.words import ANOMALY_SCORE, DENOISE, RECONSTRUCT

SPLITS = ("train", "validation", "test")
COLUMNS_SHOWN = 50
LABELS_SHOWN = 5
LABEL_SHOWN = 30
LOSSES, RECONSTRUCTIONS, SCORES = "plots/losses.png", "plots/reconstructions.png", "plots/score_histogram.png"
"""Pictures of the card, by their paths beside it."""
_COMPARED = (
    ("reconstruction error, raw values by their spread", "error", ".4g"),
    ("false-alarm rate", "alarm_rate", ".2%"),
    ("nominal false-alarm rate", "nominal", ".2%"),
    ("AUROC", "auroc", ".4f"),
    ("AUPR", "aupr", ".4f"),
)


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """A published version. ``metrics`` is the manifest's."""

    model: str
    version: int
    source: str
    rows: int
    total_rows: int
    """Rows of the source, of which ``rows`` were used."""
    latent_dim: int
    metrics: dict[str, Any]
    threshold: float | None
    """None: the version was made without rows."""
    false_alarm_rate: float
    warnings: tuple[str, ...]
    seconds: float
    """From reading the rows to the published version."""
    decision: Decision | None = None
    """Whether it is in production now; None where that was not asked."""


def summary(result: TrainingResult) -> RenderableType:
    """The errors, threshold, comparison and warnings of the card, with the time and the decision, for the terminal."""
    metrics = result.metrics
    device = f" on {metrics['device']}" if metrics.get("device") else ""
    epochs = f"{metrics['epochs']} epochs (kept: {metrics['best_epoch']}), " if metrics.get("epochs") else ""
    rows = f"{_used(result.rows, result.total_rows)} rows of {plain(result.source)}" if result.rows else "No rows"
    parts = [
        f"## Model {result.model}, version {result.version}",
        f"{rows}, latent of {result.latent_dim}, {epochs}{result.seconds:.1f} s{device}. "
        f"{metrics.get('latent_reason') or ''}",
    ]
    if result.threshold is None:
        parts.append(_uncalibrated(result.model, str(result.version)))
    else:
        parts += [
            _quality(metrics, latent_dim=result.latent_dim),
            f"Threshold {result.threshold:.5g} for a false-alarm rate of {result.false_alarm_rate:.2%}; "
            f"on test rows {metrics['test_alarm_rate']:.2%}.",
            *_codec(metrics),
            *_against_production(metrics),
        ]
    warnings = [Text(f"Warning: {warning}", style="yellow") for warning in result.warnings]
    decision = result.decision
    decided = [Text(decision.sentence, style="green" if decision.promoted else "yellow")] if decision else []
    return Group(Markdown("\n\n".join(parts)), *warnings, *decided)


def model_card(manifest: Manifest) -> str:
    """The model card, in Markdown. Leaves the version's number out: that is given after the files are complete."""
    warnings = [f"- **Warning:** {plain(warning)}" for warning in manifest.warnings]
    settings = [(plain(name), plain(str(value))) for name, value in manifest.training.items()]
    default = ANOMALY_SCORE if manifest.calibration else RECONSTRUCT
    sections = [
        f"# Model {manifest.model}",
        _what(manifest),
        *(["\n".join(warnings)] if warnings else []),
        *(_measured(manifest, manifest.calibration) if manifest.calibration else [_uncalibrated(manifest.model)]),
        "## How to call it",
        "A valid request body is in `sample_request.json`:",
        f"```\ncurl -s localhost:8000/models/{manifest.model}/{default.path} -H 'content-type: application/json' "
        "-d @sample_request.json\n```",
        f"Signatures of the SavedModel: {', '.join(f'`{name}`' for name in manifest.signatures)}; "
        f"`serving_default` is `{default.name}`. They take raw values: scaling and gaps are handled inside.",
        "## How it was made",
        _table(("Setting", "Value"), settings),
        f"Made with {', '.join(f'{name} {version}' for name, version in manifest.libraries.items())}.",
    ]
    return "\n\n".join(sections) + "\n"


def _uncalibrated(model: str, version: str = "") -> str:
    return (
        "It is not calibrated: it encodes and reconstructs, and scores nothing. "
        f"`{' '.join(part for part in ('autoencoder recalibrate', model, version) if part)} --rows ROWS` makes a "
        "version that scores."
    )


def _measured(manifest: Manifest, calibration: Calibration) -> Iterator[str]:
    """The sections about rows, errors and scores."""
    spread = "value ranges" if manifest.input.kind == "image" else "standard deviations"
    is_linear = "imported" in manifest.training
    far = "" if is_linear else f"\n- Values farther than ten {spread} out count by their logarithm."
    source, again = ("training", "train again") if _is_fitted_here(manifest) else ("calibration", "recalibrate")
    yield from [
        "## Rows\n\n" + _rows(manifest),
        "## Quality\n\n" + _quality(manifest.metrics, latent_dim=manifest.latent_dim),
        *_against_production(manifest.metrics),
        *([f"![Losses]({LOSSES})"] if manifest.metrics.get("epochs") else []),
        f"![Reconstructions]({RECONSTRUCTIONS})",
        *_codec(manifest.metrics),
        "## Scores and false alarms",
        f"The threshold {calibration.threshold:.6g} was taken from the scores of {calibration.rows:,} calibration rows "
        f"for a false-alarm rate of {calibration.false_alarm_rate:.2%}. "
        f"Of the test rows {manifest.metrics['test_alarm_rate']:.2%} were over it. "
        "p-values are conformal: a normal row gets one of at most *a* with a probability of at most *a*.",
        f"![Scores]({SCORES})",
        "## Limits",
        "- All training rows were taken for normal. What was common there does not look anomalous.\n"
        f"- The false-alarm rate holds for rows from the same source as the {source} rows; when the source changes, "
        f"{again}.\n"
        "- A p-value says how unusual a row is, not that something is wrong with it, nor how bad that would be." + far,
    ]


def plain(text: str) -> str:
    """Text as Markdown that shows it as it is, in one line."""
    escaped = re.sub(r"([\\`*\[\]<>|$#&]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", text)
    return re.sub(r"\s+", " ", escaped)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def _what(manifest: Manifest) -> str:
    latent = f"from {math.prod(manifest.input.row_shape)} values to a latent of {manifest.latent_dim} and back"
    training, day = manifest.training, f"{manifest.created:%Y-%m-%d}"
    rows = f" and calibrated with rows of {plain(manifest.source)}" if manifest.calibration else ""
    taken = f"taken from {training['recalibrated']} on {day}{rows}" if "recalibrated" in training else None
    if "imported" in training:
        parts = f"{plain(str(training['imported']))}, a {plain(str(training['format']))}"
        return (
            f"An autoencoder {latent}, trained elsewhere: {parts}, {taken or f'imported on {day}{rows}'}. "
            f"Which rows it was trained on is not known here. {manifest.metrics.get('latent_reason') or ''}"
        )
    fitted = plain(str(training["fitted"]["source"] if taken else manifest.source))
    text = (
        f"An autoencoder {latent}, trained on {fitted}{f', {taken}' if taken else f' on {day}'}. "
        "It squeezes each row through the latent and builds it up again. It learned to do so for ordinary rows; "
        "a row that comes back changed is unlike them."
    )
    if manifest.metrics.get("latent_reason"):
        text += f" {manifest.metrics['latent_reason']}"
    if DENOISE.name not in manifest.signatures:
        return text + " It was trained without noise and does not denoise."
    if manifest.corruption is None:
        return text + " The network of its score removes normal noise of any level."
    noise = manifest.corruption
    return text + f" It was trained to remove {noise.kind.replace('_', '-')} noise of level {noise.level:g}."


def _is_fitted_here(manifest: Manifest) -> bool:
    """Whether the rows of the manifest are those that the network was fitted on."""
    return not {"imported", "recalibrated"} & manifest.training.keys()


def _rows(manifest: Manifest) -> str:
    counts, columns = manifest.row_counts, manifest.input.columns
    shape = " × ".join(str(size) for size in manifest.input.row_shape)
    lines = [
        f"Kind: {manifest.input.kind}, {f'{len(columns)} columns' if columns else f'{shape} values'} a row.",
        f"{counts.calibration:,} rows calibrated the score, {counts.test:,} tested it, and "
        f"{counts.train + counts.validation:,} say what rows look like; no row is in two of these."
        if not _is_fitted_here(manifest)
        else f"{counts.train:,} rows were fitted, {counts.validation:,} stopped the training, {counts.calibration:,} "
        f"were held back for calibration and {counts.test:,} tested the result; no row is in two of these.",
    ]
    if manifest.source_rows is not None:
        used = sum(counts.model_dump().values())
        lines.append(f"They are a uniform sample of {used:,} of the {manifest.source_rows:,} rows of the source.")
    text = "\n".join([*lines, f"SHA-256 of all rows: `{manifest.source_sha256}`."])
    if not columns:
        return text
    described = [
        (plain(column.name), column.type, "yes" if column.may_be_missing else "no", plain(describe_values(column)))
        for column in columns[:COLUMNS_SHOWN]
    ]
    text += "\n\n" + _table(("Column", "Type", "May be missing", "Range or labels"), described)
    return text + (f"\n\n… and {len(columns) - COLUMNS_SHOWN} more." if len(columns) > COLUMNS_SHOWN else "")


def describe_rows(dataset: Dataset) -> str:
    """The columns as they were recognised, for the terminal, and what was left out of the source."""
    used = _used(len(dataset), dataset.total or len(dataset))
    lines = [f"{used} rows of {dataset.source}"]
    if dataset.series is not None:
        lines.append(f"  {dataset.series.describe()}")
    shown = dataset.schema.columns[:COLUMNS_SHOWN]
    if shown:
        width = min(40, max(len(column.name) for column in shown))
        for column in shown:
            gaps = "may be missing" if column.may_be_missing else ""
            lines.append(f"  {column.name:{width}}  {column.type:11}  {gaps:14}  {describe_values(column)}".rstrip())
        if len(dataset.schema.columns) > COLUMNS_SHOWN:
            lines.append(f"  … and {len(dataset.schema.columns) - COLUMNS_SHOWN} more")
    return "\n".join([*lines, *dataset.notes])


def describe_values(column: Column) -> str:
    """The range of a column or its most frequent labels."""
    if column.type is ColumnType.CATEGORICAL:
        labels = [label if len(label) <= LABEL_SHOWN else f"{label[:LABEL_SHOWN]}…" for label in column.categories]
        return ", ".join(labels[:LABELS_SHOWN]) + (", …" if len(labels) > LABELS_SHOWN else "")
    if column.minimum is None or column.maximum is None or column.type is ColumnType.BOOLEAN:
        return ""
    if column.type is ColumnType.TIMESTAMP:
        return " to ".join(str(time_text(int(end)))[:19] for end in (column.minimum, column.maximum))
    return f"{column.minimum:g} to {column.maximum:g}"


def _used(rows: int, total: int) -> str:
    return f"{rows:,}" if rows == total else f"{rows:,} of {total:,}"


def _quality(metrics: dict[str, Any], *, latent_dim: int) -> str:
    errors = metrics["reconstruction_error"]
    labels = {"autoencoder": "autoencoder", "pca": f"PCA, {latent_dim} components"}
    table = _table(
        ("Mean squared error", *SPLITS),
        [(labels[name], *(f"{found[split]:.5g}" for split in SPLITS)) for name, found in errors.items()],
    )
    text = f"{table}\n\nErrors are in scaled units; less is better."
    if "pca" in errors:
        text += (
            " PCA is the best that straight lines can do with a latent of the same width. A test error far above that "
            "of the fitted rows would be overfitting."
        )
    denoising = metrics.get("denoising")
    if denoising:
        text += (
            f"\n\nNoise was put on test rows: their mean squared error was {denoising['noisy']:.4g} before and "
            f"{denoising['denoised']:.4g} after denoising"
        )
        if denoising["noisy_psnr_db"] is not None:
            text += f" (PSNR {denoising['noisy_psnr_db']:.2f} and {denoising['denoised_psnr_db']:.2f} dB)"
        text += "."
    return text


def _against_production(metrics: dict[str, Any]) -> Iterator[str]:
    comparison = metrics.get("comparison")
    if not comparison:
        return
    yield f"## Against version {comparison['production']}, in production at the time"
    measures = [
        (label, format(comparison[name]["candidate"], form), format(comparison[name]["production"], form))
        for label, name, form in _COMPARED
        if comparison[name]
    ]
    if comparison["rank_correlation"] is not None:
        measures.append(("rank correlation of the scores", f"{comparison['rank_correlation']:.3f}", ""))
    if comparison["flags_differ"] is not None:
        measures.append(("rows flagged by one alone", f"{comparison['flags_differ']:.2%}", ""))
    if measures:
        yield _table(("", "this version", "production"), measures)
        yield f"On {comparison['rows']:,} held-back rows, both through their SavedModels."
    yield "\n".join(f"- {plain(reason)}" for reason in comparison["worse"]) or "It is not worse."


def _codec(metrics: dict[str, Any]) -> Iterator[str]:
    """Latents of images against PNG and JPEG."""
    measured = metrics.get("compression")
    if not measured:
        return
    lossy = {
        f"JPEG, quality {measured['jpeg_quality']}": measured["jpeg"],
        "latent, float32": measured["float32"],
        "latent, int8": measured["int8"],
    }
    rows = [
        ("pixels, 8 bits", f"{measured['pixel_bytes']:.0f}", "lossless", "1"),
        ("PNG", f"{measured['png_bytes']:.0f}", "lossless", "1"),
        *((name, f"{one['bytes']:.0f}", f"{one['psnr_db']:.2f}", f"{one['ssim']:.4f}") for name, one in lossy.items()),
    ]
    yield "## As a codec"
    yield _table(("", "bytes an image", "PSNR dB", "SSIM"), rows)
    yield (
        f"Mean over {measured['images']:,} test images; of the JPEG files the smallest that reach the PSNR of the int8 "
        f"latents, or come nearest. {measured['jpeg_header_bytes']:.0f} bytes of a JPEG are headers and tables. A "
        f"latent is read by the decoder, which takes {measured['decoder_bytes'] / 1e6:.2f} MB, once. Scale and offset "
        "of the int8 latents are in the manifest, under `metrics.compression.quantisation`."
    )
