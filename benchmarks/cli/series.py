"""``python -m benchmarks series``: series models on a folder of labelled series."""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from service.cli.options import write_csv

if TYPE_CHECKING:
    from benchmarks.series import SeriesLine


@click.command(context_settings={"ignore_unknown_options": True})
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=True,
    help="Folder of CSV files (timestamp, value) with labels.json: the layout of the Numenta Anomaly Benchmark.",
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the results there as CSV.")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def series(*, data: Path, out: Path | None, options: tuple[str, ...]) -> None:
    """Train on the first 15 % of each series and score the rest point by point.

    OPTIONS after -- go to every `autoencoder train`, as in: -- --window 48
    """
    from rich.console import Console
    from rich.table import Table

    from benchmarks.series import SeriesLine, mean_line, measure_series, read_labelled
    from service.runtime.quiet import tf  # noqa: F401 - imports TensorFlow without notices

    lines: list[SeriesLine] = []
    with tempfile.TemporaryDirectory() as folder:
        for found in read_labelled(data):
            lines.append(measure_series(found, Path(folder), options=options))
            click.echo(" ".join(_cells(lines[-1])), err=True)
    lines.append(mean_line(lines))
    titles = ("series", "points", "window", "AUROC", "AUPR", "false alarms a day")
    table = Table(
        *titles,
        *(f"{name}, {each}" for name in ("hourly", "smoothed", "profile") for each in ("AUROC", "AUPR")),
        "note",
    )
    for line in lines:
        table.add_row(*_cells(line))
    Console().print(table)
    if out:
        write_csv(out, SeriesLine, lines)


def _cells(line: "SeriesLine") -> list[str]:
    values = asdict(line).values()
    return ["" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value) for value in values]
