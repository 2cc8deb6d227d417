"""Small and wide tables, where a network overfits: the defaults are not worse than PCA of the same width."""

from typing import Any

import numpy as np
import pytest

from service.schemas import INSTANCES, InputSchema
from service.training import Reporter, load_config
from service.training.data import Dataset, check_dataset

pytestmark = pytest.mark.tf


def wide_rows() -> Any:
    random = np.random.default_rng(0)
    return random.normal(size=(120, 5)) @ random.normal(size=(5, 200)) + 0.5 * random.normal(size=(120, 200))


@pytest.mark.parametrize(
    ("name", "at_most"), [("breast_cancer", 0.9), ("wine", 1.02), ("diabetes", 1.02), ("wide", 1.001)]
)
def test_not_worse_than_pca(name: str, at_most: float) -> None:
    """Test error of the ``dense`` preset over that of PCA."""
    from sklearn import datasets

    from service.training.train import train_model

    rows = wide_rows() if name == "wide" else getattr(datasets, f"load_{name}")().data
    schema = InputSchema(kind="tabular", row_shape=(rows.shape[1],))
    dataset = check_dataset(Dataset({INSTANCES: rows.astype(np.float32)}, schema, name, ""))
    metrics = train_model(dataset, load_config("dense", epochs=40), Reporter()).metrics
    assert metrics.autoencoder.test <= at_most * metrics.pca.test
    assert metrics.best_epoch >= 0
