"""The console in a real browser: every view, on a desktop and a phone, as people use it."""

import json
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from service.api.access import hash_key
from service.store import Store
from tests.api.samples import named, payments
from tests.conftest import COLUMNS, readings
from tests.fakes import load_fake, publish_fake
from tests.live import LiveService
from tests.ui.conftest import SIZES, OpenPage

Serve = Callable[..., LiveService]

FIRST_VIEW_BYTES = 300_000
FIRST_VIEW_S = 1.0
SERIOUS = {"serious", "critical"}
VIEWS = (
    ("models", "Models"),
    ("models/digits", "digits"),
    ("models/digits/2", "digits, version 2"),
    ("models/payments/1", "payments, version 1"),
    ("compare/digits/1/2", "digits: version 1 and version 2"),
    ("try/payments", "Try it"),
    ("try/digits", "Try it"),
    ("latent/digits", "Latent space"),
    ("live", "Live"),
)

pytestmark = pytest.mark.tf


def settled(page: Page, heading: str) -> None:
    """Until the view stands and nothing is loading any more."""
    expect(page.get_by_role("heading", level=1, name=heading, exact=True)).to_be_visible()
    expect(page.locator(".spin")).to_have_count(0)


def until(holds: Callable[[], bool]) -> None:
    """The policy of the page refuses Playwright's own way to wait for a function, which evaluates text."""
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)


def reds(canvas: Locator) -> NDArray[np.int64]:
    """The red parts of a canvas of 8 x 8 pixels."""
    script = "(canvas) => [...canvas.getContext('2d').getImageData(0, 0, 8, 8).data].filter((_, at) => at % 4 === 0)"
    return np.array(canvas.evaluate(script)).reshape(8, 8)


def serious_faults(page: Page) -> list[Any]:
    """What axe finds on the page as it stands."""
    return [
        (fault["id"], [node["html"][:200] for node in fault["nodes"]][:3])
        for fault in Axe().run(page).response["violations"]
        if fault["impact"] in SERIOUS
    ]


def verdict(page: Page) -> Any:
    return page.locator(".verdict")


# --- every view -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "theme"), [("desktop", "light"), ("phone", "light"), ("desktop", "dark")])
def test_every_view_is_accessible_and_fits(service: LiveService, open_page: OpenPage, size: str, theme: str) -> None:
    """No serious fault by axe, no error, nothing from elsewhere, no scrolling sideways."""
    page = open_page(f"{service.url}/ui", size=size, theme=theme)
    for view, heading in VIEWS:
        page.goto(f"{service.url}/ui#/{view}")
        settled(page, heading)
        if view.startswith("try/"):
            expect(verdict(page)).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0], view
        assert not serious_faults(page), view


def test_the_first_view_is_small_and_quick(service: LiveService, open_page: OpenPage) -> None:
    """All that comes over the wire until the models are shown; the best of some loads, as other work may disturb."""
    page = open_page(f"{service.url}/ui")
    seconds = []
    for _ in range(4):
        page.goto("about:blank")
        page.goto(f"{service.url}/ui")
        page.get_by_role("link", name="payments").wait_for()
        seconds.append(page.evaluate("performance.now()") / 1000)
    sizes = page.evaluate(
        "[...performance.getEntriesByType('resource'), ...performance.getEntriesByType('navigation')]"
        ".map((entry) => entry.encodedBodySize + 300)"
    )
    assert len(sizes) > 5
    assert sum(sizes) < FIRST_VIEW_BYTES
    assert min(seconds) < FIRST_VIEW_S


def test_the_theme_is_kept(service: LiveService, open_page: OpenPage) -> None:
    """It follows the system until one is chosen."""
    page = open_page(f"{service.url}/ui", theme="dark")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.get_by_role("button", name="Light").click()
    page.reload()
    settled(page, "Models")
    assert page.evaluate("document.documentElement.dataset.theme") == "light"


# --- try it -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_a_form_says_why_a_row_was_flagged(service: LiveService, open_page: OpenPage, size: str) -> None:
    """A sample is ordinary; one value far out is flagged, with the column, what it is and what was expected."""
    page = open_page(f"{service.url}/ui#/try/payments", size=size)
    settled(page, "Try it")
    amount = page.get_by_label("amount", exact=True)
    amount.fill("9000")
    expect(verdict(page)).to_contain_text("Flagged as an anomaly")
    expect(verdict(page)).to_contain_text(
        re.compile(r"stranger than all \d+ ordinary rows.*mostly because .*amount is 9,000 where about")
    )
    first = page.locator(".bars li").first
    expect(first).to_contain_text("amount")
    expect(page.locator(".field.at-fault").filter(has_text="amount")).to_be_visible()
    expect(page.get_by_role("cell", name="9,000")).to_be_visible()


def test_a_form_has_a_field_for_every_type_of_column(mixed_service: LiveService, open_page: OpenPage) -> None:
    """Numbers, truth, categories with one never seen, times; some may be empty."""
    page = open_page(f"{mixed_service.url}/ui#/try/orders")
    settled(page, "Try it")
    expect(verdict(page)).to_be_visible()
    page.get_by_label("country", exact=True).select_option("(one never seen)")
    expect(verdict(page)).to_contain_text("country is “never seen before”")
    page.get_by_label("member", exact=True).select_option("true")
    page.get_by_label("channel", exact=True).select_option("(missing)")
    page.get_by_label("age", exact=True).fill("")
    page.get_by_label("at", exact=True).fill("2021-03-01T03:00:00")
    expect(page.get_by_role("row", name=re.compile("^at 2021-03-01T03:00:00Z 20"))).to_be_visible()
    expect(page.get_by_role("row", name=re.compile("^age missing"))).to_be_visible()
    expect(page.get_by_role("row", name=re.compile("^member true"))).to_be_visible()
    assert not serious_faults(page)


def test_the_threshold_slider_tells_what_the_false_alarm_rate_becomes(
    service: LiveService, open_page: OpenPage
) -> None:
    """In rows of 1,000, for the row that was tried, and a day."""
    page = open_page(f"{service.url}/ui#/try/payments")
    settled(page, "Try it")
    words = page.locator(".slider-words")
    expect(words).to_contain_text("about 10 of 1,000 ordinary rows would be flagged")
    thresholds = service.get("/models/payments/versions/1/calibration").json()["thresholds"]
    slider = page.locator("#threshold")
    slider.fill(str(len(thresholds) - 1))
    expect(words).to_contain_text("about 50 of 100 ordinary rows")
    slider.fill("0")
    expect(words).to_contain_text("about 5 of 10,000 ordinary rows")
    expect(words).to_contain_text("would not be flagged")
    page.get_by_label("Rows a day").fill("100000")
    expect(page.get_by_text("about 50 false alarms a day")).to_be_visible()
    expect(page.get_by_text("too few to promise so rare false alarms")).to_be_visible()


def test_pasted_rows_are_scored_together(service: LiveService, open_page: OpenPage) -> None:
    """The strangest first and shown in full; columns that the model does not know are left out, and that is said."""
    rows = payments(20)
    rows[11, 1] = 4000
    lines = [",".join(("id", *COLUMNS)), *(f"{at}," + ",".join(map(str, row)) for at, row in enumerate(rows))]
    page = open_page(f"{service.url}/ui#/try/payments")
    settled(page, "Try it")
    page.get_by_role("tab", name="CSV").click()
    page.get_by_label("Paste rows").fill("\n".join(lines))
    page.get_by_role("button", name="Score the rows").click()
    expect(page.get_by_text("of 20 flagged")).to_be_visible()
    expect(page.get_by_text("left out: id")).to_be_visible()
    listed = page.get_by_role("region", name="Scored rows").locator("tbody tr")
    expect(listed).to_have_count(20)
    expect(listed.first.get_by_role("rowheader")).to_have_text("13")  # the line of the text
    expect(verdict(page)).to_contain_text("age is 4,000")
    listed.last.get_by_role("button").click()
    expect(verdict(page)).to_contain_text("Ordinary")
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save all scores").click()
    assert len(Path(saved.value.path()).read_text().splitlines()) == 21
    page.get_by_label("Of the flagged rows at most 10 % by mistake").check()
    page.get_by_role("button", name="Score the rows").click()
    expect(page.get_by_text("at most 10 % of them by mistake, on average")).to_be_visible()


def test_wrong_rows_are_named_by_row_and_column(service: LiveService, open_page: OpenPage, tmp_path: Path) -> None:
    """As the service says it, with the line of the file."""
    file = tmp_path / "rows.csv"
    good = ",".join(map(str, payments(1)[0]))
    file.write_text(f"{','.join(COLUMNS)}\n{good}\n{good.replace(good.split(',')[2], 'many', 1)}\n")
    page = open_page(f"{service.url}/ui#/try/payments", allowed=(422,))
    settled(page, "Try it")
    page.get_by_role("tab", name="CSV").click()
    page.get_by_label("CSV file").set_input_files(file)
    row = page.get_by_role("alert").locator("tbody tr")
    expect(row).to_have_count(1)
    assert row.locator("td").all_inner_texts()[:3] == ["1", "3", "visits"]


@pytest.mark.parametrize("size", SIZES)
def test_a_drawing_is_reconstructed_as_it_is_drawn(service: LiveService, open_page: OpenPage, size: str) -> None:
    """Input, reconstruction, denoised and error map side by side; a scribble is no digit."""
    page = open_page(f"{service.url}/ui#/try/digits/2", size=size)
    settled(page, "Try it")
    expect(page.locator(".pictures canvas")).to_have_count(5)
    for title in ("Input", "Reconstruction", "Denoised", "Error map", "Error over the input"):
        expect(page.get_by_role("img", name=title, exact=True)).to_be_visible()
    page.get_by_role("button", name="Clear").click()
    canvas = page.get_by_role("application")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    assert box["width"] > 200
    for line in np.linspace(0.1, 0.9, 5):
        page.mouse.move(box["x"] + 0.1 * box["width"], box["y"] + line * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + line * box["height"], steps=4)
        page.mouse.up()
    expect(verdict(page)).to_contain_text("Flagged as an anomaly")
    expect(verdict(page)).to_contain_text("not look as the model expects")
    drawn, rebuilt = (page.get_by_role("img", name=name, exact=True) for name in ("Input", "Reconstruction"))
    until(lambda: bool(reds(drawn).max() > 200 and reds(rebuilt).max() > 60))


def test_the_drawing_area_works_by_keyboard(service: LiveService, open_page: OpenPage) -> None:
    """Arrow keys move, the space bar draws."""
    page = open_page(f"{service.url}/ui#/try/digits/2")
    settled(page, "Try it")
    page.get_by_role("button", name="Clear").click()
    page.get_by_role("application").focus()
    for key in ("ArrowLeft", "Space", "ArrowUp", "ArrowUp", "Space"):
        page.keyboard.press(key)
    until(lambda: int((reds(page.locator(".pictures canvas").first) > 100).sum()) >= 2)


def test_an_image_file_becomes_a_row(service: LiveService, open_page: OpenPage, tmp_path: Path) -> None:
    """Of any size and shape; it is made as small as the model's images in the browser."""
    picture = np.zeros((300, 500, 3), np.uint8)
    picture[:, 250:] = 255
    Image.fromarray(picture).save(tmp_path / "half.png")
    page = open_page(f"{service.url}/ui#/try/digits/2")
    settled(page, "Try it")
    page.get_by_role("tab", name="File").click()
    page.get_by_label("Image file").set_input_files(tmp_path / "half.png")
    picture_in = page.get_by_role("img", name="Input", exact=True)
    until(lambda: bool(reds(picture_in)[0, 7] == 255))
    shown = reds(picture_in)
    assert (shown[:, :3] < 30).all()
    assert (shown[:, 5:] > 225).all()
    expect(verdict(page)).to_contain_text("Flagged as an anomaly")


@pytest.mark.parametrize("size", SIZES)
def test_a_series_is_scored_point_by_point(series_service: LiveService, open_page: OpenPage, size: str) -> None:
    """A pasted CSV without times: the strangest point is found, its window shown, and named by channel and point."""
    values = readings(24 * 6, seed=3)
    values[70, 1] += 40
    lines = [f"{at:05},{load:.3f},{warm:.3f}" for at, (load, warm) in enumerate(values)]
    page = open_page(f"{series_service.url}/ui#/try/boiler", size=size)
    settled(page, "Try it")
    expect(verdict(page)).to_be_visible()
    page.get_by_label("Paste readings").fill("\n".join(["number,load,warm", *lines]))
    expect(page.get_by_text(re.compile(r"readings? of 144 flagged"))).to_be_visible()
    expect(page.get_by_text("Window that is looked at: points 59 to 82")).to_be_visible()
    expect(verdict(page)).to_contain_text("24 of these 24 readings flagged")
    expect(verdict(page)).to_contain_text("warm at point 71 is")
    expect(page.get_by_role("img", name="warm: what was sent, and its reconstruction")).to_be_visible()
    expect(page.get_by_role("img", name="Share of the score by step")).to_be_visible()
    assert not serious_faults(page)
    page.locator("#window").fill("0")
    expect(verdict(page)).not_to_contain_text("warm at point 71 is")
    page.get_by_label("Paste readings").fill("1, 2")
    expect(page.get_by_role("alert")).to_contain_text("The model looks at 24 points at a time; here is 1.")
    for view in ("models/boiler/1", "latent/boiler", "live"):
        page.goto(f"{series_service.url}/ui#/{view}")
        expect(page.locator(".spin")).to_have_count(0)
        assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0], view
        assert not serious_faults(page), view


# --- latent space -----------------------------------------------------------------------------------------------------


def test_the_tried_row_is_placed_in_the_latent_map(service: LiveService, open_page: OpenPage) -> None:
    """Exactly with PCA, about with t-SNE; the sliders draw what lies along the directions."""
    page = open_page(f"{service.url}/ui#/latent/digits/2")
    settled(page, "Latent space")
    expect(page.get_by_text("and it is marked here")).to_be_visible()
    page.get_by_role("link", name="Try a row").click()
    settled(page, "Try it")
    expect(verdict(page)).to_be_visible()
    page.get_by_role("link", name="see it in the latent space").click()
    settled(page, "Latent space")
    expect(page.get_by_text("stands exactly where PCA puts it")).to_be_visible()
    expect(page.get_by_role("application", name=re.compile("A star marks the row you tried"))).to_be_visible()
    page.get_by_role("tab", name="t-SNE").click()
    expect(page.get_by_text("stands between the rows that are nearest")).to_be_visible()
    tile = page.get_by_role("img", name="What the decoder draws along direction 1")
    pixels = "(canvas) => [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data]"
    until(lambda: any(tile.evaluate(pixels)))
    before = tile.evaluate(pixels)
    page.locator("#walk-0").fill("0")
    until(lambda: tile.evaluate(pixels) != before)


def test_ten_thousand_points_pan_smoothly(service: LiveService, open_page: OpenPage) -> None:
    """Dragging the map draws it anew at an even pace; the best of some drags, as other work may disturb."""
    random = np.random.default_rng(0)
    real = service.get("/models/digits/versions/2/latent-map").json()
    for name in ("x", "y", "score"):
        real[name] = random.normal(size=10_000).round(4).tolist()
    page = open_page(f"{service.url}/ui")
    page.route("**/latent-map", lambda route: route.fulfill(body=json.dumps(real), content_type="application/json"))
    page.goto(f"{service.url}/ui#/latent/digits/2")
    settled(page, "Latent space")
    canvas = page.locator(".map canvas")
    expect(page.get_by_text("10,000 rows that were not fitted")).to_be_visible()
    before = canvas.evaluate("(canvas) => canvas.toDataURL()")
    page.evaluate(
        "() => { window.frames_ = []; let last = performance.now(); const next = (now) => {"
        " window.frames_.push(now - last); last = now; requestAnimationFrame(next); }; requestAnimationFrame(next); }"
    )
    box = canvas.bounding_box()
    assert box is not None

    def drag() -> float:
        """Milliseconds between two frames, the median."""
        page.evaluate("window.frames_.length = 0")
        page.mouse.move(box["x"] + 200, box["y"] + 200)
        page.mouse.down()
        page.mouse.move(box["x"] + 420, box["y"] + 300, steps=40)
        page.mouse.up()
        return float(statistics.median(page.evaluate("window.frames_.slice(2)")))

    until(lambda: drag() < 50)  # 16 ms where nothing else runs
    assert canvas.evaluate("(canvas) => canvas.toDataURL()") != before


# --- models and live --------------------------------------------------------------------------------------------------


def test_two_versions_are_compared(service: LiveService, open_page: OpenPage) -> None:
    """Marked in the list; losses, scores and what differs in the training side by side."""
    page = open_page(f"{service.url}/ui#/models/digits")
    settled(page, "digits")
    page.get_by_label("Compare version 1").check()
    page.get_by_label("Compare version 2").check()
    page.get_by_role("link", name="Compare", exact=True).click()
    settled(page, "digits: version 1 and version 2")
    figures = page.get_by_role("region", name="Figures")
    expect(figures.get_by_role("row", name=re.compile("^Test error"))).to_be_visible()
    expect(figures.get_by_role("row", name=re.compile("^Seed 0 1"))).to_be_visible()
    expect(page.get_by_role("img", name="Loss by epoch of both versions")).to_be_visible()
    expect(page.get_by_role("img", name=re.compile("^Histogram of the scores"))).to_have_count(2)


def test_a_version_is_shown_with_its_model_card(service: LiveService, open_page: OpenPage, trained_store: Path) -> None:
    """The errors beside PCA's, the threshold's cost, pictures, and the card as a page and not as Markdown."""
    page = open_page(f"{service.url}/ui#/models/digits/2")
    settled(page, "digits, version 2")
    prose = page.locator(".prose")
    expect(prose.get_by_role("heading", name="Scores and false alarms")).to_be_visible()
    assert not re.search(r"^#|\*\*|\|---", prose.inner_text(), re.M)
    expect(page.get_by_role("heading", name="Reconstructions of test rows")).to_be_visible()
    expect(page.get_by_role("img", name="Reconstruction")).to_have_count(8)
    expect(page.get_by_text(re.compile("Error on test rows .* PCA's"))).to_be_visible()
    warning = Store(trained_store).manifest("digits", 2).warnings[0]
    expect(page.locator(".message.warn").first).to_have_text(warning)


def test_promote_and_roll_back_ask_for_an_admin_key(fake_store: Path, serve: Serve, open_page: OpenPage) -> None:
    """First for a key to see anything, then for one that may change aliases; both stay in the tab."""
    service = serve(fake_store, load=load_fake, key_hashes=(hash_key("caller"),), admin_key_hashes=(hash_key("admin"),))
    page = open_page(f"{service.url}/ui#/models/pumps", allowed=(401, 403))
    dialog = page.get_by_role("dialog", name="API key")
    dialog.get_by_label("Key").fill("wrong")
    dialog.get_by_role("button", name="Use this key").click()
    expect(dialog).to_contain_text("not accepted")
    dialog.get_by_label("Key").fill("caller")
    dialog.get_by_role("button", name="Use this key").click()
    settled(page, "pumps")
    for version, admin in ((1, "admin"), (2, None)):
        page.get_by_role("button", name=f"Promote version {version}").click()
        question = page.get_by_role("dialog", name=f"Promote version {version}?")
        question.get_by_role("button", name="Promote").click()
        if admin:
            question.get_by_label("Admin key").fill(admin)
            question.get_by_role("button", name="Promote").click()
        expect(question).to_have_count(0)
        assert Store(fake_store).aliases("pumps") == {"production": version}
    page.get_by_role("button", name="Roll back to version 1").click()
    page.get_by_role("dialog").get_by_role("button", name="Roll back").click()
    expect(page.get_by_text("production → 1")).to_be_visible()
    assert Store(fake_store).aliases("pumps") == {"production": 1}
    assert page.evaluate("JSON.stringify(localStorage)").find("admin") < 0


def test_a_version_trained_before_there_was_a_map_says_so(fake_service: LiveService, open_page: OpenPage) -> None:
    """And everything else of it is shown."""
    page = open_page(f"{fake_service.url}/ui#/latent/pumps/1")
    settled(page, "Latent space")
    expect(page.get_by_role("heading", name="This version has no latent map")).to_be_visible()
    page.goto(f"{fake_service.url}/ui#/models/pumps/1")
    settled(page, "pumps, version 1")
    expect(page.get_by_text("Nothing was measured in training")).to_be_visible()
    page.goto(f"{fake_service.url}/ui#/try/pumps/1")
    settled(page, "Try it")
    expect(page.get_by_label("value 2", exact=True)).to_be_visible()


def test_a_version_without_calibration_is_shown(tmp_path: Path, serve: Serve, open_page: OpenPage) -> None:
    """What it can do, and the command that makes it score; beside a version that scores, too."""
    origin = {"imported": "ae.keras", "format": "Keras file", "latent": "layer code", "scale": "0-255"}
    store = Store(tmp_path)
    publish_fake(store, is_calibrated=False, training=origin)
    publish_fake(store, training={**origin, "recalibrated": "version 1"}, source="recent.csv")
    service = serve(tmp_path, load=load_fake)
    page = open_page(f"{service.url}/ui#/models/pumps/1")
    settled(page, "pumps, version 1")
    command = page.get_by_text("autoencoder recalibrate pumps 1 --rows ROWS")
    expect(command).to_be_visible()
    expect(page.get_by_role("row", name="Trained elsewhere: ae.keras, a Keras file")).to_be_visible()
    expect(page.get_by_role("row", name="Calibrated not yet")).to_be_visible()
    page.goto(f"{service.url}/ui#/models/pumps/2")
    settled(page, "pumps, version 2")
    expect(page.get_by_role("link", name="version 1", exact=True)).to_be_visible()
    expect(page.get_by_role("row", name="Calibrated with 7 rows of recent.csv")).to_be_visible()
    page.goto(f"{service.url}/ui#/try/pumps/1")
    settled(page, "Try it")
    expect(page.get_by_role("heading", name="The row beside its reconstruction")).to_be_visible()
    expect(command).to_be_visible()
    page.goto(f"{service.url}/ui#/latent/pumps/1")
    settled(page, "Latent space")
    expect(command).to_be_visible()
    page.goto(f"{service.url}/ui#/compare/pumps/1/2")
    settled(page, "pumps: version 1 and version 2")
    expect(command).to_be_visible()
    page.goto(f"{service.url}/ui#/models/pumps")
    settled(page, "pumps")
    expect(page.get_by_role("row", name="Compare version 1")).to_be_visible()


@pytest.mark.parametrize("size", SIZES)
def test_live_shows_traffic_alerts_and_drift(trained_store: Path, serve: Serve, open_page: OpenPage, size: str) -> None:
    """What has just happened, with the columns at fault and without the values."""
    service = serve(trained_store, default_model="payments")
    service.service.activity.interval_s = 0.2
    rows = payments(200)
    rows[:, 2] += 100
    for _ in range(3):
        service.post("/models/payments/anomaly-score", json={"instances": named(rows)})
    page = open_page(f"{service.url}/ui#/live", size=size)
    settled(page, "Live")
    expect(page.get_by_role("region", name="Last alerts").locator("tbody tr").first).to_contain_text("payments")
    expect(page.get_by_role("region", name="Last alerts")).to_contain_text("visits")
    expect(page.get_by_text("of 600 scored rows")).to_be_visible()
    expect(page.get_by_role("img", name="Time of requests by stage, in milliseconds")).to_be_visible()
    moved = page.locator(".bars .line", has_text="visits")
    expect(moved).to_contain_text("has moved far")
    expect(page.get_by_text("The values of the rows are not kept.")).to_be_visible()
