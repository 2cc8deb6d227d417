"""The workbench of series and the measured false alarms, in a real browser."""

import re

import pytest
from playwright.sync_api import expect

from tests.live import LiveService
from tests.ui.conftest import SIZES, OpenPage
from tests.ui.test_console import serious_faults, settled

pytestmark = pytest.mark.tf


# --- measured false alarms --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "theme"), [("desktop", "light"), ("phone", "dark")])
def test_a_version_shows_whether_its_false_alarm_rate_holds(
    series_service: LiveService, open_page: OpenPage, size: str, theme: str
) -> None:
    """The measured curve of windows and of readings with its band; the slider quotes the measured rate."""
    page = open_page(f"{series_service.url}/ui#/models/boiler/1", size=size, theme=theme)
    settled(page, "boiler, version 1")
    curves = page.get_by_role("img", name=re.compile("^False-alarm rate asked for, against the share"))
    expect(curves).to_have_count(2)
    expect(curves.first.locator("polygon.band")).to_be_visible()
    metrics = series_service.get("/models/boiler/versions/1").json()["metrics"]
    alarms = metrics["false_alarms"]
    at = max(range(len(alarms["nominal"])), key=lambda each: -abs(alarms["nominal"][each] - 0.5))
    slider = page.locator("#threshold")
    slider.fill(slider.get_attribute("max") or "")
    measured = page.locator(".measured")
    expect(measured).to_contain_text(f"Of {alarms['rows']} test rows {100 * alarms['empirical'][at]:.2g} %")
    assert not serious_faults(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]


def test_test_rows_outside_the_band_are_a_warning(series_service: LiveService, open_page: OpenPage) -> None:
    """More alarms on test rows than chance explains are said beside the plot and under the slider."""
    page = open_page(f"{series_service.url}/ui")
    detail = series_service.get("/models/boiler/versions/1").json()
    alarms = detail["metrics"]["false_alarms"]
    alarms["empirical"] = [min(1.0, 8 * rate) for rate in alarms["nominal"]]
    alarms["low"], alarms["high"] = alarms["nominal"], [1.5 * rate for rate in alarms["nominal"]]
    page.route("**/models/boiler/versions/1", lambda route: route.fulfill(json=detail))
    page.goto(f"{series_service.url}/ui#/models/boiler/1")
    settled(page, "boiler, version 1")
    expect(page.get_by_text("More test rows are flagged than chance explains")).to_be_visible()
    expect(page.locator(".measured")).to_contain_text("expect more false alarms than asked for")
