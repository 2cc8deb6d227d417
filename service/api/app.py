"""The composition root: settings in, an application out. Everything that lives as long as the service is made here."""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI

from service import __version__
from service.api.access import Access
from service.api.activity import ActivityLog, activity_routes
from service.api.console import console_routes, exhibit_routes
from service.api.errors import install_error_answers
from service.api.exchange import Reception
from service.api.front import AutoencoderApp
from service.api.lifecycle import CodecThreads, Serving
from service.api.models import model_routes, service_routes
from service.api.oip import OIPRoutes
from service.api.openapi import install_openapi
from service.api.tfserving import TFServingRoutes
from service.batching import Batcher, BatchLimits
from service.codecs import Limits
from service.runtime import ModelManager, ModelStatus
from service.runtime.loaded_model import LoadedModel, load_version
from service.runtime.traffic import LiveTraffic
from service.settings import Settings, load_settings
from service.store import Store
from service.telemetry import METRICS_CONTENT_TYPE, Telemetry, Tracing

if TYPE_CHECKING:
    from service.api.grpc.server import GrpcServer

log = logging.getLogger(__name__)

COLLECT_AFTER = 20_000
"""New objects until cycles are looked for. A request leaves none; after each 700 it took 2 to 4 % of the event loop."""

LAG_INTERVAL_S = 0.25
LOOKED_CHECK_S = 0.01


class Service(Serving):
    """Everything that lives as long as the process serves."""

    def __init__(
        self, settings: Settings, *, load: Callable[[Path], LoadedModel] = load_version, opens_at_once: bool = False
    ) -> None:
        super().__init__(
            settings=settings,
            limits=Limits(
                max_rows=settings.max_rows,
                max_depth=settings.max_depth,
                max_json_bytes=settings.max_json_bytes,
                max_decoded_bytes=settings.max_decoded_bytes,
                max_pixels=settings.max_pixels,
            ),
            manager=ModelManager(
                Store(settings.store),
                default_model=settings.default_model,
                keep_versions=settings.keep_versions,
                max_loaded_bytes=settings.max_loaded_bytes,
                failed_retry_s=settings.failed_retry_s,
                load=load,
                on_change=self._models_changed,
            ),
            access=Access(settings.key_hashes, settings.admin_key_hashes),
            telemetry=Telemetry(),
            tracing=Tracing(settings.otlp_endpoint, share=settings.trace_share),
            reception=Reception(settings.max_received_bytes, body_timeout_s=settings.body_timeout_s),
            threads=CodecThreads(),
        )
        self._opens_at_once = opens_at_once
        self.traffic = LiveTraffic(
            self.manager,
            self.telemetry,
            shadow_share=settings.shadow_share,
            drift_window_rows=settings.drift_window_rows,
            alert_values=settings.alert_values,
        )
        self.activity = ActivityLog(self.telemetry)
        self.exposed: Callable[[bytes], bytes] = lambda own: own
        """What /metrics shows, of this process's own exposition; a cluster shows all its replicas."""
        self.grpc_port: int | None = None
        """Where the gRPC services listen, while they do."""
        self._grpc: GrpcServer | None = None

    def _models_changed(self, models: Mapping[str, ModelStatus]) -> None:
        loaded = {(model.name, version) for model in models.values() for version in model.loaded}
        self.telemetry.models_changed(loaded, ready=self.manager.not_ready_reason is None)
        self.traffic.models_changed(models)

    def exposition(self) -> bytes:
        self.traffic.publish_drift()
        return self.exposed(self.telemetry.exposition())

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Load what the store has, serve, and on the way out answer what was accepted."""
        self.manager.store.models()  # a wrong path is an error now, not a service that is never ready
        settings = self.settings
        self.batcher = Batcher(
            self.traffic.run,
            inline_rows=self.traffic.inline_rows,
            limits=BatchLimits(
                max_batch_rows=settings.max_batch_rows,
                max_batch_bytes=settings.max_batch_bytes,
                slice_rows=settings.slice_rows,
                max_queue_requests=settings.max_queue_requests,
                max_queue_rows=settings.max_queue_rows,
                max_queue_bytes=settings.max_queue_bytes,
            ),
            threads=settings.model_threads,
            observer=self.telemetry,
        )
        self.manager.start(settings.watch_interval_s)
        settled = asyncio.create_task(self._settle())
        if not self._opens_at_once:
            await settled
        self.traffic.start()
        self.activity.start()
        lag = asyncio.create_task(self._watch_lag())
        try:
            await self._start_grpc()
            yield
        finally:
            self.draining = True
            await self._stop_grpc()
            await self.batcher.drain()
            lag.cancel()
            settled.cancel()
            await self.activity.stop()
            self.manager.stop()
            self.traffic.stop()
            self.batcher.close()
            self.threads.close()
            self.telemetry.flush()
            await asyncio.to_thread(self.tracing.shutdown)

    async def _start_grpc(self) -> None:
        if self.settings.grpc_port is not None:
            from service.api.grpc.server import GrpcServer

            self._grpc = GrpcServer(self)
            self.grpc_port = await self._grpc.start()

    async def _stop_grpc(self) -> None:
        if self._grpc is not None:
            await self._grpc.stop(self.settings.drain_timeout_s)

    async def _settle(self) -> None:
        """Wait until the models of the store are loaded, and keep them out of what is searched for cycles."""
        while not self.manager.has_looked:  # noqa: ASYNC110 - a thread sets it
            await asyncio.sleep(LOOKED_CHECK_S)
        # A full collection looks at all that TensorFlow has made by now, 300 ms in which nobody is answered.
        gc.collect()
        gc.freeze()
        gc.set_threshold(COLLECT_AFTER)

    async def _watch_lag(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_INTERVAL_S
            await asyncio.sleep(LAG_INTERVAL_S)
            self.telemetry.loop_lagged(max(0.0, loop.time() - due))
            self.telemetry.flush()


def create_app(
    settings: Settings | None = None,
    *,
    load: Callable[[Path], LoadedModel] = load_version,
    opens_at_once: bool = False,
) -> FastAPI:
    """The application.

    Args:
        load: Makes a model of a version's folder; tests may hand in another.
        opens_at_once: Whether probes are answered while models are being loaded. Else the application starts once they
            are, as it should where others answer meanwhile on the same port.
    """
    settings = settings or load_settings()
    service = Service(settings, load=load, opens_at_once=opens_at_once)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = AutoencoderApp(
        service,
        [TFServingRoutes(service), OIPRoutes(service)],
        title="Autoencoder Service",
        version=__version__,
        summary="Encode, reconstruct, denoise and score rows with a trained autoencoder.",
        lifespan=lifespan,
        docs_url=None,
        openapi_url=None,
        redoc_url=None,
    )
    app.state.service = service
    app.state.access = service.access
    app.include_router(model_routes(service.manager, service.traffic))
    app.include_router(exhibit_routes(service.manager))
    app.include_router(activity_routes(service.activity, service.traffic))
    app.include_router(
        service_routes(
            service.manager,
            draining=lambda: service.draining,
            exposition=service.exposition,
            metrics_type=METRICS_CONTENT_TYPE,
        )
    )
    app.include_router(console_routes())
    install_error_answers(app)
    install_openapi(app, None if settings.keys_required else service.manager)
    return app
