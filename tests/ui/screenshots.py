"""Draws the pictures of docs/console.md: ``python -m tests.ui.screenshots docs/images``. Takes about two minutes."""

import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from service.settings import Settings
from service.store import Store
from tests.api.samples import digits, named
from tests.conftest import readings, table_rows, write_csv, write_series
from tests.live import LiveService, serve_live
from tests.ui.conftest import NAMES, OPTIONS

WIDTH, HEIGHT = 1180, 820


def main(target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        store = _train(Path(folder))
        with (
            serve_live(Settings(store=store, port=0, default_model="digits", alert_values=True)) as live,
            sync_playwright() as playwright,
        ):
            live.service.activity.interval_s = 0.5
            found = next(path for name in NAMES if (path := shutil.which(name)))
            browser = playwright.chromium.launch(executable_path=found, headless=True, args=OPTIONS)
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
            _draw_all(page, live, target)
            browser.close()


def _train(folder: Path) -> Path:
    from service.training.config import load_config
    from service.training.series import Windows
    from service.training.train import train

    store = folder / "store"
    store.mkdir()
    for seed in (0, 1):
        train(load_config("demo", seed=seed), source="digits", store=store, model="digits")
    csv = write_csv(folder / "payments.csv", table_rows(6000, seed=0))
    train(load_config("dense", latent_dim=2, epochs=40), source=str(csv), store=store, model="payments")
    Store(store).set_alias("payments", "production", 1)
    csv = write_csv(folder / "newer.csv", table_rows(6000, seed=1))
    train(
        load_config("dense", latent_dim=3, epochs=40), source=str(csv), store=store, model="payments", promotion="never"
    )
    source = write_series(folder / "boiler.csv", readings(1500, seed=0))
    config = load_config(latent_dim=4, hidden=(32,), epochs=25, learning_rate=3e-3)
    train(config, source=source, store=store, model="boiler", windows=Windows())
    return store


def _draw_all(page: Page, live: LiveService, target: Path) -> None:
    _make_traffic(live)
    for name, view in (("models", "models"), ("version", "models/digits/2")):
        _open(page, live, view)
        _save(page, target / f"{name}.png")
    _open(page, live, "try/payments")
    page.get_by_label("visits", exact=True).fill("26")
    expect(page.locator(".verdict")).to_contain_text("visits is 26")
    _save(page, target / "try-table.png")
    _open(page, live, "try/digits/2")
    _scribble(page)
    _save(page, target / "try-image.png")
    page.get_by_role("link", name="see it in the latent space").click()
    page.locator(".walks canvas").first.wait_for()
    _save(page, target / "latent.png")
    _open(page, live, "try/boiler")
    values = readings(24 * 8, seed=3)
    values[100:104, 1] += 6
    page.get_by_label("Paste readings").fill("\n".join(f"{load:.2f}, {warm:.2f}" for load, warm in values))
    page.get_by_text("of 192 flagged").wait_for()
    _save(page, target / "try-series.png")
    _draw_live(page, live, target)


def _draw_live(page: Page, live: LiveService, target: Path) -> None:
    _open(page, live, "live/payments")
    page.get_by_text("sampled rows").wait_for()
    _save(page, target / "live.png")
    page.emulate_media(color_scheme="dark")
    _open(page, live, "compare/payments/1/2")
    page.reload()
    page.get_by_role("img", name="Loss by epoch of both versions").wait_for()
    _save(page, target / "compare-dark.png")
    _open(page, live, "live/payments")
    page.get_by_role("button", name="visits").click()
    page.get_by_role("heading", name="Last alerts").evaluate("(heading) => heading.closest('section').scrollIntoView()")
    _save(page, target / "live-dark.png")


def _open(page: Page, live: LiveService, view: str) -> None:
    page.goto(f"{live.url}/ui#/{view}")
    expect(page.locator(".spin")).to_have_count(0)
    time.sleep(0.5)  # charts are drawn in the frame after


def _make_traffic(live: LiveService) -> None:
    random = np.random.default_rng(0)
    images = digits(400)
    for at in range(60):
        rows = table_rows(int(random.integers(5, 40)), seed=at)
        if at > 40:
            rows[:, 2] += 6
        live.post("/models/payments/anomaly-score", json={"instances": named(rows)})
        live.post("/models/digits/anomaly-score", json={"instances": images[at * 5 : at * 5 + 5].tolist()})
        time.sleep(0.2)


def _scribble(page: Page) -> None:
    """A seven, with a blot where none belongs."""
    page.get_by_role("button", name="Clear").click()
    box = page.get_by_role("application").bounding_box()
    assert box is not None
    strokes = [[(0.25, 0.12), (0.72, 0.12), (0.42, 0.9)], [(0.85, 0.85), (0.95, 0.95)]]
    for stroke in strokes:
        places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke]
        page.mouse.move(*places[0])
        page.mouse.down()
        for place in places[1:]:
            page.mouse.move(*place, steps=8)
        page.mouse.up()
    time.sleep(1)


def _save(page: Page, path: Path) -> None:
    time.sleep(0.4)
    page.screenshot(path=path)
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    small.save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
