"""Bodies of TensorFlow Serving's REST ``predict``: rows or columns of input tensors in JSON.

A body of plain numbers takes the fast path of ``json_rows``; every other one is looked at value by value.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from service.codecs.answers import each_json, interleave
from service.codecs.json_rows import check_containers, decode_instances, decode_numbers_fast, parse_json
from service.codecs.rows import Limits
from service.codecs.tensors import (
    BYTES,
    Tensor,
    array_from_json,
    json_values,
    rows_from_tensors,
)
from service.errors import InvalidOption, InvalidRows, MalformedInput
from service.schemas import INSTANCES, InputSchema, Results, Rows

_INPUTS: Final = "inputs"
_SIGNATURE: Final = "signature_name"
_B64: Final = "b64"


@dataclass(frozen=True, slots=True)
class PredictBody:
    rows: Rows
    signature: str
    """Name of the signature in the request; empty for the default one."""
    by_row: bool
    """Whether rows were given one by one (``instances``), and are answered that way."""


def decode_predict(body: bytes, schema: InputSchema, *, model: str, limits: Limits) -> PredictBody:
    """
    Raises:
        MalformedInput: not JSON, or not of this form.
        InvalidRows: not rows of this model.
        InvalidOption: ``signature_name`` is not a string.
        TooLarge: too many rows or numbers.
    """
    found = decode_numbers_fast(body, schema, limits, under=(INSTANCES, _INPUTS), beside=(_SIGNATURE,))
    if found is None:
        return _decode_exactly(body, schema, model, limits)
    numbers, scalars, key = found
    return PredictBody({INSTANCES: numbers}, _checked_name(scalars.get(_SIGNATURE, "")), by_row=key == INSTANCES)


def _checked_name(signature: Any) -> str:
    if type(signature) is not str:
        raise InvalidOption("'signature_name' key must be a string value.")
    return signature


def _decode_exactly(body: bytes, schema: InputSchema, model: str, limits: Limits) -> PredictBody:
    if not body.strip():
        raise MalformedInput("JSON Parse error: The document is empty")
    check_containers(body, schema, limits)
    document, _ = parse_json(body, loosely=True)
    if type(document) is not dict:
        raise MalformedInput("The request must be a JSON object.")
    signature = _checked_name(document.get(_SIGNATURE, ""))
    if INSTANCES in document and _INPUTS in document:
        raise MalformedInput("The request must have either 'instances' or 'inputs', not both.")
    if INSTANCES in document:
        return PredictBody(_rows(document[INSTANCES], schema, model, limits), signature, by_row=True)
    if _INPUTS in document:
        return PredictBody(_columns(document[_INPUTS], schema, model, limits), signature, by_row=False)
    raise MalformedInput("Missing 'inputs' or 'instances' key")


def _rows(instances: Any, schema: InputSchema, model: str, limits: Limits) -> Rows:
    """Row format: values of the only input, or objects by name of input. Objects by column are taken as well."""
    if type(instances) is not list or not instances:
        raise InvalidRows([], "'instances' must be a non-empty array.")
    names = [known.name for known in schema.inputs]
    if type(instances[0]) is dict and instances[0].keys() == set(names):
        if any(type(row) is not dict or row.keys() != set(names) for row in instances):
            raise InvalidRows([], "All 'instances' must be objects with the same inputs.")
        return _columns({name: [row[name] for row in instances] for name in names}, schema, model, limits)
    if len(names) > 1 and type(instances[0]) is not dict:
        raise InvalidRows(
            [],
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
            "tensorinfo_map",
        )
    return decode_instances(instances, schema, limits)


def _columns(inputs: Any, schema: InputSchema, model: str, limits: Limits) -> Rows:
    """Columnar format: the tensor of the only input, or tensors by name of input; further names are ignored."""
    known = schema.inputs
    if type(inputs) is not dict:
        if len(known) > 1:
            raise InvalidRows(
                [],
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
                "tensorinfo_map",
            )
        inputs = {known[0].name: inputs}
    for each in known:
        if each.name not in inputs:
            raise InvalidRows([], f"Missing named input: {each.name} in 'inputs' object.")
    if len(known) == 1 and known[0].name == INSTANCES:
        return decode_instances(inputs[INSTANCES], schema, limits)
    tensors = []
    for each in known:
        values = _plain_strings(inputs[each.name]) if each.datatype == BYTES else inputs[each.name]
        tensors.append(
            Tensor(each.name, each.datatype, array_from_json(values, each.datatype, name=each.name, model=model))
        )
    return rows_from_tensors(tensors, schema, model=model, limits=limits)


def _plain_strings(values: Any) -> Any:
    """Nested lists whose ``{"b64": …}`` objects are the strings that they stand for."""
    if type(values) is list:
        return [_plain_strings(value) for value in values]
    if type(values) is dict and values.keys() == {_B64} and type(values[_B64]) is str:
        try:
            return base64.b64decode(values[_B64], validate=True).decode()
        except (binascii.Error, ValueError):
            raise MalformedInput("A 'b64' value is not the base64 of UTF-8.") from None
    return values


def encode_predictions(outputs: Results, *, by_row: bool) -> bytes:
    """``predictions``, row by row, or ``outputs``, by name; a single output stands for itself.

    Every float has a ``.`` or an ``e``, so that typed clients do not take it for an integer.
    """
    first = next(iter(outputs.values()))
    if not by_row:
        named = {name: json_values(array) for name, array in outputs.items()}
        return _dumps({"outputs": json_values(first) if len(outputs) == 1 else named})
    if len(outputs) == 1:
        return _dumps({"predictions": json_values(first)})
    keys = [orjson.dumps(name) + b":" for name in outputs]
    rows = interleave(
        keys,
        [
            [orjson.dumps(row) for row in json_values(array)] if array.dtype.kind in "OSU" else each_json(array)
            for array in outputs.values()
        ],
    )
    return b'{"predictions":[' + b",".join(rows) + b"]}"


def _dumps(body: Mapping[str, Any]) -> bytes:
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
