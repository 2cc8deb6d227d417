"""``python -m benchmarks columns``: detection on files with named columns and a column of labels."""

from pathlib import Path

import click

from service.cli.options import listed, write_csv


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("training", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("test", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--label", required=True, help="Column that says what a row is.")
@click.option("--normal", default="normal", show_default=True, help="What it says of normal rows.")
@click.option("--drop", help="Columns to leave out as well.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the results there as CSV.")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def columns(
    *, training: Path, test: Path, label: str, normal: str, drop: str | None, out: Path | None, options: tuple[str, ...]
) -> None:
    """Train on the normal rows of TRAINING and score TEST: AUROC, AUPR, false alarms.

    OPTIONS after -- go to `autoencoder train`, as in: -- --epochs 50
    """
    from rich.console import Console
    from rich.table import Table

    from benchmarks.columns import ColumnsLine, measure_columns

    with Console(stderr=True).status(f"Training on the normal rows of {training.name}, scoring {test.name}"):
        line = measure_columns(training, test, label=label, normal=normal, drop=listed(drop), options=options)
    table = Table("training rows", "test rows", "anomalies", "AUROC", "AUPR", "false alarms", "detected")
    alarms = f"{line.false_alarms:.2%} at {line.nominal_rate:.0%}"
    counts = (f"{count:,}" for count in (line.training_rows, line.test_rows, line.anomalies))
    table.add_row(*counts, f"{100 * line.auroc:.2f}", f"{100 * line.aupr:.2f}", alarms, f"{line.detected:.2%}")
    Console().print(table)
    if out:
        write_csv(out, ColumnsLine, [line])
