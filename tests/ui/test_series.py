"""The workbench of series and the measured false alarms, in a real browser."""

import csv
import re
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from service.pipelines.files import Job
from service.pipelines.scorer import Scorer
from service.pipelines.series import score_series
from service.tables.reading import TableFiles, make_selection, read_columns
from service.tables.series import even_grid, find_times, numbers_of
from tests.conftest import readings
from tests.live import LiveService
from tests.ui.conftest import SIZES, OpenPage
from tests.ui.test_console import serious_faults, settled, until, verdict

TIME = "%a, %d %b %Y, %H:%M"
READ_SERIES = """async ([address, text, step]) => (await import(address)).seriesOf(text, ["load"], step)"""
WITHOUT_LINE = """(canvas) => {  // the share of columns of pixels without the line
  const { width, height } = canvas;
  const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
  const isGreen = (at) => data[at + 3] > 200 && data[at + 1] > data[at] + 60;
  const has = (x) => [...Array(height).keys()].some((y) => isGreen(4 * (y * width + x)));
  return [...Array(width).keys()].filter((x) => x > 80 && x < width - 20 && !has(x)).length / width;
}"""

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


# --- the workbench ----------------------------------------------------------------------------------------------------

HOURS = 24 * 20
FAULT = slice(24 * 12, 24 * 12 + 30)
GAP = slice(24 * 5, 24 * 5 + 7)


def series_csv(*, gap: bool) -> str:
    """Hourly readings of twenty days whose second channel is too warm for thirty hours."""
    values = readings(HOURS, seed=5)
    values[FAULT, 1] += 9
    hours = [at for at in range(HOURS) if not (gap and GAP.start <= at < GAP.stop)]
    times = np.datetime64("2026-05-01T00:00:00") + np.array(hours) * np.timedelta64(1, "h")
    lines = [
        f"{str(time).replace('T', ' ')},{values[at, 0]:.3f},{values[at, 1]:.3f}"
        for time, at in zip(times, hours, strict=True)
    ]
    return "\n".join(["time,load,warm", *lines]) + "\n"


def open_series(open_page: OpenPage, service: LiveService, text: str, **chosen: str) -> Page:
    page = open_page(f"{service.url}/ui#/try/boiler", **chosen)
    settled(page, "Try it")
    if chosen.get("size") != "phone":
        page.set_viewport_size({"width": 1440, "height": 900})
    page.get_by_label("From a file").set_input_files(
        {"name": "night.csv", "mimeType": "text/csv", "buffer": text.encode()}
    )
    expect(page.get_by_text("From night.csv.")).to_be_visible()
    expect(page.get_by_text(re.compile(r"readings? of 4\d\d flagged"))).to_be_visible()
    return page


def listed(page: Page) -> list[list[str]]:
    """The cells of the flagged stretches."""
    rows = page.get_by_role("region", name="Flagged stretches").locator("tbody tr").all()
    return [row.locator("th, td").all_inner_texts() for row in rows]


def scored_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("size", ["desktop", "phone"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_workbench_says_when_a_series_went_wrong(
    series_service: LiveService, open_page: OpenPage, size: str, theme: str
) -> None:
    """With gaps and real times: when, how long, by which channel; both cards by one rule."""
    page = open_series(open_page, series_service, series_csv(gap=True), size=size, theme=theme)
    expect(page.get_by_text("7 steps of 480 have no reading")).to_be_visible()
    rows = page.get_by_role("region", name="Flagged stretches").locator("tbody tr")
    stretch = rows.filter(has_text=re.compile(r"warm \([89]\d %\)"))
    expect(stretch).to_have_count(1)
    expect(stretch.locator("th")).to_have_text(re.compile(r"(Tue, 12|Wed, 13) May 2026, \d\d:00"))
    expect(page.locator(".found")).to_contain_text(stretch.locator("th").inner_text())
    expect(stretch).to_contain_text(re.compile(r"\d d|\d h"))
    for at in range(rows.count()):  # through all of them
        page.get_by_role("button", name="Next stretch").click()
        expect(page.get_by_text(f"Stretch {at + 1} of {rows.count()}.")).to_be_visible()
    expect(page.get_by_role("button", name="Next stretch")).to_be_disabled()
    stretch.get_by_role("button").click()
    expect(verdict(page)).to_contain_text(re.compile(r"^\d+ of these 24 readings flagged"))
    expect(verdict(page)).to_contain_text(re.compile(r"mostly because warm at \w+, 1[34] May 2026, \d\d:00 is"))
    threshold = series_service.get("/models/boiler/versions/1/calibration").json()["points"]["threshold"]
    for card in (page.locator(".found"), verdict(page)):
        expect(card).to_contain_text(
            "a reading is flagged when its score is over the threshold of readings", ignore_case=True
        )
        expect(card).to_contain_text(f"{threshold:.4g}")
    assert not serious_faults(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.get_by_role("button", name="Whole series").click()
    expect(page.get_by_role("button", name="Whole series")).to_be_disabled()
    page.locator("#window").fill("0")
    expect(verdict(page)).to_contain_text("None of these readings is flagged")


def test_a_chart_is_zoomed_by_dragging_across_it(series_service: LiveService, open_page: OpenPage) -> None:
    """All charts show what was dragged across; a gap is a break of the line."""
    page = open_series(open_page, series_service, series_csv(gap=True))
    chart = page.get_by_role("img", name="warm over time").locator(".u-over")
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 40, steps=5)
    page.mouse.up()
    expect(page.get_by_role("button", name="Zoom out")).to_be_enabled()
    middle = page.get_by_role("img", name="warm over time").locator("canvas")
    until(lambda: bool(0.03 < middle.evaluate(WITHOUT_LINE) < 0.4))


def test_the_threshold_of_readings_flags_again_as_it_moves(series_service: LiveService, open_page: OpenPage) -> None:
    """More to the right, fewer to the left, with what training measured; and the CSV that is saved follows."""
    page = open_series(open_page, series_service, series_csv(gap=False))
    slider = page.locator("#point-threshold")
    flagged = page.get_by_text(re.compile(r"readings? of 480 flagged"))
    own = int(flagged.inner_text().split()[0])
    slider.fill(slider.get_attribute("max") or "")
    expect(page.get_by_text("about 50 of 100 ordinary readings would be flagged")).to_be_visible()
    expect(page.locator(".found")).to_contain_text("which you chose here")
    expect(page.locator(".measured")).to_contain_text("test readings")
    more = int(flagged.inner_text().split()[0])
    assert more > own
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save as CSV").click()
    rows = scored_rows(Path(saved.value.path()))
    assert list(rows[0]) == ["time", "load", "warm", "anomaly_score", "p_value", "is_anomaly"]
    assert (rows[0]["time"], len(rows)) == ("2026-05-01 00:00:00", 480)
    assert sum(row["is_anomaly"] == "true" for row in rows) == more
    page.get_by_role("button", name="Back to the version's own threshold").click()
    expect(flagged).to_have_text(re.compile(f"^{own} "))


def test_the_console_flags_what_the_command_flags(
    series_store: Path, series_service: LiveService, open_page: OpenPage, tmp_path: Path
) -> None:
    """The same stretches as `autoencoder score` prints, and the same scores."""
    text = series_csv(gap=False)
    (tmp_path / "night.csv").write_text(text)
    job = Job(str(tmp_path / "night.csv"), str(tmp_path / "scored.csv"))
    _, stretches = score_series(job, Scorer(str(series_store), "boiler", operation="anomaly_score"))
    page = open_series(open_page, series_service, text)
    shown = [(datetime.strptime(row[0], TIME), datetime.strptime(row[1], TIME), int(row[3])) for row in listed(page)]
    parsed = [
        (datetime.fromisoformat(each.first), datetime.fromisoformat(each.last), each.readings) for each in stretches
    ]
    assert shown == parsed
    assert parsed
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save as CSV").click()
    ours, theirs = (scored_rows(path) for path in (Path(saved.value.path()), tmp_path / "scored.csv"))
    for name in ("anomaly_score", "p_value"):
        wanted = [float(row[name]) for row in theirs]
        assert [float(row[name]) for row in ours] == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize(
    ("lines", "step"),
    [
        (["2026-01-31 23:50,1", "2026-02-01 00:00,2", "2026-02-01 00:20,3", "2026-02-01 00:21,5"], None),
        (["31.01.2026 23:50,1", "01.02.2026 00:00,2", "01.02.2026 00:20,3"], 600.0),
        (["2026-01-31T23:50:00Z,1", "2026-02-01T01:00:00+01:00,2", "2026-02-01T00:10:30Z,3"], 600.0),
        (["1769903400,1", "1769904000,2", "1769905200,3"], None),
        (["1769903400000,1", "1769904000000,2", "1769905200000,"], 600.0),
        (
            [
                "2026-10-25 02:00,1",
                "2026-10-25 02:30,2",
                "2026-10-25 02:00,3",
                "2026-10-25 02:30,4",
                "2026-10-25 03:00,5",
            ],
            None,
        ),
        (["a,1", "b,2", "c,3"], None),
    ],
)
def test_the_console_reads_times_as_the_command_does(
    series_service: LiveService, open_page: OpenPage, tmp_path: Path, lines: list[str], step: float | None
) -> None:
    """The same points at the same steps, with the same readings missing."""
    text = "\n".join(["when,load", *lines])
    (tmp_path / "a.csv").write_text(text)
    files = TableFiles([tmp_path / "a.csv"])
    table = read_columns(files, make_selection(), keep=None)
    values, times = numbers_of(table, "load")[:, None], find_times(table.drop_columns(["load"]), None)
    points, places = values, np.arange(len(values))
    if times is not None:
        grid = even_grid(values, times.seconds, step)
        points, places = grid.values, grid.places
    page = open_page(f"{series_service.url}/ui")
    found = page.evaluate(READ_SERIES, [f"{series_service.url}/ui/parts/series.js", text, step])
    assert found["places"] == places.tolist()
    assert (found["times"] is None) == (times is None)
    if times is not None:
        assert found["times"] == times.seconds.tolist()
    np.testing.assert_allclose(np.array(found["points"], float), points)
