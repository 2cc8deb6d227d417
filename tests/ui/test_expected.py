"""One row has one expectation: all cards say the same, in words that people use."""

import re

import pytest
from playwright.sync_api import Route, expect

from tests.live import LiveService
from tests.ui.conftest import SIZES, OpenPage
from tests.ui.test_console import serious_faults, settled, verdict

pytestmark = pytest.mark.tf


@pytest.mark.parametrize(("size", "theme"), [("desktop", "light"), ("phone", "dark")])
def test_all_cards_expect_what_the_score_expects(
    mixed_service: LiveService, open_page: OpenPage, size: str, theme: str
) -> None:
    """The table beside the row has the expectation of `explain`; the bottleneck's reconstruction is named as such."""
    page = open_page(f"{mixed_service.url}/ui#/try/orders", size=size, theme=theme)
    settled(page, "Try it")
    with page.expect_response("**/anomaly-score") as scored:
        page.get_by_label("amount", exact=True).fill("5000")
    amount = next(each for each in scored.value.json()["contributions"][0] if each["feature"] == "amount")
    expect(verdict(page)).to_contain_text("amount is 5,000 where about")
    said = re.search(r"about ([\d,.]+) was expected", page.locator(".bars li", has_text="amount").inner_text())
    table = page.get_by_role("region", name="The row beside its reconstruction")
    expect(table.get_by_role("columnheader", name="Expected", exact=True)).to_be_visible()
    cells = table.get_by_role("row", name=re.compile("^amount 5,000")).get_by_role("cell").all_inner_texts()
    assert said is not None
    for text in (said[1], cells[1]):
        assert float(text.replace(",", "")) == pytest.approx(amount["expected"], rel=0.01)
    expect(page.get_by_text("Expected: by the network of the score, from the other columns")).to_be_visible()
    expect(
        table.get_by_role("row", name=re.compile(r"^member (true|false) (true|false) (true|false) "))
    ).to_be_visible()
    assert not serious_faults(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]


def test_a_time_at_an_unusual_hour_is_said_in_words(mixed_service: LiveService, open_page: OpenPage) -> None:
    """The day and hour, beside the hours that rows come at; shares that are next to nothing are no long numbers."""
    metrics = mixed_service.get("/models/orders/versions/1").json()["metrics"]
    first, last = metrics["usual_times"]["at"]["hours"]
    assert (first, last) == (2, 20)
    page = open_page(f"{mixed_service.url}/ui#/try/orders")
    settled(page, "Try it")
    page.get_by_label("at", exact=True).fill("2020-10-05T23:40:00")
    reason = page.locator(".bars li").filter(has=page.get_by_text("at", exact=True))
    expect(reason).to_contain_text("Monday 23:40, where 2 to 20 is usual")
    expect(page.locator("#outcome")).not_to_contain_text(re.compile(r"\de-\d"))


def test_unusual_is_not_shown_as_ordinary(mixed_service: LiveService, open_page: OpenPage) -> None:
    """A row that is strange and not flagged has a card of its own colour."""
    page = open_page(f"{mixed_service.url}/ui#/try/orders")
    settled(page, "Try it")

    def strange(p_value: float) -> None:
        def answer(route: Route) -> None:
            body = route.fetch().json()
            route.fulfill(json={**body, "p_values": [p_value], "is_anomaly": [False]})

        page.unroute("**/anomaly-score")
        page.route("**/anomaly-score", answer)

    colours = []
    for p_value, words in ((0.05, "Unusual, but not flagged"), (0.8, "Ordinary")):
        strange(p_value)
        page.get_by_label("age", exact=True).fill(str(40 + p_value))
        expect(verdict(page)).to_contain_text(words)
        colours.append(verdict(page).evaluate("(card) => getComputedStyle(card).backgroundColor"))
    assert colours[0] != colours[1]
