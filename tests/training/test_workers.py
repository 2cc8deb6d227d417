"""Several processes that fit one model: one publishes, once, what one process alone would have."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.errors import ConfigurationError
from service.store import KERAS_MODEL, Store
from service.training.place import TF_CONFIG, own_place
from tests.conftest import table_rows, write_csv


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def test_place_follows_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone without it; chiefs come first; anything odd is one sentence."""
    monkeypatch.delenv(TF_CONFIG, raising=False)
    assert (own_place().index, own_place().count) == (0, 1)
    cluster = {"chief": ["a:1"], "worker": ["b:1", "c:1"]}
    for task, place in (("chief", 0), 0), (("worker", 1), 2):
        monkeypatch.setenv(TF_CONFIG, json.dumps({"cluster": cluster, "task": {"type": task[0], "index": task[1]}}))
        assert (own_place().index, own_place().count) == (place, 3)
    assert not own_place().is_chief
    for wrong in ("{", "[]", "{}", '{"cluster": {"worker": ["a:1"]}, "task": {"type": "ps", "index": 0}}'):
        monkeypatch.setenv(TF_CONFIG, wrong)
        with pytest.raises(ConfigurationError, match="must be JSON as"):
            own_place()


@pytest.mark.tf
def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    """Two real processes over TCP: the chief publishes one version, the other none, and the weights agree."""
    csv = write_csv(tmp_path / "rows.csv", table_rows(500, seed=0))
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]

    def start(store: str, config: dict[str, Any] | None) -> "subprocess.Popen[str]":
        options = ["--epochs", "5", "--hidden", "16", "--latent", "2", "--noise", "gaussian", "--batch-size", "31"]
        command = [sys.executable, "-m", "service.cli", "train", str(csv), "--store", str(tmp_path / store), *options]
        environment = {name: value for name, value in os.environ.items() if name != TF_CONFIG}
        environment |= {TF_CONFIG: json.dumps(config)} if config else {}
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    processes = [
        start(store, config)
        for store, config in (
            ("both", {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": 0}}),
            ("none", {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": 1}}),
            ("alone", None),
        )
    ]
    for process in processes:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
    assert not (tmp_path / "none").exists()
    assert Store(tmp_path / "both").versions("rows") == [1]
    together, alone = (_weights(tmp_path / store) for store in ("both", "alone"))
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def _weights(store: Path) -> list[Any]:
    import keras

    return list(keras.models.load_model(Store(store).path("rows", 1) / KERAS_MODEL).get_weights())
