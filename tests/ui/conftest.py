"""A real Chromium, and pages of it that report what must not happen: errors, refusals, requests elsewhere."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from service.settings import Settings
from service.store import Store
from tests.live import LiveService, serve_live
from tests.training.mixed import mixed_dataset

SIZES = {"desktop": (1280, 860), "phone": (390, 844)}
OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-features=LocalNetworkAccessChecks",  # pages that tests fulfil count as public ones
    "--host-resolver-rules=MAP *.example 127.0.0.1",
)
TIMEOUT_MS = 60_000
"""Long enough for a machine whose processors are busy with other tests."""
NAMES = ("chromium", "chromium-browser", "google-chrome")

OpenPage = Callable[..., Page]


@pytest.fixture(scope="session")
def series_service(series_store: Path) -> Iterator[LiveService]:
    """A service of ``boiler`` 1, a model of two channels with a daily period."""
    with serve_live(Settings(store=series_store, port=0)) as live:
        yield live


@pytest.fixture(scope="session")
def mixed_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    """A service of ``orders`` 1, a table with columns of all types."""
    from service.training import load_config
    from service.training.progress import Reporter
    from service.training.train import publish_model, train_model

    root = tmp_path_factory.mktemp("mixed")
    trained = train_model(mixed_dataset(1200), load_config(latent_dim=3, epochs=12), Reporter())
    publish_model(trained, store=Store(root), model="orders", reporter=Reporter())
    with serve_live(Settings(store=root, port=0)) as live:
        yield live


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, for one module: as long as Playwright runs, no other test of the process can start an event loop."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("install chromium")
    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, headless=True, args=OPTIONS)
        yield started
        started.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """``open_page(url, size="phone", theme="dark")``; at the end of the test nothing must have gone wrong on any page.

    ``allowed``: statuses whose console message is part of the test.
    """
    contexts: list[Any] = []
    wrong: list[str] = []

    def start(url: str, *, size: str = "desktop", theme: str = "light", allowed: tuple[int, ...] = ()) -> Page:
        width, height = SIZES[size]
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if theme == "dark" else "light",
            has_touch=size == "phone",
            accept_downloads=True,
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(TIMEOUT_MS)

        def message(said: Any) -> None:
            expected = any(f"status of {status}" in said.text for status in allowed)
            ours = re.search("willReadFrequently|GPU stall due to ReadPixels", said.text)  # of reading pixels
            if said.type in ("error", "warning") and not (expected or ours):
                wrong.append(said.text)

        def sent(request: Any) -> None:
            if not request.url.startswith((origin, "blob:", "data:")):
                wrong.append(request.url)

        origin = "/".join(url.split("/")[:3])
        page.on("console", message)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", sent)
        page.goto(url)
        return page

    yield start
    for context in contexts:
        context.close()
    assert not wrong
