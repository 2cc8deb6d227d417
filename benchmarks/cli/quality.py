"""``python -m benchmarks quality``: detection on labelled tables."""

import os
from pathlib import Path
from typing import Any, Literal

import click


class Several(click.Option):
    """An option that takes all values up to the next option, as in ``--seeds 0 1 2``, or ``--seeds 0,1,2``."""

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        super().add_to_parser(parser, ctx)
        option = next(parser._long_opt[name] for name in self.opts if name in parser._long_opt)
        process = option.process

        def take(value: str, state: Any) -> None:
            values = [value]
            while state.rargs and not state.rargs[0].startswith("-"):
                values.append(state.rargs.pop(0))
            process(",".join(values), state)

        option.process = take


class Numbers(click.ParamType[tuple[int, ...]]):
    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = str(value).replace(",", " ").split()
        if not parts or not all(part.isdecimal() for part in parts):
            self.fail("takes whole numbers, as in 0 1 2.", param, ctx)
        return tuple(dict.fromkeys(map(int, parts)))


@click.command()
@click.option(
    "--data",
    "folder",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=True,
    help="Folder of NPZ files with X (rows, columns) and y (1 = anomaly).",
)
@click.option("--seeds", cls=Several, type=Numbers(), default="0,1,2", show_default=True, help="As in 0 1 2.")
@click.option("--mode", type=click.Choice(["normal-only", "contaminated"]), default="normal-only", show_default=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("quality.csv"),
    show_default=True,
    help="Results as CSV; what is in it already is not measured again.",
)
@click.option("--jobs", type=click.IntRange(1), default=os.cpu_count() or 1, help="Processes.  [default: one a core]")
@click.option(
    "--baselines/--no-baselines", default=True, help="Measure kNN, isolation forest, PCA and Mahalanobis too."
)
@click.option("--pyod", is_flag=True, help="Measure PyOD's autoencoder too; needs the extra [pyod].")
def quality(
    *, folder: Path, seeds: tuple[int, ...], mode: str, out: Path, jobs: int, baselines: bool, pyod: bool
) -> None:
    """AUROC and AUPR of the default model on labelled tables, beside common detectors.

    Half of the normal rows trains (contaminated: half of all rows), the rest is scored through the SavedModel.
    A PNG and the false-alarm rates are written beside the CSV.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from benchmarks.baselines import BASELINES, OPTIONAL, require_pyod
    from benchmarks.quality import OURS, FalseAlarms, Line, Task, append_lines, find_sets, read_lines, run
    from service.errors import DataError

    alarms_path = out.with_name(f"{out.stem}-false-alarms.csv")
    if pyod:
        require_pyod()
    if not out.parent.is_dir():
        raise DataError(f"There is no folder {out.parent.name} to write the results to.")
    lines: list[Line] = read_lines(out, Line)
    alarms: list[FalseAlarms] = read_lines(alarms_path, FalseAlarms)
    done = {(line.dataset, line.seed, line.mode, line.method) for line in lines}
    methods = (OURS, *(BASELINES if baselines else ()), *(OPTIONAL if pyod else ()))
    tasks = []
    for path in find_sets(folder):
        for seed in seeds:
            left = tuple(method for method in methods if (path.stem, seed, mode, method) not in done)
            if left:
                tasks.append(Task(path, seed, mode, left))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as bars:
        bar = bars.add_task(mode, total=len(tasks))
        for measured in run(tasks, jobs=jobs) if tasks else ():
            append_lines(out, measured.lines)
            lines += measured.lines
            if measured.false_alarms:
                append_lines(alarms_path, [measured.false_alarms])
                alarms.append(measured.false_alarms)
            own = next((line for line in measured.lines if line.method == OURS), measured.lines[0])
            bars.console.print(f"{own.dataset}, seed {own.seed}: {own.method} {own.auroc:.1f} / {own.aupr:.1f}")
            bars.advance(bar)
    shown = [line for line in lines if line.mode == mode]
    _print_tables(shown)
    if mode == "normal-only" and alarms:
        _print_false_alarms(alarms)
    _draw(shown, out.with_suffix(".png"))


def _print_tables(lines: list[Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from benchmarks.quality import OURS, by_set, mean_over_sets, sets_won

    methods = list(dict.fromkeys(line.method for line in lines))
    areas: dict[str, Any] = {name: by_set(lines, name) for name in _MEASURES}
    table = Table("AUROC / AUPR", *methods, title="Mean over seeds")
    for name in sorted(areas["auroc"]):
        cells = [
            f"{areas['auroc'][name].get(m, float('nan')):.1f} / {areas['aupr'][name].get(m, float('nan')):.1f}"
            for m in methods
        ]
        table.add_row(name, *cells)
    table.add_section()
    table.add_row(
        "mean", *(f"{mean_over_sets(areas['auroc'], m):.2f} / {mean_over_sets(areas['aupr'], m):.2f}" for m in methods)
    )
    Console().print(table)
    won, of = sets_won(areas["auroc"], against="knn")
    if of:
        click.echo(f"Better AUROC than kNN on {won} of {of} sets.")
    own = {name: row[OURS] for name, row in areas["auroc"].items() if OURS in row}
    if own:
        worst = min(own, key=own.__getitem__)
        click.echo(f"Worst set: {worst}, AUROC {own[worst]:.1f}.")


def _print_false_alarms(alarms: list[Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "set, seed", "calibration rows", "at 1 %", "at 5 %", "standard errors off", title="False alarms on normal rows"
    )
    enough = [each for each in alarms if each.calibration_rows >= 1000]
    for each in sorted(enough, key=lambda each: (each.dataset, each.seed)):
        off = ", ".join(f"{value:+.1f}" for value in each.deviations())
        rates = (f"{each.at_1_percent:.2%}", f"{each.at_5_percent:.2%}")
        table.add_row(f"{each.dataset}, {each.seed}", str(each.calibration_rows), *rates, off)
    if enough:
        Console().print(table)
    means = [sum(getattr(each, name) for each in alarms) / len(alarms) for name in ("at_1_percent", "at_5_percent")]
    click.echo(f"False alarms, mean of all {len(alarms)} runs: {means[0]:.2%} at 1 %, {means[1]:.2%} at 5 %.")


_MEASURES: tuple[Literal["auroc", "aupr"], ...] = ("auroc", "aupr")


def _draw(lines: list[Any], path: Path) -> None:
    """A dot for each method, set by set, the worst of ours at the bottom."""
    from matplotlib.figure import Figure

    from benchmarks.quality import OURS, by_set

    figure = Figure(figsize=(11, 1.5 + 0.28 * len({line.dataset for line in lines})), layout="constrained")
    methods = list(dict.fromkeys(line.method for line in lines))
    for axes, name in zip(figure.subplots(1, 2, sharey=True), _MEASURES, strict=True):
        table = by_set(lines, name)
        names = sorted(by_set(lines, "auroc"), key=lambda each: by_set(lines, "auroc")[each].get(OURS, 0.0))
        for method in methods:
            style: dict[str, Any] = (
                {"s": 60, "zorder": 3, "color": "black"} if method == OURS else {"s": 22, "alpha": 0.8}
            )
            axes.scatter([table[each].get(method, float("nan")) for each in names], names, label=method, **style)
        axes.set_xlabel(f"{name.upper()}, mean over seeds, %")
        axes.grid(alpha=0.3)
    axes.legend(loc="lower left", fontsize=8)
    figure.savefig(path, dpi=110)
