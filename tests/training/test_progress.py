"""Reporters: what a run tells while it goes on."""

import io

from rich.console import Console
from rich.progress import Progress, TextColumn

from service.training.progress import BarReporter, Epoch, LineReporter, sparkline, terminal_reporter


def test_lines_where_there_is_no_terminal() -> None:
    """Stages, the first epoch and the last are told, with both losses and the time left."""
    stream = io.StringIO()
    with terminal_reporter(stream) as reporter:
        assert isinstance(reporter, LineReporter)
        reporter.stage("Fitting")
        for number in range(1, 51):
            reporter.epoch(Epoch(number, 50, 0.5, 1 / number))
        reporter.stage("Calibrating")
    *lines, line, after = stream.getvalue().splitlines()
    assert lines[0] == "Fitting"
    assert lines[1].startswith("epoch 1/50  train loss 0.5  validation loss 1  at most ")
    assert lines[-1].startswith("epoch 50/50")
    assert len(lines) < 10
    assert line.startswith("validation loss █")
    assert line.endswith("▁")
    assert after == "Calibrating"


def test_bar_on_a_terminal() -> None:
    """Stages stay above one bar that carries the losses."""
    stream = io.StringIO()
    with Progress(
        TextColumn("{task.completed}/{task.total} {task.fields[losses]}"),
        console=Console(file=stream, force_terminal=True, width=120),
    ) as bars:
        reporter = BarReporter(bars)
        reporter.stage("Fitting")
        reporter.epoch(Epoch(1, 3, 0.5, 0.25))
        reporter.epoch(Epoch(2, 3, 0.4, 0.2))
        reporter.stage("Calibrating")
        assert [task.completed for task in bars.tasks] == [2]
    assert "Calibrating" in stream.getvalue()
    assert "█▁ loss 0.4, validation 0.2" in stream.getvalue()


def test_sparkline_shows_the_course_of_the_losses() -> None:
    """By logarithms, the latest last; however many there are, and when they do not change."""
    assert sparkline([8, 4, 2, 1]) == "█▆▃▁"
    assert sparkline([]) == ""
    assert sparkline([0.5, 0.5]) == "▁▁"
    assert sparkline([0.0, 1.0]) == "▁█"
    long = sparkline([1 / (1 + number) for number in range(1000)], width=10)
    assert len(long) == 10
    assert list(long) == sorted(long, reverse=True)
