"""Reporters: what a run tells while it goes on."""

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from contextlib import suppress

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


RUN = """
import sys, time
from service.training.progress import Epoch, terminal_reporter
with terminal_reporter(sys.stderr) as reporter:
    reporter.stage("Fitting")
    for number in range(1, 101):
        reporter.epoch(Epoch(number, 12_000, 0.012345 / number, 0.00012345 * number))
        time.sleep(0.005)
    reporter.stage("Calibrating")
"""


def test_a_terminal_of_80_columns_shows_epoch_and_time_left() -> None:
    """Through a real pseudo-terminal: nothing is cut off or wrapped, however long the numbers are."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    environment["TERM"] = "xterm-256color"
    with subprocess.Popen([sys.executable, "-c", RUN], stderr=theirs, env=environment) as run:
        os.close(theirs)
        written = b""
        with suppress(OSError):  # the other side is closed
            while block := os.read(ours, 65_536):
                written += block
    os.close(ours)
    assert run.returncode == 0
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]+", written.decode())]
    bars = [line for line in lines if line.startswith("epoch")]
    shape = re.compile(r"epoch +\d+/12000 .*(\d:\d\d:\d\d|-:--:--) .*loss 0\.\S+, validation 0\.\S+ *")
    assert [bar for bar in bars if not shape.fullmatch(bar)] == []
    assert any("0:" in bar for bar in bars)
    assert max(map(len, lines)) <= 80
