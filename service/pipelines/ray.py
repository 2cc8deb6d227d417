"""Scoring on a Ray cluster: datasets by the scorer itself, files by parts, the model loaded once a worker.

dataset = score_dataset(ray.data.read_parquet("s3://bucket/rows"), Scorer("model_store", "payments"))
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from service.errors import AutoencoderError, DataError
from service.pipelines.files import Advance, Engine, Plan, score_parts
from service.pipelines.scorer import Scorer
from service.runtime.ray import Connection, connected, import_ray
from service.tables.files import Part

Batch = dict[str, Any]


def score_dataset(dataset: Any, scorer: Scorer, *, workers: int | None = None, **options: Any) -> Any:
    """A ``ray.data.Dataset`` with the result columns beside its own.

    Every worker scores with the version that ``scorer`` has settled; the store must be readable on all nodes.

    Args:
        workers: processes that hold the model; one a CPU of the cluster when None.
        options: of ``Dataset.map_batches``.
    """
    arguments = {**scorer.arguments(), "threads": scorer.threads or 1}
    given = {"batch_format": "pyarrow", "batch_size": 8192, "num_cpus": 1, **options}
    return dataset.map_batches(Scorer, fn_constructor_kwargs=arguments, compute=_pool(workers), **given)


def ray_engine(address: str | None = None, *, workers: int | None = None) -> Engine:
    """Scores parts of files on a cluster, for ``service.pipelines.files.run``.

    A part whose worker or node is lost is done again elsewhere; its file appears once, when it is whole. Files and
    store must be readable, and the output writable, under the same paths on all nodes.

    Args:
        address: of the cluster, as for ``ray.init``; ``local`` starts one on this machine, None finds or starts one.
        workers: processes that hold the model; one a CPU of the cluster when None.
    """

    def work(plan: Plan, parts: Sequence[Part], scorer: Scorer, advance: Advance) -> None:
        if not parts:
            return
        plan = replace(plan, job=replace(plan.job, threads=1))
        scorer = replace(scorer, threads=scorer.threads or 1)
        numbers = [{"part": part.number} for part in parts]
        with connected(address) as cluster:
            data = _data()
            data.DataContext.get_current().enable_progress_bars = False
            done = data.from_items(numbers, override_num_blocks=len(numbers)).map_batches(
                PartScorer,
                fn_constructor_args=(plan, scorer),
                batch_size=1,
                num_cpus=1,
                compute=_pool(min(len(parts), workers or cluster.cpus)),
            )
            for outcome in done.iter_rows():
                if outcome["error"]:
                    raise DataError(outcome["error"])
                advance(int(outcome["rows"]))

    return work


class PartScorer:
    """State of a worker: the plan and, through its scorer, the model."""

    def __init__(self, plan: Plan, scorer: Scorer) -> None:
        self._plan = plan
        self._scorer = scorer

    def __call__(self, batch: Batch) -> Batch:
        """Score the part of this number, unless it was there before its worker was lost."""
        (number,) = batch["part"]
        try:
            return {"part": [number], "rows": [self._score(self._plan.parts[number])], "error": [""]}
        except AutoencoderError as error:  # Ray would wrap it into one of its own, and lose which it was
            return {"part": [number], "rows": [0], "error": [str(error)]}

    def _score(self, part: Part) -> int:
        if self._plan.part_path(part).exists():
            return part.rows or 0
        counts = list[int]()
        score_parts(self._plan, [part], self._scorer, counts.append)
        return sum(counts)


def _pool(workers: int | None) -> Any:
    """From one worker to as many: the run goes on with fewer when a node is lost."""
    most = workers or Connection(import_ray()).cpus
    return _data().ActorPoolStrategy(min_size=1, max_size=most)


def _data() -> Any:
    import_ray()
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray.data
