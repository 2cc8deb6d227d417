"""Options, tables of results and endings that several commands share."""

import csv
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NoReturn

import click

STORE_VARIABLE = "AUTOENCODER_STORE"

STORE_HELP = "Folder of the model store, or its URL: s3://bucket/prefix."

store_option = click.option("--store", default="model_store", show_default=True, envvar=STORE_VARIABLE, help=STORE_HELP)


def options(*chosen: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several decorators of click as one, in the order in which help lists them."""

    def add(command: Any) -> Any:
        for option in reversed(chosen):
            command = option(command)
        return command

    return add


engine_options = options(
    click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True),
    click.option("--address", help="Ray cluster, as in ray.init.  [default: the one of this machine, else a new one]"),
)
"""Where the work is done."""


def fail(sentence: str) -> NoReturn:
    """End with one sentence and exit code 1."""
    click.echo(f"autoencoder: {sentence}", err=True)
    sys.exit(1)


def has_version(store: str, model: str) -> bool:
    from service.errors import ModelNotFound, StoreUnavailable
    from service.store import Store

    try:
        return bool(Store(store).versions(model))
    except (ModelNotFound, StoreUnavailable):
        return False


def listed(text: str | None) -> tuple[str, ...]:
    """The parts of a list with commas between them."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def write_csv(path: Path, kind: type[Any], records: Iterable[Any]) -> None:
    """Write instances of the dataclass ``kind`` as a table of its fields."""
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [field.name for field in fields(kind)])
        writer.writeheader()
        writer.writerows(asdict(record) for record in records)
