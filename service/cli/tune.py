"""``autoencoder tune``: better options for a source, as a command that is ready to run."""

import math
import shlex
from typing import Any

import click

from service.cli.options import store_option
from service.cli.train import (
    model_name,
    source_arguments,
    source_options,
    train_and_publish,
    training_config,
    training_options,
)

OPTION_OF = {"latent_dim": "--latent", "corruption": "--noise", "corruption_level": "--noise-level"}
"""Options that are not named as their field of the configuration."""


@click.command()
@click.argument("source")
@click.option("--trials", type=click.IntRange(min=1), default=50, show_default=True, help="Most configurations tried.")
@click.option("--time-budget-s", type=click.FloatRange(min=1), help="Seconds after which the search ends.")
@click.option("--train", "trains", is_flag=True, help="Train with what was found, and publish.")
@click.option("--model", default=None, help="With --train: name of the model in the store.  [default: from the source]")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True)
@click.option("--address", help="Ray cluster, as in ray.init.  [default: the one of this machine, else a new one]")
@click.option(
    "--workers", type=click.IntRange(1), help="Ray: trials at a time.  [default: one for each CPU of the cluster]"
)
@click.option("--preset", default=None, help="Where the search starts.  [default: by kind of rows]")
@store_option
@source_options
@training_options
def tune(
    *,
    source: str,
    trials: int,
    time_budget_s: float | None,
    trains: bool,
    model: str | None,
    engine: str,
    address: str | None,
    workers: int | None,
    preset: str | None,
    store: str,
    **options: Any,
) -> None:
    """Search options for SOURCE: widths, latent, learning rate, dropout, noise.

    Trials see the training rows and are judged by the validation rows alone. Options that are given stay as they are.
    Needs Optuna: pip install 'autoencoder-service[tune]'.
    """
    from rich.console import Console
    from rich.table import Table

    from service.training.data import read_dataset
    from service.training.tune import tune as search

    said = _said()
    rows = source_arguments(source, options)
    fixed = [name for name, value in options.items() if value is not None]
    config = training_config(preset or ("demo" if source == "digits" else "auto"), options)
    click.echo("Reading rows", err=True)
    dataset = read_dataset(**rows, max_rows=config.max_rows, seed=config.seed)
    click.echo("Searching", err=True)
    run: Any = None
    if engine == "ray":
        from service.training.ray import ray_trials

        run = ray_trials(address, workers=workers)
    tuned = search(
        dataset,
        config,
        fixed=fixed,
        trials=trials,
        time_budget_s=time_budget_s,
        reporter=_Lines(trials),
        run=run,
    )
    table = Table("", "as given", "found", title=f"{tuned.trials} trials, {tuned.stopped} stopped early")
    table.add_row("error on validation rows with a fifth hidden", f"{tuned.first_error:.5g}", f"{tuned.error:.5g}")
    Console().print(table)
    words = list[str]()
    for name, value in tuned.found.items():
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        words += [OPTION_OF.get(name, f"--{name.replace('_', '-')}"), text]
    click.echo(shlex.join(["autoencoder", "train", source, *said, *words]))
    if trains:
        train_and_publish(rows, tuned.config, model or model_name(source), store)


class _Lines:
    """A line for each trial that ended."""

    def __init__(self, trials: int) -> None:
        self._trials = trials

    def trial(self, trial: Any) -> None:
        error = "stopped early" if trial.error is None else f"error {trial.error:.5g}"
        best = "" if math.isnan(trial.best_error) else f"  best {trial.best_error:.5g}"
        click.echo(f"trial {trial.number}/{self._trials}  {error}{best}  {trial.seconds:.0f} s", err=True)


def _said() -> list[str]:
    """The options given on the command line that ``train`` has too, as they were given."""
    from service.cli.train import train

    context, ours = click.get_current_context(), {parameter.name for parameter in train.params}
    words = list[str]()
    for parameter in context.command.params:
        name, value = str(parameter.name), context.params.get(str(parameter.name))
        is_given = context.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE
        if isinstance(parameter, click.Option) and is_given and name in ours:
            flag = parameter.secondary_opts[0] if value is False else parameter.opts[0]
            words += [flag] if isinstance(value, bool) else [flag, str(value)]
    return words
