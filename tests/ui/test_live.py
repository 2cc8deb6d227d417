"""Live, comparison and promotion in a real browser: from an alert to its row, from drift to what moved, from two
versions to a decision; and what a wrong address says."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from playwright.sync_api import Page, expect
from sklearn.metrics import average_precision_score, roc_auc_score

from service.store import Store
from tests.api.samples import named, payments
from tests.conftest import COLUMNS, table_rows
from tests.live import LiveService
from tests.ui.conftest import OpenPage
from tests.ui.test_console import serious_faults, settled, verdict

Serve = Callable[..., LiveService]

SHAPES = (("desktop", "light"), ("phone", "dark"))

pytestmark = pytest.mark.tf


def in_shape(page: Page, size: str) -> Page:
    """A page 1440 or 390 wide."""
    if size == "desktop":
        page.set_viewport_size({"width": 1440, "height": 900})
    return page


def assert_sound(page: Page) -> None:
    """Nothing serious by axe, and no scrolling sideways."""
    assert not serious_faults(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.fixture
def own_store(trained_store: Path, tmp_path: Path) -> Path:
    """A copy of the trained store with ``payments`` 2, trained beside 1 on labelled rows; to be changed."""
    from service.training.config import load_config
    from service.training.train import train

    store = tmp_path / "own"
    shutil.copytree(trained_store, store)
    Store(store).set_alias("payments", "production", 1)
    config = load_config("dense", epochs=3, latent_dim=2, batch_size=64, hidden=(8,))
    source = str(labelled(tmp_path / "labelled.csv"))
    train(config, source=source, store=store, model="payments", labels="fraud", promotion="never")
    return store


def labelled(path: Path, *, rows: int = 600) -> Path:
    """Rows of ``payments`` with a column ``fraud``; every tenth is odd."""
    values = table_rows(rows, seed=5)
    odd = np.arange(rows) % 10 == 9
    values[odd, 2] += 60
    np.savetxt(
        path,
        np.column_stack([values, odd]),
        fmt=["%.6g"] * 6 + ["%d"],
        delimiter=",",
        header=",".join((*COLUMNS, "fraud")),
        comments="",
    )
    return path


def scores_of(service: LiveService, version: int, rows: NDArray[np.float32]) -> list[float]:
    scores: list[float] = []
    for part in np.array_split(rows, 3):
        answer = service.post(f"/models/payments/versions/{version}/anomaly-score", json={"instances": named(part)})
        scores += answer.json()["scores"]
    return scores


# --- alerts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "theme"), SHAPES)
def test_an_alert_leads_to_its_row(
    trained_store: Path, serve: Serve, open_page: OpenPage, size: str, theme: str
) -> None:
    """It names request, row and reason, can be looked for by model, and opens the row where values are kept."""
    service = serve(trained_store, default_model="digits", alert_values=True)
    service.service.activity.interval_s = 0.2
    rows = payments(5)
    rows[3, 0] = 50_000
    service.post("/models/digits/anomaly-score", json={"instances": [np.eye(8).tolist()]})
    sent = {"X-Request-ID": "order-7"}
    service.post("/models/payments/anomaly-score", json={"instances": named(rows)}, headers=sent)
    page = in_shape(open_page(f"{service.url}/ui#/live", size=size, theme=theme), size)
    settled(page, "Live")
    alerts = page.get_by_role("region", name="Last alerts").locator("tbody tr")
    row = alerts.filter(has_text="order-7, row 3")
    expect(row).to_contain_text("amount")
    expect(row).to_contain_text("50,000, expected")
    page.get_by_label("Model of the alerts").select_option("digits")
    expect(row).to_have_count(0)
    page.get_by_label("Model of the alerts").select_option("payments")
    expect(alerts).to_have_count(len(alerts.filter(has_text="payments").all()))
    assert_sound(page)
    row.get_by_role("link", name="Open row 3 of request order-7").click()
    settled(page, "Try it")
    expect(page.get_by_label("amount", exact=True)).to_have_value("50000")
    expect(verdict(page)).to_contain_text("Flagged as an anomaly")


def test_an_alert_whose_values_are_not_kept(trained_store: Path, serve: Serve, open_page: OpenPage) -> None:
    """There is no link; who makes one up, or comes late, is told why the row is not shown."""
    service = serve(trained_store, default_model="payments")
    rows = payments(1)
    rows[0, 0] = 50_000
    service.post("/anomaly-score", json={"instances": named(rows)}, headers={"X-Request-ID": "order-7"})
    page = open_page(f"{service.url}/ui#/live")
    settled(page, "Live")
    row = page.get_by_role("region", name="Last alerts").locator("tbody tr").first
    expect(row).to_contain_text("order-7, row 0")
    expect(row.get_by_role("link")).to_have_count(0)
    page.goto(f"{service.url}/ui#/try/payments/1/order-7/0")
    expect(page.get_by_role("alert")).to_contain_text("AUTOENCODER_ALERT_VALUES")
    page.goto(f"{service.url}/ui#/try/payments/1/order-8/0")
    expect(page.get_by_role("alert")).to_contain_text("Row 0 of request order-8 is not among the last alerts")


# --- drift ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "theme"), SHAPES)
def test_a_column_that_moved_shows_where(
    trained_store: Path, serve: Serve, open_page: OpenPage, size: str, theme: str
) -> None:
    """Its histogram in training and live side by side; "train again" as its rows are flagged too."""
    service = serve(trained_store, default_model="payments")
    rows = payments(60)
    rows[:, 2] += 100
    page = in_shape(open_page(f"{service.url}/ui#/live", size=size, theme=theme), size)
    service.post("/anomaly-score", json={"instances": named(rows)})
    expect(page.get_by_text("Drift is shown from 100 rows on.")).to_be_visible()
    for _ in range(3):
        service.post("/anomaly-score", json={"instances": named(rows)})
    visits = page.get_by_role("button", name="visits")
    visits.click()
    table = page.get_by_role("table", name="visits: share of the rows in each range, in training and live")
    expect(table.locator("tbody tr").last).to_contain_text(re.compile(r"^over [\d.]+.*100 %$"))
    expect(table.locator("tbody tr").first).to_contain_text("0 %")
    expect(page.get_by_text("train again on new rows")).to_be_visible()
    assert_sound(page)
    visits.click()
    expect(table).to_have_count(0)


def test_drift_without_more_alerts_asks_for_nothing(trained_store: Path, serve: Serve, open_page: OpenPage) -> None:
    """Rows that are all alike have moved far from those of training, yet none is flagged."""
    service = serve(trained_store, default_model="payments")
    for _ in range(3):
        service.post("/anomaly-score", json={"instances": named(np.repeat(payments(1), 60, axis=0))})
    page = open_page(f"{service.url}/ui#/live")
    expect(page.get_by_text("nothing needs to be done")).to_be_visible()
    expect(page.get_by_text("train again on new rows")).to_have_count(0)


# --- two versions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "theme"), SHAPES)
def test_two_versions_are_compared_promoted_and_tried(
    own_store: Path, serve: Serve, open_page: OpenPage, size: str, theme: str
) -> None:
    """What differs with its change, AUROC and AUPR where labels exist, one file through both, and then the aliases."""
    service = serve(own_store, default_model="payments", keep_versions=2)
    page = in_shape(open_page(f"{service.url}/ui#/compare/payments/1/2", size=size, theme=theme), size)
    settled(page, "payments: version 1 and version 2")
    figures = page.get_by_role("region", name="Figures").first
    expect(figures.get_by_role("row", name=re.compile(r"^Test error [\d.]+ [\d.]+ \+[\d.]+ worse"))).to_be_visible()
    expect(figures.get_by_role("row", name=re.compile("^hidden"))).to_be_visible()
    expect(figures.get_by_role("row", name=re.compile("^Latent"))).to_have_count(0)  # the same in both
    page.get_by_label("CSV file for both versions").set_input_files(labelled(own_store.parent / "rows.csv", rows=4100))
    card = page.locator(".card", has_text="On the rows of one file")
    expect(card).to_contain_text("Labels: the column fraud, 410 anomalies.")
    rows = np.loadtxt(own_store.parent / "rows.csv", delimiter=",", skiprows=1, dtype=np.float32)
    for name, measure in (("AUROC", roc_auc_score), ("AUPR", average_precision_score)):
        both = [measure(rows[:, 6], scores_of(service, version, rows[:, :6])) for version in (1, 2)]
        shown = [f"{value:.4g}" for value in both]
        expect(card.get_by_role("row", name=re.compile(f"^{name} {shown[0]} {shown[1]} "))).to_be_visible()
        expect(figures.get_by_role("row", name=re.compile(f"^{name} on labelled rows"))).to_be_visible()
    assert_sound(page)

    page.get_by_role("button", name="Make version 2 the candidate").click()
    page.get_by_role("dialog").get_by_role("button", name="Make candidate").click()
    expect(page.get_by_text("Version 2 is the candidate")).to_be_visible()
    page.goto(f"{service.url}/ui#/models/payments")
    settled(page, "payments")
    page.get_by_role("button", name="Withdraw candidate 2").click()
    page.get_by_role("dialog").get_by_role("button", name="Withdraw").click()
    expect(page.get_by_role("button", name="Make candidate version 2")).to_be_visible()
    assert "candidate" not in service.get("/models/payments").json()["aliases"]

    page.get_by_role("button", name="Promote version 2").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("row", name=re.compile("^Test error .* worse"))).to_be_visible()
    assert_sound(page)
    dialog.get_by_role("button", name="Promote").click()
    expect(page.get_by_text("Version 2 answers requests that name no version")).to_be_visible()


# --- wrong addresses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("compare", "The address names no model."),
        ("compare/digits", "The address does not name two versions."),
        ("compare/digits/1", "The address does not name two versions."),
        ("compare/digits/1/x", "The address does not name two versions."),
        ("compare/digits/1/1", "The address names the same version twice."),
        ("compare/digits/1/9", "Model 'digits' has no version 9."),
        ("compare/nothing/1/2", "There is no such model."),
        ("models/nothing", "There is no such model."),
        ("models/digits/9", "Model 'digits' has no version 9."),
        ("models/digits/x", "version"),
        ("models/%", "There is no such model."),
        ("try/nothing", "There is no model “nothing”."),
        ("try/digits/9", "Model “digits” has no version 9."),
        ("try/payments/1/none/0", "Row 0 of request none is not among the last alerts"),
        ("latent/nothing", "There is no model “nothing”."),
        ("latent/digits/9", "Model “digits” has no version 9."),
        ("live/nothing", "There is no model “nothing”."),
    ],
)
def test_a_wrong_address_says_what_is_wrong(service: LiveService, open_page: OpenPage, address: str, said: str) -> None:
    """One sentence, and nothing goes on loading."""
    page = open_page(f"{service.url}/ui#/{address}", allowed=(404, 422))
    expect(page.get_by_role("alert")).to_contain_text(said)
    expect(page.locator(".spin")).to_have_count(0)
