"""What both clients need of httpx: how a request is given to it, and what its errors mean."""

from typing import Any

from service.client.exchange import Broken, Received, Request

try:
    import httpx2 as httpx
except ImportError:  # pragma: no cover - the maintained fork is preferred, its ancestor will do
    import httpx  # type: ignore[import-not-found, no-redef, unused-ignore]

__all__ = ["broken", "httpx", "received", "request_arguments"]

GRACE_S = 0.25
"""The service knows the deadline too and says so best: its own refusal may come this much later."""


def request_arguments(request: Request) -> dict[str, Any]:
    """Arguments of ``build_request``."""
    return {
        "method": request.method,
        "url": request.path,
        "params": dict(request.query),
        "headers": dict(request.headers),
        "content": request.body,
        "timeout": httpx.Timeout(request.timeout_s + GRACE_S),
    }


def broken(error: Exception, *, answering: bool) -> Broken:
    connected = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
    timed_out = isinstance(error, httpx.TimeoutException)
    return Broken(error, timed_out=timed_out, connected=connected, answering=answering)


def received(response: Any, body: bytes) -> Received:
    return Received(response.status_code, {name.lower(): value for name, value in response.headers.items()}, body)
