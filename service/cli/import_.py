"""``autoencoder import`` and ``recalibrate``: versions of models that are not trained here, or not trained again."""

from pathlib import Path
from typing import Any

import click

from service.cli.options import store_option
from service.cli.train import model_name, promote_option, promotion_options, source_arguments, source_options


@click.command("import")
@click.argument("network", metavar="MODEL", required=False)
@click.option(
    "--rows",
    "source",
    help="Rows that calibrate and test it: any SOURCE that `train` takes. Without, the version scores nothing.",
)
@click.option("--model", default=None, help="Name of the model in the store.  [default: from MODEL]")
@store_option
@click.option("--encoder", help="File or folder of the encoder, where there are two.")
@click.option("--decoder", help="File or folder of the decoder.")
@click.option("--latent", "layer", help="Layer that gives the latent.  [default: the narrowest one]")
@click.option(
    "--scale",
    default="none",
    show_default=True,
    help="What the model expects of rows: standard, minmax, 0-255, or a JSON file with mean and std, or min and max.",
)
@click.option("--denoises", is_flag=True, help="It was trained to remove noise.")
@click.option("--trust", is_flag=True, help="Load code that the model brings along. Only if you know where it is from.")
@click.option("--score", type=click.Choice(["reconstruction", "network"]), default="reconstruction", show_default=True)
@click.option("--false-alarm-rate", type=float, help="Share of normal rows that may be called anomalies.")
@click.option("--max-rows", type=int, default=None, help="Use a random sample of at most N rows.  [default: 50000]")
@click.option("--seed", type=int)
@source_options
@promotion_options
def import_(
    *,
    network: str | None,
    source: str | None,
    model: str | None,
    store: str,
    encoder: str | None,
    decoder: str | None,
    layer: str | None,
    scale: str,
    denoises: bool,
    trust: bool,
    promotion: Any,
    labels: str | None,
    score: str,
    false_alarm_rate: float | None,
    max_rows: int | None,
    seed: int | None,
    **options: Any,
) -> None:
    """Take in MODEL, which was trained elsewhere, and publish it as a version.

    MODEL is a .keras or .h5 file, a SavedModel folder, or a folder that MLflow logged; or MODEL/VERSION of
    one that lies in the store already. Nothing is trained.
    """
    from rich.console import Console

    from service.store import Store
    from service.training.imported import Wishes, import_config, import_model, open_parts, reader_of
    from service.training.progress import terminal_reporter
    from service.training.report import summary

    files = {"model": network, "encoder": encoder, "decoder": decoder}
    paths = {name: _path(file, store) for name, file in files.items() if file is not None}
    rows = source_arguments(source or "", options)
    names = rows["columns"]
    if labels and names:
        rows["columns"] = (*names, labels)
    wishes = Wishes(layer, scale, names=names, denoises=denoises)
    config = import_config(score=score, false_alarm_rate=false_alarm_rate, max_rows=max_rows, seed=seed)
    with terminal_reporter() as reporter:
        reporter.stage("Reading the model")
        foreign = open_parts(paths, trust=trust)
        Store(store).create()
        result = import_model(
            foreign,
            config,
            wishes,
            name=" and ".join(path.name for path in paths.values()),
            rows=reader_of(foreign, rows, config, reporter) if source else None,
            store=store,
            model=model or _model_name(network or encoder or "model"),
            promotion=promotion,
            labels=labels,
            reporter=reporter,
        )
    Console().print(summary(result))


@click.command()
@click.argument("model")
@click.argument("version", type=int, required=False)
@click.option("--rows", "source", required=True, help="Recent ordinary rows: any SOURCE that `train` takes.")
@store_option
@click.option(
    "--false-alarm-rate",
    type=float,
    help="Share of normal rows that may be called anomalies.  [default: the version's]",
)
@click.option("--max-rows", type=int, help="Use a random sample of at most N rows.  [default: 50000]")
@click.option("--seed", type=int)
@source_options
@promote_option
def recalibrate(*, model: str, version: int | None, source: str, store: str, promotion: Any, **options: Any) -> None:
    """Publish MODEL anew with the same networks, and a threshold, p-values and drift reference from other rows.

    VERSION: the one that is calibrated anew; by default that in production. Nothing is trained.
    """
    from rich.console import Console

    from service.training.imported import import_config
    from service.training.progress import terminal_reporter
    from service.training.recalibrate import recalibrate
    from service.training.report import summary

    rate = options.pop("false_alarm_rate")
    own = {name: options.pop(name) for name in ("max_rows", "seed")}
    config, rows = import_config(**own), source_arguments(source, options)
    with terminal_reporter() as reporter:
        result = recalibrate(
            config,
            source=rows,
            store=store,
            model=model,
            version=version,
            false_alarm_rate=rate,
            promotion=promotion,
            reporter=reporter,
        )
    Console().print(summary(result))


def _path(file: str, store: str) -> Path:
    """A file or folder, or MODEL/VERSION in a store that is a folder."""
    inside = Path(store) / file
    return inside if not Path(file).exists() and "://" not in store and inside.exists() else Path(file)


def _model_name(file: str) -> str:
    """The file's name as a model's; of a folder named by a number that of the folder above."""
    path = Path(file.rstrip("/"))
    return model_name(path.parent.name if path.name.isdecimal() and path.parent.name else path.name)
