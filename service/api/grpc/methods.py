"""What every gRPC method passes: key, room, a bounded message, a deadline, and errors as status codes."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import grpc

from service.api.access import Role
from service.api.errors import log_failure, protocol_refusal
from service.api.exchange import request_id
from service.api.lifecycle import Lifecycle
from service.api.serving import INLINE_BYTES, Serving
from service.errors import DeadlineExceeded, MalformedInput
from service.telemetry import request_id_of_context

T = TypeVar("T")
Context = Any
"""``grpc.aio.ServicerContext``, which is not typed."""

CODES: Final[Mapping[int, grpc.StatusCode]] = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    415: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


class Incoming:
    """One call being answered."""

    def __init__(self, serving: Serving, context: Context, operation: str) -> None:
        self.serving = serving
        self.headers = _headers(context)
        self.request_id = request_id(self.headers)
        request_id_of_context.set(self.request_id)
        self.life = Lifecycle(serving, operation, self.headers)
        self._context = context
        self._held = 0

    @property
    def timeout_s(self) -> float:
        """Time that this call may take: the caller's where it is shorter than the service's own."""
        own = self.serving.settings.request_timeout_ms / 1000
        left = self._context.time_remaining()
        return own if left is None else min(own, max(0.0, left))

    async def message(self) -> bytes:
        """The whole request message; gRPC has bounded it.

        Raises:
            DeadlineExceeded: it did not arrive in time.
            QueueFull: the service holds as many received bytes as it may.
            MalformedInput: there is none.
        """
        try:
            async with asyncio.timeout(self.serving.settings.body_timeout_s):
                content = await self._context.read()
        except TimeoutError as error:
            raise DeadlineExceeded("The message did not arrive in time.") from error
        if not isinstance(content, bytes):
            raise MalformedInput("The call has no message.")
        self.serving.reception.hold(len(content))
        self._held = len(content)
        return content

    def release(self) -> None:
        self.serving.reception.release(self._held)
        self._held = 0

    async def decode(self, size: int, work: Callable[[], T]) -> T:
        """Make rows of a message of ``size`` bytes, off the event loop where they are many."""
        return await self.life.decode(work, inline=size <= INLINE_BYTES)

    async def encode(self, size: int, work: Callable[[], T]) -> T:
        """Make a message of ``size`` bytes of results, off the event loop where they are many."""
        return await self.life.encode(work, inline=size <= INLINE_BYTES)

    def refuse(self, error: Exception) -> int:
        """End the call with an error; gives its status as HTTP has it."""
        status, text, _ = protocol_refusal(error)
        self._context.set_code(CODES.get(status, grpc.StatusCode.UNKNOWN))
        self._context.set_details(text)
        return status


def _headers(context: Context) -> dict[bytes, bytes]:
    """The metadata of a call as HTTP headers: the last value of each name."""
    pairs = context.invocation_metadata() or ()
    return {name.encode(): value if isinstance(value, bytes) else value.encode() for name, value in pairs}


@dataclass(frozen=True, slots=True)
class Method:
    """One method: answers a call with the bytes of its message."""

    name: str
    answer: Callable[[Incoming], Awaitable[bytes]]
    role: Role = Role.CALLER
    operation: str | None = None
    """Name in the metrics, for methods that run the model."""


def service_handler(service: str, methods: tuple[Method, ...], serving: Serving) -> grpc.GenericRpcHandler:
    handlers = {method.name: grpc.stream_unary_rpc_method_handler(_behaviour(method, serving)) for method in methods}
    return grpc.method_handlers_generic_handler(service, handlers)


def _behaviour(method: Method, serving: Serving) -> Callable[[Any, Context], Awaitable[bytes]]:
    """A unary method, served as one with a stream of requests: the same on the wire, but its message is not received
    before the key was looked at and there is room."""

    async def answer(_messages: Any, context: Context) -> bytes:
        incoming = Incoming(serving, context, method.operation or method.name)
        context.set_trailing_metadata((("x-request-id", incoming.request_id),))
        try:
            if method.operation is None:
                serving.access.check(incoming.headers, method.role)
                return await method.answer(incoming)
            with incoming.life as life:
                try:
                    serving.admit(incoming.headers)
                    content = await method.answer(incoming)
                    life.status = 200
                except Exception as error:  # noqa: BLE001 - every error becomes an answer
                    life.refused(error, incoming.refuse(error))
                    return b""
            return content
        except Exception as error:  # noqa: BLE001 - every error becomes an answer
            log_failure(error, incoming.refuse(error))
            return b""
        finally:
            incoming.release()

    return answer
