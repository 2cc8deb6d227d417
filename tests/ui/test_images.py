"""Images in the console: files as the service reads them, where an error is, and an imported model of images."""

import csv
import io
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from service.codecs.pixels import open_picture
from service.settings import Settings
from service.store import Store
from tests.api.samples import digits
from tests.live import LiveService, serve_live
from tests.training.networks import rows_of
from tests.ui.conftest import SIZES, OpenPage
from tests.ui.test_console import serious_faults, settled, until, verdict

pytestmark = [pytest.mark.tf, pytest.mark.slow]

SHAPE, LATENT = (6, 9, 3), 8
ORIENTATION = 0x0112
LIGHTEST = 200
"""Red of the heat map beyond what ordinary images have."""


@pytest.fixture(scope="module")
def swatches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    """A service of ``swatches`` 1, a Keras model of colour images that was made elsewhere and imported."""
    from sklearn.decomposition import PCA

    from service import publish
    from service.runtime.quiet import keras

    layers, features = keras.layers, int(np.prod(SHAPE))
    inner = [layers.Flatten(), layers.Dense(LATENT, name="code"), layers.Dense(features), layers.Reshape(SHAPE)]
    network = keras.Sequential([layers.Input(SHAPE), *inner])
    scaled = rows_of(SHAPE, 800)
    pca = PCA(LATENT, random_state=0).fit(scaled.reshape(-1, features))
    axes = pca.components_
    network.set_weights([axes.T, -axes @ pca.mean_, axes, pca.mean_])
    root = tmp_path_factory.mktemp("swatches")
    publish(network, (255 * scaled).astype(np.uint8), store=root, model="swatches", scale="0-255")
    with serve_live(Settings(store=root, port=0)) as live:
        yield live


def image_files() -> dict[str, bytes]:
    """Random images of the model's size: turned in every way that Exif knows, transparent, grey."""
    random = np.random.default_rng(0)
    found = {}
    for orientation in range(1, 9):
        size = SHAPE[:2] if orientation < 5 else SHAPE[1::-1]
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        for kind in ("png", "jpeg"):
            picture = Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8))
            found[f"{orientation}.{kind}"] = encoded(picture, kind, exif=exif)
    found["transparent.png"] = encoded(Image.fromarray(random.integers(0, 256, (*SHAPE[:2], 4), dtype=np.uint8)), "png")
    found["grey.png"] = encoded(Image.fromarray(random.integers(0, 256, SHAPE[:2], dtype=np.uint8)), "png")
    return found


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    picture.save(sink, kind, **options)
    return sink.getvalue()


def as_png(row: NDArray[Any]) -> bytes:
    """A file of levels from 0 to 1."""
    return encoded(Image.fromarray(np.rint(255 * row).astype(np.uint8)), "png")


def uploads(files: dict[str, bytes]) -> list[Any]:
    return [{"name": name, "mimeType": "", "buffer": content} for name, content in files.items()]


def open_files(page: Page, service: LiveService, view: str) -> None:
    page.goto(f"{service.url}/ui#/try/{view}")
    settled(page, "Try it")
    page.get_by_role("tab", name="Files").click()


def reds(canvas: Locator) -> NDArray[np.int64]:
    """The red parts of a canvas."""
    script = (
        "(canvas) => [canvas.height, [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data]]"
    )
    height, values = canvas.evaluate(script)
    return np.array(values).reshape(height, -1, 4)[..., 0]


# --- files ------------------------------------------------------------------------------------------------------------


def test_files_give_the_pixels_that_the_service_reads(swatches: LiveService, open_page: OpenPage) -> None:
    """Upright as Exif says and exact to the bit: what the page sends, and the score of the file itself."""
    files = image_files()
    sent: list[Any] = []
    page = open_page(f"{swatches.url}/ui")
    page.on("request", lambda request: sent.append(request.post_data_json) if "anomaly-score" in request.url else None)
    open_files(page, swatches, "swatches")
    page.get_by_label("Image file").set_input_files(uploads(files))
    expect(page.get_by_text(re.compile(rf"of {len(files)} images flagged"))).to_be_visible()
    rows = next(each["instances"] for each in sent if len(each["instances"]) == len(files))
    for (name, content), row in zip(files.items(), rows, strict=True):
        wanted = open_picture(content, ("PNG", "JPEG"), 10_000).levels(3) * 255
        np.testing.assert_array_equal(np.array(row, np.float32), wanted.astype(np.float32), err_msg=name)
        kind = "image/jpeg" if name.endswith("jpeg") else "image/png"
        alone = swatches.post("/anomaly-score", content=content, headers={"Content-Type": kind}).json()
        shown = page.get_by_title(name, exact=True)
        expect(shown).to_contain_text(f"score {alone['scores'][0]:.3g}".removesuffix("0"))


@pytest.mark.parametrize(("size", "theme"), [("desktop", "light"), ("phone", "dark")])
def test_many_files_are_sorted_by_score(
    service: LiveService, open_page: OpenPage, size: str, theme: str, tmp_path: Path
) -> None:
    """What is no image is left out and named; each can be opened, the strangest is; all scores can be saved."""
    rows = digits(30) / 16
    rows[17, 1:7, :] = 1 - rows[17, 1:7, :]
    files = {f"digit-{at}.png": as_png(row) for at, row in enumerate(rows)}
    page = open_page(f"{service.url}/ui", size=size, theme=theme)
    open_files(page, service, "digits/2")
    page.get_by_label("Image file").set_input_files(uploads({**files, "notes.txt": b"no image"}))
    expect(page.get_by_text(re.compile(r"of 30 images flagged, the strangest first"))).to_be_visible()
    expect(page.get_by_text("1 file left out, which the browser cannot read as images: notes.txt")).to_be_visible()
    tiles = page.locator(".gallery button")
    expect(tiles).to_have_count(30)
    expect(tiles.first).to_have_attribute("title", "digit-17.png")
    expect(tiles.first).to_have_attribute("aria-pressed", "true")
    expect(verdict(page)).to_contain_text("Flagged as an anomaly")
    tiles.last.click()
    expect(verdict(page)).to_contain_text("Ordinary")
    shown = page.get_by_role("img", name="Input", exact=True)
    name = tiles.last.get_attribute("title") or ""
    wanted = np.rint(255 * rows[int(re.sub(r"\D", "", name))])
    until(lambda: bool((np.abs(reds(shown) - wanted) <= 1).all()))
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
    assert not serious_faults(page)
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save all scores as CSV").click()
    lines = list(csv.DictReader(Path(saved.value.path()).read_text().splitlines()))
    scores = [float(line["score"]) for line in lines]
    assert len(lines) == 30
    assert scores == sorted(scores, reverse=True)
    assert lines[0]["file"] == "digit-17.png"


def test_a_folder_is_scored_in_pieces(service: LiveService, open_page: OpenPage, tmp_path: Path) -> None:
    """With all that lies below it, by its path; some at a time are shown; one can be stopped half-way."""
    folder = tmp_path / "scans"
    (folder / "night").mkdir(parents=True)
    rows = digits(80) / 16
    for at, row in enumerate(rows):
        (folder / ("night" if at % 2 else "") / f"{at}.png").write_bytes(as_png(row))
    page = open_page(f"{service.url}/ui")
    open_files(page, service, "digits/2")
    page.get_by_label("Image folder").set_input_files(folder)
    expect(page.get_by_text("of 80 images flagged")).to_be_visible()
    expect(page.locator(".gallery button")).to_have_count(60)
    page.get_by_role("button", name="Show 20 more").click()
    expect(page.locator(".gallery button")).to_have_count(80)
    expect(page.get_by_title("scans/night/1.png", exact=True)).to_be_visible()


# --- where the error is -----------------------------------------------------------------------------------------------

HOT = {
    "the lower right": [(5, 8)],
    "the upper left and the lower right": [(0, 0), (5, 8)],
    "the middle": [(2, 4), (3, 4)],
    "the upper part": [(0, 1), (1, 4), (0, 7)],
    "the left side": [(0, 0), (2, 1), (5, 2)],
    "the upper middle": [(1, 4)],
    "the middle of the right side": [(3, 7)],
    "the upper right": [(0, 5), (1, 6), (2, 5), (2, 6)],
    "the whole image": [(y, x) for y in range(6) for x in range(9)],
    "several parts of the image": [(0, 0), (0, 8), (5, 0), (5, 8)],
}


def test_a_region_is_where_the_error_is(fake_service: LiveService, open_page: OpenPage) -> None:
    """In words, over a faint error everywhere; two far corners are not the middle."""
    page = open_page(f"{fake_service.url}/ui")
    for words, places in HOT.items():
        errors = np.full((6, 9), 0.01)
        errors[tuple(np.transpose(places))] = 1
        script = "async (errors) => (await import('./ui/parts/region.js')).region(errors, { height: 6, width: 9 })"
        assert page.evaluate(script, errors.ravel().tolist()) == words


def test_an_ordinary_image_has_a_dark_error_map(swatches: LiveService, open_page: OpenPage) -> None:
    """On the scale of images that were not fitted; a blot is bright, over the input too, and named by its region."""
    rows = rows_of(SHAPE, 60, seed=5)
    blot = rows[0].copy()
    blot[5, 8] = 1 - np.round(blot[5, 8])
    page = open_page(f"{swatches.url}/ui")
    open_files(page, swatches, "swatches")
    error_map = page.get_by_role("img", name="Error map", exact=True)
    over = page.get_by_role("img", name="Error over the input", exact=True)
    shown = page.get_by_role("img", name="Input", exact=True)

    def is_shown(row: NDArray[Any]) -> bool:
        return bool((np.abs(reds(shown) - np.rint(255 * row[..., 0])) <= 1).all())

    bright = 0
    for row in rows[:8]:
        page.get_by_label("Image file").set_input_files(uploads({"ordinary.png": as_png(row)}))
        until(partial(is_shown, row))
        bright += int((reds(error_map) > LIGHTEST).sum())
    assert bright <= 1
    page.get_by_label("Image file").set_input_files(uploads({"blot.png": as_png(blot)}))
    expect(verdict(page)).to_contain_text("the lower right does not look as the model expects")
    assert np.argwhere(reds(error_map) > LIGHTEST).tolist() == [[5, 8]]
    assert reds(over)[5, 8] == reds(error_map)[5, 8]
    assert reds(over)[0, 0] == pytest.approx(255 * blot[0, 0, 0], abs=60)
    expect(page.get_by_text("Orange and yellow: more than that.")).to_be_visible()


def test_a_version_that_knows_no_ordinary_errors_says_so(swatches: LiveService, open_page: OpenPage) -> None:
    """The map is then relative to the image's own largest error."""
    described = swatches.get("/models/swatches/versions/1").json()
    del described["metrics"]["pixel_error_limit"]
    page = open_page(f"{swatches.url}/ui")
    page.route("**/models/swatches/versions/1", lambda route: route.fulfill(json=described))
    page.goto(f"{swatches.url}/ui#/try/swatches/1")
    settled(page, "Try it")
    expect(page.get_by_text("Relative to the largest error of this image")).to_be_visible()
    until(lambda: bool(reds(page.get_by_role("img", name="Error map", exact=True)).max() > LIGHTEST))


def test_the_limit_of_ordinary_errors_is_kept(swatches: LiveService, trained_store: Path) -> None:
    """By versions that are trained here and imported ones; tables have none."""
    assert swatches.get("/models/swatches/versions/1").json()["metrics"]["pixel_error_limit"] > 0
    store = Store(trained_store)
    assert store.manifest("digits", 2).metrics["pixel_error_limit"] > 0
    assert store.manifest("payments", 1).metrics["pixel_error_limit"] is None


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_an_imported_model_in_every_view(swatches: LiveService, open_page: OpenPage, size: str, theme: str) -> None:
    """No serious fault by axe, no error, nothing from elsewhere, no scrolling sideways."""
    page = open_page(f"{swatches.url}/ui", size=size, theme=theme)
    views = {"models/swatches/1": "swatches, version 1", "try/swatches": "Try it", "latent/swatches": "Latent space"}
    for view, heading in views.items():
        page.goto(f"{swatches.url}/ui#/{view}")
        settled(page, heading)
        assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0], view
        assert not serious_faults(page), view
