"""``autoencoder top``: a running service at a glance, from its metrics and its list of models."""

import contextlib
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import RenderableType

    from service.api.activity import Interval, Reading
    from service.client import Client, Model

SHIFT, LARGE_SHIFT = 0.1, 0.25
"""Population stability indices that are called a shift, and a large one."""
VERSION = ("model", "version")
MORE_METRICS = {
    "scored_rows_total": VERSION,
    "anomalies_total": VERSION,
    "score_drift_psi": VERSION,
    "feature_drift_psi": VERSION,
    "refusals_total": ("reason",),
    "queue_requests": (),
    "queue_bytes": (),
    "batch_rows_count": (),
    "batch_rows_sum": (),
    "process_resident_memory_bytes": (),
}
"""Metrics beside those of the console's activity."""


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


def reading_of(exposition: str) -> "Reading":
    """The figures of interest in Prometheus' text format."""
    from prometheus_client.parser import text_string_to_metric_families

    from service.api.activity import METRICS, read

    return read(text_string_to_metric_families(exposition), {**METRICS, **MORE_METRICS})


def _frames(client: "Client", url: str, interval_s: float) -> "Iterator[RenderableType]":
    """A screen after each interval. Raises ServiceError."""
    from service.api.activity import Interval

    then, before = time.monotonic(), reading_of(client.metrics())
    while True:
        time.sleep(interval_s)
        now, after = time.monotonic(), reading_of(client.metrics())
        yield frame(url, Interval.between(before, after, seconds=now - then), client.models())
        then, before = now, after


def frame(url: str, interval: "Interval", models: "list[Model]") -> "RenderableType":
    """One screen."""
    from rich.console import Group
    from rich.text import Text

    def per_s(events: float) -> str:
        return f"{events / interval.seconds:.1f}"

    requests = interval.requests
    answered = ", ".join(f"{per_s(requests[name])} {name}" for name in ("ok", "rejected", "refused", "failed"))
    batches, batch_rows = interval.events("batch_rows_count"), interval.events("batch_rows_sum")
    batch = f"{batch_rows / batches:.1f} rows on average" if batches else "none"
    memory_bytes = interval.gauge("process_resident_memory_bytes")  # of several workers it is not known
    memory = f"   memory {memory_bytes / 2**20:.0f} MiB" if memory_bytes else ""
    waiting = {name: interval.gauge(f"queue_{name}") for name in ("requests", "rows", "bytes")}
    refusals = sorted((reason, count) for (reason,), count in interval.grown["refusals_total"].items() if count)
    refused = ", ".join(f"{reason} {per_s(count)}/s" for reason, count in refusals)
    lines = [
        Text.assemble((f"{url}", "bold"), f"   the last {interval.seconds:.1f} s{memory}"),
        Text(f"requests/s   {per_s(sum(requests.values()))} ({answered})"),
        Text(f"rows/s       {per_s(interval.events('rows_total'))}   batches: {batch}"),
        Text(
            f"waiting      {waiting['requests']:.0f} requests, {waiting['rows']:.0f} rows, "
            f"{waiting['bytes'] / 1e6:.1f} MB"
        ),
        Text(f"refusals     {refused or 'none'}", style="yellow" if refused else ""),
    ]
    return Group(*lines, "", _latency(interval), "", _versions(interval, models))


def _latency(interval: "Interval") -> "RenderableType":
    from rich.table import Table

    table = Table("stage", title="Latency in ms", title_justify="left", box=None)
    for name in ("p50", "p99"):
        table.add_column(name, justify="right")
    for stage, values in interval.latency_ms.items():
        shown = ("" if value is None else f"{value:.2f}" for value in values)
        table.add_row("whole request" if stage == "request" else stage, *shown)
    return table


def _versions(interval: "Interval", models: "list[Model]") -> "RenderableType":
    from rich.markup import escape
    from rich.table import Table

    # For 80 columns: no frame, an alias a line; only a long name of a model is broken.
    table = Table(title="Versions", title_justify="left", box=None)
    table.add_column("version", overflow="fold")
    table.add_column("state", no_wrap=True)
    table.add_column("aliases", no_wrap=True)
    for name in ("rows\nscored/s", "alert\nrate", "score\ndrift", "column\ndrift"):
        table.add_column(name, justify="right", no_wrap=True)
    for model in models:
        for version in model.versions:
            key = (model.name, str(version.version))
            rows = interval.grown["scored_rows_total"].get(key, 0.0)
            alerts = interval.grown["anomalies_total"].get(key, 0.0)
            aliases = [alias for alias, number in model.aliases.items() if number == version.version]
            if version.version == model.default_version:
                aliases.append("(default)")
            table.add_row(
                f"{escape(model.name)} {version.version}",
                f"[red]{version.state}[/red]" if version.state == "failed" else version.state,
                escape("\n".join(aliases)),
                f"{rows / interval.seconds:.1f}",
                f"{alerts / rows:.2%}" if rows else "",
                *(_drift(interval.gauges[f"{name}_drift_psi"].get(key)) for name in ("score", "feature")),
            )
    return table


def _drift(psi: float | None) -> str:
    """A population stability index, coloured where it is called a shift."""
    if psi is None:
        return ""
    colour = "red" if psi > LARGE_SHIFT else "yellow" if psi > SHIFT else "green"
    return f"[{colour}]{psi:.3f}[/{colour}]"
