"""Several processes that fit one model, and the device on which they do. ``TF_CONFIG`` says which process is which.

Every process reads all rows and goes through the same batches in the same order, but computes the gradients of its
share of each batch only; their sum, which all processes get, moves the weights. So the weights stay the same in all of
them, and are those of one process but for rounding (and dropout, which each draws for itself).
"""

import os
from collections.abc import Callable
from typing import Any, Protocol

from service.errors import ConfigurationError
from service.training.place import Place
from service.training.quiet import tf


class Workers(Protocol):
    """The processes of a run."""

    count: int
    index: int
    """Of this process; 0 is the chief, the one that writes."""

    def share(self, rows: Any) -> Any:
        """Those of the rows of a batch that are for this process."""
        ...

    def summed(self, compute: Callable[[], list[Any]]) -> list[Any]:
        """What ``compute`` gives in each process, summed over them; called while a graph is traced."""
        ...


class Alone:
    """One process."""

    count, index = 1, 0

    def share(self, rows: Any) -> Any:
        return rows

    def summed(self, compute: Callable[[], list[Any]]) -> list[Any]:
        return compute()


class Cluster:
    """Processes that reach one another by gRPC. Must be made before TensorFlow computes anything; waits for all."""

    def __init__(self, place: Place) -> None:
        self.count, self.index = place.count, place.index
        self._strategy = tf.distribute.MultiWorkerMirroredStrategy()
        if self._strategy.num_replicas_in_sync != self.count:
            raise ConfigurationError("Each worker must have one device: set CUDA_VISIBLE_DEVICES to one GPU for each.")

    def share(self, rows: Any) -> Any:
        return rows[self.index :: self.count]

    def summed(self, compute: Callable[[], list[Any]]) -> list[Any]:
        def in_replica() -> Any:
            return tf.distribute.get_replica_context().all_reduce("SUM", compute())

        return list(self._strategy.run(in_replica))


def join_workers(place: Place) -> Workers:
    """Meet the other processes; first thing after TensorFlow's start.

    Raises:
        ConfigurationError: a process has several devices.
    """
    return Alone() if place.count == 1 else Cluster(place)


def use_devices() -> str:
    """Let a GPU, where there is one, give memory as it is needed. What the run computes on, for the records."""
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        try:
            tf.config.experimental.set_memory_growth(gpu, True)
        except RuntimeError:  # it is in use already, by an earlier run of this process
            continue
    if not gpus:
        return f"CPU ({os.cpu_count()} cores)"
    return f"GPU ({tf.config.experimental.get_device_details(gpus[0]).get('device_name', gpus[0].name)})"
