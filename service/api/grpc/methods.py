"""The frame of every gRPC method: key, room, a bounded message, a deadline, and errors as status codes."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import grpc

from service.api.access import Role
from service.api.errors import log_failure, protocol_refusal
from service.api.exchange import request_id
from service.api.grpc.messages import parse
from service.api.lifecycle import Lifecycle, Serving, flagged_headers
from service.codecs import compression_of
from service.errors import DeadlineExceeded, MalformedInput, TooLarge
from service.telemetry import request_id_of_context

MESSAGE_OVERHEAD_BYTES: Final = 64 * 2**10
"""What a message may have beside the bytes of its tensors."""
MAX_CONTROL_BYTES: Final = 64 * 2**10
"""Of messages that carry no rows."""

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
        pairs = context.invocation_metadata() or ()  # the last value of each name
        self.headers = {name.encode(): value if isinstance(value, bytes) else value.encode() for name, value in pairs}
        self.request_id = request_id(self.headers)
        request_id_of_context.set(self.request_id)
        self.life = Lifecycle(serving, operation, self.headers)
        own, left = serving.settings.request_timeout_ms / 1000, context.time_remaining()
        timeout_s = own if left is None else min(own, max(0.0, left))
        self.life.deadline = asyncio.get_running_loop().time() + timeout_s
        self.life.hold = self._hold
        self._context = context
        self._held = 0

    async def message(self, most: int | None = None) -> bytes | memoryview:
        """The whole request message, decompressed: at most ``most`` bytes, by default those of the largest body.

        Raises:
            DeadlineExceeded: it did not arrive in time.
            QueueFull: the service holds as many received bytes as it may.
            MalformedInput: there is none, or it is not compressed as it says.
            TooLarge: it is larger.
        """
        settings, deadline = self.serving.settings, self.life.deadline
        most = most or settings.max_body_bytes + MESSAGE_OVERHEAD_BYTES
        try:
            async with asyncio.timeout(settings.body_timeout_s), asyncio.timeout_at(deadline):
                content: bytes = await self._context.read()
        except TimeoutError as error:
            raise DeadlineExceeded("The message did not arrive in time.") from error
        if not isinstance(content, bytes):
            raise MalformedInput("The call has no message.")
        self._hold(len(content))
        if len(content) > most:
            raise TooLarge(f"The message may have at most {most} bytes.")
        coding = compression_of(content) or "identity"
        return await self.serving.decompressed(content, coding, most, deadline=deadline, hold=self._hold)

    async def control_message(self, full_name: str) -> Any:
        """The message of a method that takes no rows; the errors are those of ``message``."""
        return parse(full_name, await self.message(MAX_CONTROL_BYTES))

    def _hold(self, size: int) -> None:
        self.serving.reception.hold(size)
        self._held += size

    def hold_only(self, size: int) -> None:
        """Count ``size`` bytes as held by this call, in place of those that were; the errors are those of ``hold``."""
        self.release()
        self._hold(size)

    def release(self) -> None:
        self.serving.reception.release(self._held)
        self._held = 0

    def refuse(self, error: Exception) -> int:
        """End the call with an error; gives its status as HTTP has it."""
        status, text, _ = protocol_refusal(error)
        self._context.set_code(CODES.get(status, grpc.StatusCode.UNKNOWN))
        self._context.set_details(text)
        return status


Answer = Callable[[Incoming], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class Method:
    """One method: answers a call with the bytes of its message."""

    name: str
    answer: Answer
    role: Role
    operation: str | None
    """Name in the metrics, for methods that run the model."""


class Methods:
    """The methods of one gRPC service."""

    def __init__(self, service: str) -> None:
        self.service = service
        self.methods: list[Method] = []

    def add(self, name: str, role: Role = Role.CALLER, *, operation: str | None = None) -> Callable[[Answer], Answer]:
        """Decorate the function that answers the method ``name``."""

        def added(answer: Answer) -> Answer:
            self.methods.append(Method(name, answer, role, operation))
            return answer

        return added

    def handler(self, serving: Serving) -> grpc.GenericRpcHandler:
        handlers = {
            method.name: grpc.stream_unary_rpc_method_handler(_behaviour(method, serving)) for method in self.methods
        }
        return grpc.method_handlers_generic_handler(self.service, handlers)


def _behaviour(method: Method, serving: Serving) -> Callable[[Any, Context], Awaitable[bytes]]:
    """A unary method, served as one with a stream of requests: the same on the wire, but its message is not received
    before the key was looked at and there is room."""

    async def answer(_messages: Any, context: Context) -> bytes:
        incoming = Incoming(serving, context, method.operation or method.name)
        metadata = [("x-request-id", incoming.request_id)]
        context.set_trailing_metadata(metadata)
        context.add_done_callback(lambda _: incoming.release())  # when the answer is sent, or its caller has left
        try:
            if method.operation is None:
                serving.access.check(incoming.headers, method.role)
                return await method.answer(incoming)
            life = incoming.life
            try:
                life.admit()
                content = await method.answer(incoming)
                incoming.hold_only(2 * len(content))  # gRPC sends a copy
                life.status = 200
                named = ((name.decode(), rows.decode()) for name, rows in flagged_headers(life.flagged))
                context.set_trailing_metadata((*metadata, *named))
            except Exception as error:  # noqa: BLE001 - every error becomes an answer
                life.refused(error, incoming.refuse(error))
                return b""
            finally:
                life.end()
            return content
        except Exception as error:  # noqa: BLE001 - every error becomes an answer
            log_failure(error, incoming.refuse(error))
            return b""

    return answer
