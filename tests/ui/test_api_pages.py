"""Swagger UI and ReDoc draw the whole document in a real browser, and ask no other host for anything."""

import pytest
from playwright.sync_api import expect

from tests.live import LiveService
from tests.ui.conftest import OpenPage

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("route", ["docs", "redoc"])
@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_pages_of_the_document(fake_service: LiveService, open_page: OpenPage, route: str, size: str) -> None:
    """Every operation's summary is there; ``open_page`` fails on any request elsewhere and any error."""
    page = open_page(f"{fake_service.url}/{route}", size=size)
    for summary in ("Rows to latents", "Promote or roll back", "Prometheus metrics"):
        expect(page.get_by_text(summary).last).to_be_attached()
    page.wait_for_load_state("networkidle")


@pytest.mark.tf
@pytest.mark.parametrize(
    "path", ["/anomaly-score", "/models/{model}/anomaly-score", "/models/{model}/versions/{version}/encode"]
)
def test_the_example_works_as_it_is_served(service: LiveService, open_page: OpenPage, path: str) -> None:
    """Try it out and Execute: 200, with nothing typed."""
    page = open_page(f"{service.url}/docs")
    block = page.locator(".opblock-post").filter(has=page.locator(f'[data-path="{path}"]'))
    block.locator(".opblock-summary-control").click()
    block.get_by_role("button", name="Try it out").click()
    block.get_by_role("button", name="Execute").click()
    expect(block.locator(".live-responses-table .response-col_status").last).to_contain_text("200")
