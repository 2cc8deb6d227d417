"""Scoring inside Spark: whole data frames, or a function of columns for ``predict_batch_udf``.

score_dataframe(spark.read.parquet("rows.parquet"), Scorer("model_store", "payments"))

The store must be readable on all executors, and this package installed there.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from inspect import Parameter, Signature
from typing import Any

import numpy as np

from service.pipelines.scorer import Scorer


def score_dataframe(frame: Any, scorer: Scorer) -> Any:
    """A Spark data frame with the result columns beside its own; each Python worker loads the model once."""
    from pyspark.sql.pandas.types import from_arrow_schema
    from pyspark.sql.types import StructType

    results = from_arrow_schema(scorer.result_schema())
    schema = StructType([*frame.schema.fields, *results.fields])
    return frame.mapInPandas(partition_function(scorer), schema)


def partition_function(scorer: Scorer) -> Callable[[Iterator[Any]], Iterator[Any]]:
    """The body of ``mapInPandas``, and with Arrow batches of ``mapInArrow``."""
    scorer = _of_one_core(scorer)

    def score(tables: Iterator[Any]) -> Iterator[Any]:
        for table in tables:
            yield scorer(table)

    return score


def batch_function(scorer: Scorer) -> Callable[[], Callable[..., Mapping[str, Any]]]:
    """A function for ``pyspark.ml.functions.predict_batch_udf``: arrays of the model's columns into results.

    Its ``return_type`` is ``result_type(scorer)``.
    """
    scorer = _of_one_core(scorer)

    def make() -> Callable[..., Mapping[str, Any]]:
        names = [column.name for column in scorer.schema.columns]
        by_name = replace(scorer, columns=())
        wanted = scorer.result_schema().names

        def predict(*columns: Any) -> Mapping[str, Any]:
            scored = by_name(dict(zip(names, columns, strict=True)))
            booleans = {name: scored[name].astype(np.int8) for name in wanted if scored[name].dtype.kind == "b"}
            return {name: booleans.get(name, scored[name]) for name in wanted}

        # Spark counts the parameters to know whether columns come one by one.
        places = [Parameter(f"column_{at}", Parameter.POSITIONAL_ONLY) for at in range(len(names))]
        predict.__signature__ = Signature(places)  # type: ignore[attr-defined]
        return predict

    return make


def result_type(scorer: Scorer) -> Any:
    """Spark's type of what ``batch_function`` gives: a struct. Spark has no booleans there: they are 0 or 1."""
    from pyspark.sql.pandas.types import from_arrow_schema
    from pyspark.sql.types import BooleanType, ByteType, StructField, StructType

    fields = from_arrow_schema(scorer.result_schema()).fields
    return StructType(
        [StructField(each.name, ByteType() if each.dataType == BooleanType() else each.dataType) for each in fields]
    )


def _of_one_core(scorer: Scorer) -> Scorer:
    """Spark runs a Python worker a core; more threads in each would be in each other's way."""
    return replace(scorer, threads=scorer.threads or 1)
