"""How a run tells what it is doing: to a terminal, as plain lines, to TensorBoard, or not at all."""

import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

SECONDS_BETWEEN_LINES = 5.0
BLOCKS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class Epoch:
    """An epoch that has ended; both are values of the training loss, lower is better."""

    number: int
    of: int
    train_loss: float
    validation_loss: float
    learning_rate: float = math.nan
    """Learning rate of its last step."""


class Reporter:
    """Called by the thread that trains; shows nothing. A subclass may raise KeyboardInterrupt to stop the run."""

    def stage(self, name: str) -> None:
        """A step of the recipe begins."""

    def epoch(self, epoch: Epoch) -> None:
        """An epoch has ended."""

    def rows(self, read: int, of: int | None) -> None:
        """``read`` rows of a table were read so far, of ``of`` where that is known."""

    def note(self, text: str) -> None:
        """Lines to be shown as they are."""


class LineReporter(Reporter):
    """A line for each stage, and for an epoch now and then, with the time that the rest may take."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._losses: list[float] = []
        self._first = self._last = time.monotonic()

    def stage(self, name: str) -> None:
        if self._losses:
            print(f"validation loss {sparkline(self._losses)}", file=self._stream, flush=True)
            self._losses = []
        print(name, file=self._stream, flush=True)
        self._first = self._last = time.monotonic()

    def epoch(self, epoch: Epoch) -> None:
        self._losses.append(epoch.validation_loss)
        now = time.monotonic()
        if now - self._last < SECONDS_BETWEEN_LINES and epoch.number not in {1, epoch.of}:
            return
        self._last = now
        left_s = (now - self._first) / epoch.number * (epoch.of - epoch.number)
        losses = f"train loss {epoch.train_loss:.5g}  validation loss {epoch.validation_loss:.5g}"
        line = f"epoch {epoch.number}/{epoch.of}  {losses}  at most {left_s:.0f} s left"
        print(line, file=self._stream, flush=True)

    def rows(self, read: int, of: int | None) -> None:
        now = time.monotonic()
        if now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            print(_rows_read(read, of), file=self._stream, flush=True)

    def note(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class BarReporter(Reporter):
    """A bar that fills by epochs, under the stages, with both losses and a line of the validation losses so far."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._losses: list[float] = []
        self._last = time.monotonic()
        self._task: int | None = None

    def stage(self, name: str) -> None:
        if self._task is not None:
            # Early stopping may leave the bar part-filled; the epochs are over all the same.
            self._bars.stop_task(self._bars.tasks[0].id)
        self._bars.console.print(name)

    def epoch(self, epoch: Epoch) -> None:
        self._losses.append(epoch.validation_loss)
        losses = f"loss {epoch.train_loss:.3g}, validation {epoch.validation_loss:.3g}"
        shown = f"{sparkline(self._losses, 8)} {losses}"
        if self._task is None:
            self._task = self._bars.add_task("epoch", total=epoch.of, losses=shown)
        self._bars.update(self._bars.tasks[0].id, completed=epoch.number, losses=shown)

    def rows(self, read: int, of: int | None) -> None:
        now = time.monotonic()
        if now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            self._bars.console.print(_rows_read(read, of))

    def note(self, text: str) -> None:
        self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def terminal_reporter(stream: TextIO = sys.stderr) -> Iterator[Reporter]:
    """A progress bar with an ETA where ``stream`` is a terminal, lines otherwise."""
    console = Console(file=stream)
    if not console.is_terminal:
        yield LineReporter(stream)
        return
    columns = (
        TextColumn("{task.description}"),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        BarColumn(bar_width=8),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[losses]}"),
    )
    with Progress(*columns, console=console) as bars:
        yield BarReporter(bars)


def sparkline(losses: Sequence[float], width: int = 24) -> str:
    """Losses as a line of at most ``width`` blocks, the last one being the latest loss; by their logarithms.

    >>> sparkline([8, 4, 2, 1])
    '█▆▃▁'
    """
    shown = min(width, len(losses))
    logs = [math.log(max(losses[(at + 1) * len(losses) // shown - 1], 1e-12)) for at in range(shown)]
    low, high = min(logs, default=0.0), max(logs, default=0.0)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((value - low) * scale)] for value in logs)


def _rows_read(read: int, of: int | None) -> str:
    return f"{read:,} rows read" if of is None else f"{read:,} of {of:,} rows read"


class TensorBoardReporter(Reporter):
    """Passes all on to another reporter and writes each epoch to an event file in a folder."""

    def __init__(self, inner: Reporter, folder: Path) -> None:
        self._inner, self._folder = inner, folder
        self._writer: Any = None

    def stage(self, name: str) -> None:
        self._inner.stage(name)

    def epoch(self, epoch: Epoch) -> None:
        from service.runtime.quiet import tf

        self._inner.epoch(epoch)
        if self._writer is None:
            self._writer = tf.summary.create_file_writer(str(self._folder))
        losses = {"loss/train": epoch.train_loss, "loss/validation": epoch.validation_loss}
        rate = {} if math.isnan(epoch.learning_rate) else {"learning_rate": epoch.learning_rate}
        # As tf.summary.scalar writes it; that one wants the package tensorboard to be there.
        plugin = tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars")
        metadata = tf.compat.v1.SummaryMetadata(plugin_data=plugin, data_class=1)
        with self._writer.as_default():
            for tag, value in {**losses, **rate}.items():
                tf.summary.write(tag, tf.constant(value, tf.float32), epoch.number, metadata)
        self._writer.flush()

    def rows(self, read: int, of: int | None) -> None:
        self._inner.rows(read, of)

    def note(self, text: str) -> None:
        self._inner.note(text)
