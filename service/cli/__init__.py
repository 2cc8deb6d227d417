"""The command ``autoencoder``. Each command imports what it starts, so that help appears at once."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click

from service import __version__

STORE_VARIABLE = "AUTOENCODER_STORE"

store_option = click.option(
    "--store",
    type=click.Path(path_type=Path),
    default=Path("model_store"),
    show_default=True,
    envvar=STORE_VARIABLE,
    help="Folder of the model store.",
)


class Cli(click.Group):
    """Errors raised on purpose end as one sentence and exit code 1; Ctrl-C as one line and 130."""

    def invoke(self, ctx: click.Context) -> Any:
        from service.errors import AutoencoderError, InvalidRows
        from service.settings import SettingsError

        try:
            return super().invoke(ctx)
        except InvalidRows as error:
            first = error.problems[0] if error.problems else None
            place = f" Row {first.row}, column {first.column}: {first.problem}." if first else ""
            _fail(f"{error}{place}")
        except (AutoencoderError, SettingsError) as error:
            _fail(str(error))
        except KeyboardInterrupt:
            click.echo("\nStopped; the store is as it was.", err=True)
            sys.exit(130)


def _fail(sentence: str) -> NoReturn:
    click.echo(f"autoencoder: {sentence}", err=True)
    sys.exit(1)


@click.group(cls=Cli, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="autoencoder")
def app() -> None:
    """Train, store and serve autoencoders: encode, reconstruct, denoise, score anomalies."""


# --- train ----------------------------------------------------------------------------------------------------------


def _training_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """One option for each field of ``TrainingConfig``; not given means: as the preset says."""
    options = [
        click.option("--hidden", help="Widths of the encoder's layers before the latent, as in 256,128; '' for none."),
        click.option("--latent", "latent_dim", type=int, help="Width of the latent; narrower than a row."),
        click.option("--activation", help="Of the hidden layers: relu, gelu, tanh, …"),
        click.option("--output-activation", type=click.Choice(["auto", "linear", "sigmoid"])),
        click.option("--loss", type=click.Choice(["mean_squared_error", "binary_crossentropy", "huber"])),
        click.option("--epochs", type=int),
        click.option("--batch-size", type=int),
        click.option("--learning-rate", type=float),
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
        click.option("--false-alarm-rate", type=float, help="Share of normal rows that may be called anomalies."),
        click.option("--max-rows", type=int, help="Train on a random sample of so many rows."),
        click.option("--seed", type=int),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@app.command()
@click.argument("source", required=False)
@click.option("--preset", default=None, help="demo, dense or keras-tutorial; see the README.")
@click.option("--model", default=None, help="Name of the model in the store.  [default: from the source]")
@store_option
@click.option("--columns", help="Use these columns only, as in amount,age.")
@click.option("--drop", help="Leave these columns out.")
@click.option("--promote", is_flag=True, help="Let the alias 'production' name the new version.")
@click.option("--if-missing", is_flag=True, help="Do nothing when the model has a version already.")
@_training_options
def train(
    *,
    source: str | None,
    preset: str | None,
    model: str | None,
    store: Path,
    columns: str | None,
    drop: str | None,
    promote: bool,
    if_missing: bool,
    **overrides: Any,
) -> None:
    """Train on SOURCE (CSV, Parquet, NPY, NPZ, IDX, or the bundled 'digits') and publish a version."""
    from service.errors import ConfigurationError
    from service.store import PRODUCTION, Store

    if source is None and preset not in (None, "demo"):
        raise ConfigurationError(f"Preset {preset} needs a SOURCE: a file, or the bundled 'digits'.")
    source = source or "digits"
    preset = preset or ("demo" if source == "digits" else "dense")
    model = model or _model_name(source)
    if if_missing and _has_version(store, model):
        click.echo(f"Model {model} has a version already; nothing to do.")
        return
    result = _train(source, preset, model, store, columns=_listed(columns), drop=_listed(drop), overrides=overrides)
    if promote:
        Store(store).set_alias(model, PRODUCTION, result.version)
        click.echo(f"Alias {PRODUCTION} of model {model} names version {result.version} now.")


def _train(
    source: str,
    preset: str,
    model: str,
    store: Path,
    *,
    columns: tuple[str, ...],
    drop: tuple[str, ...],
    overrides: dict[str, Any],
) -> Any:
    from rich.console import Console

    from service.training.config import load_config
    from service.training.progress import terminal_reporter
    from service.training.report import summary
    from service.training.train import train

    if overrides.get("hidden") is not None:
        overrides["hidden"] = _widths(overrides["hidden"])
    config = load_config(preset, **overrides)
    store.mkdir(parents=True, exist_ok=True)
    with terminal_reporter() as reporter:
        result = train(config, source=source, store=store, model=model, columns=columns, drop=drop, reporter=reporter)
    Console().print(summary(result))
    return result


def _widths(text: str) -> tuple[int, ...]:
    from service.errors import ConfigurationError

    try:
        return tuple(int(width) for width in _listed(text))
    except ValueError as error:
        raise ConfigurationError("--hidden takes whole numbers with commas between them, as in 256,128.") from error


def _model_name(source: str) -> str:
    """A file's name as a model's: lower case, anything odd as a dash."""
    stem = Path(source).name.split(".")[0].lower()
    name = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "_-") else "-" for letter in stem)
    return name.strip("-_")[:63] or "model"


def _has_version(store: Path, model: str) -> bool:
    from service.errors import ModelNotFound, StoreUnavailable
    from service.store import Store

    try:
        return bool(Store(store).versions(model))
    except (ModelNotFound, StoreUnavailable):
        return False


def _listed(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


# --- serve ----------------------------------------------------------------------------------------------------------


@app.command()
@click.option("--store", type=click.Path(path_type=Path), help="Folder of the model store.  [default: model_store]")
@click.option("--default-model", help="Model that routes without a model use.  [default: the only one]")
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=int, help="Port to listen on; 0 takes a free one.  [default: 8000]")
@click.option("--workers", type=int, help="Server processes.  [default: 1]")
@click.option("--log-format", type=click.Choice(["json", "console"]))
def serve(**arguments: Any) -> None:
    """Serve the models of the store over HTTP until SIGTERM. All settings: `autoencoder settings`."""
    from service.settings import load_settings

    if arguments["log_format"] is None and "AUTOENCODER_LOG_FORMAT" not in os.environ and sys.stderr.isatty():
        arguments["log_format"] = "console"
    settings = load_settings(**arguments)
    settings.check_access()
    from service.api.server import serve

    serve(settings)


@app.command()
def settings() -> None:
    """List every setting of the service with its environment variable, default and meaning."""
    from service.settings import ENV_PREFIX, Settings

    for name, field in Settings.model_fields.items():
        click.echo(f"{ENV_PREFIX}{name.upper()}  [default: {field.default}]\n    {field.description}")


@app.command()
def key() -> None:
    """Make a new API key: the key for its caller, and its hash for the service's settings."""
    import secrets

    from service.api.access import hash_key

    new = secrets.token_urlsafe(32)
    click.echo(f"key   {new}\nhash  {hash_key(new)}")


@app.command()
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="Address of the service.")
def health(url: str) -> None:
    """Exit with 0 when the service is ready, else say why not."""
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/readyz", timeout=5) as answer:  # noqa: S310 - the operator's own
            click.echo(answer.read().decode())
    except urllib.error.HTTPError as error:
        _fail(f"not ready: {error.read(300).decode(errors='replace')}")
    except OSError as error:
        _fail(f"{url} does not answer: {error}")


@app.command()
@store_option
@click.option("--port", type=int, default=8000, show_default=True)
def demo(store: Path, port: int) -> None:
    """Train on the bundled handwritten digits, serve the model, and show what it says; runs until Ctrl-C."""
    if not _has_version(store, "digits"):
        _train("digits", "demo", "digits", store, columns=(), drop=(), overrides={})
    from service.cli.demo import run_demo

    run_demo(store, port)


# --- models ---------------------------------------------------------------------------------------------------------


@app.group()
def models() -> None:
    """List, promote, roll back, verify and delete versions in the store."""


@models.command("list")
@store_option
def list_models(store: Path) -> None:
    """Every model with its versions and aliases."""
    from rich.console import Console
    from rich.table import Table

    from service.errors import InvalidVersion
    from service.store import Store

    opened = Store(store)
    table = Table("model", "version", "aliases", "created", "kind", "test error", "PCA", "threshold")
    for model in opened.models():
        aliases = opened.aliases(model)
        for version in opened.versions(model):
            named = ", ".join(alias for alias, number in aliases.items() if number == version)
            try:
                table.add_row(model, str(version), named, *_columns(opened.manifest(model, version)))
            except InvalidVersion as error:
                table.add_row(model, str(version), named, f"[red]{error}[/red]")
    if table.row_count:
        Console().print(table)
    else:
        click.echo("The store has no version yet: `autoencoder train` makes one.")


def _columns(manifest: Any) -> tuple[str, ...]:
    errors = manifest.metrics.get("reconstruction_error", {})
    return (
        f"{manifest.created:%Y-%m-%d %H:%M}",
        manifest.input.kind,
        _number(errors.get("autoencoder", {}).get("test")),
        _number(errors.get("pca", {}).get("test")),
        _number(manifest.calibration.threshold),
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"


@models.command()
@click.argument("model")
@click.argument("version", type=int, required=False)
@store_option
def show(model: str, version: int | None, store: Path) -> None:
    """The manifest of a version (default: the one in production, else the newest) as JSON."""
    from service.store import Store

    opened = Store(store)
    manifest = opened.manifest(model, opened.resolve(model, version=version))
    shown = manifest.model_copy(update={"calibration": manifest.calibration.model_copy(update={"scores": ()})})
    click.echo(shown.model_dump_json(indent=2))


@models.command()
@click.argument("model")
@click.argument("version", type=int)
@click.option("--alias", default="production", show_default=True)
@store_option
def promote(model: str, version: int, alias: str, store: Path) -> None:
    """Let an alias name a version; running services follow."""
    from service.store import Store

    before = Store(store).set_alias(model, alias, version)
    was = "" if before is None else f" (was {before})"
    click.echo(f"Alias {alias} of model {model} names version {version} now{was}.")


@models.command()
@click.argument("model")
@click.option("--alias", default="production", show_default=True)
@store_option
def rollback(model: str, alias: str, store: Path) -> None:
    """Let an alias name the version that it named before."""
    from service.store import Store

    version = Store(store).rollback(model, alias)
    click.echo(f"Alias {alias} of model {model} names version {version} again.")


@models.command()
@click.argument("model")
@click.argument("version", type=int)
@store_option
def delete(model: str, version: int, store: Path) -> None:
    """Delete a version. Refused while an alias names it; its number is never used again."""
    from service.store import Store

    Store(store).delete(model, version)
    click.echo(f"Version {version} of model {model} is deleted.")


@models.command()
@click.argument("model", required=False)
@click.argument("version", type=int, required=False)
@store_option
@click.option("--digests-only", is_flag=True, help="Check the files without loading the model.")
def verify(model: str | None, version: int | None, store: Path, digests_only: bool) -> None:
    """Check versions as the service will: every digest, a real load, the golden outputs."""
    from service.errors import InvalidVersion
    from service.store import Store

    opened = Store(store)
    failed = 0
    for name in [model] if model else opened.models():
        for number in [version] if version else opened.versions(name):
            try:
                opened.verify_digests(name, number)
                if not digests_only:
                    from service.runtime.loaded_model import load_version

                    load_version(opened.path(name, number))
                click.echo(f"{name} {number}: good")
            except InvalidVersion as error:
                failed += 1
                click.echo(f"{name} {number}: BAD: {error}")
    if failed:
        _fail(f"{failed} version(s) must not be served.")


def main() -> None:
    app(prog_name="autoencoder")


if __name__ == "__main__":
    main()
