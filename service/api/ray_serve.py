"""The service as an application of Ray Serve: replicas on a cluster, each of them the whole service of one process.

Ray Serve's proxies receive the requests and choose a replica; what stands behind them is the same application as
behind ``server.py``, with its own models, batcher and watcher of the store. The command that starts it loads no model.
"""

import contextlib
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from starlette.types import Message, Receive, Scope, Send

from service.api.app import create_app
from service.api.memory import keep_freed_memory
from service.api.server import SWITCH_INTERVAL_S, bound, check_store
from service.errors import ConfigurationError, NotReady
from service.runtime import ModelManager
from service.runtime.ray import connected, import_ray
from service.settings import ENV_PREFIX, Settings
from service.telemetry import configure_logging

log = logging.getLogger(__name__)

APPLICATION = "autoencoder"
REPLICA_LABEL = "replica"
REPORT_INTERVAL_S = 5.0
"""How often a replica says how it is doing, for the metrics that another one shows."""
KEPT_REPORTS_S = 30.0
HEALTH_INTERVAL_S = 2.0
DRAIN_CHECK_S = 0.5
UPSCALE_DELAY_S, DOWNSCALE_DELAY_S = 5.0, 120.0
STATUS_INTERVAL_S = 0.5
QUIET = {"log_level": "WARNING", "enable_access_log": False}


@dataclass(frozen=True, slots=True)
class Scale:
    """How many replicas there are."""

    min_replicas: int = 1
    max_replicas: int = 1
    replica_requests: int = 16
    """Requests under way in a replica that Ray Serve aims at, by adding and removing some."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_replicas <= self.max_replicas:
            raise ConfigurationError("--max-replicas must not be less than --min-replicas, and that not less than 1.")


# --- in a replica ---------------------------------------------------------------------------------------------------


class ReplicaApp:
    """The application as a replica runs it; ASGI."""

    def __init__(self, settings: Settings, *, name: str, reports: Any) -> None:
        """``reports``: handle of the actor ``Reports`` that all replicas share."""
        configure_logging(settings.log_level, settings.log_format)
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        keep_freed_memory()
        self._app = create_app(settings)
        self._name, self._reports = name, reports
        self.manager: ModelManager = self._app.state.service.manager
        self._app.state.service.exposed = self._joined
        threading.Thread(target=self._report, name="reports", daemon=True).start()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_without_id(message: Message) -> None:
            # Ray Serve's proxy takes the caller's request id or makes one, which is ours then, and adds it itself.
            if message["type"] == "http.response.start":
                message["headers"] = [header for header in message["headers"] if header[0] != b"x-request-id"]
            await send(message)

        await self._app(scope, receive, send_without_id)

    def _joined(self, own: bytes) -> bytes:
        return join_expositions({**self._exchange(own), self._name: own}, label=REPLICA_LABEL)

    def _exchange(self, own: bytes) -> dict[str, bytes]:
        """The last expositions of all replicas; nothing while they cannot be known."""
        ray = import_ray()
        with contextlib.suppress(ray.exceptions.RayError):
            return dict(ray.get(self._reports.exchange.remote(self._name, own), timeout=REPORT_INTERVAL_S))
        return {}

    def _report(self) -> None:
        while True:
            time.sleep(REPORT_INTERVAL_S)
            self._exchange(self._app.state.service.telemetry.exposition())


class Replica:
    """The health check of a replica, for Ray Serve."""

    app: ReplicaApp
    """Set by ``serve.ingress``."""

    def check_health(self) -> None:
        """
        Raises:
            NotReady: a version that should answer failed to load here, and no other can.
        """
        check_replica(self.app.manager)


def check_replica(manager: ModelManager) -> None:
    """Whether another process might do better; a store without versions is no fault of this one.

    Raises:
        NotReady: a version that should answer failed to load here, and no other can.
    """
    reason = manager.not_ready_reason
    if reason is not None and manager.has_failures:
        raise NotReady(reason)


class Reports:
    """An actor that keeps the last exposition of each replica."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept: dict[str, tuple[float, bytes]] = {}

    def exchange(self, replica: str, exposition: bytes) -> dict[str, bytes]:
        """The expositions of all replicas, by their names, for that of one."""
        now = self._clock()
        self._kept[replica] = now, exposition
        self._kept = {name: kept for name, kept in self._kept.items() if now - kept[0] < KEPT_REPORTS_S}
        return {name: exposition for name, (_, exposition) in self._kept.items()}


class Joined(Collector):
    """Expositions of several processes as one, their samples told apart by a label."""

    def __init__(self, expositions: Mapping[str, bytes], label: str) -> None:
        self._expositions, self._label = expositions, label

    def collect(self) -> Iterator[Metric]:
        joined: dict[str, Metric] = {}
        for source, exposition in self._expositions.items():
            for family in text_string_to_metric_families(exposition.decode()):
                known = joined.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                known.samples += [
                    sample._replace(labels={**sample.labels, self._label: source}) for sample in family.samples
                ]
        yield from joined.values()


def join_expositions(expositions: Mapping[str, bytes], *, label: str) -> bytes:
    """One exposition in Prometheus' text format of several, by the value that ``label`` has in the samples of each."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Joined(expositions, label))
    return generate_latest(registry)


# --- what starts them -----------------------------------------------------------------------------------------------


def serve_on_ray(settings: Settings, *, address: str | None = None, scale: Scale | None = None) -> None:
    """Serve on a Ray cluster until SIGTERM or SIGINT. Blocks.

    Args:
        address: of the cluster, as for ``ray.init``; ``local`` starts one on this machine, None finds or starts one.

    Raises:
        ConfigurationError: Ray is not installed, the store, the address or the cluster cannot be used, or no replica
            can serve.
    """
    settings.check_access()
    if settings.workers > 1:
        raise ConfigurationError("Workers are for one machine: on Ray, say --min-replicas instead of --workers.")
    if settings.grpc_port is not None:
        raise ConfigurationError(f"Ray Serve has no place for our gRPC services: unset {ENV_PREFIX}GRPC_PORT.")
    check_store(settings)
    configure_logging(settings.log_level, settings.log_format)
    with connected(address, show_logs=True) as cluster, _stop_signals() as stop:
        from ray import serve

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        runs_already = bool(serve.status().proxies)
        settings = _placed(settings, runs_already=runs_already, on_new_cluster=cluster.is_ours)
        if not runs_already:
            serve.start(http_options={"host": settings.host, "port": settings.port}, logging_config=QUIET)
        reports = cluster.ray.remote(num_cpus=0, max_restarts=-1)(Reports).remote()
        try:
            serve.run_many(
                [_target(serve, settings, scale or Scale(), reports)],
                wait_for_ingress_deployment_creation=False,
                wait_for_applications_running=False,
            )
            if _running(serve, stop):
                log.info("serving on http://%s:%d", settings.host, settings.port)
                stop.wait()
        finally:
            serve.delete(APPLICATION)
            if not (cluster.is_ours or serve.status().applications):
                serve.shutdown()  # type: ignore[no-untyped-call, unused-ignore]


def _placed(settings: Settings, *, runs_already: bool, on_new_cluster: bool) -> Settings:
    """With a store that is the same in every folder, and a port that can be used."""
    store = settings.store if "://" in str(settings.store) else Path(settings.store).resolve()
    port = settings.port
    if runs_already:
        if not (settings.keys_required or settings.allow_anonymous):
            raise ConfigurationError(
                "Ray Serve runs on this cluster already, on an address of its own that others may reach: set "
                f"{ENV_PREFIX}KEY_HASHES (see `autoencoder key`), or {ENV_PREFIX}ALLOW_ANONYMOUS=true where something "
                "else guards it."
            )
    elif on_new_cluster:
        with bound(settings) as sock:
            port = sock.getsockname()[1]
    elif port == 0:
        raise ConfigurationError("All nodes of a cluster listen on one port: name it by --port.")
    return settings.model_copy(update={"store": store, "port": port})


def _target(serve: Any, settings: Settings, scale: Scale, reports: Any) -> Any:
    """The application that all replicas run."""

    def build() -> ReplicaApp:
        return ReplicaApp(settings, name=serve.get_replica_context().replica_id.unique_id, reports=reports)

    replicas: dict[str, Any] = {"num_replicas": scale.min_replicas}
    if scale.min_replicas < scale.max_replicas:
        autoscaling = {
            "min_replicas": scale.min_replicas,
            "max_replicas": scale.max_replicas,
            "target_ongoing_requests": scale.replica_requests,
            "upscale_delay_s": UPSCALE_DELAY_S,
            "downscale_delay_s": DOWNSCALE_DELAY_S,
        }
        replicas = {"autoscaling_config": autoscaling}
    threads_are_given = "model_threads" in settings.model_fields_set
    deployment = serve.deployment(
        serve.ingress(build)(Replica),
        name="replica",
        ray_actor_options={"num_cpus": settings.model_threads if threads_are_given else 1},
        # The queue of a replica is its batcher's: that one knows rows and bytes, and says 429.
        max_ongoing_requests=settings.max_connections,
        max_queued_requests=settings.max_connections,
        health_check_period_s=HEALTH_INTERVAL_S,
        graceful_shutdown_wait_loop_s=DRAIN_CHECK_S,
        graceful_shutdown_timeout_s=settings.drain_timeout_s,
        logging_config=QUIET,
        **replicas,
    )
    return serve.api.RunTarget(deployment.bind(), name=APPLICATION, route_prefix="/")


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set."""
    stop = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, lambda *_: stop.set())
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _running(serve: Any, stop: threading.Event) -> bool:
    """Wait until the application runs; False when it is stopped before.

    Raises:
        ConfigurationError: no replica could be started.
    """
    while not stop.wait(STATUS_INTERVAL_S):
        application = serve.status().applications.get(APPLICATION)
        if application is None:
            continue
        if application.status == "RUNNING":
            return True
        if application.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            messages = [deployment.message for deployment in application.deployments.values()]
            raise ConfigurationError(f"No replica can serve: {_reason(' '.join([application.message, *messages]))}")
    return False


def _reason(message: str) -> str:
    """The last of our own errors in what Ray Serve reports with a stack, else the last line."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    ours = [line.partition(": ")[2] for line in lines if line.startswith("service.errors.")]
    return next(reversed(ours or lines), "see the logs of the cluster")
