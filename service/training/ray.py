"""A search on a Ray cluster: trials side by side, the study in one place beside the process that asked for it."""

import os
import uuid
from dataclasses import dataclass
from typing import Any

from service.runtime.ray import connected
from service.training.tune import Order, Runner, Search, Study, Summary

_searches: dict[str, Search] = {}
"""What this process has made ready; one at a time."""


def ray_trials(address: str | None = None, *, workers: int | None = None) -> Runner:
    """Runs trials as tasks of a cluster, for ``service.training.tune.tune``.

    A trial whose node is lost is run again elsewhere, with the same configuration, and counts once. The package
    must be installed on all nodes; the rows are sent there.

    Args:
        address: of the cluster, as for ``ray.init``; ``local`` starts one on this machine, None finds or starts one.
        workers: trials at a time, a CPU each; one for each CPU of the cluster when None.

    Raises:
        ConfigurationError: by the runner: Ray is not installed, or no cluster answers at the address.
    """

    def run(search: Search, order: Order) -> Summary:
        with connected(address) as cluster:
            return _run(cluster.ray, search, order, at_a_time=workers or cluster.cpus)

    return run


@dataclass(frozen=True, slots=True)
class _Shared:
    """What all trials of a search need."""

    key: str
    search: list[Any]
    """The reference of it, in a list so that Ray does not make the search ready again for each trial."""
    study: Any
    """Handle of the actor."""


def _run(ray: Any, search: Search, order: Order, *, at_a_time: int) -> Summary:
    study = _beside_us(ray, Study).remote(search.space, search.start, seed=search.seed, several=at_a_time > 1)
    shared = _Shared(uuid.uuid4().hex, [ray.put(search)], study)
    task = ray.remote(num_cpus=1, max_retries=-1)(_run_trial)
    running: dict[Any, int] = {}
    started = 0
    while True:
        while len(running) < at_a_time and not order.is_done(started):
            number, parameters = ray.get(study.ask.remote())
            running[task.remote(shared, number, parameters, order.seconds_left())] = number
            started += 1
        if not running:
            summary: Summary = ray.get(study.summary.remote())
            return summary
        (ended,), _ = ray.wait(list(running))
        number, error = running.pop(ended), ray.get(ended)
        ray.get(study.tell.remote(number, error))
        order.told(number, error)


def _run_trial(shared: _Shared, number: int, parameters: dict[str, Any], seconds_left: float) -> float | None:
    """One trial, in a process of the cluster."""
    import ray

    def falls_behind(epoch: int, error: float) -> bool:
        return bool(ray.get(shared.study.falls_behind.remote(number, epoch, error)))

    return _search_of(shared).error_of(parameters, falls_behind, seconds_left=seconds_left)


def _search_of(shared: _Shared) -> Search:
    """Made ready once in a process."""
    import ray

    if shared.key not in _searches:
        os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")  # a trial has one CPU
        _searches.clear()
        _searches[shared.key] = ray.get(shared.search[0])
    return _searches[shared.key]


def _beside_us(ray: Any, actor: type[Any]) -> Any:
    """An actor on the node of this process: it is lost only where this process is lost too."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(actor)
