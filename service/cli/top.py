"""``autoencoder top``: a running service at a glance, from its metrics and its list of models."""

import contextlib
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import RenderableType

    from service.cli.figures import Figures
    from service.client import Client, Model

STAGES = ("decode", "queue", "model", "encode", "request")
SHIFT, LARGE_SHIFT = 0.1, 0.25
"""Population stability indices that are called a shift, and a large one."""


@click.command()
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="Address of the service.")
@click.option("--interval", "interval_s", type=click.FloatRange(0.1, 3600), default=2.0, show_default=True)
@click.option("--once", is_flag=True, help="Show one interval and end, for scripts.")
def top(url: str, interval_s: float, once: bool) -> None:
    """Watch a running service: traffic, latency by stage, alerts and drift by version; until Ctrl-C.

    A key, where the service asks for one, comes from the environment variable AUTOENCODER_KEY.
    """
    from rich.console import Console
    from rich.live import Live

    from service.client import Client, RetryPolicy, ServiceError

    console = Console()
    key = os.environ.get("AUTOENCODER_KEY") or None
    with Client(url, key=key, request_timeout_s=10, retry=RetryPolicy(attempts=2)) as client:
        frames = _frames(client, url, interval_s)
        if once:
            console.print(next(frames))
            return
        with Live(f"Looking at {url} for {interval_s:g} s …", console=console, screen=True, auto_refresh=False) as live:
            live.refresh()
            with contextlib.suppress(KeyboardInterrupt):
                while True:
                    try:
                        live.update(next(frames), refresh=True)
                    except ServiceError as error:
                        # It may be starting again.
                        live.update(f"{url}: {error}", refresh=True)
                        time.sleep(interval_s)
                        frames = _frames(client, url, interval_s)


def _frames(client: "Client", url: str, interval_s: float) -> "Iterator[RenderableType]":
    """A screen after each interval. Raises ServiceError."""
    from service.cli.figures import between, parse

    then, before = time.monotonic(), parse(client.metrics())
    while True:
        time.sleep(interval_s)
        now, after = time.monotonic(), parse(client.metrics())
        yield frame(url, between(before, after, seconds=now - then), client.models())
        then, before = now, after


def frame(url: str, figures: "Figures", models: "list[Model]") -> "RenderableType":
    """One screen."""
    from rich.console import Group
    from rich.text import Text

    happened = figures.interval
    rates = {name: count / figures.seconds for name, count in happened.requests.items()}
    answered = ", ".join(f"{rates.get(name, 0.0):.1f} {name}" for name in ("ok", "rejected", "refused", "failed"))
    batch = "none" if figures.mean_batch_rows is None else f"{figures.mean_batch_rows:.1f} rows on average"
    memory = "" if figures.memory_bytes is None else f"   memory {figures.memory_bytes / 2**20:.0f} MiB"
    queue = figures.queue
    refused = ", ".join(f"{reason} {rate:.1f}/s" for reason, rate in sorted(figures.refusals_per_s.items()))
    lines = [
        Text.assemble((f"{url}", "bold"), f"   the last {figures.seconds:.1f} s{memory}"),
        Text(f"requests/s   {sum(rates.values()):.1f} ({answered})"),
        Text(f"rows/s       {happened.rows / figures.seconds:.1f}   batches: {batch}"),
        Text(f"waiting      {queue['requests']:.0f} requests, {queue['rows']:.0f} rows, {queue['bytes'] / 1e6:.1f} MB"),
        Text(f"refusals     {refused or 'none'}", style="yellow" if refused else ""),
    ]
    return Group(*lines, "", _latency(figures), "", _versions(figures, models))


def _latency(figures: "Figures") -> "RenderableType":
    from rich.table import Table

    table = Table("stage", title="Latency in ms", title_justify="left")
    for name in ("p50", "p99"):
        table.add_column(name, justify="right")
    for stage in STAGES:
        shown = ("" if value is None else f"{value:.2f}" for value in figures.interval.latency_ms[stage])
        table.add_row("whole request" if stage == "request" else stage, *shown)
    return table


def _versions(figures: "Figures", models: "list[Model]") -> "RenderableType":
    from rich.markup import escape
    from rich.table import Table

    from service.cli.figures import NOTHING

    table = Table("model", "version", "state", "aliases", title="Versions", title_justify="left")
    for name in ("rows scored/s", "alert rate", "score drift", "column drift"):
        table.add_column(name, justify="right")
    for model in models:
        for version in model.versions:
            found = figures.by_version.get((model.name, version.version), NOTHING)
            aliases = [alias for alias, number in model.aliases.items() if number == version.version]
            if version.version == model.default_version:
                aliases.append("(default)")
            table.add_row(
                escape(model.name),
                str(version.version),
                f"[red]{version.state}[/red]" if version.state == "failed" else version.state,
                escape(", ".join(aliases)),
                f"{found.scored_per_s:.1f}",
                "" if found.alert_rate is None else f"{found.alert_rate:.2%}",
                _drift(found.score_drift),
                _drift(found.feature_drift),
            )
    return table


def _drift(psi: float | None) -> str:
    """A population stability index, coloured where it is called a shift."""
    if psi is None:
        return ""
    colour = "red" if psi > LARGE_SHIFT else "yellow" if psi > SHIFT else "green"
    return f"[{colour}]{psi:.3f}[/{colour}]"
