"""Last alerts: bounded, explained beside the traffic, forgetful of values."""

import re
import time
from pathlib import Path

import numpy as np
import pytest

from service.runtime.traffic import LOGGED, MAX_ALERTS, MAX_ALERTS_OF_A_REQUEST, Alert, Alerts
from service.schemas import INSTANCES, Results, Rows
from service.store import Store
from service.telemetry import request_id_of_context
from tests.fakes import RAISES, load_fake, publish_fake


def batch(scores: list[float], *, first: float = 9.0) -> tuple[Rows, Results]:
    """Rows of the fake model and what it says of them; all over its threshold."""
    rows = np.array([[first, score] for score in scores], np.float32)
    results = {"score": np.array(scores, np.float32), "p_value": np.full(len(scores), 0.2, np.float32)}
    return {INSTANCES: rows}, {**results, "is_anomaly": np.ones(len(scores), bool)}


def explained(alerts: Alerts) -> list[Alert]:
    """All alerts, once the newest has its columns."""
    deadline = time.monotonic() + 20
    while alerts.latest()[0].columns is None:
        assert time.monotonic() < deadline, "it was not explained"
        time.sleep(0.01)
    return alerts.latest()


def test_the_newest_come_first_and_only_so_many(tmp_path: Path) -> None:
    """Bounded over all requests and within one."""
    publish_fake(Store(tmp_path))
    loaded, alerts = load_fake(tmp_path / "pumps" / "1"), Alerts(keep_values=False)
    alerts.scored(loaded, *batch([float(at) for at in range(50)]))
    expected = [float(at) for at in range(49, 49 - MAX_ALERTS_OF_A_REQUEST, -1)]
    assert [alert.score for alert in alerts.latest()] == expected
    for _ in range(MAX_ALERTS):
        alerts.scored(loaded, *batch([1.0, 2.0]))
    assert len(alerts.latest()) == MAX_ALERTS


def test_ordinary_rows_leave_nothing(tmp_path: Path) -> None:
    """Only rows over the threshold."""
    publish_fake(Store(tmp_path))
    alerts = Alerts(keep_values=False)
    rows, results = batch([1.0, 2.0])
    alerts.scored(load_fake(tmp_path / "pumps" / "1"), rows, {**results, "is_anomaly": np.zeros(2, bool)})
    assert alerts.latest() == []


def test_columns_without_their_values_unless_these_are_kept(tmp_path: Path) -> None:
    """Names and shares; observed and expected where the setting says so."""
    publish_fake(Store(tmp_path), columns=("pressure", "flow"))
    loaded = load_fake(tmp_path / "pumps" / "1")
    for keeps, fields in ((False, {"feature", "share"}), (True, {"feature", "share", "observed", "expected"})):
        alerts = Alerts(keep_values=keeps, pause_s=0)
        alerts.start()
        alerts.scored(loaded, *batch([5.0]))
        alert = explained(alerts)[0]
        columns = alert.columns
        alerts.stop()
        assert alert.values == ({"pressure": 9.0, "flow": 5.0} if keeps else None)
        assert columns is not None
        assert {column["feature"] for column in columns} == {"pressure", "flow"}
        assert all(set(column) == fields for column in columns)


def test_a_row_that_cannot_be_explained_stays_an_alert(tmp_path: Path) -> None:
    """And the next one is explained all the same."""
    publish_fake(Store(tmp_path))
    loaded, alerts = load_fake(tmp_path / "pumps" / "1"), Alerts(keep_values=False, pause_s=0)
    alerts.start()
    alerts.scored(loaded, *batch([5.0], first=RAISES))
    alerts.scored(loaded, *batch([6.0]))
    newest, before = explained(alerts)
    alerts.stop()
    assert before.columns is None
    assert newest.columns is not None


def test_an_alert_is_logged_with_its_request_row_and_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One line for each, on the alerts' own thread, where there is no request any more."""
    publish_fake(Store(tmp_path), columns=("pressure", "flow"))
    loaded, alerts = load_fake(tmp_path / "pumps" / "1"), Alerts(keep_values=False, pause_s=0)
    rows, results = batch([1.0, 5.0, 2.0])
    results["is_anomaly"] = np.array([False, True, False])
    token = request_id_of_context.set("order-7")
    with caplog.at_level("INFO"):
        alerts.start()
        alerts.scored(loaded, rows, results, first_row=100)
        request_id_of_context.reset(token)
        (alert,) = explained(alerts)
        alerts.stop()
    assert (alert.request_id, alert.row) == ("order-7", 101)
    (line,) = [record for record in caplog.records if record.message == "alert"]
    found = {name: getattr(line, name) for name in (*LOGGED, "reason")}
    assert found == {
        "model": "pumps", "version": 1, "request_id": "order-7", "row": 101, "score": 5.0, "p_value": alert.p_value,
        "reason": found["reason"],
    }  # fmt: skip
    assert re.fullmatch(r"(pressure|flow) \d+%, (pressure|flow) \d+%", found["reason"])


def test_long_rows_are_not_kept(tmp_path: Path) -> None:
    """A hundred large images would take more memory than the models."""
    publish_fake(Store(tmp_path), image=(32, 32))
    publish_fake(Store(tmp_path), image=(32, 33))
    kept = []
    for version, width in ((1, 32), (2, 33)):
        _, results = batch([5.0])
        alerts = Alerts(keep_values=True)
        images = {INSTANCES: np.zeros((1, 32, width), np.float32)}
        alerts.scored(load_fake(tmp_path / "pumps" / str(version)), images, results)
        kept.append(alerts.latest()[0].values is not None)
    assert kept == [True, False]
