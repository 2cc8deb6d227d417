"""RemoteDetector where scikit-learn and PyOD users would put a detector."""

import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone, is_outlier_detector
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from service.client import InvalidRows, RemoteDetector, Unreachable
from tests.api.samples import payments
from tests.client.conftest import COLUMNS
from tests.live import LiveService

Array = np.ndarray[Any, np.dtype[np.float32]]


def test_conventions(named_service: LiveService, rows: Array) -> None:
    """PyOD: higher = more anomalous, 1 = anomaly. scikit-learn: negative = anomaly, -1 = anomaly."""
    pyod = RemoteDetector(named_service.url).fit(rows)
    assert pyod.threshold_ == 3.0
    assert pyod.decision_function(rows[:6]).tolist() == [0, 1, 2, 3, 4, 5]
    assert pyod.predict(rows[:6]).tolist() == [0, 0, 0, 0, 1, 1]
    sklearn = RemoteDetector(named_service.url, convention="sklearn").fit(rows)
    assert sklearn.decision_function(rows[:6]).tolist() == [3, 2, 1, 0, -1, -2]
    assert sklearn.predict(rows[:6]).tolist() == [1, 1, 1, 1, -1, -1]
    assert np.array_equal(sklearn.score_samples(rows[:6]) - sklearn.offset_, sklearn.decision_function(rows[:6]))
    assert sklearn.fit_predict(rows[:6]).tolist() == [1, 1, 1, 1, -1, -1]
    assert pyod.p_values(rows[:1]).tolist() == [1.0]
    with pytest.raises(ValueError, match="convention"):
        RemoteDetector(named_service.url, convention="other").fit(rows)  # type: ignore[arg-type]


def test_thresholds_are_parameters(named_service: LiveService, rows: Array) -> None:
    """A threshold or a false-alarm rate of one's own decides what is called an anomaly."""
    assert RemoteDetector(named_service.url, threshold=1.0).fit(rows).predict(rows[:4]).tolist() == [0, 0, 1, 1]
    assert RemoteDetector(named_service.url, false_alarm_rate=0.5).fit(rows).threshold_ == 2.0
    bounded = RemoteDetector(named_service.url, false_discovery_rate=0.3).fit(rows)
    assert bounded.threshold_ == 3.0
    assert bounded.predict(rows[:6]).tolist() == [0] * 6
    assert bounded.predict(rows[4:6]).tolist() == [1, 1]


def test_it_is_an_estimator(named_service: LiveService, rows: Array) -> None:
    """Cloned, pickled, with parameters; in a pipeline and a cross-validation."""
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    detector = RemoteDetector(named_service.url, model="wells").fit(frame)
    assert is_outlier_detector(detector)
    assert list(detector.feature_names_in_) == list(COLUMNS)
    assert detector.n_features_in_ == 2
    assert pickle.loads(pickle.dumps(detector)).predict(frame[:2]).tolist() == [0, 0]
    other = clone(detector).set_params(threshold=0.5)
    assert other.get_params()["model"] == "wells"
    with pytest.raises(NotFittedError):
        other.predict(frame)
    pipeline = make_pipeline(FunctionTransformer(lambda values: values * 2), other)
    assert pipeline.fit(frame).predict(frame[:2]).tolist() == [0, 1]
    labels = (rows[:, 0] > 500).astype(int)
    assert roc_auc_score(labels, detector.decision_function(rows)) == 1.0
    shuffled = np.random.default_rng(0).permutation(len(rows))
    scores = cross_val_score(
        RemoteDetector(named_service.url), rows[shuffled], labels[shuffled], scoring="roc_auc", cv=2
    )
    assert scores.tolist() == [1.0, 1.0]


def test_fit_checks_the_service(named_service: LiveService, rows: Array) -> None:
    """Nobody there, or rows of another kind: an error at once."""
    with pytest.raises(Unreachable):
        RemoteDetector("http://127.0.0.1:1", timeout_s=0.2).fit(rows)
    with pytest.raises(InvalidRows):
        RemoteDetector(named_service.url).fit(np.ones((4, 3)))


@pytest.mark.tf
def test_a_real_model_finds_what_is_odd(service: LiveService) -> None:
    """Rows whose columns were mixed up score higher than ordinary ones."""
    rows = payments(200)
    odd = np.random.default_rng(0).permuted(rows, axis=0)
    detector = RemoteDetector(service.url, model="payments").fit(rows)
    labels = np.repeat([0, 1], 200)
    assert roc_auc_score(labels, detector.decision_function(np.concatenate([rows, odd]))) > 0.8
