"""``autoencoder sample``: a table to try everything with."""

import shlex
from pathlib import Path

import click

from service.cli.options import fail

NAMES = ("payments", "series")


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--rows", type=click.IntRange(100), help="Number of rows.  [default: 3000 payments, a series of 8640]")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
def sample(file: Path, rows: int | None, seed: int) -> None:
    """Write payments.csv or series.csv, made by code: FILE is one of these names, in any folder.

    Some payments and some stretches of the series are odd; the column `label` says which.
    """
    name = file.stem
    if name not in NAMES or file.suffix != ".csv":
        fail(f"{file.name} is no sample: there are {' and '.join(f'{each}.csv' for each in NAMES)}.")
    if file.exists():
        fail(f"{file} is there already.")
    from service.tables.samples import SAMPLES, write_sample

    write_sample(name, file, rows=rows, seed=seed)
    click.echo(f"Wrote {file}. Train on it: autoencoder train {shlex.quote(str(file))} {SAMPLES[name].options}")
