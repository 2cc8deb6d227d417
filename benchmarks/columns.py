"""Detection on files with named columns and one of labels, by the commands that a user would run: train, then score."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.commands import complaint_of
from service.errors import DataError
from service.store import Store, read_manifest
from service.tables.files import plan_parts, read_batches

MODEL = "measured"


@dataclass(frozen=True, slots=True)
class ColumnsLine:
    """Results on one file of test rows."""

    training_rows: int
    """After those for validation, calibration and the job's own test were set aside."""
    test_rows: int
    anomalies: int
    auroc: float
    aupr: float
    nominal_rate: float
    """The false-alarm rate that the threshold was set for."""
    false_alarms: float
    """Share of the normal test rows that were called anomalies."""
    detected: float
    """Share of the anomalies that were."""


def measure_columns(
    training: Path, test: Path, *, label: str, normal: str, drop: Sequence[str], options: Sequence[str]
) -> ColumnsLine:
    """Train on the rows of ``training`` whose ``label`` is ``normal``, and score every row of ``test`` once.

    Neither the label nor the columns ``drop`` are shown to the model; ``options`` are those of the training command.

    Raises:
        DataError: a command failed, for the reason that it gave; or the test rows are of one kind only.
    """
    from pyarrow import parquet
    from sklearn.metrics import average_precision_score, roc_auc_score

    truth = _is_anomaly(test, label, normal)
    if truth.all() or not truth.any():
        raise DataError(f"{test.name} has one kind of rows only: '{label}' is {normal} in {(~truth).sum()} of them.")
    with tempfile.TemporaryDirectory() as folder:
        store, scored = Path(folder) / "store", Path(folder) / "scored.parquet"
        unseen = ",".join((label, *drop))
        chosen = ("--where", f"{label}={normal}", "--drop", unseen)
        _run("train", training, "--model", MODEL, "--store", store, *chosen, *options)
        _run("score", test, scored, "--store", store, "--model", MODEL, "--quiet")
        manifest = read_manifest(Store(store).path(MODEL, 1))
        table = parquet.read_table(scored)
    scores, flags = (table.column(name).to_numpy() for name in ("anomaly_score", "is_anomaly"))
    return ColumnsLine(
        manifest.row_counts.train,
        len(truth),
        int(truth.sum()),
        float(roc_auc_score(truth, scores)),
        float(average_precision_score(truth, scores)),
        manifest.calibrated.false_alarm_rate,
        float(flags[~truth].mean()),
        float(flags[truth].mean()),
    )


def _is_anomaly(file: Path, label: str, normal: str) -> NDArray[np.bool_]:
    """Whether each row's ``label`` is another than ``normal``.

    Raises:
        DataError: the file cannot be read or has no such column.
    """
    values: list[str] = []
    for part in plan_parts([str(file)]):
        for table, _ in read_batches(part, batch_rows=65_536):
            if label not in table.column_names:
                raise DataError(f"{file.name} has no column '{label}'.")
            values += map(str, table.column(label).to_pylist())
    is_anomaly: NDArray[np.bool_] = np.array(values) != normal
    return is_anomaly


def _run(command: str, *arguments: object) -> None:
    complaint = complaint_of(command, *arguments)
    if complaint is not None:
        raise DataError(complaint)
