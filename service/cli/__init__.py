"""The command ``autoencoder``. Each command imports what it starts, so that help appears at once."""

import errno
import os
import sys
from pathlib import Path
from typing import Any

import click

from service import __version__
from service.cli import import_, sample, score, top, train
from service.cli.options import STORE_HELP, engine_options, fail, has_version, store_option

WIDE = 100
"""Columns of a terminal from which on tables have borders."""


class Cli(click.Group):
    """Errors raised on purpose end as one sentence and exit code 1; Ctrl-C as one line and 130."""

    def invoke(self, ctx: click.Context) -> Any:
        from service.errors import AutoencoderError, InvalidRows

        try:
            if any(name.startswith("AUTOENCODER_") for name in os.environ):
                from service.settings import check_variables  # a third of a second

                check_variables(os.environ)
            return super().invoke(ctx)
        except InvalidRows as error:
            first = error.problems[0] if error.problems else None
            place = f" Row {first.row}, column {first.column}: {first.problem}." if first else ""
            fail(f"{error}{place}")
        except AutoencoderError as error:
            fail(str(error))
        except OSError as error:
            if error.errno == errno.EPIPE:  # click ends quietly where nobody reads on
                raise
            fail(f"{error.filename or 'Writing or reading'}: {error.strerror or error}.")
        except KeyboardInterrupt:
            click.echo("\nStopped; the store is as it was.", err=True)
            sys.exit(130)


@click.group(cls=Cli, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="autoencoder")
def app() -> None:
    """Train, store and serve autoencoders: encode, reconstruct, denoise, score anomalies."""


app.add_command(train.train)
app.add_command(train.tune)
app.add_command(import_.import_)
app.add_command(import_.recalibrate)
app.add_command(top.top)
app.add_command(sample.sample)
for command in (score.score, score.encode, score.denoise, score.reconstruct):
    app.add_command(command)


# --- serve ----------------------------------------------------------------------------------------------------------


@app.command()
@click.option("--store", help=f"{STORE_HELP}  [default: model_store]")
@click.option("--default-model", help="Model that routes without a model use.  [default: the only one]")
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=int, help="Port to listen on; 0 takes a free one.  [default: 8000]")
@click.option("--workers", type=int, help="Server processes.  [default: 1]")
@click.option("--log-format", type=click.Choice(["json", "console"]))
@engine_options
@click.option("--min-replicas", type=click.IntRange(1), help="Ray: least number of replicas.  [default: 1]")
@click.option("--max-replicas", type=click.IntRange(1), help="Ray: most replicas.  [default: as --min-replicas]")
@click.option(
    "--replica-requests", type=click.IntRange(1), help="Ray: requests under way that a replica is for.  [default: 16]"
)
def serve(engine: str, **arguments: Any) -> None:
    """Serve the models of the store over HTTP until SIGTERM. All settings: `autoencoder settings`.

    With --engine ray every replica is a whole service on a node of a Ray cluster.
    """
    from service.settings import load_settings

    on_ray = {name: arguments.pop(name) for name in ("address", "min_replicas", "max_replicas", "replica_requests")}

    if arguments["log_format"] is None and "AUTOENCODER_LOG_FORMAT" not in os.environ and sys.stderr.isatty():
        arguments["log_format"] = "console"
    settings = load_settings(**arguments)
    settings.check_access()
    if engine == "ray":
        from service.api.ray_serve import Scale, serve_on_ray

        least = on_ray["min_replicas"] or 1
        requests = on_ray["replica_requests"] or Scale().replica_requests
        scale = Scale(least, on_ray["max_replicas"] or least, requests)
        serve_on_ray(settings, address=on_ray["address"], scale=scale)
        return
    if any(value is not None for value in on_ray.values()):
        from service.errors import ConfigurationError

        raise ConfigurationError("--address and the options of replicas are for --engine ray.")
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
        fail(f"not ready: {error.read(300).decode(errors='replace')}")
    except OSError as error:
        fail(f"{url} does not answer: {error}")


@app.command()
@store_option
@click.option("--port", type=int, default=8000, show_default=True)
def demo(store: str, port: int) -> None:
    """Train on the bundled handwritten digits, serve the model, and show what it says; runs until Ctrl-C."""
    from service.cli.demo import check_port, run_demo

    check_port(port)
    if not has_version(store, "digits"):
        train.train_and_publish({"source": "digits"}, train.training_config("demo", {}), "digits", store)
    run_demo(store, port)


# --- models ---------------------------------------------------------------------------------------------------------


@app.group()
def models() -> None:
    """List, promote, roll back, verify and delete versions in the store."""


@models.command("list")
@store_option
def list_models(store: str) -> None:
    """Every model with its versions and aliases."""
    from rich.box import HEAVY_HEAD
    from rich.console import Console
    from rich.table import Table

    from service.errors import InvalidVersion, VersionNotFound
    from service.store import Store

    opened, console, problems = Store(store), Console(), list[str]()
    table = Table(box=None if console.width < WIDE else HEAVY_HEAD)
    for name in ("model", "version", "aliases", "created", "kind", "test error", "PCA", "threshold"):
        table.add_column(name, overflow="fold", no_wrap=name in ("model", "version", "kind"))
    for model in opened.models():
        aliases = opened.aliases(model)
        versions, others = opened.listing(model)
        for version in sorted([*versions, *others]):
            named = ", ".join(alias for alias, number in aliases.items() if number == version)
            try:
                manifest = opened.manifest(model, version)
                errors = manifest.metrics.get("reconstruction_error", {})
                columns: tuple[str, ...] = (
                    f"{manifest.created:%Y-%m-%d %H:%M}",
                    manifest.input.kind,
                    _number(errors.get("autoencoder", {}).get("test")),
                    _number(errors.get("pca", {}).get("test")),
                    _number(manifest.calibration.threshold) if manifest.calibration else "none",
                )
            except (InvalidVersion, VersionNotFound) as error:
                columns = ("[red]failed[/red]",)
                problems.append(f"{model} {version}: {error}")
            table.add_row(model, str(version), named, *columns)
    if table.row_count:
        console.print(table)
        click.echo("\n".join(problems), nl=bool(problems))
    else:
        click.echo("The store has no version yet: `autoencoder train` makes one.")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


@models.command()
@click.argument("model")
@click.argument("version", type=int, required=False)
@store_option
def show(model: str, version: int | None, store: str) -> None:
    """The manifest of a version (default: the one in production, else the newest) as JSON."""
    from service.store import Store

    opened = Store(store)
    manifest = opened.manifest(model, opened.resolve(model, version=version))
    if manifest.calibration:
        manifest = manifest.model_copy(update={"calibration": manifest.calibration.model_copy(update={"scores": ()})})
    click.echo(manifest.model_dump_json(indent=2))


@models.command()
@click.argument("model")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--format", "form", type=click.Choice(["onnx", "tflite", "keras"]), required=True)
@click.option("--version", type=int, help="Version of the model.  [default: production, else the highest]")
@store_option
def export(model: str, folder: Path, form: str, version: int | None, store: str) -> None:
    """Write MODEL into FOLDER for another runtime, checked with that runtime against the version's own answers.

    onnx (tf2onnx, ONNX Runtime) and tflite (LiteRT) take raw rows; keras is the network alone.
    """
    from service.store import Store
    from service.training.convert import convert

    opened = Store(store)
    for file in convert(opened, model, opened.resolve(model, version=version), folder, form=form):
        click.echo(file)


@models.command()
@click.argument("model")
@click.argument("version", type=int)
@click.option("--alias", default="production", show_default=True)
@store_option
def promote(model: str, version: int, alias: str, store: str) -> None:
    """Let an alias name a version; running services follow."""
    from service.store import Store

    before = Store(store).set_alias(model, alias, version)
    was = "" if before is None else f" (was {before})"
    click.echo(f"Alias {alias} of model {model} names version {version} now{was}.")


@models.command()
@click.argument("model")
@click.option("--alias", default="production", show_default=True)
@store_option
def rollback(model: str, alias: str, store: str) -> None:
    """Let an alias name the version that it named before."""
    from service.store import Store

    version = Store(store).rollback(model, alias)
    click.echo(f"Alias {alias} of model {model} names version {version} again.")


@models.command()
@click.argument("model")
@click.argument("version", type=int)
@store_option
def delete(model: str, version: int, store: str) -> None:
    """Delete a version. Refused while an alias names it; its number is never used again."""
    from service.store import Store

    Store(store).delete(model, version)
    click.echo(f"Version {version} of model {model} is deleted.")


@models.command()
@click.argument("model", required=False)
@click.argument("version", type=int, required=False)
@store_option
@click.option("--digests-only", is_flag=True, help="Check the files without loading the model.")
def verify(model: str | None, version: int | None, store: str, digests_only: bool) -> None:
    """Check versions as the service will: every digest, a real load, the golden outputs."""
    from service.errors import InvalidVersion
    from service.store import Store

    opened = Store(store)
    failed = 0
    for name in [model] if model else opened.models():
        versions, others = opened.listing(name)
        for number in [version] if version else sorted([*versions, *others]):
            try:
                if number in others:
                    raise InvalidVersion(others[number])
                opened.verify_digests(name, number)
                if not digests_only:
                    from service.runtime.loaded_model import load_version

                    load_version(opened.path(name, number))
                click.echo(f"{name} {number}: good")
            except InvalidVersion as error:
                failed += 1
                click.echo(f"{name} {number}: BAD: {error}")
    if failed:
        fail(f"{failed} version(s) must not be served.")


def main() -> None:
    app(prog_name="autoencoder")


if __name__ == "__main__":
    main()
