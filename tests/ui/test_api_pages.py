"""Swagger UI and ReDoc draw the whole document in a real browser, and ask no other host for anything."""

import pytest
from playwright.sync_api import expect

from tests.live import LiveService
from tests.ui.conftest import OpenPage


@pytest.mark.parametrize("route", ["docs", "redoc"])
@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_pages_of_the_document(fake_service: LiveService, open_page: OpenPage, route: str, size: str) -> None:
    """Every operation's summary is there; ``open_page`` fails on any request elsewhere and any error."""
    page = open_page(f"{fake_service.url}/{route}", size=size)
    for summary in ("Rows to latents", "Promote or roll back", "Prometheus metrics"):
        expect(page.get_by_text(summary).last).to_be_attached()
    page.wait_for_load_state("networkidle")
