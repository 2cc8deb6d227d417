"""Answers of the operations, and how they look in JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import Any, Final, Literal

import numpy as np
import orjson
from numpy.typing import NDArray

from service.schemas import CATEGORIES, INSTANCES, MISSING_TIMESTAMP, TIMESTAMPS, Array, InputSchema, Results, Rows
from service.words import CONTRIBUTIONS, ERROR_MAPS, RECONSTRUCT, RESULT_COLUMNS, ROW_RESULTS, Operation

_ROW_OUTPUTS: Final = frozenset(ROW_RESULTS.values())
_NUMPY: Final = orjson.OPT_SERIALIZE_NUMPY


@dataclass(slots=True, eq=False)
class Answer:
    """The results of an operation for the rows of one request."""

    operation: Operation
    schema: InputSchema
    model: str
    version: int
    results: Results
    """Outputs of the operation's signature by the signature's names, each with one entry a row.

    Where the signature gives categories or timestamps of rows back, they are ``<output>_categories`` (labels as UTF-8
    bytes) and ``<output>_timestamps`` (milliseconds), in the order of the columns.
    """
    once: dict[str, Any] = field(default_factory=dict)
    """What belongs to all rows, by its name in the answer: ``threshold``, ``false_alarm_rate`` and the like."""
    explain: int | Literal["map"] | None = None
    explained: Results = field(default_factory=dict)
    """Outputs of the signature ``explain``, where ``explain`` was asked for."""
    rows: Rows | None = None
    """The rows of the request; needed with ``explain``."""

    def has_named_columns(self, output: str) -> bool:
        """Whether an output consists of rows with named columns."""
        return bool(self.schema.columns) and output in _ROW_OUTPUTS


def encode_json(answer: Answer) -> bytes:
    """The JSON answer: the model that ran, one array for each result, and once what belongs to all rows."""
    body: dict[str, Any] = {"model": {"name": answer.model, "version": answer.version}}
    for name, output in answer.operation.results:
        if output in _ROW_OUTPUTS and answer.schema.columns:
            body[name] = orjson.Fragment(b"[" + b",".join(_objects_json(answer, output)) + b"]")
        else:
            body[name] = np.ascontiguousarray(answer.results[output])
    body |= answer.once
    if answer.explain == "map":
        body[ERROR_MAPS] = error_maps(answer)
    elif answer.explain is not None:
        body[CONTRIBUTIONS] = list(contributions(answer))
    return orjson.dumps(body, option=_NUMPY)


def encode_ndjson(answer: Answer) -> bytes:
    """One JSON object a line for each row, with the names of the signature's outputs: ``score``, ``p_value`` ..."""
    return b"".join(line + b"\n" for line in rows_as_json(answer))


def rows_as_json(answer: Answer) -> list[bytes]:
    """The lines of ``encode_ndjson``, without their ends."""
    parts = [
        (
            output,
            _objects_json(answer, output) if answer.has_named_columns(output) else each_json(answer.results[output]),
        )
        for _, output in answer.operation.results
    ]
    if answer.explain == "map":
        parts.append((RESULT_COLUMNS[ERROR_MAPS], each_json(error_maps(answer))))
    elif answer.explain is not None:
        parts.append((CONTRIBUTIONS, [orjson.dumps(row, option=_NUMPY) for row in contributions(answer)]))
    return interleave([b'"%b":' % name.encode() for name, _ in parts], [values for _, values in parts])


def instances_of(rows: Rows, schema: InputSchema) -> list[Any]:
    """Rows as a JSON request has them: objects for named columns, nested lists otherwise, None for what is missing."""
    if not schema.columns:
        return [orjson.loads(row) for row in each_json(rows[INSTANCES])]
    (_, output), *_ = RECONSTRUCT.results
    named = {output if name == INSTANCES else f"{output}_{name}": array for name, array in rows.items()}
    answer = Answer(operation=RECONSTRUCT, schema=schema, model="", version=0, results=named)
    return [orjson.loads(row) for row in _objects_json(answer, output)]


def each_json(array: Array) -> list[bytes]:
    if array.ndim == 1:
        return _tokens(array)
    return [orjson.dumps(np.ascontiguousarray(row), option=_NUMPY) for row in array]


def _tokens(array: Array) -> list[bytes]:
    """JSON of each number of a 1-D array, floats as short as their own precision allows."""
    return orjson.dumps(np.ascontiguousarray(array), option=_NUMPY)[1:-1].split(b",") if len(array) else []


def interleave(keys: Sequence[bytes], columns: Sequence[Sequence[bytes]]) -> list[bytes]:
    """Objects from JSON keys, each with its colon, and columns of JSON values."""
    if not keys:
        return []
    openings = [b"{" + keys[0], *(b"," + key for key in keys[1:])]
    if len(columns[0]) == 1:
        return [b"".join(chain.from_iterable(zip(openings, (column[0] for column in columns), strict=True))) + b"}"]
    cells = chain.from_iterable((repeat(opening), column) for opening, column in zip(openings, columns, strict=True))
    return [b"".join(row) + b"}" for row in zip(*cells)]  # noqa: B905 (repeat is endless)


def _objects_json(answer: Answer, output: str) -> list[bytes]:
    columns = dict(_named_values(answer, output))
    keys = answer.schema.json_keys
    return interleave(
        [keys[name] for name in keys if name in columns], [columns[name] for name in keys if name in columns]
    )


def _named_values(answer: Answer, output: str) -> Iterator[tuple[str, list[bytes]]]:
    schema = answer.schema
    numbers = answer.results.get(output)
    if numbers is not None:
        count, tokens = len(numbers), _tokens(numbers.T.reshape(-1))
        for at, column in enumerate(schema.numbers):
            values = tokens[at * count : (at + 1) * count]
            if at in schema.boolean_at:
                # The nearer of false and true, so that a reconstruction can be sent as a row again.
                values = [b"null" if v != v else b"true" if v >= 0.5 else b"false" for v in numbers[:, at].tolist()]  # noqa: PLR0124
            yield column.name, values
    labels = answer.results.get(f"{output}_{CATEGORIES}")
    if labels is not None:
        for at, column in enumerate(schema.categories):
            given = labels[:, at].tolist()
            known = {label: orjson.dumps(label_text(label)) for label in set(given)}
            yield column.name, [known[label] for label in given]
    times = answer.results.get(f"{output}_{TIMESTAMPS}")
    if times is not None:
        for at, column in enumerate(schema.timestamps):
            yield column.name, [orjson.dumps(time_text(value)) for value in times[:, at].tolist()]


def label_text(label: bytes | str) -> str | None:
    """A label as text; a missing one (empty) is None."""
    return (label.decode(errors="replace") if isinstance(label, bytes) else label) or None


def time_text(milliseconds: int) -> str | None:
    """ISO 8601 in UTC; a missing time is None."""
    if milliseconds == MISSING_TIMESTAMP:
        return None
    return f"{np.datetime64(milliseconds, 'ms')}Z"


def error_maps(answer: Answer) -> NDArray[np.float32]:
    """Share of each value in its row's score, ``(rows, *row_shape)``."""
    return np.ascontiguousarray(_contribution(answer))


def contributions(answer: Answer) -> Iterator[list[dict[str, Any]]]:
    """For each row the ``explain`` features with the largest shares, the largest first.

    Features are in the order of the columns of ``instances``, ``categories`` and ``timestamps``.
    """
    shares = _contribution(answer)
    shares = shares.reshape(len(shares), -1)
    schema = answer.schema
    wanted = min(int(answer.explain or 0), shares.shape[1])
    order = np.argsort(-shares, axis=1, kind="stable")[:, :wanted]  # ties in the order of the features
    for row, top in enumerate(order.tolist()):
        yield [
            {
                "feature": _feature_name(schema, at),
                "observed": _observed(answer.rows or {}, schema, row, at),
                "expected": _expected(answer, schema, row, at),
                "share": shares[row, at],
            }
            for at in top
        ]


def _contribution(answer: Answer) -> Array:
    if "contribution" not in answer.explained:
        raise ValueError("An answer that explains needs the contributions of the explain signature.")
    return answer.explained["contribution"]


def _feature_name(schema: InputSchema, at: int) -> str | int | list[int]:
    if schema.columns:
        return (schema.numbers + schema.categories + schema.timestamps)[at].name
    if len(schema.row_shape) == 1:
        return at
    return [int(index) for index in np.unravel_index(at, schema.row_shape)]


def _observed(rows: Rows, schema: InputSchema, row: int, at: int) -> Any:
    """The value of a feature as it was sent; a missing one is None."""
    if at < schema.width:
        value = rows[INSTANCES][row].reshape(-1)[at]
        if np.isnan(value):
            return None
        return bool(value) if at in schema.boolean_at else value
    at -= schema.width
    if at < len(schema.categories):
        return label_text(rows[CATEGORIES][row, at])
    return time_text(int(rows[TIMESTAMPS][row, at - len(schema.categories)]))


def _expected(answer: Answer, schema: InputSchema, row: int, at: int) -> Any:
    """The value that the model expected; for a boolean the nearer one, None if there is none."""
    if at < schema.width:
        numbers = answer.explained.get("expected")
        if numbers is None:
            return None
        value = numbers[row].reshape(-1)[at]
        return bool(value >= 0.5) if at in schema.boolean_at else value
    at -= schema.width
    if at < len(schema.categories):
        labels = answer.explained.get(f"expected_{CATEGORIES}")
        return None if labels is None else label_text(labels[row, at])
    times = answer.explained.get(f"expected_{TIMESTAMPS}")
    return None if times is None else time_text(int(times[row, at - len(schema.categories)]))
