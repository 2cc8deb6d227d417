"""How a run tells what it is doing: to a terminal, as plain lines, or not at all."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 5.0


@dataclass(frozen=True, slots=True)
class Epoch:
    """An epoch that has ended; both are values of the training loss, lower is better."""

    number: int
    of: int
    train_loss: float
    validation_loss: float


class Reporter(Protocol):
    """Is told of a run by the thread that trains. It may raise KeyboardInterrupt to stop the run."""

    def stage(self, name: str) -> None:
        """A step of the recipe begins."""
        ...

    def epoch(self, epoch: Epoch) -> None: ...


class SilentReporter:
    def stage(self, name: str) -> None:
        pass

    def epoch(self, epoch: Epoch) -> None:
        pass


class LineReporter:
    """A line for each stage, and for an epoch now and then, with the time that the rest may take."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._first = self._last = time.monotonic()

    def stage(self, name: str) -> None:
        print(name, file=self._stream, flush=True)
        self._first = self._last = time.monotonic()

    def epoch(self, epoch: Epoch) -> None:
        now = time.monotonic()
        if now - self._last < SECONDS_BETWEEN_LINES and epoch.number not in {1, epoch.of}:
            return
        self._last = now
        left_s = (now - self._first) / epoch.number * (epoch.of - epoch.number)
        line = f"epoch {epoch.number}/{epoch.of}  {_losses(epoch)}  at most {left_s:.0f} s left"
        print(line, file=self._stream, flush=True)


class BarReporter:
    """A bar that fills by epochs, under the stages."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._task: int | None = None

    def stage(self, name: str) -> None:
        if self._task is not None:
            # Early stopping may leave the bar part-filled; the epochs are over all the same.
            self._bars.stop_task(self._bars.tasks[0].id)
        self._bars.console.print(name)

    def epoch(self, epoch: Epoch) -> None:
        if self._task is None:
            self._task = self._bars.add_task("epoch", total=epoch.of, losses="")
        self._bars.update(self._bars.tasks[0].id, completed=epoch.number, losses=_losses(epoch))


@contextmanager
def terminal_reporter(stream: TextIO = sys.stderr) -> Iterator[Reporter]:
    """A progress bar with an ETA where ``stream`` is a terminal, lines otherwise."""
    console = Console(file=stream)
    if not console.is_terminal:
        yield LineReporter(stream)
        return
    columns = (
        TextColumn("{task.description}"),
        MofNCompleteColumn(),
        BarColumn(bar_width=30),
        TimeRemainingColumn(),
        TextColumn("{task.fields[losses]}"),
    )
    with Progress(*columns, console=console) as bars:
        yield BarReporter(bars)


def _losses(epoch: Epoch) -> str:
    return f"train loss {epoch.train_loss:.5g}  validation loss {epoch.validation_loss:.5g}"
