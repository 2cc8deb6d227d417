"""Clients of live services over fakes, and services whose every answer a test writes."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest

from service.client import Client, RetryPolicy
from service.settings import Settings
from service.store import Store
from tests.fakes import load_fake, publish_fake
from tests.live import LiveService, serve_live

QUICK = RetryPolicy(backoff_s=0.001)
COLUMNS = ("pressure", "flow")


@pytest.fixture
def client(fake_service: LiveService) -> Iterator[Client]:
    """Of ``pumps``: two unnamed numbers a row, score = their sum, threshold 3."""
    with Client(fake_service.url, retry=QUICK) as opened:
        yield opened


@pytest.fixture(scope="session")
def named_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    """The model ``wells`` with the columns pressure and flow; small limits, so that parts are soon too large."""
    root: Path = tmp_path_factory.mktemp("named")
    publish_fake(Store(root), model="wells", columns=COLUMNS)
    with serve_live(Settings(store=root, port=0, max_rows=500), load=load_fake) as live:
        yield live


@pytest.fixture
def named_client(named_service: LiveService) -> Iterator[Client]:
    with Client(named_service.url, retry=QUICK) as opened:
        yield opened


@pytest.fixture
def rows() -> np.ndarray[Any, np.dtype[np.float32]]:
    """1,000 rows whose scores are 0, 1, 2, …"""
    values = np.zeros((1000, 2), np.float32)
    values[:, 0] = np.arange(1000)
    return values


class Script:
    """A transport that answers as it is told, one entry a request; the last one for all that follow."""

    def __init__(self, *answers: Callable[[httpx.Request], httpx.Response]) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return answer(request)

    def client(self, **options: Any) -> Client:
        defaults: dict[str, Any] = {"retry": QUICK, "compression": "none"}
        return Client("http://service", transport=httpx.MockTransport(self), **{**defaults, **options})


def scored(request: httpx.Request, *, version: int = 1) -> httpx.Response:
    """A right answer to few rows: the score of each is the service's version."""
    count = len(np.load(io.BytesIO(request.content)))
    body = {
        "model": {"name": "pumps", "version": version},
        "scores": [float(version)] * count,
        "p_values": [0.5] * count,
        "is_anomaly": [False] * count,
        "threshold": 3.0,
        "false_alarm_rate": 0.25,
    }
    return httpx.Response(200, json=body, headers={"X-Model-Name": "pumps", "X-Model-Version": str(version)})


def refused(status: int, **headers: str) -> Callable[[httpx.Request], httpx.Response]:
    body = {"type": "about:blank", "title": "No", "status": status, "detail": "It is so.", "request_id": "r1"}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda _: httpx.Response(status, json=body, headers=named)


def breaks(error: Exception) -> Callable[[httpx.Request], httpx.Response]:
    def fail(_request: httpx.Request) -> httpx.Response:
        raise error

    return fail
