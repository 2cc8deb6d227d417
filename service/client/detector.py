"""A running service as an estimator: what scikit-learn pipelines and PyOD users expect of a detector."""

import os
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_is_fitted

from service.client.clients import Client
from service.client.results import AnomalyScores

FIT_ROWS = 16


class RemoteDetector(OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """Anomaly scores of a service's model. ``fit`` trains nothing: it checks the service and keeps to one version.

    The model is trained already, so only ``fit``, ``predict`` and what belongs to them go over the network. Needs
    scikit-learn. Can be pickled and cloned; connections and keys are not part of it.

    Args:
        url: address of the service.
        model, version, alias: the version that answers, as in ``Client.anomaly_score``.
        threshold, false_alarm_rate: instead of the version's own; at most one of these three.
        false_discovery_rate: ``predict`` flags rows so that of all that it flags in a call at most this share is normal
            in expectation. ``threshold_`` and ``decision_function`` stay with the version's own threshold.
        convention: ``"pyod"``: ``predict`` gives 1 for anomalies and 0 for others, ``decision_function`` is the
            anomaly score. ``"sklearn"``, as ``IsolationForest``: ``predict`` gives -1 and 1, ``decision_function``
            is the threshold less the score, negative for anomalies.
        key_variable: environment variable with the key, where the service asks for one.
        timeout_s: for each call as a whole.

    After ``fit``: ``threshold_``, ``version_``, ``model_``, ``offset_`` (as scikit-learn has it: the negative
    threshold), ``n_features_in_`` and, for data frames, ``feature_names_in_``.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        model: str | None = None,
        version: int | None = None,
        alias: str | None = None,
        threshold: float | None = None,
        false_alarm_rate: float | None = None,
        false_discovery_rate: float | None = None,
        convention: Literal["pyod", "sklearn"] = "pyod",
        key_variable: str = "AUTOENCODER_KEY",
        timeout_s: float | None = None,
    ) -> None:
        self.url = url
        self.model = model
        self.version = version
        self.alias = alias
        self.threshold = threshold
        self.false_alarm_rate = false_alarm_rate
        self.false_discovery_rate = false_discovery_rate
        self.convention = convention
        self.key_variable = key_variable
        self.timeout_s = timeout_s

    def fit(self, X: Any, y: Any = None) -> Self:
        """Score the first rows of ``X``: raises what every later call would. ``y`` is ignored.

        Raises:
            ServiceError: the service is not there, or these are not rows of its model.
        """
        if self.convention not in ("pyod", "sklearn"):
            raise ValueError("convention must be 'pyod' or 'sklearn'.")
        found = self._ask(X[:FIT_ROWS], model=self.model, version=self.version, alias=self.alias)
        self.model_, self.version_ = found.model, found.version
        self.threshold_, self.offset_ = found.threshold, -found.threshold
        self.n_features_in_ = int(np.shape(X)[1])
        names = getattr(X, "columns", None)
        if names is not None and all(isinstance(name, str) for name in names):
            self.feature_names_in_ = np.asarray(list(names), dtype=object)
        return self

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """One number a row, by ``convention``: the anomaly score, or the threshold less it."""
        scores = self._score(X).scores.astype(np.float64)
        return scores if self.convention == "pyod" else self.threshold_ - scores

    def score_samples(self, X: Any) -> NDArray[np.float64]:
        """The negative anomaly score, which is what scikit-learn calls so."""
        return -self._score(X).scores.astype(np.float64)

    def predict(self, X: Any) -> NDArray[np.int64]:
        """By ``convention``: 1 for anomalies and 0 for others, or -1 and 1."""
        flags = self._score(X, false_discovery_rate=self.false_discovery_rate).is_anomaly
        return np.where(flags, 1, 0) if self.convention == "pyod" else np.where(flags, -1, 1)

    def fit_predict(self, X: Any, y: Any = None) -> NDArray[np.int64]:
        return self.fit(X, y).predict(X)

    def p_values(self, X: Any) -> NDArray[np.float64]:
        """Conformal p-values: on normal rows P(p <= a) <= a."""
        return self._score(X).p_values.astype(np.float64)

    def _score(self, X: Any, **options: Any) -> AnomalyScores:
        check_is_fitted(self)
        return self._ask(X, model=self.model_, version=self.version_, **options)

    def _ask(self, X: Any, **options: Any) -> AnomalyScores:
        with Client(self.url, key=os.environ.get(self.key_variable)) as client:
            return client.anomaly_score(
                X,
                threshold=self.threshold,
                false_alarm_rate=self.false_alarm_rate,
                timeout_s=self.timeout_s,
                **options,
            )
