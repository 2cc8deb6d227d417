"""The connection to a Ray cluster, which scoring, serving and the search share."""

import contextlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from service.errors import ConfigurationError

CONNECT_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Connection:
    """A connection to a Ray cluster."""

    ray: Any
    """The module."""
    is_ours: bool = False
    """Whether the cluster was started for this connection, on this machine, and ends with it."""

    @property
    def cpus(self) -> int:
        """Number of CPUs of the cluster, at least one."""
        return max(1, int(self.ray.cluster_resources().get("CPU", 1)))


@contextmanager
def connected(address: str | None = None, *, show_logs: bool = False) -> Iterator[Connection]:
    """Connect this process; where it is connected already it stays so, whatever the address.

    Args:
        address: as for ``ray.init``; ``local`` starts a cluster on this machine, None finds or starts one.
        show_logs: whether what the processes of the cluster log appears here.

    Raises:
        ConfigurationError: Ray is not installed, or no cluster answers at the address.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield Connection(ray)
        return
    is_ours = _join(ray, address, show_logs=show_logs)
    try:
        yield Connection(ray, is_ours)
    finally:
        ray.shutdown()


def _join(ray: Any, address: str | None, *, show_logs: bool) -> bool:
    """Whether the cluster was started for this connection."""
    options = {"log_to_driver": show_logs, "logging_level": "warning" if show_logs else "error"}
    try:
        if address is None:
            with contextlib.suppress(ConnectionError):
                ray.init(address="auto", **options)
                return False
        if address in (None, "local"):
            ray.init(address="local", include_dashboard=False, **options)
            return True
        host, _, port = (address or "").rpartition(":")
        if host and port.isdecimal() and "/" not in host:  # fail at once where nobody listens; Ray tries for minutes
            socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
        ray.init(address=address, **options)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigurationError(f"No Ray cluster answers at {address or 'this machine'}: {reason}") from error
    return False


def import_ray() -> Any:
    """The module ``ray``.

    Raises:
        ConfigurationError: it is not installed.
    """
    # A self-hosted service does not report to others that it is used.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    try:
        import ray
    except ImportError as error:
        raise ConfigurationError("Ray is not installed: pip install 'autoencoder-service[ray]'.") from error
    return ray
