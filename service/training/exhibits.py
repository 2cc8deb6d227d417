"""What the console draws of a version: its losses, where rows lie in the latent space, what lies along its directions.

Written beside the plots, as small JSON and one PNG.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from service.schemas import InputSchema, Rows
from service.store import HISTORY, LATENT_MAP, TRAVERSALS

if TYPE_CHECKING:
    from service.training.fit import History
    from service.training.graph import ServingGraph

MAX_POINTS = 10_000
MAX_TSNE_POINTS = 1_000
MIN_TSNE_POINTS = 50
MAX_COMPONENTS = 16
"""Of the principal directions that are kept; t-SNE and the placing of other rows use no more."""
DIRECTIONS = 6
STEPS = 13
LIMIT_SD = 3.0
MAX_TILE = 64
"""Pixels of the longer side of one image in the picture of the traversals."""
DIGITS = 5
"""Significant digits of what is drawn."""


@dataclass(frozen=True, slots=True)
class LatentRows:
    """Rows that the training never fitted, as the model sees them."""

    latents: NDArray[np.float32]
    """(rows, latent_dim)."""
    scores: NDArray[np.float32]
    """(rows,)."""


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


def write_exhibits(folder: Path, graph: "ServingGraph", history: "History", rows: Rows, *, seed: int) -> None:
    """Write all of them for a trained model. ``rows`` are raw."""
    from service.training.evaluate import decode, encode, score_rows

    losses = {"train_loss": _short(history.train_loss), "validation_loss": _short(history.validation_loss)}
    _write(folder / HISTORY, {**losses, "best_epoch": history.best_epoch})
    drawn = LatentRows(latents=encode(graph, rows), scores=score_rows(graph, rows))
    draws = (lambda latents: decode(graph, latents)) if image_shape(graph.schema) is not None else None
    write_latent_map(folder, drawn, graph.schema, decode=draws, seed=seed)


def write_latent_map(
    folder: Path,
    rows: LatentRows,
    schema: InputSchema,
    *,
    decode: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None,
    seed: int,
) -> None:
    """Write the map of ``rows`` and, where ``decode`` makes raw images of latents, the picture of the traversals."""
    (folder / LATENT_MAP).parent.mkdir(parents=True, exist_ok=True)
    directions = find_directions(rows.latents)
    random = np.random.default_rng([seed, 3])
    chosen = _sample(len(rows.latents), MAX_POINTS, random)
    projected = directions.project(rows.latents[chosen])
    traversals = None
    if decode is not None and image_shape(schema) is not None:
        traversals = _write_traversals(folder / TRAVERSALS, directions, schema, decode)
    content = {
        "latent_dim": rows.latents.shape[1],
        "mean": _short(directions.mean),
        "components": [_short(component) for component in directions.components],
        "explained": _short(directions.explained),
        "score": _short(rows.scores[chosen]),
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
    tsne = TSNE(2, init="pca", perplexity=min(30, len(chosen) // 4), random_state=seed)
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
    """A picture of decoded latents, a line a direction: from -3 to +3 standard deviations about the mean latent."""
    from PIL import Image

    components, deviations = directions.components[:DIRECTIONS], directions.deviations[:DIRECTIONS]
    steps = np.linspace(-LIMIT_SD, LIMIT_SD, STEPS)
    moved = steps[None, :, None] * (deviations[:, None] * components)[:, None, :] + directions.mean
    images = decode(moved.reshape(-1, moved.shape[-1]).astype(np.float32))
    height, width, channels = image_shape(schema) or (1, 1, 1)
    low, high = schema.value_range or (float(images.min()), float(images.max()))
    levels = np.clip((images - low) / max(high - low, 1e-30), 0, 1).reshape(-1, height, width, channels)
    pixels = np.rint(levels * 255).astype(np.uint8)
    scale = min(1.0, MAX_TILE / max(height, width))
    tile = (max(1, round(width * scale)), max(1, round(height * scale)))
    sheet = Image.new("RGB" if channels == 3 else "L", (tile[0] * STEPS, tile[1] * len(components)))
    for number, image in enumerate(pixels):
        drawn = Image.fromarray(image if channels == 3 else image[..., 0])
        if scale < 1:
            drawn = drawn.resize(tile, Image.Resampling.LANCZOS)
        sheet.paste(drawn, (number % STEPS * tile[0], number // STEPS * tile[1]))
    sheet.save(path, format="PNG", optimize=True)
    return {"directions": len(components), "steps": STEPS, "limit_sd": LIMIT_SD, "width": tile[0], "height": tile[1]}


def _short(values: Any, *, digits: int = DIGITS) -> list[float]:
    return [float(f"{value:.{digits}g}") for value in np.asarray(values, np.float64).tolist()]


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, allow_nan=False, separators=(",", ":")) + "\n", encoding="utf-8")
