"""``autoencoder bench``: every figure that the documentation quotes, by one command each."""

import click

from service.cli.bench_columns import columns
from service.cli.bench_images import images
from service.cli.bench_pipelines import pipelines
from service.cli.bench_quality import quality
from service.cli.bench_series import series
from service.cli.bench_service import load, overload, soak, swap


@click.group()
def bench() -> None:
    """Measure models and the service by the protocols in the documentation."""


for command in (load, swap, overload, soak, images, series, columns, pipelines, quality):
    bench.add_command(command)
