"""gRPC's health checking protocol: ``grpc.health.v1.Health``."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc

from service.api.errors import protocol_refusal
from service.api.grpc.messages import message_class
from service.api.grpc.methods import CODES, Context, Incoming
from service.api.lifecycle import Serving
from service.errors import AutoencoderError

SERVICE: Final = "grpc.health.v1.Health"
MAX_WATCHERS: Final = 64
WATCH_INTERVAL_S: Final = 0.25
_SERVING, _NOT_SERVING, _SERVICE_UNKNOWN = 1, 2, 3


class Health:
    """Says whether the default model answers, for the whole server and for each service by name."""

    def __init__(self, serving: Serving, services: tuple[str, ...]) -> None:
        self._serving = serving
        self._services = ("", SERVICE, *services)
        self._watchers = 0

    def handler(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Check": grpc.stream_unary_rpc_method_handler(self._check),
                "Watch": grpc.stream_stream_rpc_method_handler(self._watch),
            },
        )

    def _status(self, service: str) -> int:
        if service not in self._services:
            return _SERVICE_UNKNOWN
        return _SERVING if self._serving.not_ready_reason is None else _NOT_SERVING

    async def _named(self, context: Context) -> str:
        incoming = Incoming(self._serving, context, "health")
        try:
            return str((await incoming.control_message("grpc.health.v1.HealthCheckRequest")).service)
        except AutoencoderError as error:
            status, text, _ = protocol_refusal(error)
            await context.abort(CODES[status], text)
            raise
        finally:
            incoming.release()

    async def _check(self, _messages: Any, context: Context) -> bytes:
        status = self._status(await self._named(context))
        if status == _SERVICE_UNKNOWN:
            await context.abort(CODES[404], "There is no such service.")
        return _response(status)

    async def _watch(self, _messages: Any, context: Context) -> AsyncIterator[bytes]:
        """The status now, and each time that it changes; ends when the service stops."""
        service = await self._named(context)
        if self._watchers >= MAX_WATCHERS:
            await context.abort(CODES[429], "There are too many watchers.")
        self._watchers += 1
        try:
            last = None
            while True:
                status = self._status(service)
                if status != last:
                    yield _response(status)
                    last = status
                if self._serving.draining:
                    return
                await asyncio.sleep(WATCH_INTERVAL_S)
        finally:
            self._watchers -= 1


def _response(status: int) -> bytes:
    content: bytes = message_class("grpc.health.v1.HealthCheckResponse")(status=status).SerializeToString()
    return content
