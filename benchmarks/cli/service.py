"""``python -m benchmarks load``, ``swap``, ``overload`` and ``soak``: measure a running service."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

SERVICE = "http://127.0.0.1:8000"


def service_options(command: Any) -> Any:
    """Which model of which service is measured."""
    options = (
        click.option("--url", default=SERVICE, show_default=True, help="Address of the service."),
        click.option("--model", help="Its model.  [default: the only one]"),
        click.option("--key", envvar="AUTOENCODER_KEY", help="API key, where it asks for one."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@service_options
@click.option("--seconds", type=click.FloatRange(1), default=8.0, show_default=True, help="Time of each workload.")
@click.option("--store", type=click.Path(path_type=Path), help="Its store: the bare signature is measured as well.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the figures there as JSON.")
def load(*, url: str, model: str | None, key: str | None, seconds: float, store: Path | None, out: Path | None) -> None:
    """Requests a second and latency, for single rows and in bulk. Needs wrk."""
    from rich.console import Console
    from rich.table import Table

    from benchmarks.load import measure, measure_signature
    from benchmarks.target import Target

    target = Target.find(url, model=model, key=key)
    console = Console()
    table = Table("workload", "connections", "requests/s", "rows/s", "p50 ms", "p99 ms", "refused", "broken")
    found = []
    with console.status("") as status:
        for measured in measure(target, seconds=seconds, begin=lambda name: status.update(f"Measuring {name}")):
            workload, load = measured.workload, measured.load
            table.add_row(
                workload.name,
                str(workload.connections),
                f"{load.requests_s:,.0f}",
                f"{measured.rows_s:,.0f}",
                f"{load.p50_ms:.2f}",
                f"{load.p99_ms:.2f}",
                str(load.refused),
                str(load.broken),
            )
            found.append({"workload": workload.name, "connections": workload.connections, **asdict(load)})
        signature = {}
        if store is not None:
            status.update("Measuring the bare signature")
            signature = measure_signature(store / target.model / str(target.version))
    console.print(table)
    for rows, speed in signature.items():
        console.print(f"bare anomaly_score signature, batches of {rows}: {speed:,.0f} rows/s")
    if out is not None:
        out.write_text(
            json.dumps({"workloads": found, "signature_rows_s": signature}, indent=1) + "\n", encoding="utf-8"
        )


@click.command()
@service_options
@click.option("--versions", nargs=2, type=int, required=True, help="Two versions that production moves between.")
@click.option("--seconds", type=click.FloatRange(2), default=60.0, show_default=True)
@click.option("--admin-key", envvar="AUTOENCODER_ADMIN_KEY", help="Key that may move aliases, where it asks for one.")
def swap(
    *, url: str, model: str | None, key: str | None, versions: tuple[int, int], seconds: float, admin_key: str | None
) -> None:
    """Promote and roll back each second under load: failed answers, wrong answers, latency. Needs wrk."""
    from benchmarks.resilience import measure_swaps
    from benchmarks.target import Target

    target = Target.find(url, model=model, key=key)
    report = measure_swaps(target, versions, seconds=seconds, admin_key=admin_key)
    failed = report.swapping.refused + report.swapping.broken
    click.echo(
        f"{report.swaps} swaps in {seconds:g} s, {report.swapping.requests_s:,.0f} requests/s: {failed} failed.\n"
        f"{report.checked} answers compared with the version that they name: {report.wrong} wrong.\n"
        f"p99 {report.swapping.p99_ms:.1f} ms, without swaps {report.calm.p99_ms:.1f} ms: {report.p99_ratio:.2f} times."
    )


@click.command()
@service_options
@click.option("--factor", type=click.IntRange(2), default=10, show_default=True, help="How many times the capacity.")
@click.option("--seconds", type=click.FloatRange(2), default=20.0, show_default=True)
def overload(*, url: str, model: str | None, key: str | None, factor: int, seconds: float) -> None:
    """Many times the load that the service can take: memory, refusals, good answers, recovery. Needs wrk."""
    from benchmarks.resilience import measure_overload
    from benchmarks.target import Target

    report = measure_overload(Target.find(url, model=model, key=key), factor=factor, seconds=seconds)
    refusals = sorted(report.refusals_ms)
    times = f", half within {refusals[len(refusals) // 2]:.0f} ms, all within {refusals[-1]:.0f} ms" if refusals else ""
    recovery = "did not recover" if report.recovery_s is None else f"recovered in {report.recovery_s:.2f} s"
    click.echo(
        f"{report.capacity.good_s:,.1f} good answers/s at capacity, {report.overload.good_s:,.1f} at {factor} times "
        f"the load: {report.goodput_share:.0%}. {report.overload.broken} connections broke.\n"
        f"{len(refusals)} refusals seen from outside{times}.\n"
        f"Then it {recovery}. Resident memory {_mib(report.memory_before)} before, {_mib(report.memory_most)} at most."
    )


@click.command()
@service_options
@click.option("--versions", nargs=2, type=int, help="Two versions that production moves between meanwhile.")
@click.option("--seconds", type=click.FloatRange(2), default=3600.0, show_default=True)
@click.option("--admin-key", envvar="AUTOENCODER_ADMIN_KEY", help="Key that may move aliases, where it asks for one.")
def soak(
    *,
    url: str,
    model: str | None,
    key: str | None,
    versions: tuple[int, int] | None,
    seconds: float,
    admin_key: str | None,
) -> None:
    """Mixed traffic for an hour: failed answers, growth of memory and file descriptors."""
    from benchmarks.soak import measure_soak
    from benchmarks.target import Target

    target = Target.find(url, model=model, key=key)
    report = measure_soak(target, seconds=seconds, versions=versions, admin_key=admin_key)
    failures = f", such as: {report.failed[0]}" if report.failed else ""
    click.echo(
        f"{report.requests} requests in {seconds:g} s, {report.swaps} swaps: {len(report.failed)} failed{failures}."
    )
    growth = report.growth_bytes_min
    if growth is None:
        click.echo("The service's metrics say nothing of its memory.")
        return
    first, last = report.samples[0], report.samples[-1]
    click.echo(
        f"Resident memory {_mib(first.memory)} after a third of the time, {_mib(last.memory)} at the end: "
        f"{growth / 2**20:+.2f} MiB a minute. File descriptors {first.descriptors:.0f} and {last.descriptors:.0f}."
    )


def _mib(size: float | None) -> str:
    return "unknown" if size is None else f"{size / 2**20:,.0f} MiB"
