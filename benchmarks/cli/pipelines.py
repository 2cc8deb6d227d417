"""``python -m benchmarks pipelines``: scoring files against bare calls of the model."""

import tempfile
from contextlib import ExitStack
from pathlib import Path

import click


@click.command()
@click.option("--rows", type=click.IntRange(10_000), default=10_000_000, show_default=True)
@click.option("--width", type=click.IntRange(2), default=30, show_default=True, help="Columns.")
@click.option("--store", type=click.Path(path_type=Path, exists=True), help="Measure this store's only model.")
@click.option("--folder", type=click.Path(path_type=Path), help="Keep rows and model there for another time.")
@click.option("--engine", "engines", type=click.Choice(["local", "ray"]), multiple=True, default=["local"])
def pipelines(*, rows: int, width: int, store: Path | None, folder: Path | None, engines: tuple[str, ...]) -> None:
    """Rows a second and memory of `autoencoder score` on Parquet, beside bare calls of the model's signature.

    A model of your own takes columns called c00, c01, … as this command makes them.
    """
    from rich.console import Console
    from rich.table import Table

    from benchmarks.pipelines import measure

    table = Table("", "rows/s", "of the bare call", "start s", "peak MiB", "above the model")
    with ExitStack() as stack:
        place = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        measured = measure(
            place,
            rows=rows,
            columns=width,
            store=store,
            engines=engines,
            begin=lambda step: click.echo(step, err=True),
        )
        found = list(measured)
    bare = found[0]
    for each in found:
        peak = ("", "") if each.peak_mib is None else (each.peak_mib, each.peak_mib - (bare.peak_mib or 0))
        share = f"{each.rows_per_s / bare.rows_per_s:.0%}"
        shown = [value if isinstance(value, str) else f"{value:,.0f}" for value in peak]
        table.add_row(each.what, f"{each.rows_per_s:,.0f}", share, f"{each.start_s:.1f}", *shown)
    Console().print(table)
