"""Models trained once a session, in this process and without a store."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

from service.schemas import Column, InputSchema, take_rows
from service.training import Reporter, load_config
from service.training.data import Dataset, check_dataset, read_dataset
from tests.conftest import COLUMNS, table_rows

if TYPE_CHECKING:
    from service.training.train import TrainedModel


def table_dataset(rows: NDArray[np.float32], *, may_be_missing: bool = False) -> Dataset:
    columns = tuple(Column(name=name, may_be_missing=may_be_missing) for name in COLUMNS)
    schema = InputSchema(kind="tabular", row_shape=(len(COLUMNS),), columns=columns)
    return check_dataset(Dataset({"instances": rows}, schema, "payments.csv", ""))


@pytest.fixture(scope="session")
def table_model() -> "TrainedModel":
    """Six correlated columns of two causes, 3,000 calibration rows; fits well."""
    from service.training.train import train_model

    config = load_config("dense", latent_dim=2, hidden=(32,), epochs=12, batch_size=128, learning_rate=3e-3)
    return train_model(table_dataset(table_rows(20_000, seed=1)), config, Reporter())


@pytest.fixture(scope="session")
def digits_model() -> "TrainedModel":
    """Images, trained to remove gaussian noise."""
    from service.training.train import train_model

    return train_model(
        read_dataset("digits"), load_config("demo", epochs=20, hidden=(128,), learning_rate=4e-3), Reporter()
    )


@pytest.fixture(scope="session")
def table_export(table_model: "TrainedModel", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The SavedModel of ``table_model``."""
    return export_model(table_model, tmp_path_factory.mktemp("table"))


@pytest.fixture(scope="session")
def digits_export(digits_model: "TrainedModel", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The SavedModel of ``digits_model``."""
    return export_model(digits_model, tmp_path_factory.mktemp("digits"))


def export_model(trained: "TrainedModel", folder: Path) -> Path:
    from service.training.export import choose_sample, export

    rows = take_rows(trained.dataset.rows, trained.split.test)
    sample = choose_sample(trained.graph, trained.calibration, rows)
    export(folder, trained.graph, trained.calibration, sample=sample)
    return folder
