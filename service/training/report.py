"""What a run came to, in words: a table for the terminal and the model card. Imports no TensorFlow."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from service.codecs.answers import time_text
from service.schemas import Column, ColumnType, InputSchema
from service.store import Manifest
from service.training.data import Dataset
from service.training.gate import Decision

SPLITS = ("train", "validation", "test")
COLUMNS_SHOWN = 50
LABELS_SHOWN = 5
LABEL_SHOWN = 30


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
    threshold: float
    false_alarm_rate: float
    warnings: tuple[str, ...]
    seconds: float
    """From reading the rows to the published version."""
    decision: Decision | None = None
    """Whether it is in production now; None where nobody asked."""


def summary(result: TrainingResult) -> RenderableType:
    """Errors by split for the autoencoder and PCA, threshold, time and warnings; to be printed with rich."""
    errors = result.metrics["reconstruction_error"]
    table = Table(title=f"Model {result.model}, version {result.version}", title_justify="left")
    table.add_column("Mean squared error")
    for split in SPLITS:
        table.add_column(split, justify="right")
    for name, label in (("autoencoder", "autoencoder"), ("pca", f"PCA, {result.latent_dim} components")):
        table.add_row(label, *(f"{errors[name][split]:.5g}" for split in SPLITS))
    facts = [
        f"{_used(result.rows, result.total_rows)} rows of {result.source}, latent of {result.latent_dim}, "
        f"{result.metrics['epochs']} epochs (kept: {result.metrics['best_epoch']}), {result.seconds:.1f} s"
        f"{' on ' + result.metrics['device'] if result.metrics.get('device') else ''}",
        f"Threshold {result.threshold:.5g} for a false-alarm rate of {result.false_alarm_rate:g}; "
        f"on test rows {result.metrics['test_alarm_rate']:.4f}",
    ]
    if result.metrics.get("latent_reason"):
        facts.append(result.metrics["latent_reason"])
    if result.metrics["denoising"]:
        facts.append(_denoising(result.metrics["denoising"]))
    if result.metrics.get("compression"):
        facts.append(_compression(result.metrics["compression"]))
    lines = [Text(fact) for fact in facts]
    warnings = [Text(f"Warning: {warning}", style="yellow") for warning in result.warnings]
    return Group(table, *lines, *warnings, *_gate(result))


def _gate(result: TrainingResult) -> Iterator[RenderableType]:
    """The comparison with the version in production, and what came of it."""
    comparison = result.metrics.get("comparison")
    if comparison and (measures := compared(comparison)):
        table = Table(
            "",
            f"version {result.version}",
            f"version {comparison['production']}",
            title=f"Against production, on {comparison['rows']} held-back rows",
            title_justify="left",
        )
        for measure in measures:
            table.add_row(*measure)
        yield table
    if result.decision:
        yield Text(result.decision.sentence, style="green" if result.decision.promoted else "yellow")


def compared(comparison: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The measures of ``Comparison.record``: name, of the candidate, of the version in production."""
    pairs = (
        ("reconstruction error, raw values by their spread", "error", ".4g"),
        ("false-alarm rate", "alarm_rate", ".2%"),
        ("nominal false-alarm rate", "nominal", ".2%"),
        ("AUROC", "auroc", ".4f"),
        ("AUPR", "aupr", ".4f"),
    )
    found = [
        (label, format(comparison[name]["candidate"], form), format(comparison[name]["production"], form))
        for label, name, form in pairs
        if comparison[name]
    ]
    if comparison["rank_correlation"] is not None:
        found.append(("rank correlation of the scores", f"{comparison['rank_correlation']:.3f}", ""))
    if comparison["flags_differ"] is not None:
        found.append(("rows flagged by one alone", f"{comparison['flags_differ']:.2%}", ""))
    return found


def model_card(manifest: Manifest) -> str:
    """The model card, in Markdown. Leaves the version's number out: that is given after the files are complete."""
    sections = [
        f"# Model {manifest.model}",
        _what(manifest),
        "## Rows\n\n" + _rows(manifest),
        "## Quality\n\n" + _quality(manifest),
        *_against_production(manifest),
        "![Losses](plots/losses.png)\n![Reconstructions](plots/reconstructions.png)",
        *_optional("## As a codec", manifest.metrics.get("compression"), _compression_section),
        "## Calibration\n\n" + _calibration(manifest),
        "![Scores](plots/score_histogram.png)",
        "## Limits\n\n" + _limits(manifest),
        "## How to call it\n\n" + _call(manifest),
        "## Training\n\n" + _training(manifest),
    ]
    return "\n\n".join(sections) + "\n"


def _optional(title: str, measured: dict[str, Any] | None, section: Callable[[dict[str, Any]], str]) -> list[str]:
    return [f"{title}\n\n{section(measured)}"] if measured else []


def _what(manifest: Manifest) -> str:
    latent = f"from {_features(manifest.input)} values to a latent of {manifest.latent_dim} and back"
    text = f"An autoencoder {latent}, trained on `{manifest.source}` on {manifest.created:%Y-%m-%d}."
    if manifest.metrics.get("latent_reason"):
        text += f" {manifest.metrics['latent_reason']}"
    if manifest.corruption is None:
        return text + " It was trained without noise and does not denoise."
    noise = manifest.corruption
    return text + f" It was trained to remove {noise.kind.replace('_', '-')} noise of level {noise.level:g}."


def _rows(manifest: Manifest) -> str:
    counts = manifest.row_counts
    lines = [
        f"Kind: {manifest.input.kind}, shape of a row {list(manifest.input.row_shape)}.",
        f"{counts.train} rows were fitted, {counts.validation} stopped the training, {counts.calibration} were held "
        f"back for calibration and {counts.test} tested the result; no row is in two of these.",
        *_sampled(manifest),
        f"SHA-256 of all rows: `{manifest.source_sha256}`.",
    ]
    return "\n".join(lines) + _columns(manifest.input)


def _sampled(manifest: Manifest) -> list[str]:
    if manifest.source_rows is None:
        return []
    used = sum(manifest.row_counts.model_dump().values())
    return [f"They are a uniform sample of {used:,} of the {manifest.source_rows:,} rows of the source."]


def _columns(schema: InputSchema) -> str:
    if not schema.columns:
        return ""
    lines = ["", "", "| Column | Type | May be missing | Range or labels |", "|---|---|---|---|"]
    for column in schema.columns[:COLUMNS_SHOWN]:
        name = column.name.replace("|", "\\|").replace("\n", " ")
        values = describe_values(column).replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {name} | {column.type} | {'yes' if column.may_be_missing else 'no'} | {values} |")
    if len(schema.columns) > COLUMNS_SHOWN:
        lines.append(f"\n… and {len(schema.columns) - COLUMNS_SHOWN} more.")
    return "\n".join(lines)


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


def _quality(manifest: Manifest) -> str:
    errors = manifest.metrics["reconstruction_error"]
    lines = [
        "Mean squared reconstruction error in scaled units; PCA has as many components as the latent is wide.",
        "",
        "| | train | validation | test |",
        "|---|---|---|---|",
        *(
            f"| {label} | {' | '.join(f'{errors[name][split]:.5g}' for split in SPLITS)} |"
            for name, label in (("autoencoder", "autoencoder"), ("pca", "PCA"))
        ),
    ]
    if manifest.metrics["denoising"]:
        lines += ["", _denoising(manifest.metrics["denoising"])]
    lines += ["", *(f"- Warning: {warning}" for warning in manifest.warnings)] if manifest.warnings else []
    return "\n".join(lines)


def _against_production(manifest: Manifest) -> Iterator[str]:
    comparison = manifest.metrics.get("comparison")
    if comparison is None:
        return
    yield f"## Against version {comparison['production']}, in production at the time"
    measures = compared(comparison)
    if measures:
        head = ["| | this version | production |", "|---|---|---|"]
        yield "\n".join([*head, *(f"| {' | '.join(measure)} |" for measure in measures)])
        yield f"On {comparison['rows']} held-back rows, both through their SavedModels."
    yield "\n".join(f"- {reason}" for reason in comparison["worse"]) or "It is not worse."


def _denoising(metrics: dict[str, Any]) -> str:
    text = f"Noise on test rows: mean squared error {metrics['noisy']:.4g} before, {metrics['denoised']:.4g} after"
    if metrics["noisy_psnr_db"] is None:
        return f"{text}."
    return f"{text} (PSNR {metrics['noisy_psnr_db']:.2f} dB before, {metrics['denoised_psnr_db']:.2f} dB after)."


def _compression(measured: dict[str, Any]) -> str:
    """Latents as int8 against PNG and JPEG, in a sentence."""
    int8, float32, jpeg = (measured[name] for name in ("int8", "float32", "jpeg"))
    return (
        f"As a codec: a latent is {int8['bytes']:.0f} bytes as int8, {int8['psnr_db']:.2f} dB PSNR "
        f"({int8['psnr_db'] - float32['psnr_db']:+.3f} dB against float32); PNG {measured['png_bytes']:.0f} bytes, "
        f"JPEG {jpeg['bytes']:.0f} bytes at {jpeg['psnr_db']:.2f} dB."
    )


def _compression_section(measured: dict[str, Any]) -> str:
    rows = [
        ("pixels, 8 bits", {"bytes": measured["pixel_bytes"]}),
        ("PNG", {"bytes": measured["png_bytes"]}),
        (f"JPEG, quality {measured['jpeg_quality']}", measured["jpeg"]),
        ("latent, float32", measured["float32"]),
        ("latent, int8", measured["int8"]),
    ]
    lines = [
        f"Mean over {measured['images']} test images; of the JPEG files the smallest that reach the PSNR of the int8 "
        "latents, or come nearest.",
        "",
        "| | bytes an image | PSNR dB | SSIM |",
        "|---|---|---|---|",
        *(
            f"| {name} | {row['bytes']:.0f} | {row['psnr_db']:.2f} | {row['ssim']:.4f} |"
            if "psnr_db" in row
            else f"| {name} | {row['bytes']:.0f} | lossless | 1 |"
            for name, row in rows
        ),
        "",
        f"{measured['jpeg_header_bytes']:.0f} bytes of a JPEG are headers and tables. A latent is read by the "
        f"decoder, which takes {measured['decoder_bytes'] / 1e6:.2f} MB, once. Scale and offset of the int8 "
        "latents are in the manifest, under `metrics.compression.quantisation`.",
    ]
    return "\n".join(lines)


def _calibration(manifest: Manifest) -> str:
    calibration = manifest.calibration
    return (
        f"The threshold {calibration.threshold:.6g} was taken from the scores of {calibration.rows} calibration rows "
        f"for a false-alarm rate of {calibration.false_alarm_rate:g}. "
        f"Of the test rows {manifest.metrics['test_alarm_rate']:.2%} were over it. "
        "p-values are conformal: a normal row gets one of at most *a* with a probability of at most *a*."
    )


def _limits(manifest: Manifest) -> str:
    return "\n".join(
        [
            "- All training rows were taken for normal. What was common there does not look anomalous.",
            "- The false-alarm rate holds for rows from the same source as the training rows; when the source changes, "
            "train again.",
            "- A p-value says how unusual a row is, not that something is wrong with it, nor how bad that would be.",
            f"- Values farther than ten {'value ranges' if manifest.input.kind == 'image' else 'standard deviations'} "
            "out count by their logarithm.",
        ]
    )


def _call(manifest: Manifest) -> str:
    return "\n".join(
        [
            "A valid request body is in `sample_request.json`:",
            "",
            "```",
            f"curl -s localhost:8000/models/{manifest.model}/anomaly-score "
            "-H 'content-type: application/json' -d @sample_request.json",
            "```",
            "",
            f"Signatures of the SavedModel: {', '.join(f'`{name}`' for name in manifest.signatures)}; "
            "`serving_default` is `anomaly_score`. They take raw values: scaling and gaps are handled inside.",
        ]
    )


def _training(manifest: Manifest) -> str:
    settings = [f"| {name} | {value} |" for name, value in manifest.training.items()]
    libraries = ", ".join(f"{name} {version}" for name, version in manifest.libraries.items())
    return "\n".join(["| Setting | Value |", "|---|---|", *settings, "", f"Made with {libraries}."])


def _features(schema: InputSchema) -> int:
    features = 1
    for size in schema.row_shape:
        features *= size
    return features
