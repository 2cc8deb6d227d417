"""``autoencoder train``: from rows to a published version. ``autoencoder tune``: better options for that."""

import math
import re
import shlex
from pathlib import Path
from typing import Any

import click

from service.cli.options import engine_options, has_version, listed, options, store_option

training_options = options(
    click.option("--filters", help="Filters of the convolutions, each halving the image, as in 32,64."),
    click.option(
        "--hidden", help="Widths of the encoder's dense layers before the latent, as in 256,128; '' for none."
    ),
    click.option("--latent", "latent_dim", help="Width of the latent, narrower than a row; auto: from the rows."),
    click.option(
        "--linear-path/--no-linear-path", default=None, help="A path past the hidden layers that starts as PCA."
    ),
    click.option("--activation", help="Of the hidden layers: relu, gelu, tanh, …"),
    click.option("--output-activation", type=click.Choice(["auto", "linear", "sigmoid"])),
    click.option("--loss", type=click.Choice(["mean_squared_error", "binary_crossentropy", "huber"])),
    click.option("--epochs", type=int),
    click.option("--batch-size", type=int),
    click.option("--learning-rate", type=float),
    click.option("--schedule", type=click.Choice(["constant", "cosine"]), help="Of the learning rate."),
    click.option("--patience", type=int, help="Epochs without a better validation error before training stops."),
    click.option(
        "--noise",
        "corruption",
        type=click.Choice(["none", "gaussian", "masking", "salt_and_pepper"]),
        help="Corrupt the inputs in training, so that the model learns to denoise.",
    ),
    click.option("--noise-level", "corruption_level", type=float, help="Standard deviation, or share of values."),
    click.option("--dropout", type=float),
    click.option("--weight-decay", type=float),
    click.option("--score", type=click.Choice(["auto", "network", "reconstruction"]), help="The anomaly score."),
    click.option("--trim", type=float, help="Share of training rows that may be anomalies; 0 if none is."),
    click.option("--false-alarm-rate", type=float, help="Share of normal rows that may be called anomalies."),
    click.option("--max-rows", type=int, help="Train on a random sample of at most N rows."),
    click.option("--seed", type=int),
)
"""One option for each field of ``TrainingConfig``; not given means: as the preset says."""


source_options = options(
    click.option("--columns", help="Use these columns only, as in amount,age."),
    click.option("--drop", help="Leave these columns out."),
    click.option("--where", multiple=True, help="Train on these rows only: label=normal, port!=0; repeatable."),
    click.option(
        "--schema",
        "schema_file",
        type=click.Path(path_type=Path),
        help="JSON or TOML file that says what columns are: see docs/tables.md.",
    ),
    click.option(
        "--kind",
        type=click.Choice(["timeseries"]),
        help="Take SOURCE for a series: a reading a line, oldest first.",
    ),
    click.option("--timestamp", help="Column of times of a series.  [default: the first there is]"),
    click.option("--window", type=int, help="Steps of a window of a series.  [default: its period]"),
    click.option("--step", help="Time from one point of a series to the next, as in 10min.  [default: the usual one]"),
    click.option("--stride", type=click.IntRange(1), default=1, help="Steps between windows in training."),
    click.option("--resize", help="Bring images to this height and width, as in 64x64."),
)
"""Options that choose the rows of SOURCE; see ``source_arguments``."""


promote_option = click.option(
    "--promote",
    "promotion",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Whether 'production' names the new version; auto: where it is not worse than the one there.",
)
promotion_options = options(
    promote_option,
    click.option("--labels", help="Column that is 1 for anomalies; for that comparison only, never for training."),
)
"""Options of the quality gate."""


def source_arguments(source: str, given: dict[str, Any]) -> dict[str, Any]:
    """Arguments of ``read_dataset``; takes the options of ``source_options`` out of ``given``."""
    from service.errors import ConfigurationError
    from service.tables.series import seconds_of
    from service.training.series import Windows

    kind, timestamp, window, stride, step = (
        given.pop(name) for name in ("kind", "timestamp", "window", "stride", "step")
    )
    # Any option of a series says that the source is one.
    is_series = (kind, timestamp, window, stride, step) != (None, None, None, 1, None)
    resize = given.pop("resize")
    size = re.fullmatch(r"([1-9][0-9]{0,3})x([1-9][0-9]{0,3})", (resize or "").strip().lower(), re.ASCII)
    if resize is not None and size is None:
        raise ConfigurationError("--resize takes a height and a width of at most 9999 pixels, as in 64x64.")
    columns, drop = (listed(given.pop(name)) for name in ("columns", "drop"))
    return {
        "source": source,
        "columns": columns,
        "drop": drop,
        "where": given.pop("where"),
        "schema_file": given.pop("schema_file"),
        "resize": (int(size[1]), int(size[2])) if size else None,
        "windows": Windows(timestamp, window, stride, seconds_of(step) if step else None) if is_series else None,
    }


TABLES = (".csv", ".tsv", ".parquet", ".ndjson", ".arrow", ".feather")
"""Files that ``autoencoder score`` takes, by their suffix."""


@click.command()
@click.argument("source", required=False)
@click.option("--preset", default=None, help="demo, dense, conv or keras-tutorial.  [default: by kind of rows]")
@click.option("--model", default=None, help="Name of the model in the store.  [default: from the source]")
@store_option
@source_options
@promotion_options
@click.option("--if-missing", is_flag=True, help="Do nothing when the model has a version already.")
@click.option(
    "--resume", is_flag=True, help="Go on where a killed run of the same options and rows was, if there is one."
)
@click.option(
    "--checkpoint-dir",
    type=click.Path(path_type=Path),
    help="Where the run is kept until it is done.  [default: the model's .checkpoint in the store]",
)
@click.option(
    "--checkpoint-every-s", type=click.FloatRange(min=0), default=10.0, show_default=True, help="Seconds between two."
)
@click.option("--tensorboard", type=click.Path(path_type=Path), help="Folder for TensorBoard's event files.")
@training_options
def train(
    *,
    source: str | None,
    preset: str | None,
    model: str | None,
    store: str,
    promotion: Any,
    labels: str | None,
    if_missing: bool,
    resume: bool,
    checkpoint_dir: Path | None,
    checkpoint_every_s: float,
    tensorboard: Path | None,
    **options: Any,
) -> None:
    """Train on SOURCE and publish a version.

    SOURCE is a CSV, Parquet, Arrow, NPY, NPZ or IDX file, a folder of Parquet files or of images, a
    pattern such as 'days/*.parquet', or the bundled 'digits'.
    """
    from service.errors import ConfigurationError
    from service.training.checkpoint import FOLDER, Checkpoints

    if source is None and preset not in (None, "demo"):
        raise ConfigurationError(f"Preset {preset} needs a SOURCE: a file, or the bundled 'digits'.")
    source = source or "digits"
    preset = preset or ("demo" if source == "digits" else "auto")
    model = model or model_name(source)
    if if_missing and has_version(store, model):
        click.echo(f"Model {model} has a version already; nothing to do.")
        return
    rows = source_arguments(source, options)
    if labels and rows["columns"]:
        rows["columns"] = (*rows["columns"], labels)
    # A run keeps its checkpoint in the store, or here where the store is none of files.
    own = Path(FOLDER) / model if "://" in store else Path(store) / model / FOLDER
    train_and_publish(
        rows,
        training_config(preset, options),
        model,
        store,
        promotion=promotion,
        labels=labels,
        checkpoints=Checkpoints(checkpoint_dir or own, every_s=checkpoint_every_s, resume=resume),
        tensorboard=tensorboard,
    )
    show_next_steps(store, model, source)


def show_next_steps(store: str, model: str, source: str | None) -> None:
    """Say what to do with the newest version: serve it, look at it, score a file."""
    from service.store import REPORT, Store

    version = Store(store).versions(model)[-1]
    where = [] if store == "model_store" else ["--store", store]
    click.echo(f"\nServe it, and open http://127.0.0.1:8000/ui:  {shlex.join(['autoencoder', 'serve', *where])}")
    if source and Path(source).suffix in TABLES:
        scored = ["autoencoder", "score", source, "scored.csv", "--model", model, *where]
        click.echo(f"Score a file:  {shlex.join(scored)}")
    if "://" not in store:
        click.echo(f"The report:  {Path(store) / model / str(version) / REPORT}")


def train_and_publish(
    rows: dict[str, Any],
    config: Any,
    model: str,
    store: str,
    *,
    promotion: Any = "auto",
    labels: str | None = None,
    checkpoints: Any = None,
    tensorboard: Path | None = None,
) -> None:
    """Train with progress on the terminal and print what came of it."""
    from rich.console import Console

    from service.store import Store
    from service.training.progress import TensorBoardReporter, terminal_reporter
    from service.training.report import summary
    from service.training.train import train

    with terminal_reporter() as terminal:
        Store(store).create()
        reporter = TensorBoardReporter(terminal, tensorboard) if tensorboard else terminal
        result = train(
            config,
            **rows,
            store=store,
            model=model,
            promotion=promotion,
            labels=labels,
            checkpoints=checkpoints,
            reporter=reporter,
        )
    Console().print(summary(result))


def training_config(preset: str, overrides: dict[str, Any]) -> Any:
    """Options as the configuration has them."""
    from service.errors import ConfigurationError
    from service.training.config import load_config

    for name in ("hidden", "filters"):
        if overrides.get(name) is not None:
            try:
                overrides[name] = tuple(int(width) for width in listed(overrides[name]))
            except ValueError as error:
                sentence = f"--{name} takes whole numbers with commas between them, as in 256,128."
                raise ConfigurationError(sentence) from error
    latent = overrides.get("latent_dim")
    if latent not in (None, "auto"):
        if not latent.isdecimal():
            raise ConfigurationError("--latent takes a whole number, or auto.")
        overrides["latent_dim"] = int(latent)
    return load_config(preset, **overrides)


def model_name(source: str) -> str:
    """A file's name as a model's: lower case, anything odd as a dash."""
    stem = Path(source).name.split(".")[0].lower()
    name = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "_-") else "-" for letter in stem)
    return name.strip("-_")[:63] or "model"


# --- tune -----------------------------------------------------------------------------------------------------------

OPTION_OF = {"latent_dim": "--latent", "corruption": "--noise", "corruption_level": "--noise-level"}
"""Options that are not named as their field of the configuration."""


@click.command()
@click.argument("source")
@click.option("--trials", type=click.IntRange(min=1), default=50, show_default=True, help="Most configurations tried.")
@click.option("--time-budget-s", type=click.FloatRange(min=1), help="Seconds after which the search ends.")
@click.option("--train", "trains", is_flag=True, help="Train with what was found, and publish.")
@click.option("--model", default=None, help="With --train: name of the model in the store.  [default: from the source]")
@engine_options
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

    def show(trial: Any) -> None:
        error = "stopped early" if trial.error is None else f"error {trial.error:.5g}"
        best = "" if math.isnan(trial.best_error) else f"  best {trial.best_error:.5g}"
        click.echo(f"trial {trial.number}/{trials}  {error}{best}  {trial.seconds:.0f} s", err=True)

    run: Any = None
    if engine == "ray":
        from service.training.tune import ray_trials

        run = ray_trials(address, workers=workers)
    tuned = search(
        dataset,
        config,
        fixed=fixed,
        trials=trials,
        time_budget_s=time_budget_s,
        on_trial=show,
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


def _said() -> list[str]:
    """The options given on the command line that ``train`` has too, as they were given."""
    context, ours = click.get_current_context(), {parameter.name for parameter in train.params}
    words = list[str]()
    for parameter in context.command.params:
        name, value = str(parameter.name), context.params.get(str(parameter.name))
        is_given = context.get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE
        if isinstance(parameter, click.Option) and is_given and name in ours:
            flag = parameter.secondary_opts[0] if value is False else parameter.opts[0]
            words += [flag] if isinstance(value, bool) else [flag, str(value)]
    return words
