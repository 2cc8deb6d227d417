"""Checkpoints: a run that was killed goes on with the very same result, and with no other run's."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from service.errors import ConfigurationError
from service.store import KERAS_MODEL, Store
from service.training.checkpoint import CHECKPOINT, Checkpoint, Checkpoints, FitState
from tests.conftest import table_rows, write_csv


class Variable:
    """What a checkpoint needs of a variable."""

    def __init__(self, value: float) -> None:
        self.value: NDArray[np.float32] = np.full(3, value, np.float32)

    def assign(self, value: NDArray[np.float32]) -> None:
        self.value = value


def checkpoint(folder: Path, *, every_s: float = 0, resume: bool = True, **identity: object) -> Checkpoint:
    return Checkpoints(folder, every_s=every_s, resume=resume).of({"rows": "abc", "hidden": (4, 2), **identity})


def saved(folder: Path) -> FitState:
    state = FitState([np.ones(2, np.float32)], 1, 0.25, [0.5, 0.4], [0.25, 0.3], 1.5)
    checkpoint(folder).save_if_due(state, lambda: [np.full(3, 7, np.float32)])
    return state


def test_state_and_variables_come_back(tmp_path: Path) -> None:
    """Exactly; without --resume nothing does."""
    state, variable = saved(tmp_path / "new"), Variable(0)
    restored = checkpoint(tmp_path / "new").restore([variable])
    assert restored is not None
    assert restored.best[0].tolist() == [1, 1]
    assert (restored.best_epoch, restored.best_loss, restored.seconds) == (1, 0.25, 1.5)
    assert (restored.train_losses, restored.validation_losses) == (state.train_losses, state.validation_losses)
    assert variable.value.tolist() == [7, 7, 7]
    assert checkpoint(tmp_path / "new", resume=False).restore([variable]) is None
    assert checkpoint(tmp_path / "other").restore([variable]) is None


def test_another_run_is_refused(tmp_path: Path) -> None:
    """It names what differs: options, or the rows."""
    saved(tmp_path)
    with pytest.raises(ConfigurationError, match="of another run: rows differs"):
        checkpoint(tmp_path, rows="xyz").restore([Variable(0)])
    with pytest.raises(ConfigurationError, match="hidden, seed differ"):
        checkpoint(tmp_path, hidden=(5,), seed=1).restore([Variable(0)])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04nonsense", b"x" * 1000])
def test_a_damaged_checkpoint_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    """Cut off, or something else altogether: nothing is unpickled, nothing trained on it."""
    saved(tmp_path)
    (tmp_path / CHECKPOINT).write_bytes(content)
    with pytest.raises(ConfigurationError, match="damaged"):
        checkpoint(tmp_path).restore([Variable(0)])


def test_one_flipped_bit_is_found(tmp_path: Path) -> None:
    """By the checksums inside the file."""
    saved(tmp_path)
    whole = bytearray((tmp_path / CHECKPOINT).read_bytes())
    whole[whole.index(np.full(3, 7, np.float32).tobytes())] ^= 1
    (tmp_path / CHECKPOINT).write_bytes(whole)
    with pytest.raises(ConfigurationError, match="damaged"):
        checkpoint(tmp_path).restore([Variable(0)])


def test_is_written_when_it_is_due_and_removed_at_the_end(tmp_path: Path) -> None:
    """A short run writes none; nothing is left of one, not even the folder."""
    folder = tmp_path / "run"
    checkpoint(folder, every_s=60).save_if_due(FitState([]), list)
    assert not folder.exists()
    saved(folder)
    (folder / ".fit.npz.new").write_bytes(b"left by a kill")
    saved(folder)
    assert [path.name for path in folder.iterdir()] == [CHECKPOINT]
    Checkpoints(folder).remove()
    Checkpoints(folder).remove()
    assert not folder.exists()


@pytest.mark.tf
def test_resumed_after_sigkill_gives_the_same_weights(tmp_path: Path) -> None:
    """A real kill in the middle of fitting; the weights are those of a run that nobody killed, bit for bit."""
    csv = write_csv(tmp_path / "rows.csv", table_rows(600, seed=0))
    options = ["--epochs", "100", "--patience", "100", "--dropout", "0.1", "--noise", "gaussian", "--hidden", "16"]
    options += ["--latent", "2", "--weight-decay", "0.01", "--schedule", "cosine", "--checkpoint-every-s", "0"]
    options += ["--score", "reconstruction"]

    def command(store: str, *more: str) -> list[str]:
        train = [sys.executable, "-m", "service.cli", "train", str(csv), "--store", str(tmp_path / store)]
        return [*train, *options, *more]

    folder = tmp_path / "killed" / "rows" / ".checkpoint"
    with subprocess.Popen(command("killed"), stderr=subprocess.DEVNULL, env={**os.environ}) as process:
        deadline = time.monotonic() + 120
        while not (folder / CHECKPOINT).exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
        process.send_signal(signal.SIGKILL)
    assert (folder / CHECKPOINT).exists(), "it was done before it could be killed, or never began"
    assert Store(tmp_path / "killed").versions("rows") == []
    refused = subprocess.run(
        command("killed", "--resume", "--seed", "1"), capture_output=True, text=True, check=False, timeout=200
    )
    assert refused.returncode == 1
    assert "of another run: seed differs" in refused.stderr
    runs = [
        subprocess.Popen(command(store, *more), stderr=subprocess.PIPE, text=True)
        for store, more in (("killed", ["--resume"]), ("whole", []))
    ]
    for ended in runs:
        _, said = ended.communicate(timeout=280)
        assert ended.returncode == 0, said
    assert not folder.exists()
    weights = [_weights(tmp_path / store) for store in ("killed", "whole")]
    assert weights[0] == weights[1]
    losses = [Store(tmp_path / store).manifest("rows", 1).metrics["epochs"] for store in ("killed", "whole")]
    assert losses == [100, 100]


def _weights(store: Path) -> bytes:
    import keras

    network = keras.models.load_model(Store(store).path("rows", 1) / KERAS_MODEL)
    return b"".join(weight.tobytes() for weight in network.get_weights())
