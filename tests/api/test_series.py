"""A model of series over HTTP: windows as rows, and series sent whole, scored point by point."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.scoring import conformal_p_values
from service.settings import Settings
from service.store import Manifest, read_manifest
from tests.conftest import PERIOD, readings
from tests.live import LiveService, serve_live

pytestmark = pytest.mark.tf


@pytest.fixture(scope="module")
def service(series_store: Path) -> Iterator[LiveService]:
    with serve_live(Settings(store=series_store, port=0)) as live:
        yield live


@pytest.fixture(scope="module")
def manifest(series_store: Path) -> Manifest:
    return read_manifest(series_store / "boiler" / "1")


def test_schema_names_window_and_channels(manifest: Manifest) -> None:
    """The window is the period that was found, the channels are the columns beside the times."""
    assert manifest.input.kind == "timeseries"
    assert manifest.input.channels == ("load", "warm")
    assert manifest.input.row_shape == (PERIOD, 2)
    assert manifest.row_counts.calibration > 100
    assert manifest.point_calibration is not None
    assert manifest.point_calibration.rows > manifest.row_counts.calibration
    assert manifest.point_scale is not None
    assert (len(manifest.point_scale.typical), manifest.point_scale.span) == (24, 12)


def test_windows_are_rows(service: LiveService) -> None:
    """All operations take windows, and reconstruct them in their own units."""
    windows = np.stack([readings(PERIOD, seed=5), readings(PERIOD, seed=6)])
    scored = service.post("/anomaly-score", json={"instances": windows.tolist(), "explain": 1}).json()
    assert len(scored["scores"]) == len(scored["contributions"]) == 2
    rebuilt = service.post("/reconstruct", json={"instances": windows.tolist()}).json()["reconstructions"]
    assert np.abs(np.array(rebuilt) - windows).mean(axis=(0, 1)) == pytest.approx([1.6, 0.4], abs=1.5)


def test_a_whole_series_is_scored_point_by_point(service: LiveService, manifest: Manifest) -> None:
    """One entry a point; a disturbed stretch scores highest, and is told from the rest."""
    values = readings(300, seed=7)
    values[150:153, 0] += 40
    answer = service.post("/anomaly-score", json={"series": values.tolist()}).json()
    scores, flags = np.array(answer["scores"]), np.array(answer["is_anomaly"])
    assert len(scores) == len(answer["p_values"]) == len(flags) == 300
    assert set(np.argsort(scores)[-3:]) == {150, 151, 152}
    assert flags[150:153].all()
    assert flags[:120].mean() < 0.1
    assert manifest.point_calibration is not None
    assert answer["threshold"] == pytest.approx(manifest.point_calibration.threshold)
    wanted = conformal_p_values(scores, manifest.point_calibration.scores)
    np.testing.assert_allclose(answer["p_values"], wanted, atol=1e-6)


def test_any_runtime_gives_the_same_point_scores(service: LiveService, series_store: Path) -> None:
    """The signature ``score_series`` of the SavedModel, without this service."""
    import tensorflow as tf

    values = readings(200, seed=8)
    answer = service.post("/anomaly-score", json={"series": values.tolist()}).json()
    found = tf.saved_model.load(str(series_store / "boiler" / "1")).signatures["score_series"](series=values)
    np.testing.assert_allclose(found["score"], answer["scores"], rtol=1e-5)
    np.testing.assert_allclose(found["p_value"], answer["p_values"], atol=2e-3)


def test_forms_of_a_series_agree(service: LiveService) -> None:
    """Points as arrays, as objects, and as one array a channel; options hold for points."""
    values = readings(60, seed=9)
    names = ("load", "warm")
    forms: list[Any] = [
        values.tolist(),
        [dict(zip(names, point, strict=True)) for point in values.tolist()],
        {name: values[:, at].tolist() for at, name in enumerate(names)},
    ]
    answers = [service.post("/anomaly-score", json={"series": form, "false_alarm_rate": 0.2}).json() for form in forms]
    assert answers[0] == answers[1] == answers[2]
    assert answers[0]["false_alarm_rate"] == 0.2
    assert answers[0]["is_anomaly"] == [score > answers[0]["threshold"] for score in answers[0]["scores"]]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"series": [[1, 2]] * 5}, "at least 24 points"),
        ({"series": [[1, 2]] * 30, "instances": []}, "must have one of"),
        ({"series": [[1, 2]] * 30, "explain": 1}, "send the window in question"),
        ({"series": [[1, 2]] * 29 + [[1]]}, "do not fit"),
        ({"series": {"load": [1.0] * 30}}, "do not fit"),
        ({"series": 3}, "must be an array"),
    ],
)
def test_what_is_no_series_is_refused(service: LiveService, body: dict[str, Any], sentence: str) -> None:
    """With 422 and one sentence."""
    answer = service.post("/anomaly-score", json=body)
    assert answer.status_code == 422
    assert sentence in answer.json()["detail"]


def test_points_are_named_by_row_and_channel(service: LiveService) -> None:
    """A gap where training had none, in its point and channel."""
    values: list[list[Any]] = readings(40, seed=1).tolist()
    values[33][1] = None
    problem = service.post("/anomaly-score", json={"series": values}).json()["errors"][0]
    assert (problem["row"], problem["column"]) == (33, "warm")


def test_a_series_is_for_scoring_only(service: LiveService) -> None:
    """Other operations take windows."""
    answer = service.post("/encode", json={"series": readings(40, seed=1).tolist()})
    assert answer.status_code == 422


def test_the_wrong_time_of_day_is_strange(service: LiveService) -> None:
    """Values that are usual at other hours, in a series that begins at any hour: where the day is turned, scores are
    highest."""
    values = readings(24 * 12 + 7, seed=11)[7:]
    values[120:144] = values[120:144][::-1]
    answer = service.post("/anomaly-score", json={"series": values.tolist()}).json()
    scores = np.array(answer["scores"])
    assert 120 <= scores.argmax() < 144
    assert answer["is_anomaly"][132]
    assert np.median(scores[125:140]) > 2 * np.median(np.delete(scores, np.s_[100:164]))
