"""What a run came to, in words: a table for the terminal and the model card. Imports no TensorFlow."""

from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from service.schemas import InputSchema
from service.store import Manifest

SPLITS = ("train", "validation", "test")
COLUMNS_SHOWN = 50


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """A published version. ``metrics`` is the manifest's."""

    model: str
    version: int
    source: str
    rows: int
    latent_dim: int
    metrics: dict[str, Any]
    threshold: float
    false_alarm_rate: float
    warnings: tuple[str, ...]
    seconds: float
    """From reading the rows to the published version."""


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
        f"{result.rows} rows of {result.source}, latent of {result.latent_dim}, "
        f"{result.metrics['epochs']} epochs (kept: {result.metrics['best_epoch']}), {result.seconds:.1f} s",
        f"Threshold {result.threshold:.5g} for a false-alarm rate of {result.false_alarm_rate:g}; "
        f"on test rows {result.metrics['test_alarm_rate']:.4f}",
    ]
    if result.metrics["denoising"]:
        facts.append(_denoising(result.metrics["denoising"]))
    lines = [Text(fact) for fact in facts]
    warnings = [Text(f"Warning: {warning}", style="yellow") for warning in result.warnings]
    return Group(table, *lines, *warnings)


def model_card(manifest: Manifest) -> str:
    """The model card, in Markdown. Leaves the version's number out: that is given after the files are complete."""
    sections = [
        f"# Model {manifest.model}",
        _what(manifest),
        "## Rows\n\n" + _rows(manifest),
        "## Quality\n\n" + _quality(manifest),
        "![Losses](plots/losses.png)\n![Reconstructions](plots/reconstructions.png)",
        "## Calibration\n\n" + _calibration(manifest),
        "![Scores](plots/score_histogram.png)",
        "## Limits\n\n" + _limits(manifest),
        "## How to call it\n\n" + _call(manifest),
        "## Training\n\n" + _training(manifest),
    ]
    return "\n\n".join(sections) + "\n"


def _what(manifest: Manifest) -> str:
    latent = f"from {_features(manifest.input)} values to a latent of {manifest.latent_dim} and back"
    text = f"An autoencoder {latent}, trained on `{manifest.source}` on {manifest.created:%Y-%m-%d}."
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
        f"SHA-256 of all rows: `{manifest.source_sha256}`.",
    ]
    return "\n".join(lines) + _columns(manifest.input)


def _columns(schema: InputSchema) -> str:
    if not schema.columns:
        return ""
    lines = ["", "", "| Column | Type | May be missing | Smallest | Greatest |", "|---|---|---|---|---|"]
    for column in schema.columns[:COLUMNS_SHOWN]:
        name = column.name.replace("|", "\\|").replace("\n", " ")
        ends = " | ".join("" if end is None else f"{end:g}" for end in (column.minimum, column.maximum))
        lines.append(f"| {name} | {column.type} | {'yes' if column.may_be_missing else 'no'} | {ends} |")
    if len(schema.columns) > COLUMNS_SHOWN:
        lines.append(f"\n… and {len(schema.columns) - COLUMNS_SHOWN} more.")
    return "\n".join(lines)


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


def _denoising(metrics: dict[str, Any]) -> str:
    text = f"Noise on test rows: mean squared error {metrics['noisy']:.4g} before, {metrics['denoised']:.4g} after"
    if metrics["noisy_psnr_db"] is None:
        return f"{text}."
    return f"{text} (PSNR {metrics['noisy_psnr_db']:.2f} dB before, {metrics['denoised_psnr_db']:.2f} dB after)."


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
