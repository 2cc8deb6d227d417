"""What the console draws of a version, without TensorFlow: the map, its directions, the traversals."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from service.schemas import InputSchema
from service.store import LATENT_MAP, TRAVERSALS
from service.training.evidence import (
    DIRECTIONS,
    MAX_POINTS,
    MAX_TILE,
    STEPS,
    find_directions,
    write_latent_map,
)

TABLE = InputSchema(kind="tabular", row_shape=(9,))


def latents(rows: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Latents whose first direction is by far the widest, and scores."""
    random = np.random.default_rng(0)
    drawn = random.normal(size=(rows, width)) * np.linspace(10, 1, width) + 3
    return drawn.astype(np.float32), random.uniform(size=rows).astype(np.float32)


def written(folder: Path) -> dict[str, list[float]]:
    content: dict[str, list[float]] = json.loads((folder / LATENT_MAP).read_text())
    return content


def test_directions_are_those_of_pca() -> None:
    """The same subspace and shares of variance as scikit-learn's."""
    from sklearn.decomposition import PCA

    rows = latents(400, 5)[0]
    found, known = find_directions(rows), PCA(5).fit(rows)
    assert np.abs(found.components @ known.components_.T) == pytest.approx(np.eye(5), abs=1e-3)
    assert found.explained == pytest.approx(known.explained_variance_ratio_, rel=1e-4)
    assert found.project(rows).std(axis=0, ddof=1) == pytest.approx(found.deviations, rel=1e-4)


def test_the_map_holds_so_many_points_and_no_more(tmp_path: Path) -> None:
    """A sample of many rows; t-SNE of a smaller one, as a part of it."""
    write_latent_map(tmp_path, *latents(MAX_POINTS + 500, 2), TABLE, decode=None, seed=0)
    content = written(tmp_path)
    assert len(content["x"]) == len(content["y"]) == len(content["score"]) == MAX_POINTS
    assert content["tsne"] is None  # two directions are the map already
    assert content["traversals"] is None


def test_a_latent_of_one_number_is_a_line(tmp_path: Path) -> None:
    """There is no second direction."""
    write_latent_map(tmp_path, *latents(60, 1), TABLE, decode=None, seed=0)
    assert set(written(tmp_path)["y"]) == {0.0}


def test_latents_that_do_not_vary_have_a_map_too(tmp_path: Path) -> None:
    """Finite numbers, whatever was trained."""
    same = np.ones((40, 3), np.float32), np.zeros(40, np.float32)
    write_latent_map(tmp_path, *same, TABLE, decode=None, seed=0)
    assert np.isfinite(written(tmp_path)["x"]).all()


def test_the_same_rows_and_seed_give_the_same_map(tmp_path: Path) -> None:
    """Byte for byte."""
    for name in ("one", "two"):
        write_latent_map(tmp_path / name, *latents(120, 4), TABLE, decode=None, seed=3)
    assert (tmp_path / "one" / LATENT_MAP).read_bytes() == (tmp_path / "two" / LATENT_MAP).read_bytes()


@pytest.mark.parametrize(("shape", "mode"), [((8, 8), "L"), ((130, 65, 3), "RGB"), ((28, 28, 1), "L")])
def test_traversals_are_what_the_decoder_makes_of_each_step(tmp_path: Path, shape: tuple[int, ...], mode: str) -> None:
    """A tile a step, brighter as the latent grows; large images are made smaller."""
    schema = InputSchema(kind="image", row_shape=shape, value_range=(0.0, 16.0))
    rows = latents(80, 8)
    directions = find_directions(rows[0])

    def decode(moved: NDArray[np.float32]) -> NDArray[np.float32]:
        along, up = ((moved - directions.mean) @ directions.components[:2].T / directions.deviations[:2]).T
        level = (8 + 2 * along + 0.6 * up).reshape(-1, *([1] * len(shape)))
        return np.broadcast_to(level, (len(moved), *shape)).astype(np.float32)

    write_latent_map(tmp_path, *rows, schema, decode=decode, seed=0)
    layout = json.loads((tmp_path / LATENT_MAP).read_text())["traversals"]
    assert (layout["directions"], layout["steps"]) == (DIRECTIONS, STEPS)
    assert max(layout["width"], layout["height"]) <= MAX_TILE
    with Image.open(tmp_path / TRAVERSALS) as sheet:
        assert sheet.mode == mode
        assert sheet.size == (layout["width"] * STEPS, layout["height"] * (DIRECTIONS + STEPS))
        grey = np.asarray(sheet.convert("L"))[:: layout["height"], :: layout["width"]].astype(int)
    assert (np.diff(grey[0]) > 0).all()
    assert np.ptp(grey[2:DIRECTIONS]) <= 1  # the other directions do not change what this decoder sees
    assert (np.diff(grey[DIRECTIONS:], axis=1) > 0).all()  # the plane, as the map shows it
    assert (np.diff(grey[DIRECTIONS:], axis=0) < 0).all()
    assert layout["plane_sd"] == pytest.approx(directions.deviations[:2], rel=1e-3)
