"""Scoring inside Apache Beam: a model handler for ``RunInference``.

rows | RunInference(ScorerHandler(Scorer("model_store", "payments"))) | beam.Map(scored_row)
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from apache_beam.ml.inference.base import ModelHandler, PredictionResult

from service.pipelines.scorer import CALL_ROWS, Scorer
from service.schemas import INSTANCES

Row = Mapping[str, Any]


class ScorerHandler(ModelHandler):  # type: ignore[misc, unused-ignore]
    """Rows as mappings in, each with its results out; the model is loaded once a process."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self._scorer = scorer

    def load_model(self) -> Scorer:
        self._scorer.load()
        return self._scorer

    def run_inference(
        self, batch: Sequence[Row], model: Scorer, inference_args: Mapping[str, Any] | None = None
    ) -> Iterable[PredictionResult]:
        """
        Raises:
            InvalidRows: a row does not fit, rows counted in the batch; not with ``errors="null"``.
        """
        names = [column.name for column in model.schema.columns] or [INSTANCES]
        columns = {name: [row.get(name) for row in batch] for name in model.columns or names}
        scored = model(columns)
        results = {name: scored[name] for name in scored if name not in columns}
        for at, row in enumerate(batch):
            found = {name: values[at] for name, values in results.items()}
            plain = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in found.items()}
            yield PredictionResult(row, plain, f"{model.model}/{model.version}")

    def batch_elements_kwargs(self) -> Mapping[str, Any]:
        return {"min_batch_size": 1, "max_batch_size": CALL_ROWS}

    def get_metrics_namespace(self) -> str:
        return "autoencoder"


def scored_row(result: PredictionResult) -> dict[str, Any]:
    """A row with its results beside its columns."""
    return {**result.example, **result.inference}
