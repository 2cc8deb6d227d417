"""Facts of a version from rows that it was not fitted on, as its exported signatures give them to any caller.

The report, the plots and the console draw them. Beside the plots the latent map is written, as small JSON and one PNG.
Imports no TensorFlow.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from service.codecs.answers import label_text
from service.runtime.loaded_model import LoadedModel
from service.schemas import (
    CATEGORIES,
    INSTANCES,
    TIMESTAMPS,
    ColumnType,
    InputSchema,
    Results,
    Rows,
    take_rows,
    times_as_numbers,
)
from service.scoring import conformal_threshold
from service.store import HISTORY, LATENT_MAP, TRAVERSALS
from service.training.gate import run_version, spreads
from service.words import ANOMALY_SCORE, ENCODE, RECONSTRUCT

if TYPE_CHECKING:
    from service.training.fit import History

SHOWN_ROWS = 6
"""Rows drawn of the best and of the worst each."""
MAX_POINTS = 10_000
MAX_TSNE_POINTS = 1_000
TSNE_STEPS = 500
MIN_TSNE_POINTS = 50
MAX_COMPONENTS = 16
"""Most principal directions that are kept; t-SNE and the placing of other rows use no more."""
DIRECTIONS = 6
STEPS = 13
LIMIT_SD = 3.0
MAX_TILE = 64
"""Pixels of the longer side of one image in the picture of the traversals."""
DIGITS = 5
"""Significant digits of what is drawn."""


@dataclass(frozen=True, slots=True)
class FeatureError:
    """How well one column comes back. ``is_label``: a share of labels missed; else error over variance."""

    name: str
    error: float
    is_label: bool = False


@dataclass(frozen=True, slots=True)
class Cell:
    """One value of a row, as people read it."""

    column: str
    observed: str
    reconstructed: str
    surprise: float
    """How far they are apart, in units of the column's spread; 1 for another label."""


@dataclass(frozen=True, slots=True)
class Block:
    """Columns of one kind: observed and reconstructed values, both (rows, columns), and how one is written."""

    names: tuple[str, ...]
    observed: NDArray[Any]
    rebuilt: NDArray[Any]
    write: Callable[[Any], str]
    is_label: bool = False

    def distances(self) -> NDArray[np.float64]:
        """How far each value is missed, in spreads of its column; 1 for another label, NaN where it is missing."""
        if self.is_label:
            return np.asarray(self.observed != self.rebuilt, np.float64)
        return np.asarray(np.abs(self.rebuilt - self.observed) / spreads(self.observed))


@dataclass(frozen=True, slots=True)
class PrincipalDirections:
    """The principal directions of the latents, the widest first."""

    mean: NDArray[np.float64]
    """(latent_dim,)."""
    components: NDArray[np.float64]
    """(directions, latent_dim), of length 1."""
    deviations: NDArray[np.float64]
    """(directions,): standard deviation along each."""
    explained: NDArray[np.float64]
    """(directions,): share of the variance along each."""

    def project(self, latents: NDArray[np.float32]) -> NDArray[np.float64]:
        """(rows, directions)."""
        projected: NDArray[np.float64] = (latents - self.mean) @ self.components.T
        return projected


@dataclass(frozen=True, slots=True)
class Evidence:
    """Test rows and the version's answers to them; all arrays have the rows first."""

    schema: InputSchema
    rows: Rows
    rebuilt: Results
    """``reconstruction`` and, for labels and times, ``reconstruction_categories`` and ``reconstruction_timestamps``."""
    scores: NDArray[np.float32]
    p_values: NDArray[np.float32]
    latents: NDArray[np.float32]
    """Latents of the test rows, then of the other rows that were not fitted."""
    latent_scores: NDArray[np.float32]
    """Anomaly scores of the same rows."""

    @property
    def count(self) -> int:
        return len(self.scores)

    @property
    def by_error(self) -> NDArray[np.intp]:
        """Row indices, the best reconstructed first."""
        return np.argsort(self.rebuilt["error"], kind="stable")

    @property
    def best(self) -> NDArray[np.intp]:
        return self.by_error[:SHOWN_ROWS]

    @property
    def worst(self) -> NDArray[np.intp]:
        return self.by_error[::-1][:SHOWN_ROWS]

    def pixel_error_limit(self, false_alarm_rate: float) -> float | None:
        """The squared error, in raw units and summed over channels, that the worst pixel of an ordinary image exceeds
        with a probability of at most ``false_alarm_rate``; None where rows are no images.
        """
        if self.schema.kind != "image":
            return None
        height, width = self.schema.row_shape[:2]
        squares = np.square(self.rows[INSTANCES].astype(np.float64) - self.rebuilt["reconstruction"])
        largest = squares.reshape(self.count, height * width, -1).sum(axis=2).max(axis=1)
        return float(conformal_threshold(largest, false_alarm_rate))


def gather(version: LoadedModel, rows: Rows, *, test_rows: int) -> Evidence:
    """Run the version on raw rows that it was not fitted on, of which the first ``test_rows`` are the test rows."""
    judged = run_version(version, ANOMALY_SCORE.name, rows)
    test = take_rows(rows, slice(test_rows))
    return Evidence(
        schema=version.schema,
        rows=test,
        rebuilt=run_version(version, RECONSTRUCT.name, test),
        scores=judged["score"][:test_rows],
        p_values=judged["p_value"][:test_rows],
        latents=run_version(version, ENCODE.name, rows)["latent"],
        latent_scores=judged["score"],
    )


# --- by column --------------------------------------------------------------------------------------------------------


def feature_errors(evidence: Evidence) -> list[FeatureError]:
    """The error of each column, the worst first, labels last; none for the pixels of an image, which have no names."""
    if evidence.schema.kind == "image":
        return []
    found = []
    for block in blocks(evidence):
        means = np.ma.filled(np.ma.masked_invalid(np.square(block.distances())).mean(axis=0), 0.0)
        found += [
            FeatureError(name, float(mean), block.is_label) for name, mean in zip(block.names, means, strict=True)
        ]
    return sorted(found, key=lambda feature: (feature.is_label, -feature.error))


def cells(evidence: Evidence, row: int) -> list[Cell]:
    """The values of one row of a table, those farthest from their reconstruction first."""
    found = []
    for block in blocks(evidence):
        values = zip(
            block.names, block.observed[row], block.rebuilt[row], np.nan_to_num(block.distances()[row]), strict=True
        )
        found += [Cell(name, block.write(one), block.write(other), float(far)) for name, one, other, far in values]
    return sorted(found, key=lambda cell: -cell.surprise)


def blocks(evidence: Evidence) -> Iterator[Block]:
    """Numbers (of a series: its channels), labels, times; what the version does not reconstruct is left out."""
    inputs, rebuilt = evidence.rows, evidence.rebuilt
    if INSTANCES in inputs and "reconstruction" in rebuilt:
        width = inputs[INSTANCES].shape[-1]
        named = evidence.schema.channels or _names(evidence.schema, ColumnType.NUMERIC, ColumnType.BOOLEAN)
        yield Block(
            named if len(named) == width else tuple(f"value {number}" for number in range(1, width + 1)),
            inputs[INSTANCES].reshape(-1, width).astype(np.float64),
            rebuilt["reconstruction"].reshape(-1, width).astype(np.float64),
            lambda value: "missing" if np.isnan(value) else f"{value:.4g}",
        )
    labels, times = f"reconstruction_{CATEGORIES}", f"reconstruction_{TIMESTAMPS}"
    if CATEGORIES in inputs and labels in rebuilt:
        names = _names(evidence.schema, ColumnType.CATEGORICAL)
        yield Block(
            names, inputs[CATEGORIES], rebuilt[labels], lambda label: label_text(label) or "missing", is_label=True
        )
    if TIMESTAMPS in inputs and times in rebuilt:
        names = _names(evidence.schema, ColumnType.TIMESTAMP)
        yield Block(names, times_as_numbers(inputs[TIMESTAMPS]), times_as_numbers(rebuilt[times]), _time)


def _names(schema: InputSchema, *types: ColumnType) -> tuple[str, ...]:
    return tuple(column.name for column in schema.columns_of(*types))


def _time(milliseconds: float) -> str:
    if np.isnan(milliseconds):
        return "missing"
    return str(np.datetime64(int(milliseconds), "ms").astype("datetime64[s]")).replace("T", " ")


# --- latent space -----------------------------------------------------------------------------------------------------


def write_history(folder: Path, history: "History") -> None:
    """Write the losses by epoch."""
    losses = {"train_loss": _short(history.train_loss), "validation_loss": _short(history.validation_loss)}
    _write(folder / HISTORY, {**losses, "best_epoch": history.best_epoch})


def write_latent_map(
    folder: Path,
    latents: NDArray[np.float32],
    scores: NDArray[np.float32],
    schema: InputSchema,
    *,
    decode: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None,
    seed: int,
) -> None:
    """Write the map of latents (rows, latent_dim) with their scores, and the picture of the traversals.

    Args:
        decode: makes raw images of latents; None: no traversals.
    """
    (folder / LATENT_MAP).parent.mkdir(parents=True, exist_ok=True)
    directions = find_directions(latents)
    random = np.random.default_rng([seed, 3])
    chosen = _sample(len(latents), MAX_POINTS, random)
    projected = directions.project(latents[chosen])
    traversals = None
    if decode is not None and image_shape(schema) is not None:
        traversals = _write_traversals(folder / TRAVERSALS, directions, schema, decode)
    content = {
        "latent_dim": latents.shape[1],
        "mean": _short(directions.mean),
        "components": [_short(component) for component in directions.components],
        "explained": _short(directions.explained),
        "score": _short(scores[chosen]),
        "x": _short(projected[:, 0]),
        "y": _short(projected[:, 1]) if projected.shape[1] > 1 else [0.0] * len(projected),
        "tsne": _tsne(projected, random, seed=seed),
        "traversals": traversals,
    }
    _write(folder / LATENT_MAP, content)


def find_directions(latents: NDArray[np.float32]) -> PrincipalDirections:
    """Principal component analysis of latents (rows, latent_dim); at most ``MAX_COMPONENTS`` directions."""
    mean = latents.mean(axis=0, dtype=np.float64)
    centred = latents - mean
    _, singular, components = np.linalg.svd(centred, full_matrices=False)
    # The sign of a direction is arbitrary; its largest part is made positive, so that the same run gives the same map.
    largest = np.abs(components).argmax(axis=1)
    components *= np.sign(components[np.arange(len(components)), largest])[:, None] + 0.0
    variances = singular**2 / max(1, len(latents) - 1)
    kept = slice(0, MAX_COMPONENTS)
    explained = variances / max(float(variances.sum()), 1e-30)
    return PrincipalDirections(mean, components[kept], np.sqrt(variances[kept]), explained[kept])


def image_shape(schema: InputSchema) -> tuple[int, int, int] | None:
    """Height, width and channels of what can be drawn as an image."""
    shape = schema.row_shape if schema.kind == "image" else ()
    if len(shape) == 2:
        return shape[0], shape[1], 1
    return (shape[0], shape[1], shape[2]) if len(shape) == 3 and shape[2] in {1, 3} else None


def _sample(rows: int, limit: int, random: np.random.Generator) -> NDArray[np.intp]:
    return np.sort(random.choice(rows, limit, replace=False)) if rows > limit else np.arange(rows)


def _tsne(projected: NDArray[np.float64], random: np.random.Generator, *, seed: int) -> dict[str, Any] | None:
    """t-SNE of a sample of the map's points, with their projections, by which another row finds its neighbours."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    chosen = _sample(len(projected), MAX_TSNE_POINTS, random)
    if len(chosen) < MIN_TSNE_POINTS or projected.shape[1] < 3:
        return None
    tsne = TSNE(2, init="pca", perplexity=min(30, len(chosen) // 4), max_iter=TSNE_STEPS, random_state=seed)
    # Its threads wait for each other a thousand times: on a busy machine two take a hundred times as long as one.
    with threadpool_limits(1):
        placed = tsne.fit_transform(projected[chosen].astype(np.float32))
    return {
        "point": chosen.tolist(),
        "x": _short(placed[:, 0]),
        "y": _short(placed[:, 1]),
        "projected": [_short(row, digits=4) for row in projected[chosen]],
    }


def _write_traversals(
    path: Path,
    directions: PrincipalDirections,
    schema: InputSchema,
    decode: Callable[[NDArray[np.float32]], NDArray[np.float32]],
) -> dict[str, Any]:
    """A picture of decoded latents, from -3 to +3 standard deviations about the mean latent.

    A line for each direction, then the plane of the first two, as the map shows it: a line for each step along the
    second, the highest first.
    """
    from PIL import Image

    components, deviations = directions.components[:DIRECTIONS], directions.deviations[:DIRECTIONS]
    steps = np.linspace(-LIMIT_SD, LIMIT_SD, STEPS)
    moves = deviations[:, None] * components
    moved = (steps[None, :, None] * moves[:, None, :]).reshape(-1, moves.shape[1])
    has_plane = len(moves) > 1
    if has_plane:
        across, up = np.meshgrid(steps, steps[::-1])
        moved = np.concatenate([moved, np.stack([across, up], axis=2).reshape(-1, 2) @ moves[:2]])
    images = decode((moved + directions.mean).astype(np.float32))
    height, width, channels = image_shape(schema) or (1, 1, 1)
    low, high = schema.value_range or (float(images.min()), float(images.max()))
    levels = np.clip((images - low) / max(high - low, 1e-30), 0, 1).reshape(-1, height, width, channels)
    pixels = np.rint(levels * 255).astype(np.uint8)
    scale = min(1.0, MAX_TILE / max(height, width))
    tile = (max(1, round(width * scale)), max(1, round(height * scale)))
    sheet = Image.new("RGB" if channels == 3 else "L", (tile[0] * STEPS, tile[1] * (len(images) // STEPS)))
    for number, image in enumerate(pixels):
        drawn = Image.fromarray(image if channels == 3 else image[..., 0])
        if scale < 1:
            drawn = drawn.resize(tile, Image.Resampling.LANCZOS)
        sheet.paste(drawn, (number % STEPS * tile[0], number // STEPS * tile[1]))
    sheet.save(path, format="PNG", optimize=True)
    layout = {"directions": len(components), "steps": STEPS, "limit_sd": LIMIT_SD, "width": tile[0], "height": tile[1]}
    return {**layout, "plane_sd": _short(deviations[:2]) if has_plane else None}


def _short(values: Any, *, digits: int = DIGITS) -> list[float]:
    return [float(f"{value:.{digits}g}") for value in np.asarray(values, np.float64).tolist()]


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, allow_nan=False, separators=(",", ":")) + "\n", encoding="utf-8")
