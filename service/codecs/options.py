"""Options of a request: beside the rows in JSON, in the query where the body is not JSON."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np

from service.codecs.rows import shown_name
from service.errors import InvalidOption
from service.schemas import InputSchema
from service.words import ANOMALY_SCORE, FLAG_OPTIONS, SCORE_OPTIONS, Operation

_DECIMAL: Final = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?", re.ASCII)
_INTEGER: Final = re.compile(r"[0-9]{1,9}", re.ASCII)
_MAX_NUMBER_LENGTH: Final = 64
_FLAGS: Final = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True, slots=True)
class Options:
    """Options that a caller chose beside the operation; ``None`` leaves the choice to the version."""

    threshold: float | None = None
    """A score. Rows above it, compared in float32, are anomalies."""
    false_alarm_rate: float | None = None
    """Share of normal rows that may be called anomalies, between 0 and 1."""
    false_discovery_rate: float | None = None
    """Share of the rows called anomalies that may be normal, between 0 and 1; over the rows of one request."""
    explain: int | Literal["map"] | None = None
    """How many contributions to give with each row, or ``"map"`` for all of them in the row's shape."""
    series: bool = False
    """Whether the rows are the windows of one series, whose points are to be scored."""
    passthrough: bool = False
    """Whether an Arrow answer has the request's columns beside its own."""


NO_OPTIONS: Final = Options()


def options_from_query(
    query: Mapping[str, str], *, schema: InputSchema, operation: Operation, passthrough_allowed: bool = False
) -> Options:
    """Options of a query string whose values are text.

    Raises:
        InvalidOption: an unknown name, a wrong value, or an option that this operation does not have.
    """
    if not query:
        return NO_OPTIONS
    values: dict[str, Any] = {}
    for name, text in query.items():
        if name in FLAG_OPTIONS:
            is_decimal = len(text) <= _MAX_NUMBER_LENGTH and _DECIMAL.fullmatch(text) is not None
            values[name] = float(text) if is_decimal else text
        elif name == "explain":
            values[name] = int(text) if _INTEGER.fullmatch(text) else text
        elif name == "passthrough" and passthrough_allowed:
            if text not in _FLAGS:
                raise InvalidOption("'passthrough' must be true or false.")
            values[name] = _FLAGS[text]
        else:
            raise unknown_option(name)
    passthrough = values.pop("passthrough", False)
    return _checked(values, schema, operation, passthrough=passthrough)


def options_from_json(values: Mapping[str, Any], *, schema: InputSchema, operation: Operation) -> Options:
    """Options of a JSON body: all that is beside the rows. ``null`` is an option that is not given.

    Raises:
        InvalidOption: an unknown name, a wrong value, or an option that this operation does not have.
    """
    if not values:
        return NO_OPTIONS
    for name in values:
        if name not in SCORE_OPTIONS:
            raise unknown_option(name)
    return _checked({name: value for name, value in values.items() if value is not None}, schema, operation)


def series_options(options: Options) -> Options:
    """Options of a request with a whole series.

    Raises:
        InvalidOption: points cannot be explained.
    """
    if options.explain is not None:
        raise InvalidOption("'explain' is for rows; send the window in question as one.")
    return replace(options, series=True)


def unknown_option(name: object) -> InvalidOption:
    shown = shown_name(name)
    return InvalidOption(f"There is no option '{shown}'." if shown else "There is an option that is not known.")


def _checked(
    values: Mapping[str, Any], schema: InputSchema, operation: Operation, *, passthrough: bool = False
) -> Options:
    if values and operation is not ANOMALY_SCORE:
        raise InvalidOption(f"The option '{next(iter(values))}' belongs to anomaly-score only.")
    chosen = [name for name in FLAG_OPTIONS if name in values]
    if len(chosen) > 1:
        raise InvalidOption(f"Give '{chosen[0]}' or '{chosen[1]}', not both.")
    return Options(
        threshold=_threshold(values.get("threshold")),
        false_alarm_rate=_rate(values, "false_alarm_rate"),
        false_discovery_rate=_rate(values, "false_discovery_rate"),
        explain=_explain(values.get("explain"), schema),
        passthrough=passthrough,
    )


def _threshold(value: Any) -> float | None:
    if value is None:
        return None
    if not _is_number(value) or not abs(value) <= float(np.finfo(np.float32).max):
        raise InvalidOption("'threshold' must be a finite number that fits into float32.")
    return float(value)


def _rate(values: Mapping[str, Any], name: str) -> float | None:
    value = values.get(name)
    if value is None:
        return None
    if not _is_number(value) or not 0 < value < 1:
        raise InvalidOption(f"'{name}' must be a number between 0 and 1, both excluded.")
    return float(value)


def _explain(value: Any, schema: InputSchema) -> int | Literal["map"] | None:
    if value is None:
        return None
    if value == "map" and not schema.columns:
        return "map"
    features = schema.features
    if type(value) is not int or not 1 <= value <= features:
        also = "" if schema.columns else ', or "map"'
        raise InvalidOption(f"'explain' must be a whole number from 1 to {features}{also}.")
    return int(value)


def _is_number(value: Any) -> bool:
    return type(value) is float or type(value) is int
