"""Files in, files out: rows are read, scored and written at the same time, in bounded memory.

Everything is done by parts. A part's output appears under its name when it is complete, so that a run that was killed
goes on where it was: the parts that are there are not done again. The file ``_run.json`` beside them says of which run
they are. A single output file is made of the parts at the end; without ``resume`` it is written straight away.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from threading import Event, Semaphore
from typing import Any, Final, TypeAlias

import numpy as np
import orjson

from service.errors import ConfigurationError, DataError, InvalidRows
from service.pipelines.chunks import Chunk, read_chunks
from service.pipelines.scorer import PROBLEM, Scorer
from service.scoring import discoveries
from service.tables.files import CSV, STDIO, Part, compression_of, find_files, format_of, plan_parts, row_number, shown
from service.tables.writing import Sink, join_files, whole_file

RUN_FILE: Final = "_run.json"
BATCH_ROWS: Final = 32_768
AHEAD: Final = 2
"""Batches that wait to be scored, beside those that are being scored."""


Progress: TypeAlias = Callable[[int, int | None], None]
"""Called by the thread that writes: rows done, and all rows where the files say how many there are."""
Advance: TypeAlias = Callable[[int], object]
"""Called with the number of rows done since the last call."""


@dataclass(frozen=True, slots=True)
class Job:
    """Input, output and options of one run."""

    source: str
    """A file, a folder, a pattern, or ``-``."""
    target: str
    """A file, a folder (it exists, or the name ends with a slash), or ``-``."""
    source_format: str | None = None
    target_format: str | None = None
    batch_rows: int = BATCH_ROWS
    threads: int = 0
    """Model calls at a time; 0: one a core."""
    resume: bool = False
    part_rows: int = 1_000_000
    false_discovery_rate: float | None = None
    """Share of the flagged rows of all files that may be normal; the input is then read twice."""

    @property
    def to_folder(self) -> bool:
        return self.target != STDIO and (self.target.endswith(("/", os.sep)) or Path(self.target).is_dir())


@dataclass(frozen=True, slots=True)
class Outcome:
    rows: int
    """Rows scored by this run; those of parts that were there already are not counted."""
    skipped_parts: int
    parts: int
    discovered: "Discovered | None" = None
    """Where there is a false discovery rate to keep to."""


@dataclass(frozen=True, slots=True)
class Discovered:
    """The rows of all files that are flagged at a false discovery rate: those that score over ``threshold``."""

    rows: int
    threshold: float
    warning: str | None
    """Why none is flagged, where more calibration rows might change that."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A job whose files were looked at: which parts become which output files."""

    job: Job
    parts: tuple[Part, ...]
    kind: str
    """Format of the output."""
    folder: Path | None
    """Where finished parts stand; None: one file, written straight away."""
    suffix: str

    def part_path(self, part: Part) -> Path:
        assert self.folder is not None  # noqa: S101 - asked only where there are part files
        return self.folder / f"part-{part.number:05}{self.suffix}"

    def remaining(self) -> list[Part]:
        if self.folder is None:
            return list(self.parts)
        return [part for part in self.parts if not self.part_path(part).exists()]


def run(
    job: Job, scorer: Scorer, *, progress: Progress = lambda _done, _total: None, work: "Engine | None" = None
) -> Outcome:
    """Score everything that ``job`` names.

    Args:
        work: scores parts into files of their own somewhere else; here, when None.

    Raises:
        DataError: a file cannot be read, or a row does not fit; the sentence names file, row and column.
        ConfigurationError: the target cannot be used as it is.
    """
    discovered = None
    if job.false_discovery_rate is not None:
        discovered = discover(job, scorer, job.false_discovery_rate, progress)
        scorer = scorer.of(scorer, threshold=discovered.threshold)
    plan = prepare(job, scorer, with_parts=work is not None)
    remaining = plan.remaining()
    advance = _advancing(progress, remaining)
    if work is not None:
        work(plan, remaining, scorer, advance)
    elif plan.folder is not None:
        score_parts(plan, remaining, scorer, advance)
    else:
        with whole_file(plan.job.target) as file, open_sink(plan, file, plan.parts[0]) as sink:
            scored = _scored(plan.job, plan.parts, scorer, as_text=plan.kind == CSV)
            for chunk, results in _with_a_result(scored, scorer):
                sink.write(chunk.kept, results, chunk.lines)
                advance(chunk.rows)
    _finish(plan)
    return Outcome(advance(0), len(plan.parts) - len(remaining), len(plan.parts), discovered)


Engine = Callable[[Plan, Sequence[Part], Scorer, Advance], None]
"""Writes the output file of every part."""


# --- what there is to do ----------------------------------------------------------------------------------------------


def prepare(job: Job, scorer: Scorer, *, with_parts: bool = False) -> Plan:
    """Look at the files, and at what an earlier run left."""
    parts = _parts(job)
    onto_source = job.target == STDIO or job.to_folder
    kind = job.target_format or (format_of(parts[0].file, job.source_format) if onto_source else format_of(job.target))
    by_parts = job.to_folder or job.resume or with_parts
    if by_parts and job.target == STDIO:
        raise ConfigurationError("Standard output can neither be resumed nor written by several: name a file.")
    if job.resume and job.source == STDIO:
        raise ConfigurationError("Standard input cannot be read twice: --resume needs a file.")
    folder = None if not by_parts else Path(job.target) if job.to_folder else Path(job.target.rstrip("/") + ".parts")
    compressed = not job.to_folder and compression_of(job.target)
    plan = Plan(job, parts, kind, folder, f".{kind}{Path(job.target).suffix if compressed else ''}")
    if folder is not None:
        _claim(plan, folder, scorer)
    return plan


def _parts(job: Job) -> tuple[Part, ...]:
    files = find_files(job.source, job.source_format)
    return tuple(plan_parts(files, given=job.source_format, root=job.source, part_rows=job.part_rows))


def _advancing(progress: Progress, parts: Sequence[Part]) -> Callable[[int], int]:
    """A function that adds rows of these parts to those done, tells ``progress``, and returns the sum."""
    counts = [part.rows for part in parts]
    known = None if None in counts else sum(count or 0 for count in counts)
    done = 0

    def advance(rows: int) -> int:
        nonlocal done
        done += rows
        progress(done, known)
        return done

    advance(0)
    return advance


def _claim(plan: Plan, folder: Path, scorer: Scorer) -> None:
    """Make the folder this run's. Parts of another run are never mixed in."""
    inputs = hashlib.sha256()
    for part in plan.parts:
        changed = Path(part.file).stat().st_mtime_ns if part.file != STDIO else 0
        inputs.update(orjson.dumps([str(Path(part.file).resolve()), changed, part.start, part.stop, part.rows]))
    arguments = {name: value for name, value in scorer.arguments().items() if name not in ("threads", "key")}
    ours = {
        "scorer": orjson.loads(orjson.dumps(arguments)),
        "inputs": inputs.hexdigest(),
        "output": [plan.kind, plan.suffix],
        "parts": len(plan.parts),
        "complete": False,
    }
    record = folder / RUN_FILE
    if record.exists():
        if not plan.job.resume:
            raise ConfigurationError(
                f"'{folder}' has the parts of an earlier run: go on with --resume, or remove the folder."
            )
        theirs = orjson.loads(record.read_bytes())
        for name, words in (("scorer", "model, version or options"), ("inputs", "input"), ("output", "output format")):
            if theirs.get(name) != ours[name]:
                raise ConfigurationError(
                    f"'{folder}' has parts of a run with another {words}: remove the folder, or run as before."
                )
        return
    if folder.exists() and any(folder.iterdir()):
        raise ConfigurationError(f"The folder '{folder}' holds other files: name an empty or a new one.")
    folder.mkdir(parents=True, exist_ok=True)
    _write_record(folder, ours)


def _write_record(folder: Path, record: dict[str, Any]) -> None:
    with whole_file(str(folder / RUN_FILE)) as file:
        file.write(orjson.dumps(record, option=orjson.OPT_INDENT_2))


def _finish(plan: Plan) -> None:
    if plan.folder is None:
        return
    if plan.job.to_folder:
        record = orjson.loads((plan.folder / RUN_FILE).read_bytes())
        _write_record(plan.folder, {**record, "complete": True})
        return
    join_files([plan.part_path(part) for part in plan.parts], plan.job.target, plan.kind)
    shutil.rmtree(plan.folder)


def discover(job: Job, scorer: Scorer, false_discovery_rate: float, progress: Progress) -> Discovered:
    """Read and score all rows once, to know which ones are flagged at a false discovery rate.

    p-values are as many as calibration rows and one: of each, the rows are counted and their least score is kept.

    Raises:
        ConfigurationError: the input cannot be read twice.
        InvalidOption: the scorer has a threshold or false-alarm rate of its own.
    """
    if job.source == STDIO:
        raise ConfigurationError("Standard input cannot be read twice: a false discovery rate needs a file.")
    scorer.check_options(false_discovery_rate=false_discovery_rate)
    parts, seen = _parts(job), np.zeros((0, 3))
    scorer = scorer.of(scorer, explain=None, prefix="")
    advance = _advancing(progress, parts)
    for chunk, results in _scored(job, parts, scorer, as_text=False):
        names = ("p_value", "anomaly_score")
        found = np.column_stack([results[name].to_numpy().astype(np.float64) for name in names])
        found = found[~np.isnan(found).any(axis=1)]
        both = np.concatenate([seen, np.column_stack([found, np.ones(len(found))])])
        p_values, at = np.unique(both[:, 0], return_inverse=True)
        least = np.full(len(p_values), np.inf)
        np.minimum.at(least, at, both[:, 1])
        seen = np.column_stack([p_values, least, np.bincount(at, both[:, 2], len(p_values))])
        advance(chunk.rows)
    flags, once = discoveries(
        seen[:, 1], seen[:, 0], false_discovery_rate, calibration_rows=scorer.calibration_rows, counts=seen[:, 2]
    )
    # A row is flagged when it scores over the threshold: the number below the least score.
    least_flagged = once["threshold"]
    limit = np.finfo(np.float32).max if least_flagged is None else np.nextafter(least_flagged, np.float32("-inf"))
    return Discovered(int(seen[flags, 2].sum()), float(str(limit)), once.get("warning"))


# --- the work ---------------------------------------------------------------------------------------------------------


def score_parts(plan: Plan, parts: Sequence[Part], scorer: Scorer, advance: Advance) -> None:
    """Score parts into a file each, and tell how many more rows are done. The model does not pause between parts."""
    stream = _scored(plan.job, parts, scorer, as_text=plan.kind == CSV)
    if len(parts) == len(plan.parts):
        stream = _with_a_result(stream, scorer)
    scored = next(stream, None)
    while scored is not None:
        part = scored[0].part
        with whole_file(str(plan.part_path(part))) as file, open_sink(plan, file, part) as sink:
            while scored is not None and scored[0].part is part:
                sink.write(scored[0].kept, scored[1], scored[0].lines)
                advance(scored[0].rows)
                scored = next(stream, None)


def open_sink(plan: Plan, file: Any, part: Part) -> Sink:
    delimiter = "\t" if Path(plan.job.target).suffix == ".tsv" else ","
    header = part.number == 0 or plan.job.to_folder
    return Sink(file, plan.kind, delimiter=delimiter, header=header)


def _scored(job: Job, parts: Sequence[Part], scorer: Scorer, *, as_text: bool) -> Iterator[tuple[Chunk, Any]]:
    """Every chunk of the parts in order, with its results: the next ones are read and scored meanwhile."""

    def chunks() -> Iterator[Chunk]:
        for part in parts:
            yield from read_chunks(
                part,
                scorer.schema,
                batch_rows=job.batch_rows,
                columns=scorer.columns,
                as_text=as_text,
                decimal_comma=scorer.decimal_comma,
            )

    def score(chunk: Chunk) -> Any:
        try:
            columns, problems = scorer.model_columns(chunk.columns)
            return scorer.results(columns, {**problems, **chunk.problems})
        except InvalidRows as error:
            raise _placed(error, chunk) from error

    return in_order(chunks(), score, threads=job.threads or os.cpu_count() or 1)


def _with_a_result(scored: Iterator[tuple[Chunk, Any]], scorer: Scorer) -> Iterator[tuple[Chunk, Any]]:
    """The same. Raises DataError behind the last where there are rows and none of them has a result."""
    name, first, good = scorer.prefix + PROBLEM, "", False
    for chunk, results in scored:
        yield chunk, results
        if chunk.rows and not good:
            good = name not in results.column_names or results[name].null_count > 0
            first = first or ("" if good else f"{shown(chunk.part.file)}: {results[name][0].as_py()}")
    if first and not good:
        raise DataError(f"No row has a result; the first one, of {first}.")


def _placed(error: InvalidRows, chunk: Chunk) -> DataError:
    """The error with the file's name and row."""
    if not error.problems:
        return DataError(f"{shown(chunk.part.file)}: {error}")
    first = error.problems[0]
    column = "" if first.column is None else f'column "{first.column}" '
    row = "" if first.row is None else f"row {row_number(chunk.part, chunk.first_row + first.row)}, "
    return DataError(f"{shown(chunk.part.file)}: {row}{column}{first.problem}.")


def in_order(items: Iterator[Chunk], work: Callable[[Chunk], Any], *, threads: int) -> Iterator[tuple[Chunk, Any]]:
    """``(item, work(item))`` in order: one thread reads ahead, some work, and no more than a few wait."""
    under_way: Queue[tuple[Chunk, Future[Any]] | None] = Queue()
    room = Semaphore(threads + AHEAD)
    stopped = Event()

    def read_ahead(workers: ThreadPoolExecutor) -> None:
        try:
            while room.acquire() and not stopped.is_set() and (item := next(items, None)) is not None:
                under_way.put((item, workers.submit(work, item)))
        finally:
            under_way.put(None)

    with ThreadPoolExecutor(threads, "model") as workers, ThreadPoolExecutor(1, "reader") as reader:
        reading = reader.submit(read_ahead, workers)
        try:
            while (found := under_way.get()) is not None:
                yield found[0], found[1].result()
                room.release()
            reading.result()
        finally:
            stopped.set()
            room.release()
            while not reading.done() or not under_way.empty():  # drop what waits, until the reader has noticed
                with suppress(Empty):
                    if (dropped := under_way.get(timeout=0.05)) is not None:
                        dropped[1].cancel()
