"""A series in a file, scored point by point, as ``/anomaly-score`` scores the points of a ``series``."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.codecs import Options
from service.errors import ConfigurationError, DataError
from service.pipelines.chunks import read_chunks
from service.pipelines.files import Job, Plan, Progress, open_sink, prepare
from service.pipelines.scorer import CALL_ROWS, Scorer
from service.schemas import INSTANCES, Results, failure_of
from service.tables.files import CSV, STDIO
from service.tables.reading import TableFiles, make_selection, read_columns
from service.tables.series import MOST_EMPTY, Times, duration, even_grid, find_times, numbers_of
from service.tables.writing import whole_file
from service.words import ANOMALY_SCORE, POINT_ERRORS, RESULT_COLUMNS


@dataclass(frozen=True, slots=True)
class Stretch:
    """Flagged points that follow each other."""

    first: str
    """The time of the first reading, or its row where the series has no times."""
    last: str
    readings: int


def is_series(job: Job, scorer: Scorer) -> bool:
    """Whether a file has readings of the channels that the model was trained on, and not windows of them."""
    wanted = scorer.operation == ANOMALY_SCORE.name and bool(scorer.schema.channels) and job.source != STDIO
    return wanted and INSTANCES not in _files(prepare(job, scorer)).names


def score_series(
    job: Job, scorer: Scorer, *, timestamp: str | None = None, progress: Progress = lambda _done, _total: None
) -> tuple[int, list[Stretch]]:
    """Write the rows of all files, which are one series, with the results of their points beside them.

    Args:
        timestamp: the column of times; None: the first that there is.

    Returns:
        The number of rows, and what is flagged.

    Raises:
        DataError: the files hold no such series; names the row and column.
        ConfigurationError: an option is for rows alone, or the target cannot be used.
    """
    import pyarrow as pa

    if job.to_folder or job.resume or scorer.explain is not None or scorer.errors != "raise":
        raise ConfigurationError("A series is written to one file, without --resume, --explain and --errors null.")
    if job.false_discovery_rate is not None:
        raise ConfigurationError("Neighbouring points resemble each other: choose --false-alarm-rate or --threshold.")
    plan = prepare(job, scorer)
    files, channels = _files(plan), scorer.columns or scorer.schema.channels
    if len(channels) != len(scorer.schema.channels):
        raise ConfigurationError(f"The model has {len(scorer.schema.channels)} channels; give as many columns.")
    for name in (*channels, *([timestamp] if timestamp else [])):
        if name not in files.names:
            raise DataError(f'There is no column "{name}"; the columns are {", ".join(files.names[:20])}.')
    table = read_columns(files, make_selection(), keep=timestamp)
    values = np.stack([numbers_of(table, name) for name in channels], axis=1)
    times = find_times(table.drop_columns(list(channels)), timestamp)
    points, places = _points(values, times, scorer)
    scored = _scored(points, scorer, progress)
    names = {tensor: scorer.prefix + RESULT_COLUMNS[name] for name, tensor in ANOMALY_SCORE.results}
    results = {name: scored[tensor][places] for tensor, name in names.items()}
    with whole_file(job.target) as file, open_sink(plan, file, plan.parts[0]) as sink:
        for start, chunk in _chunks(plan, scorer):
            stop = start + chunk.rows
            added = pa.table({name: pa.array(column[start:stop]) for name, column in results.items()})
            sink.write(chunk.kept, added, chunk.lines)
    return len(values), list(_stretches(scored["is_anomaly"][places], times))


def _files(plan: Plan) -> TableFiles:
    return TableFiles([Path(name) for name in dict.fromkeys(part.file for part in plan.parts)])


def _points(
    values: NDArray[np.float64], times: Times | None, scorer: Scorer
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Readings at even steps, those of training, and the point of each row."""
    if not len(values):
        raise DataError("The file has no rows.")
    schema = scorer.schema
    step = None
    points, places = values, np.arange(len(values))
    if times is not None:
        scale = scorer.load().manifest.point_scale
        step = scale.step_s if scale is not None and times.in_seconds else None
        grid = even_grid(values, times.seconds, step)
        points, places = grid.values, grid.places
    empty = np.isnan(points).any(axis=1)
    if step is not None and empty.mean() > MOST_EMPTY:
        raise DataError(f"The model was trained on steps of {duration(step)}; most of these have no reading here.")
    if empty.any() and not schema.may_be_missing:
        row = int(np.searchsorted(places, empty.argmax()))
        raise DataError(f"A reading is missing at row {row + 1}, and none was when the model was trained.")
    if len(points) < schema.row_shape[0]:
        raise DataError(f"The series has {len(points)} points, and a window of this model {schema.row_shape[0]}.")
    return points.astype(np.float32), places


def _scored(points: NDArray[np.float32], scorer: Scorer, progress: Progress) -> Results:
    """The results of ``anomaly_score`` for each point."""
    loaded = scorer.load()
    views = np.lib.stride_tricks.sliding_window_view(points, loaded.schema.row_shape[0], axis=0).transpose(0, 2, 1)
    errors = np.empty(views.shape[:2], np.float32)
    for start in range(0, len(views), CALL_ROWS):
        part = np.ascontiguousarray(views[start : start + CALL_ROWS])
        results = loaded.run(POINT_ERRORS, {INSTANCES: part})
        if (failure := failure_of(results)) is not None:
            raise failure
        errors[start : start + len(part)] = results["error"]
        progress(start + len(part), len(views))
    chosen = Options(scorer.threshold, scorer.false_alarm_rate)
    return loaded.judge_points({"error": errors}, {INSTANCES: views}, chosen)[0]


def _chunks(plan: Plan, scorer: Scorer) -> Iterator[tuple[int, Any]]:
    """The rows as they are passed through, and the number of those before them."""
    start = 0
    for part in plan.parts:
        for chunk in read_chunks(
            part,
            scorer.schema,
            batch_rows=plan.job.batch_rows,
            columns=scorer.columns or scorer.schema.channels,
            as_text=plan.kind == CSV,
            decimal_comma=scorer.decimal_comma,
        ):
            yield start, chunk
            start += chunk.rows


def _stretches(flags: NDArray[np.bool_], times: Times | None) -> Iterator[Stretch]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))

    def named(row: int) -> str:
        if times is None or not times.in_seconds:
            return f"row {row + 1}"
        return str(np.datetime64(round(times.seconds[row]), "s")).replace("T", " ")

    for first, end in edges.reshape(-1, 2).tolist():
        yield Stretch(named(first), named(end - 1), end - first)
