"""What is around the views: help and key on a phone, wide tables, plots in the theme, links that lead nowhere."""

import io
import re
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Locator, expect

from tests.live import LiveService
from tests.ui.conftest import SIZES, OpenPage
from tests.ui.test_console import serious_faults, settled

pytestmark = [pytest.mark.tf, pytest.mark.slow]


@pytest.mark.parametrize("size", SIZES)
def test_help_has_keys_shortcuts_and_version(service: LiveService, open_page: OpenPage, size: str) -> None:
    """On a phone too, where the side bar has no room for them."""
    page = open_page(f"{service.url}/ui", size=size)
    settled(page, "Models")
    page.get_by_role("button", name="Help").click()
    dialog = page.get_by_role("dialog", name="Help")
    expect(dialog.get_by_text(service.get("/openapi.json").json()["info"]["version"], exact=True)).to_be_visible()
    expect(dialog.get_by_text("zoom the latent map")).to_be_visible()
    expect(dialog.get_by_role("link", name="Interface (OpenAPI)")).to_have_attribute("href", f"{service.url}/docs")
    assert not serious_faults(page)
    dialog.get_by_role("button", name="Enter a key").click()
    page.get_by_role("dialog", name="API key").get_by_label("Key").fill("secret")
    page.get_by_role("button", name="Use this key").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.get_by_role("button", name="Help").click()
    expect(dialog.get_by_role("button", name="Change the key")).to_be_visible()
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)


def edges(region: Locator) -> NDArray[np.int64]:
    """Mean brightness of the left and the right edge of what is on the screen, and of the middle between rows."""
    picture = np.asarray(Image.open(io.BytesIO(region.screenshot())).convert("L"), np.int64)
    return np.array([np.median(picture[:, :2]), np.median(picture[:, -2:])], np.int64)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_table_wider_than_the_phone_shows_that_it_scrolls(
    service: LiveService, open_page: OpenPage, theme: str
) -> None:
    """A shadow at the edge where there is more, and none at an end."""
    page = open_page(f"{service.url}/ui#/models/payments/1", size="phone", theme=theme)
    settled(page, "payments, version 1")
    region = page.get_by_role("region", name="Reconstructions of test rows")
    assert region.evaluate("(box) => box.scrollWidth > box.clientWidth")
    left, right = edges(region)
    assert abs(right - left) > 15
    region.evaluate("(box) => { box.scrollLeft = box.scrollWidth; }")
    assert edges(region).tolist() == pytest.approx([right, left], abs=4)


@pytest.mark.parametrize(("model", "kind"), [("digits/2", "image"), ("payments/1", "table"), ("boiler/1", "series")])
def test_plots_of_a_version_are_drawn_by_the_page(
    service: LiveService, series_service: LiveService, open_page: OpenPage, model: str, kind: str
) -> None:
    """So that they follow the theme: no picture of the training is fetched."""
    live = series_service if kind == "series" else service
    asked: list[str] = []
    page = open_page(f"{live.url}/ui", theme="dark")
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{live.url}/ui#/models/{model}")
    settled(page, model.replace("/", ", version "))
    card = page.locator(".card").filter(has=page.get_by_role("heading", name="Reconstructions of test rows"))
    drawn: dict[str, Any] = {
        "image": card.get_by_role("img", name="Reconstruction"),
        "table": card.get_by_role("columnheader", name="Reconstruction"),
        "series": card.get_by_role("img", name=re.compile("and its reconstruction")),
    }
    expect(drawn[kind].first).to_be_visible()
    expect(page.get_by_role("img", name=re.compile("Loss by epoch"))).to_be_visible()
    assert asked
    assert not [url for url in asked if "/plots/" in url]
    assert not serious_faults(page)


WRONG = {
    "try/nobody": "There is no model",
    "try/digits/99": "has no version 99",
    "try/digits/1.5": "has no version 1.5",
    "latent/nobody/1": "There is no model",
    "latent/digits/99": "has no version 99",
    "models/nobody": "There is no such model.",
    "models/digits/99": "Model 'digits' has no version 99.",
    "models/digits/x": "should be a valid integer",
    "models/%E0%A4%A": "There is no such model.",
}


@pytest.mark.parametrize("size", SIZES)
def test_a_wrong_link_says_what_is_wrong(service: LiveService, open_page: OpenPage, size: str) -> None:
    """Model or version, by its name; nothing hangs, and the way to all models is there."""
    page = open_page(f"{service.url}/ui", size=size, allowed=(404, 422))
    for view, words in WRONG.items():
        page.goto(f"{service.url}/ui#/{view}")
        alert = page.get_by_role("alert")
        expect(alert).to_contain_text(words)
        expect(page.locator(".spin")).to_have_count(0)
        expect(page.get_by_role("navigation", name="Views").get_by_role("link", name="Models")).to_be_visible()
