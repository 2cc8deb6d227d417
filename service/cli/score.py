"""``autoencoder score``, ``encode``, ``denoise`` and ``reconstruct``: files of rows through a model."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TextIO

import click

from service.cli.options import STORE_VARIABLE, engine_options, listed, options

if TYPE_CHECKING:
    from service.pipelines.series import Stretch

FORMATS = click.Choice(["csv", "parquet", "arrow", "ndjson"])
SECONDS_BETWEEN_LINES = 10.0
SHOWN_STRETCHES = 20


_options = options(
    click.argument("source", metavar="IN"),
    click.argument("target", metavar="OUT"),
    click.option("--store", default="model_store", show_default=True, envvar=STORE_VARIABLE, help="Model store."),
    click.option("--url", help="Let the service at this address do it, instead of a model of the store."),
    click.option("--key", envvar="AUTOENCODER_KEY", help="API key of that service."),
    click.option("--model", help="Name of the model.  [default: the only one in the store]"),
    click.option("--version", type=int, help="Version of the model.  [default: production, else the highest]"),
    click.option("--alias", help="Use the version that this alias names."),
    click.option("--columns", help="The file's columns that are the model's, in its order, as in amount,age."),
    click.option("--format", "source_format", type=FORMATS, help="Format of IN.  [default: from its name]"),
    click.option("--out-format", "target_format", type=FORMATS, help="Format of OUT.  [default: from its name]"),
    click.option(
        "--errors",
        type=click.Choice(["raise", "null"]),
        default="raise",
        show_default=True,
        help="A row that does not fit ends the run, or has empty results and a reason.",
    ),
    click.option("--prefix", default="", help="What the names of the result columns begin with."),
    click.option("--resume", is_flag=True, help="Keep finished parts, and go on with those of an earlier run."),
    click.option("--batch-rows", type=click.IntRange(1), default=32_768, show_default=True, help="Rows at a time."),
    click.option("--threads", type=click.IntRange(1), help="Model calls at a time, a core each.  [default: all cores]"),
    click.option(
        "--part-rows",
        type=click.IntRange(1),
        default=1_000_000,
        show_default=True,
        help="Rows after which a part of a Parquet or Arrow file may end; a part is what --resume goes on from.",
    ),
    engine_options,
    click.option("--workers", type=click.IntRange(1), help="Ray workers.  [default: one a CPU of the cluster]"),
    click.option("--quiet", is_flag=True, help="No progress."),
)
"""Options of all four commands."""


@click.command()
@_options
@click.option("--threshold", type=float, help="Call rows anomalies whose score is higher.")
@click.option("--false-alarm-rate", type=float, help="Choose the threshold by the share of normal rows over it.")
@click.option(
    "--false-discovery-rate",
    type=float,
    help="Flag rows so that at most this share of them is normal in expectation; reads IN twice.",
)
@click.option("--explain", type=int, help="Add the N columns that contribute most.")
@click.option("--timestamp", help="Series: the column of times.  [default: the first that there is]")
def score(**arguments: Any) -> None:
    """Score the rows of IN and write them to OUT with anomaly_score, p_value and is_anomaly beside them.

    IN is a file, a folder, a pattern or "-": CSV, Parquet, Arrow (Feather) or NDJSON. OUT is a file, a folder (with a
    slash at its end) or "-". A model of a series scores every reading of a table with one reading a row, oldest first.
    """
    _run("anomaly_score", **arguments)


@click.command()
@_options
def encode(**arguments: Any) -> None:
    """Write the rows of IN to OUT with their latents. IN and OUT as in `autoencoder score`."""
    _run("encode", **arguments)


@click.command()
@_options
def denoise(**arguments: Any) -> None:
    """Write the rows of IN to OUT with their denoised columns. IN and OUT as in `autoencoder score`."""
    _run("denoise", **arguments)


@click.command()
@_options
def reconstruct(**arguments: Any) -> None:
    """Write the rows of IN to OUT with their reconstructions. IN and OUT as in `autoencoder score`."""
    _run("reconstruct", **arguments)


def _run(
    operation: str,
    *,
    source: str,
    target: str,
    store: str,
    url: str | None,
    key: str | None,
    model: str | None,
    columns: str | None,
    source_format: str | None,
    target_format: str | None,
    resume: bool,
    batch_rows: int,
    threads: int | None,
    part_rows: int,
    engine: str,
    address: str | None,
    workers: int | None,
    quiet: bool,
    false_discovery_rate: float | None = None,
    timestamp: str | None = None,
    **chosen: Any,
) -> None:
    from service.errors import ConfigurationError
    from service.pipelines.files import Job, run
    from service.pipelines.scorer import Scorer
    from service.pipelines.series import is_series, score_series
    from service.store import Store

    chosen |= {"operation": operation, "columns": listed(columns)}
    scorer: Scorer
    if url:
        from service.pipelines.remote import RemoteScorer, client_of

        model = model or _the_only("service", [found.name for found in client_of(url, key).models()])
        scorer = RemoteScorer(url, model, key=key, **chosen)
    else:
        # Several calls at a time on a core each: cores that share one call are in each other's way.
        scorer = Scorer(store, model or _the_only("store", Store(store).models()), threads=1, **chosen)
    work: Any = None
    if engine == "ray":
        from service.pipelines.ray import ray_engine

        work = ray_engine(address, workers=workers)
    job = Job(
        source,
        target,
        source_format=source_format,
        target_format=target_format,
        batch_rows=batch_rows,
        threads=threads or 0,
        resume=resume,
        part_rows=part_rows,
        false_discovery_rate=false_discovery_rate,
    )
    of_series = bool(scorer.schema.channels) and is_series(job, scorer)
    if of_series and (url or work is not None):
        raise ConfigurationError("A series is scored by a model of the store, here: leave out --url and --engine.")
    began, also, notes = time.monotonic(), "", list[str]()
    with nullcontext(lambda _done, _total: None) if quiet else _progress(sys.stderr) as progress:
        if of_series:
            rows, stretches = score_series(job, scorer, timestamp=timestamp, progress=progress)
            notes = [] if quiet else _in_words(stretches)
        else:
            outcome = run(job, scorer, progress=progress, work=work)
            rows = outcome.rows
            if outcome.skipped_parts:
                also = f", {outcome.skipped_parts} of {outcome.parts} parts were there already"
            if (found := outcome.discovered) is not None and (found.warning or not quiet):
                flagged = f"{found.rows:,} rows flagged at a false discovery rate of {false_discovery_rate:g}"
                notes = [found.warning or flagged]
    if not quiet:
        seconds = time.monotonic() - began
        done = f"{rows:,} rows by version {scorer.version} of {scorer.model} in {seconds:.1f} s{also}: {target}"
        click.echo(done, err=True)
    for note in notes:
        click.echo(note, err=True)


def _the_only(where: str, names: Sequence[str]) -> str:
    from service.errors import ConfigurationError

    if not names:
        raise ConfigurationError(f"The {where} has no model yet.")
    if len(names) > 1:
        raise ConfigurationError(f"The {where} has {len(names)} models: choose one by --model.")
    return names[0]


def _in_words(stretches: "Sequence[Stretch]") -> list[str]:
    """A line for each stretch that is flagged, the longest ones where there are many, in the order of time."""
    if not stretches:
        return ["Nothing is flagged."]
    longest = set(sorted(stretches, key=lambda stretch: -stretch.readings)[:SHOWN_STRETCHES])
    some = "One stretch is" if len(stretches) == 1 else f"{len(stretches)} stretches are"
    more = f", the {len(longest)} longest of them" if len(longest) < len(stretches) else ""
    lines = [f"{each.first} to {each.last}: {each.readings:,} readings" for each in stretches if each in longest]
    return [f"{some} flagged{more}:", *lines]


@contextmanager
def _progress(stream: TextIO) -> Iterator[Callable[[int, int | None], None]]:
    """Show how many rows are done: a bar with the time that is left on a terminal, else a line now and then."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(file=stream)
    began = last = time.monotonic()

    def speed(done: int) -> float:
        nonlocal began
        began = time.monotonic() if not done else began  # a second reading begins anew
        return done / (time.monotonic() - began + 1e-9)

    def line(done: int, total: int | None) -> None:
        nonlocal last
        now, per_s = time.monotonic(), speed(done)
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            left = f", about {(total - done) / per_s:.0f} s left" if total and done else ""
            print(f"{done:,} rows, {per_s:,.0f} a second{left}", file=stream, flush=True)

    if not console.is_terminal:
        yield line
        return
    columns = (
        TextColumn("{task.completed:,.0f} rows"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[speed]:,.0f} rows/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        task = bars.add_task("rows", total=None, speed=0)
        yield lambda done, total: bars.update(task, completed=done, total=total, speed=speed(done))
