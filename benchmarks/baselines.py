"""What an anomaly score is compared with: detectors as anybody would write them with scikit-learn."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import ConfigurationError

Detector = Callable[[NDArray[np.float64], NDArray[np.float64], int], NDArray[Any]]
"""Training rows, test rows and a seed to the scores of the test rows, higher = more anomalous."""


def nearest_neighbours(train: NDArray[np.float64], test: NDArray[np.float64], seed: int) -> NDArray[Any]:
    """Distance of the fifth nearest training row (Ramaswamy, Rastogi and Shim, SIGMOD 2000)."""
    from sklearn.neighbors import NearestNeighbors

    del seed
    found = NearestNeighbors(n_neighbors=min(5, len(train))).fit(train)
    return np.concatenate([found.kneighbors(part)[0][:, -1] for part in _parts(test)])


def isolation_forest(train: NDArray[np.float64], test: NDArray[np.float64], seed: int) -> NDArray[Any]:
    """100 trees (Liu, Ting and Zhou, ICDM 2008)."""
    from sklearn.ensemble import IsolationForest

    forest: Any = IsolationForest(random_state=seed).fit(train)
    return -np.asarray(forest.score_samples(test))


def principal_components(train: NDArray[np.float64], test: NDArray[np.float64], seed: int) -> NDArray[Any]:
    """Reconstruction error from the components that hold 90 % of the variance."""
    from sklearn.decomposition import PCA

    del seed
    pca = PCA(0.9, svd_solver="full").fit(train)
    errors: NDArray[Any] = np.square(test - pca.inverse_transform(pca.transform(test))).mean(axis=1)
    return errors


def mahalanobis(train: NDArray[np.float64], test: NDArray[np.float64], seed: int) -> NDArray[Any]:
    """Squared Mahalanobis distance under the Ledoit-Wolf covariance."""
    from sklearn.covariance import LedoitWolf

    del seed
    distances: NDArray[Any] = np.asarray(LedoitWolf().fit(train).mahalanobis(test))
    return distances


BASELINES: dict[str, Detector] = {
    "knn": nearest_neighbours,
    "isolation_forest": isolation_forest,
    "pca": principal_components,
    "mahalanobis": mahalanobis,
}


def pyod_autoencoder(train: NDArray[np.float64], test: NDArray[np.float64], seed: int) -> NDArray[Any]:
    """PyOD's autoencoder as it comes: reconstruction error, on PyTorch."""
    from pyod.models.auto_encoder import AutoEncoder

    detector = AutoEncoder(random_state=seed, verbose=0).fit(train)
    return np.asarray(detector.decision_function(test))


OPTIONAL: dict[str, Detector] = {"pyod_autoencoder": pyod_autoencoder}
"""What an extra brings; measured where it is asked for."""


def require_pyod() -> None:
    """
    Raises:
        ConfigurationError: PyOD or PyTorch is not installed.
    """
    if find_spec("pyod") is None or find_spec("torch") is None:
        raise ConfigurationError("PyOD is not installed: pip install 'autoencoder-service[pyod]'.")


def standardised(train: NDArray[Any], test: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both in units of the training rows; a missing value is the mean."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train)
    scaled = [np.nan_to_num(scaler.transform(rows.astype(np.float64))) for rows in (train, test)]
    return scaled[0], scaled[1]


def _parts(rows: NDArray[Any]) -> list[NDArray[Any]]:
    return np.array_split(rows, max(1, len(rows) // 2048))
