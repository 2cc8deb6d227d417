"""What both clients need of httpx: how it is set up, and what its errors mean."""

from typing import Any

from service.client.calls import Connection, Limits
from service.client.compression import Compression, Mode
from service.client.exchange import Broken, Reply, Request, RetryPolicy

try:
    import httpx2 as httpx
except ImportError:  # pragma: no cover - the maintained fork is preferred, its ancestor will do
    import httpx  # type: ignore[import-not-found, no-redef, unused-ignore]

__all__ = ["GRACE_S", "broken", "connection_of", "http_options", "httpx", "reply_of", "request_arguments"]

GRACE_S = 0.25
"""The service knows the deadline too and says so best: its own refusal may come this much later."""


def connection_of(
    url: str, *, request_timeout_s: float, retry: RetryPolicy | None, compression: Mode, limits: Limits | None
) -> Connection:
    return Connection(retry or RetryPolicy(), request_timeout_s, Compression.to(url, compression), limits or Limits())


def http_options(
    url: str, connection: Connection, *, key: str | None, concurrency: int, transport: Any
) -> dict[str, Any]:
    """Arguments of ``httpx.Client`` and ``httpx.AsyncClient``."""
    if concurrency < 1:
        raise ValueError("concurrency must be at least 1.")
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    if connection.compression.accepted is not None:
        headers["Accept-Encoding"] = connection.compression.accepted
    return {"base_url": url, "headers": headers, "transport": transport, "timeout": connection.request_timeout_s}


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


def reply_of(response: Any, body: bytes) -> Reply:
    return Reply(response.status_code, {name.lower(): value for name, value in response.headers.items()}, body)
