"""Score tables and files where they are: in a program, on the command line, inside Ray, Spark, Dask and Beam."""

from service.pipelines.scorer import Scorer

__all__ = ["Scorer"]
