"""The gRPC server: TensorFlow Serving's services, the Open Inference Protocol's, and health checking.

Runs on the event loop of the HTTP server and uses the same keys, limits, queue and versions.
"""

import logging
from typing import Any, Final

from grpc import aio

from service.api.grpc import oip, tfserving
from service.api.grpc.health import Health
from service.api.grpc.methods import MESSAGE_OVERHEAD_BYTES
from service.api.lifecycle import Serving
from service.errors import ConfigurationError
from service.settings import Settings

log = logging.getLogger(__name__)

SERVICES: Final = (oip.INFERENCE, tfserving.PREDICTION, tfserving.MODELS)
"""Those with calls like HTTP's; health checking stands beside them."""
FRAME_BYTES: Final = 2**20
"""Large tensors come in fewer pieces than with HTTP/2's 16 KiB."""
IDLE_CONNECTION_MS: Final = 300_000
CONNECTION_AGE_MS: Final = 300_000
"""Clients connect again by themselves. A call whose answer nobody takes cannot be ended without its connection."""


class GrpcServer:
    """Listens from ``start`` to ``stop``; both on the event loop."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._server: Any = None

    async def start(self) -> int:
        """Listen; gives the port.

        Raises:
            ConfigurationError: the port cannot be opened.
        """
        serving, settings = self._serving, self._serving.settings
        # A stream that is not being read holds no more than a window: the calls beyond the bound cost next to nothing.
        self._server = aio.server(options=_options(settings), maximum_concurrent_rpcs=settings.max_queue_requests)
        health = Health(serving, tuple(each.service for each in SERVICES))
        self._server.add_generic_rpc_handlers((*(each.handler(serving) for each in SERVICES), health.handler()))
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        try:
            port: int = self._server.add_insecure_port(f"{host}:{settings.grpc_port}")
        except RuntimeError as error:
            raise ConfigurationError(f"Cannot listen on {settings.host}:{settings.grpc_port} for gRPC.") from error
        await self._server.start()
        log.info("gRPC listens on %s:%d", settings.host, port)
        return port

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls at once, and give those under way some time."""
        await self._server.stop(grace_s)


def _options(settings: Settings) -> list[tuple[str, Any]]:
    return [
        ("grpc.max_receive_message_length", settings.max_body_bytes + MESSAGE_OVERHEAD_BYTES),
        # gRPC would decompress up to that size for all calls at once; here it is bounded as for HTTP.
        ("grpc.per_message_decompression", 0),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", settings.max_header_bytes),
        ("grpc.absolute_max_metadata_size", settings.max_header_bytes),
        ("grpc.http2.max_frame_size", FRAME_BYTES),
        ("grpc.max_connection_idle_ms", IDLE_CONNECTION_MS),
        ("grpc.max_connection_age_ms", CONNECTION_AGE_MS),
        ("grpc.max_connection_age_grace_ms", round(1000 * settings.write_timeout_s)),
        ("grpc.max_concurrent_streams", settings.max_queue_requests),
        # Worker processes share the port; a second service on it is an error.
        ("grpc.so_reuseport", int(settings.workers > 1)),
    ]
