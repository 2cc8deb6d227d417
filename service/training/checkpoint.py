"""A run that was killed goes on where it was: all that fitting has changed, in one file that is replaced whole."""

import io
import json
import math
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import ConfigurationError, StoreError
from service.store.directory import fsync_path, write_durably

CHECKPOINT = "fit.npz"
TEMPORARY = ".fit.npz.new"
FOLDER = ".checkpoint"
"""Folder of a model's checkpoint in the store, unless another is named. It cannot be a version: those are numbers."""

Arrays = list[NDArray[Any]]


@dataclass
class FitState:
    """How far a run is. Losses are by epoch; ``best`` are the weights of epoch ``best_epoch``."""

    best: Arrays
    best_epoch: int = 0
    best_loss: float = math.inf
    train_losses: list[float] = field(default_factory=list)
    validation_losses: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def epoch(self) -> int:
        return len(self.train_losses)


class Checkpoint:
    """The checkpoint of one run, in a folder. One process writes it.

    Args:
        identity: what makes two runs the same: configuration, rows, libraries. JSON values.
        every_s: seconds between two writes.
        resume: whether ``restore`` reads what is there.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], *, every_s: float, resume: bool) -> None:
        self._folder, self._identity = folder, identity
        self._every_s, self._resume = every_s, resume
        self._written = time.monotonic()

    def restore(self, variables: Sequence[Any]) -> FitState | None:
        """Set the variables to what they were, where a run is to be resumed and there is one.

        Raises:
            ConfigurationError: the checkpoint is damaged, or of a run of another configuration or other rows.
        """
        path = self._folder / CHECKPOINT
        if not self._resume or not path.exists():
            return None
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                content = {name: stored[name] for name in stored.files}
            self._check(json.loads(content["identity"].tobytes()))
            best, values = (
                [content[f"{name}_{at}"] for at in range(sum(key.startswith(f"{name}_") for key in content))]
                for name in ("best", "value")
            )
            best_epoch, best_loss, seconds = content["numbers"].tolist()
            train, validation = content["losses"].tolist()
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ConfigurationError(f"The checkpoint {path} is damaged; remove it to train from the start.") from error
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        return FitState(best, int(best_epoch), best_loss, train, validation, seconds)

    def save_if_due(self, state: FitState, variables: Callable[[], Arrays]) -> None:
        """Write a checkpoint when the last one is old enough. Raises StoreError when it cannot be written."""
        if time.monotonic() - self._written < self._every_s:
            return
        content = io.BytesIO()
        arrays: dict[str, NDArray[Any]] = {
            "identity": np.frombuffer(json.dumps(self._identity).encode(), np.uint8),
            "numbers": np.array([state.best_epoch, state.best_loss, state.seconds], np.float64),
            "losses": np.array([state.train_losses, state.validation_losses], np.float64),
            **{f"best_{at}": value for at, value in enumerate(state.best)},
            **{f"value_{at}": value for at, value in enumerate(variables())},
        }
        np.savez(content, allow_pickle=False, **arrays)
        temporary = self._folder / TEMPORARY
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary.unlink(missing_ok=True)
            write_durably(temporary, content.getvalue())
            temporary.replace(self._folder / CHECKPOINT)
            fsync_path(self._folder)
        except OSError as error:
            raise StoreError(f"The checkpoint cannot be written to {self._folder}: {error.strerror}.") from error
        self._written = time.monotonic()

    def _check(self, theirs: dict[str, Any]) -> None:
        differ = sorted(_differences(self._identity, theirs))
        if differ:
            raise ConfigurationError(
                f"The checkpoint in {self._folder} is of another run: {', '.join(differ)} differ"
                f"{'s' if len(differ) == 1 else ''}. Train without --resume to start anew."
            )


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """Where a run keeps its checkpoint, how often it is written, and whether one that is there is resumed."""

    folder: Path
    every_s: float = 10.0
    resume: bool = False

    def of(self, identity: dict[str, Any]) -> Checkpoint:
        return Checkpoint(self.folder, identity, every_s=self.every_s, resume=self.resume)

    def remove(self) -> None:
        """Leave nothing behind, nor the folder where it is empty then."""
        for name in (CHECKPOINT, TEMPORARY):
            (self.folder / name).unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()


def _differences(ours: dict[str, Any], theirs: dict[str, Any]) -> Iterator[str]:
    # Through JSON, which knows no tuples.
    ours = json.loads(json.dumps(ours))
    for name in ours.keys() | theirs.keys():
        one, other = ours.get(name), theirs.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _differences(one, other)
        elif one != other:
            yield name
