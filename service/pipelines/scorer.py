"""``Scorer``: a version of a model as one function of tables that can be sent to another process.

scorer = Scorer("model_store", "payments")
scorer(frame)  # the same kind of table, with anomaly_score, p_value and is_anomaly beside its columns
"""

import hashlib
import os
import threading
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import numpy as np

from service.codecs import Answer, Options, answer_columns, options_from_json, table_rows
from service.errors import InvalidOption, InvalidRows, InvalidVersion, RowProblem
from service.schemas import (
    CATEGORIES,
    INSTANCES,
    TIMESTAMPS,
    InputSchema,
    Results,
    Rows,
    failure_of,
    joined,
    row_count,
    unsupported,
)
from service.store import Manifest, Store
from service.tables.frames import Table, model_columns, with_results
from service.words import ANOMALY_SCORE, EXPLAIN, OPERATIONS, RESULT_COLUMNS, Operation

if TYPE_CHECKING:
    from service.runtime.loaded_model import LoadedModel

CALL_ROWS: Final = 2048
"""Rows in one call of the model: enough to hide the call, few enough for the processor's cache."""
KEPT_MODELS: Final = 4
PROBLEM: Final = "problem"
"""Column that says why a row has no results."""


@dataclass(frozen=True)
class Contract:
    """Inputs and operations of a version."""

    schema: InputSchema
    signatures: frozenset[str]
    fingerprint: str
    decimal_comma: bool = False
    """Whether numbers had decimal commas in the CSV file that the version was trained on."""
    calibration_rows: int = 0


@dataclass(frozen=True)
class Scorer:
    """Tables in, the same tables with result columns out. Picklable, small, and safe to call from several threads.

    The version is settled when the scorer is made; copies in other processes load that one, checked digest by digest,
    once a process and at their first call. Columns that the model does not know are passed through.

    Args:
        store: address of the model store.
        version: the one that ``production`` names, else the highest, when None.
        operation: ``anomaly_score``, ``encode``, ``reconstruct`` or ``denoise``.
        alias: a name for the version, instead of its number.
        columns: the table's columns that are the model's, in its order, where they have other names.
        threshold, false_alarm_rate, explain: as in a request.
        errors: ``raise`` ends at the first row that does not fit; ``null`` leaves its results empty and says why in the
            column ``problem``.
        prefix: what the names of the result columns begin with.
        threads: cores that one model call may use; None leaves it to TensorFlow. Of a process, the first call decides.
        fingerprint: SHA-256 of the version's manifest; settled like the version.

    Raises:
        NotFound: there is no such model, version or alias.
        OperationNotSupported: this version was not trained for the operation.
        InvalidOption: an option has a wrong value.
    """

    store: str
    model: str
    version: int | None = None
    operation: str = ANOMALY_SCORE.name
    _: KW_ONLY
    alias: str | None = None
    columns: tuple[str, ...] = ()
    threshold: float | None = None
    false_alarm_rate: float | None = None
    explain: int | Literal["map"] | None = None
    errors: Literal["raise", "null"] = "raise"
    prefix: str = ""
    threads: int | None = None
    fingerprint: str = ""

    def __post_init__(self) -> None:
        # A folder's whole path: other processes may have been started elsewhere.
        store = str(self.store) if "://" in str(self.store) else str(Path(self.store).resolve())
        self._set(store=store, columns=tuple(self.columns))
        if self.fingerprint:
            return  # a copy of one that was settled elsewhere
        self._set(version=self._resolved(), alias=None)
        contract = self._contract()
        self._set(fingerprint=contract.fingerprint)
        self._check(contract)

    def _resolved(self) -> int:
        return Store(self.store).resolve(self.model, version=self.version, alias=self.alias)

    def _contract(self) -> Contract:
        return _contract(self.store, self.model, self._settled())

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _check(self, contract: Contract) -> None:
        if self.errors not in ("raise", "null"):
            raise InvalidOption("'errors' must be raise or null.")
        self.check_options()
        operation = self._operation()
        if operation.name not in contract.signatures:
            raise unsupported(operation, self.model, self._settled())

    def check_options(self, **more: Any) -> None:
        """Raises InvalidOption: the options, with ``more``, are wrong or exclude each other."""
        options = {"threshold": self.threshold, "false_alarm_rate": self.false_alarm_rate, "explain": self.explain}
        options_from_json(options | more, schema=self.schema, operation=self._operation())

    def arguments(self) -> dict[str, Any]:
        """Arguments that make the same scorer and version in another process: ``Scorer(**scorer.arguments())``."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def of(cls, scorer: "Scorer", **changes: Any) -> Self:
        return cls(**{**scorer.arguments(), **changes})

    @property
    def schema(self) -> InputSchema:
        return self._contract().schema

    @property
    def calibration_rows(self) -> int:
        return self._contract().calibration_rows

    @property
    def decimal_comma(self) -> bool:
        """Whether numbers had decimal commas in the CSV file that the version was trained on."""
        return self._contract().decimal_comma

    def __call__(self, table: Table) -> Table:
        """
        Raises:
            InvalidRows: a row or column does not fit; the sentence names it, rows counted from 0.
            InvalidOption: the table has a column with the name of a result already.
            ModelFailed: the model answered with non-finite numbers.
        """
        columns, problems = self.model_columns(table)
        return with_results(table, self.results(columns, problems))

    def model_columns(self, table: Table) -> tuple[Any, dict[int, RowProblem]]:
        """The model's columns of a table as a ``pyarrow.Table``, and what could not be converted, by row."""
        try:
            return model_columns(table, self.schema, self.columns)
        except InvalidRows as error:
            raise _in_words(error) from error

    def results(self, columns: Any, problems: Mapping[int, RowProblem] | None = None) -> Any:
        """The result columns alone, a ``pyarrow.Table``, for a ``pyarrow.Table`` of the model's columns.

        ``problems``: what is known to be wrong with rows already. The errors are those of a call.
        """
        if columns.num_rows == 0:
            return self._columns_of(self._answered(_blank_row(self.schema)), {}, 1).slice(0, 0)
        try:
            rows, found = table_rows(columns, self.schema)
        except InvalidRows as error:
            raise _in_words(error) from error
        problems = {**found, **(problems or {})}
        if problems and self.errors == "raise":
            raise _in_words(InvalidRows([problems[row] for row in sorted(problems)]))
        count = row_count(rows)
        if len(problems) == count:
            return self._columns_of(self._answered(_blank_row(self.schema)), problems, count)
        if problems:
            good = np.setdiff1d(np.arange(count), np.fromiter(problems, np.int64))
            rows = {name: array[good] for name, array in rows.items()}
        return self._columns_of(self._answered(rows), problems, count)

    def result_schema(self) -> Any:
        """``pyarrow.Schema`` of the result columns. Loads the model."""
        return self._columns_of(self._answered(_blank_row(self.schema)), {}, 1).schema

    def load(self) -> "LoadedModel":
        """The model, in memory once a process however many scorers there are."""
        with _LOADING:
            return _load(self.store, self.model, self._settled(), self.fingerprint, self.threads)

    def _settled(self) -> int:
        assert self.version is not None  # noqa: S101 - since __post_init__
        return self.version

    def _operation(self) -> Operation:
        for operation in OPERATIONS:
            if self.operation in (operation.name, operation.path):
                return operation
        raise InvalidOption(f"'operation' must be one of {', '.join(each.name for each in OPERATIONS)}.")

    def _answered(self, rows: Rows) -> dict[str, Any]:
        """The result columns of rows that fit, as Arrow arrays."""
        return {
            RESULT_COLUMNS[name] if source == "result" else f"{source}_{name}": values
            for source, name, values in answer_columns(self._answer(rows))
        }

    def _answer(self, rows: Rows) -> Answer:
        loaded, operation = self.load(), self._operation()
        explained = _run(loaded, EXPLAIN, rows) if self.explain is not None else {}
        results = _run(loaded, operation.name, rows)
        if operation is ANOMALY_SCORE:
            results = loaded.judge(results, Options(self.threshold, self.false_alarm_rate))[0]
        return Answer(
            operation=operation,
            schema=loaded.schema,
            model=loaded.name,
            version=loaded.version,
            results=results,
            explain=self.explain,
            explained=explained,
            rows=rows,
        )

    def _columns_of(self, answered: Mapping[str, Any], problems: Mapping[int, RowProblem], count: int) -> Any:
        """Results of the good rows as columns of all rows, empty where a row has a problem."""
        import pyarrow as pa

        columns = {self.prefix + name: column for name, column in answered.items()}
        if self.errors == "null":
            if problems:
                bad = np.zeros(count, np.bool_)
                bad[list(problems)] = True
                places = pa.array(np.where(bad, 0, np.cumsum(~bad) - 1), mask=bad)  # of each row among the good ones
                columns = {name: column.take(places) for name, column in columns.items()}
            words = {row: _words(problem) for row, problem in problems.items()}
            texts = map(words.get, range(count))
            columns[self.prefix + PROBLEM] = pa.array(texts, size=count, type=pa.string())
        return pa.table(columns)


def _run(loaded: "LoadedModel", signature: str, rows: Rows) -> Results:
    """Call a signature with a bounded number of rows at a time: what it needs in between grows with them."""
    cuts = range(0, row_count(rows), CALL_ROWS)
    slices = [{name: array[at : at + CALL_ROWS] for name, array in rows.items()} for at in cuts]
    results = joined([loaded.run(signature, part) for part in slices])
    if (failure := failure_of(results)) is not None:
        raise failure
    return results


def _blank_row(schema: InputSchema) -> Rows:
    rows: Rows = {}
    if schema.numbers or not schema.columns:
        rows[INSTANCES] = np.zeros((1, *schema.row_shape), np.float32)
    if schema.categories:
        rows[CATEGORIES] = np.full((1, len(schema.categories)), b"", dtype=object)
    if schema.timestamps:
        rows[TIMESTAMPS] = np.zeros((1, len(schema.timestamps)), np.int64)
    return rows


def _in_words(error: InvalidRows) -> InvalidRows:
    """The same error with its first problem in the sentence: elsewhere the sentence alone may be shown."""
    if not error.problems:
        return error
    first = error.problems[0]
    row = "" if first.row is None else f"Row {first.row}, "
    text = f"{row}{_words(first, 'column ')}."
    return InvalidRows(error.problems, text[0].upper() + text[1:])


def _words(problem: RowProblem, before: str = "") -> str:
    return problem.problem if problem.column is None else f"{before}{problem.column}: {problem.problem}"


# --- what a process keeps ---------------------------------------------------------------------------------------------

_LOADING = threading.Lock()


def _fingerprint(manifest: Manifest) -> str:
    return hashlib.sha256(manifest.model_dump_json().encode()).hexdigest()


@lru_cache(maxsize=KEPT_MODELS)
def _contract(store: str, model: str, version: int) -> Contract:
    manifest = Store(store).manifest(model, version)
    comma = bool(manifest.training.get("decimal_comma"))
    calibration_rows = manifest.calibration.rows if manifest.calibration else 0
    return Contract(manifest.input, frozenset(manifest.signatures), _fingerprint(manifest), comma, calibration_rows)


def limit_threads(threads: int) -> None:
    """Bound the cores that a model call of this process uses. Has no effect once TensorFlow has run."""
    for variable in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(variable, str(threads))


@lru_cache(maxsize=KEPT_MODELS)
def _load(store: str, model: str, version: int, fingerprint: str, threads: int | None) -> "LoadedModel":
    from service.runtime.loaded_model import load_version

    if threads is not None:
        limit_threads(threads)
    loaded = load_version(Store(store).path(model, version))
    if _fingerprint(loaded.manifest) != fingerprint:
        raise InvalidVersion(f"Version {version} of model {model} is not the one that the scorer was made for.")
    return loaded
