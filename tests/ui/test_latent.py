"""The latent map in the console: colours by p-value, rings, and what a click shows."""

import re
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from playwright.sync_api import Page, expect

from service.scoring import conformal_p_values
from service.store import Store
from tests.live import LiveService
from tests.ui.conftest import OpenPage
from tests.ui.test_console import serious_faults, settled, until
from tests.ui.test_images import open_files, uploads

pytestmark = [pytest.mark.tf, pytest.mark.slow]

RING_PX = 6


def on_screen(page: Page, space: dict[str, Any], place: tuple[float, float]) -> tuple[float, float]:
    """Where a place of the map is drawn, from the corner of its canvas, when all of it is shown."""
    box = page.locator(".map canvas").bounding_box()
    assert box is not None
    x, y = np.array(space["x"]), np.array(space["y"])
    scale = 0.9 * min(box["width"] / np.ptp(x), box["height"] / np.ptp(y))
    middle = (x.min() + x.max()) / 2, (y.min() + y.max()) / 2
    return box["width"] / 2 + (place[0] - middle[0]) * scale, box["height"] / 2 - (place[1] - middle[1]) * scale


def colour_at(page: Page, x: float, y: float) -> Any:
    script = "(canvas, [x, y]) => [...canvas.getContext('2d').getImageData(x, y, 1, 1).data].slice(0, 3)"
    return page.locator(".map canvas").evaluate(script, [round(x), round(y)])


def click(page: Page, x: float, y: float) -> None:
    page.locator(".map canvas").click(position={"x": x, "y": y})


def picked(page: Page) -> Any:
    return page.locator(".picked")


def sample_places(service: LiveService, base: str, space: dict[str, Any]) -> NDArray[np.float64]:
    """Places on the map of the rows that the version publishes, (rows, 2)."""
    latents = service.post(f"{base}/encode", json=service.get(f"{base}/sample-request").json()).json()["latents"]
    places: NDArray[np.float64] = (np.array(latents) - space["mean"]) @ np.array(space["components"]).T[:, :2]
    return places


def far_from_samples(service: LiveService, space: dict[str, Any]) -> int:
    """An ordinary point of the map of ``digits`` that no diamond covers."""
    points, scores = np.column_stack([space["x"], space["y"]]), np.array(space["score"])
    samples = sample_places(service, "/models/digits/versions/2", space)
    far = np.linalg.norm(points[:, None] - samples, axis=2).min(axis=1)
    return int(np.argmax(np.where(scores < np.quantile(scores, 0.3), far, 0)))


def test_flagged_rows_are_ringed_and_a_click_says_what_they_are(service: LiveService, open_page: OpenPage) -> None:
    """Score, p-value and what the decoder draws there; also without a pointer. Values of rows are not in a version."""
    space = service.get("/models/digits/versions/2/latent-map").json()
    threshold = service.get("/models/digits/versions/2").json()["calibration"]["threshold"]
    flagged = np.flatnonzero(np.array(space["score"]) > threshold)
    strangest = int(np.argmax(space["score"]))
    assert len(flagged)
    page = open_page(f"{service.url}/ui#/latent/digits/2")
    settled(page, "Latent space")
    expect(page.get_by_text(f"the {len(flagged)} over the threshold are ringed")).to_be_visible()
    x, y = on_screen(page, space, (space["x"][strangest], space["y"][strangest]))
    until(lambda: max(colour_at(page, x + RING_PX, y)) < 80)  # the ring: the text's colour
    page.get_by_role("button", name="Next flagged row").click()
    expect(picked(page)).to_contain_text("A row over the threshold")
    expect(picked(page)).to_contain_text(re.compile(r"p-value at most 0\.0\d+; at "))
    expect(picked(page)).to_contain_text("values of rows are not kept")
    drawn = picked(page).get_by_role("img", name="What the decoder draws at this place")
    pixels = "(canvas) => [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data]"
    until(lambda: max(np.reshape(drawn.evaluate(pixels), (-1, 4))[:, 0]) > 100)
    ordinary = far_from_samples(service, space)
    click(page, *on_screen(page, space, (space["x"][ordinary], space["y"][ordinary])))
    expect(picked(page)).to_contain_text("A row under the threshold")
    expect(picked(page)).to_contain_text("p-value over 0.5")
    assert not serious_faults(page)
    page.get_by_role("tab", name="t-SNE").click()
    expect(picked(page)).to_have_count(0)
    page.get_by_role("button", name="Next flagged row").click()
    expect(drawn).to_be_visible()


def test_p_values_of_the_map_are_those_of_the_version(
    service: LiveService, open_page: OpenPage, trained_store: Any
) -> None:
    """As far as the table of thresholds tells: never too low, and too high by no more than a step of it."""
    base = "/models/digits/versions/2"
    scores = service.get(f"{base}/latent-map").json()["score"]
    calibration = service.get(f"{base}/calibration").json()
    true = conformal_p_values(scores, Store(trained_store).manifest("digits", 2).calibrated.scores)
    page = open_page(f"{service.url}/ui")
    script = """async ([scores, calibration]) => {
      const { pValueOf } = await import("./ui/views/latent.js");
      return scores.map((score) => pValueOf(score, calibration));
    }"""
    shown = np.array(page.evaluate(script, [scores, calibration]))
    close = true < 0.5
    assert (shown[~close] >= 0.5).all()
    assert (shown[close] >= true[close] * 0.99).all()
    assert (shown[close] <= true[close] * 1.07 + 1e-3).all()


@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_a_sample_row_shows_its_values(service: LiveService, open_page: OpenPage, size: str) -> None:
    """The rows that the publisher put into the version are diamonds; one can be opened in Try it."""
    base = "/models/payments/versions/1"
    space = service.get(f"{base}/latent-map").json()
    sample = service.get(f"{base}/sample-request").json()
    places = sample_places(service, base, space)
    page = open_page(f"{service.url}/ui#/latent/payments/1", size=size)
    settled(page, "Latent space")
    until(lambda: bool(page.get_by_text("Diamonds are rows").count()))
    click(page, *on_screen(page, space, (places[2][0], places[2][1])))
    expect(picked(page).get_by_role("heading", name=re.compile(r"Sample row \d"))).to_be_visible()
    at = int((picked(page).get_by_role("heading").inner_text()).rpartition(" ")[2]) - 1
    expect(picked(page).get_by_role("term")).to_have_text(list(sample["instances"][at]))
    assert not serious_faults(page)
    picked(page).get_by_role("button", name="Open in Try it").click()
    settled(page, "Try it")
    visits = page.get_by_label("visits", exact=True)
    assert float(visits.input_value()) == pytest.approx(sample["instances"][at]["visits"], rel=1e-3)


def test_images_that_were_scored_together_are_on_the_map(service: LiveService, open_page: OpenPage) -> None:
    """Beside the samples, so that a click shows the picture."""
    from tests.api.samples import digits
    from tests.ui.test_images import as_png

    sent: list[Any] = []
    page = open_page(f"{service.url}/ui")
    open_files(page, service, "digits/2")
    files = {f"{at}.png": as_png(row / 16) for at, row in enumerate(digits(3))}
    page.get_by_label("Image file").set_input_files(uploads(files))
    expect(page.get_by_text("of 3 images flagged")).to_be_visible()
    page.on("request", lambda request: sent.append(request.post_data_json) if "/encode" in request.url else None)
    page.get_by_role("link", name="see it in the latent space").click()
    settled(page, "Latent space")
    sample = service.get("/models/digits/versions/2/sample-request").json()["instances"]
    assert [len(each["instances"]) for each in sent] == [len(sample) + 3]
