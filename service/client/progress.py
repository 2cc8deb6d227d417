"""How far a call is: told to a function, or drawn on the terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

Progress: TypeAlias = bool | Callable[[int, int | None], None]
"""``True`` draws a bar on stderr; a function is given the rows that are done, and all of them where that is known."""


@contextmanager
def reporting(progress: Progress, total: int | None) -> Iterator[Callable[[int], None]]:
    """Gives a function to be told how many more rows are done."""
    done = 0

    def counted(show: Callable[[int, int | None], None]) -> Callable[[int], None]:
        def advance(rows: int) -> None:
            nonlocal done
            done += rows
            show(done, total)

        return advance

    if progress is True:
        with _drawn() as show:
            yield counted(show)
    else:
        yield counted(progress or (lambda _done, _total: None))


@contextmanager
def _drawn() -> Iterator[Callable[[int, int | None], None]]:
    """A bar where rich is installed, else a line that is written again."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar
    except ImportError:
        yield lambda done, total: print(f"\r{done} of {total or '?'} rows", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        return
    with Bar(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("rows", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
