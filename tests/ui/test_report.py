"""The training report in a real browser, as the service sends it."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from tests.live import LiveService
from tests.ui.conftest import OpenPage

pytestmark = pytest.mark.tf
SERIOUS = {"serious", "critical"}


@pytest.mark.parametrize(
    "shown",
    [
        ("service", "digits", "As a codec"),
        ("mixed_service", "orders", "Error by column"),
        ("series_service", "boiler", "Latent space"),
    ],
    ids=("image", "table", "series"),
)
@pytest.mark.parametrize(("size", "theme"), [("desktop", "light"), ("phone", "dark")])
def test_report(
    request: pytest.FixtureRequest, open_page: OpenPage, shown: tuple[str, str, str], size: str, theme: str
) -> None:
    """All pictures are drawn under the strict policy, nothing is wider than the screen, axe finds no serious fault."""
    services, model, heading = shown
    live: LiveService = request.getfixturevalue(services)
    page = open_page(f"{live.url}/models/{model}/versions/1/report", size=size, theme=theme)
    expect(page.get_by_role("heading", level=1)).to_have_text(f"Model {model}")
    expect(page.get_by_role("heading", name=heading)).to_be_visible()
    for image in page.locator("img").all():
        assert image.evaluate("image => image.complete && image.naturalWidth > 0")
    width, screen = page.evaluate("() => [document.documentElement.scrollWidth, window.innerWidth]")
    assert width <= screen
    violations = Axe().run(page).response["violations"]
    assert [fault["id"] for fault in violations if fault["impact"] in SERIOUS] == []
