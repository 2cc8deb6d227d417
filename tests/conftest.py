"""What many tests share: models trained once a session, and live servers over them."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import numpy as np
import pytest
from filelock import FileLock
from numpy.typing import NDArray

# Nothing of the service here: many tests need no more of it than their own room, and start sooner without.
if TYPE_CHECKING:
    from tests.live import LiveService

# Ray's workers give way to every other process, by which a busy machine starves them: here they are one of the tests.
os.environ.update(RAY_worker_niceness="0")
# How long an example takes says nothing where other tests share the processor.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="Run the slow tests too, as `make test` does.")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the slow tests out, unless all are wanted.

    Clusters side by side starve each other: their tests come first, and so go to one worker.
    """
    items.sort(key=lambda item: item.get_closest_marker("cluster") is None)
    if config.getoption("--all"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if not item.get_closest_marker("slow")]


PERIOD = 24
"""Hours after which ``readings`` repeat."""
COLUMNS = ("amount", "age", "visits", "balance", "tenure", "score")


def table_rows(count: int, *, seed: int) -> NDArray[np.float32]:
    """Rows of six correlated columns, two hidden causes behind them: what an autoencoder can learn."""
    random = np.random.default_rng(seed)
    causes = random.normal(size=(count, 2))
    mix = np.array([[1, 0.5, -0.7, 0.2, 0.9, -0.4], [0.3, -1, 0.6, 0.8, -0.2, 1]])
    rows = causes @ mix + 0.1 * random.normal(size=(count, 6))
    scaled = rows * [50, 10, 3, 900, 2, 0.1] + [200, 40, 8, 3000, 5, 0.5]
    result: NDArray[np.float32] = scaled.astype(np.float32)
    return result


def write_csv(path: Path, rows: NDArray[np.float32]) -> Path:
    np.savetxt(path, rows, fmt="%.6g", delimiter=",", header=",".join(COLUMNS), comments="")
    return path


@pytest.fixture(scope="session")
def trained_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with ``digits`` 1 and 2 (images, denoising) and ``payments`` 1 (named columns). Do not write to it.

    The alias ``stable`` of ``digits`` names version 1.
    """
    return _trained_once(tmp_path_factory, "trained", _train_all)


@pytest.fixture(scope="session")
def series_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with ``boiler`` 1, trained on 1,500 hours of two channels with a daily period. Do not write to it."""
    return _trained_once(tmp_path_factory, "series", _train_series)


def _trained_once(factory: pytest.TempPathFactory, name: str, train: Callable[[Path, Path], None]) -> Path:
    """The store that ``train(store, folder)`` fills, once for all workers of a run."""
    base = factory.getbasetemp()
    # The workers of one run share what is above their own folders; above that of a run alone are the runs before it.
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    shared.mkdir(exist_ok=True)
    store = shared / "store"
    with FileLock(shared / "lock"):
        if not (shared / "complete").exists():
            shutil.rmtree(store, ignore_errors=True)
            store.mkdir()
            train(store, shared)
            (shared / "complete").touch()
    return store


def _train_all(store: Path, folder: Path) -> None:
    from service.store import Store
    from service.training.config import load_config
    from service.training.train import train

    for seed in (0, 1):
        train(load_config("demo", epochs=6, seed=seed), source="digits", store=store, model="digits")
    Store(store).set_alias("digits", "stable", 1)
    csv = write_csv(folder / "payments.csv", table_rows(3000, seed=0))
    config = load_config("dense", epochs=25, latent_dim=2, batch_size=64, hidden=(32,))
    train(config, source=str(csv), store=store, model="payments")


def readings(points: int, *, seed: int) -> NDArray[np.float32]:
    """Load and temperature: a daily curve with noise, the second an hour later."""
    random, at = np.random.default_rng(seed), np.arange(points)
    load = 100 + 20 * np.sin(2 * np.pi * at / PERIOD)
    warm = 15 + 5 * np.sin(2 * np.pi * (at - 1) / PERIOD)
    return (np.stack([load, warm], axis=1) + random.normal(size=(points, 2)) * [2, 0.5]).astype(np.float32)


def write_series(path: Path, values: NDArray[np.float32]) -> str:
    times = np.datetime64("2026-01-01T00:00:00") + np.arange(len(values)) * np.timedelta64(1, "h")
    lines = [f"{time},{load:.4f},{warm:.4f}" for time, (load, warm) in zip(times, values, strict=True)]
    path.write_text("time,load,warm\n" + "\n".join(lines) + "\n")
    return str(path)


def _train_series(store: Path, folder: Path) -> None:
    from service.training import load_config
    from service.training.series import Windows
    from service.training.train import train

    source = write_series(folder / "boiler.csv", readings(1500, seed=0))
    config = load_config(latent_dim=4, hidden=(32,), epochs=25, learning_rate=3e-3)
    train(config, source=source, store=store, model="boiler", windows=Windows())


@pytest.fixture
def store(trained_store: Path, tmp_path: Path) -> Path:
    """A copy of the trained store that a test may change."""
    return Path(shutil.copytree(trained_store, tmp_path / "store"))


@pytest.fixture
def fake_store(tmp_path: Path) -> Path:
    """A store with ``pumps`` 1 and 2, two unnamed numbers a row, for services that load fakes."""
    root = tmp_path / "fake_store"
    root.mkdir()
    return _fake_store(root)


def _fake_store(root: Path) -> Path:
    from service.store import Store
    from tests.fakes import publish_fake

    publish_fake(Store(root))
    publish_fake(Store(root))
    return root


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., "LiveService"]]:
    """Start live services: ``serve(store, load=..., **settings)``; they stop when the test ends."""
    from service.runtime.loaded_model import load_version
    from service.settings import Settings
    from tests.live import serve_live

    with ExitStack() as stack:

        def start(store: Path, *, load: Any = load_version, **settings: Any) -> "LiveService":
            return stack.enter_context(serve_live(Settings(store=store, port=0, **settings), load=load))

        yield start


@pytest.fixture(scope="session")
def fake_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator["LiveService"]:
    """One live service over fakes, for tests that change nothing; no TensorFlow."""
    from service.settings import Settings
    from tests.fakes import load_fake
    from tests.live import serve_live

    with serve_live(Settings(store=_fake_store(tmp_path_factory.mktemp("fakes")), port=0), load=load_fake) as live:
        yield live


@pytest.fixture(scope="session")
def service(trained_store: Path) -> Iterator["LiveService"]:
    """One live service over the trained store, for tests that change nothing. Default model: ``digits``."""
    from service.settings import Settings
    from tests.live import serve_live

    with serve_live(Settings(store=trained_store, port=0, default_model="digits", keep_versions=2)) as live:
        yield live
