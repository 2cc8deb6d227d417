"""``python -m benchmarks``: every figure that the documentation quotes, by one command each."""

import click

from benchmarks.cli.columns import columns
from benchmarks.cli.images import images
from benchmarks.cli.pipelines import pipelines
from benchmarks.cli.quality import quality
from benchmarks.cli.series import series
from benchmarks.cli.service import load, overload, soak, swap
from service.cli import Cli


@click.group(cls=Cli, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def bench() -> None:
    """Measure models and the service by the protocols in the documentation."""


for command in (load, swap, overload, soak, images, series, columns, pipelines, quality):
    bench.add_command(command)
