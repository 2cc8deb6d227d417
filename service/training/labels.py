"""Which rows are known to be anomalies: for comparing two versions, never for training."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from service.errors import DataError
from service.schemas import INSTANCES, ColumnType
from service.training.data import Dataset, check_dataset


def take_labels(dataset: Dataset, column: str) -> tuple[Dataset, NDArray[np.bool_]]:
    """The data set without one column, and of each row whether that says it is an anomaly (1, true) or not (0, false).

    Raises:
        DataError: there is no such column, it has other values, or too little is left without it.
    """
    numbers = [found.name for found in dataset.schema.columns_of(ColumnType.NUMERIC, ColumnType.BOOLEAN)]
    if column not in numbers:
        raise DataError(f"There is no column {column} of 0 and 1, or of true and false, to take for labels.")
    place = numbers.index(column)
    values = dataset.rows[INSTANCES][:, place]
    if not np.isin(values, (0, 1)).all():
        raise DataError(f"Column {column} has other values than 0 and 1; as labels, 1 is an anomaly and 0 is none.")
    rows = {**dataset.rows, INSTANCES: np.delete(dataset.rows[INSTANCES], place, axis=1)}
    if len(numbers) == 1:
        del rows[INSTANCES]
    columns = tuple(found for found in dataset.schema.columns if found.name != column)
    schema = dataset.schema.model_copy(update={"columns": columns, "row_shape": (len(numbers) - 1,)})
    return check_dataset(replace(dataset, rows=rows, schema=schema)), values == 1
