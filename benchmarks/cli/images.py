"""``python -m benchmarks images``: image models on a folder of IDX files."""

import tempfile
from contextlib import ExitStack
from pathlib import Path

import click

from service.cli.options import listed, write_csv


@click.command(context_settings={"ignore_unknown_options": True})
@click.option(
    "--data",
    "folders",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    multiple=True,
    required=True,
    help="Folder with the four files of MNIST, or of a set like it; may be given several times.",
)
@click.option("--tutorial", is_flag=True, help="Train the preset keras-tutorial too.")
@click.option("--denoise", is_flag=True, help="Train with noise too, and measure what is left of it.")
@click.option("--novelty", help="Classes to hold out as novel, one training each, as in 0,1,2; or 'all'.")
@click.option("--store", type=click.Path(path_type=Path), help="Keep the versions there.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the results there as CSV.")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def images(
    *,
    folders: tuple[Path, ...],
    tutorial: bool,
    denoise: bool,
    novelty: str | None,
    store: Path | None,
    out: Path | None,
    options: tuple[str, ...],
) -> None:
    """Reconstruction error on test images beside PCA, and more if asked for.

    OPTIONS after -- go to every `autoencoder train`, as in: -- --epochs 5
    """
    from rich.console import Console
    from rich.table import Table

    from benchmarks.images import Line, measure_images, read_images
    from service.runtime.quiet import tf  # noqa: F401 - imports TensorFlow without notices

    table = Table("images", "method", "metric", "value", "fit s", "CPU s")
    lines: list[Line] = []
    with ExitStack() as stack:
        for folder in folders:
            kept = store / folder.name if store else Path(stack.enter_context(tempfile.TemporaryDirectory()))
            kept.mkdir(parents=True, exist_ok=True)
            found = read_images(folder)
            held_out = range(int(found.test_labels.max()) + 1) if novelty == "all" else map(int, listed(novelty))
            for line in measure_images(
                found,
                kept,
                tutorial=tutorial,
                denoise=denoise,
                novelty=list(held_out),
                options=options,
                begin=lambda name: click.echo(f"Training {name}", err=True),
            ):
                lines.append(line)
                click.echo(f"{line.images}: {line.method}, {line.metric} {line.value:.5g}", err=True)
                seconds = ("" if took is None else f"{took:.0f}" for took in (line.fit_s, line.cpu_s))
                table.add_row(line.images, line.method, line.metric, f"{line.value:.5g}", *seconds)
    Console().print(table)
    if out:
        write_csv(out, Line, lines)
