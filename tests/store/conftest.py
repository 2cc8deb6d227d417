import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.store import Store

from .trainer import publish


@pytest.fixture
def tmp_path(quick_disk: Path) -> Path:
    return quick_disk


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Empty."""
    (tmp_path / "store").mkdir()
    return Store(tmp_path / "store")


@pytest.fixture
def two_versions(store: Store) -> Store:
    """Versions 1 and 2 of the model."""
    publish(store, "one")
    publish(store, "two")
    return store


@pytest.fixture
def quick_disk() -> Iterator[Path]:
    """A folder where fsync costs little, readable by all."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else None))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)
