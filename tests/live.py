"""A live service: the real server on a real socket, in a thread of the test's process (TensorFlow loads once)."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx

from service.api.app import Service, create_app
from service.api.server import GuardedServer, server_config
from service.runtime.loaded_model import LoadedModel, load_version
from service.settings import Settings

START_TIMEOUT_S = 240


@dataclass(frozen=True)
class LiveService:
    url: str
    http: httpx.Client
    service: Service
    server: GuardedServer

    def post(self, path: str, **arguments: Any) -> httpx.Response:
        return self.http.post(path, **arguments)

    def get(self, path: str, **arguments: Any) -> httpx.Response:
        return self.http.get(path, **arguments)


@contextmanager
def serve_live(
    settings: Settings, *, load: Callable[[Path], LoadedModel] = load_version, opens_at_once: bool = False
) -> Iterator[LiveService]:
    app = create_app(settings, load=load, opens_at_once=opens_at_once)
    server = GuardedServer(server_config(app, settings), settings)
    failures: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(server.serve())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="live-service")
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise RuntimeError(f"the service did not start: {failures}")
            thread.join(0.02)
        port = server.servers[0].sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=url, timeout=30, trust_env=False) as http:
            yield LiveService(url, http, app.state.service, server)
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive(), "the service did not stop"
