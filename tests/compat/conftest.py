"""Live services with both protocols on both transports."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.settings import Settings
from service.store import Store
from tests.conftest import _fake_store
from tests.fakes import load_fake, publish_fake
from tests.live import LiveService, serve_live


@pytest.fixture(scope="session")
def fakes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    """A service over fakes, with gRPC: ``pumps`` 1 (``stable``) and 2, and ``valves``, which cannot denoise."""
    root = _fake_store(tmp_path_factory.mktemp("compat"))
    Store(root).set_alias("pumps", "stable", 1)
    publish_fake(Store(root), model="valves", denoises=False)
    settings = Settings(store=root, port=0, grpc_port=0, default_model="pumps")
    with serve_live(settings, load=load_fake) as live:
        yield live


@pytest.fixture(scope="session")
def trained(trained_store: Path) -> Iterator[LiveService]:
    """A service over the trained store, with gRPC and KServe's V1 status."""
    settings = Settings(store=trained_store, port=0, grpc_port=0, default_model="digits", kserve_v1=True)
    with serve_live(settings) as live:
        yield live


def grpc_url(live: LiveService) -> str:
    return f"127.0.0.1:{live.service.grpc_port}"


def http_url(live: LiveService) -> str:
    return live.url.removeprefix("http://")
