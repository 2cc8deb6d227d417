"""A real Ray cluster of several nodes on this machine."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


@contextmanager
def ray_cluster(nodes: int) -> Iterator[Any]:
    """A head without CPUs, and so many nodes with one each."""
    pytest.importorskip("ray", reason="pip install 'autoencoder-service[ray]'")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0, "include_dashboard": False})
    for _ in range(nodes):
        cluster.add_node(**NODE)
    try:
        yield cluster
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call, unused-ignore]


def processes_of(node: Any, name: str) -> list[psutil.Process]:
    """Those of a node's workers that are called so; Ray names them by what they run."""
    (raylet,) = node.all_processes["raylet"]
    return [child for child in psutil.Process(raylet.process.pid).children() if name in " ".join(_words(child))]


def await_true(is_so: Callable[[], bool], what: str, *, timeout_s: float = 240) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
