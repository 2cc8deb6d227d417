"""Bodies of the Open Inference Protocol's REST ``infer``: JSON, with the tensors in it or as bytes behind it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import orjson
import simdjson

from service.codecs.json_rows import check_containers, parse_json
from service.codecs.rows import Limits
from service.codecs.tensors import (
    BYTES,
    DATATYPES,
    DTYPES,
    Tensor,
    array_from_bytes,
    array_from_json,
    bytes_of_array,
    checked_shape,
    datatype_of_array,
    json_values,
    rows_from_tensors,
    shaped,
    shown,
)
from service.errors import InvalidOption, MalformedInput, TooLarge
from service.schemas import Array, InputSchema, Rows

MAX_ID_LENGTH: Final = 512
MAX_OUTPUTS: Final = 64
BINARY_SIZE: Final = "binary_data_size"
_BINARY: Final = "binary_data"
_ALL_BINARY: Final = "binary_data_output"
_MAX_INPUTS: Final = 16
_FAST_BYTES: Final = 4096
"""JSON from this size on has its numbers read in one piece."""


@dataclass(frozen=True, slots=True)
class WantedOutput:
    name: str
    binary: bool = False


@dataclass(frozen=True, slots=True)
class InferBody:
    """An ``infer`` request, whichever transport brought it."""

    rows: Rows
    outputs: tuple[WantedOutput, ...] = ()
    """None: the default ones."""
    id: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    all_binary: bool = False
    """How outputs are sent that are not named."""


@dataclass(frozen=True, slots=True)
class InferAnswer:
    model: str
    version: int
    id: str
    parameters: Mapping[str, Any]
    outputs: Sequence[tuple[WantedOutput, Array]]


def decode_infer(
    body: bytes | memoryview, json_length: int | None, schema: InputSchema, *, model: str, limits: Limits
) -> InferBody:
    """``json_length``: of the JSON in front of the binary tensors; None: all of it; 0: nothing but one tensor.

    Raises:
        MalformedInput: not JSON, not of this form, or of another size than it says.
        InvalidRows: not inputs of this model.
        InvalidOption: a parameter of the wrong type.
        TooLarge: too many rows or numbers, or too much JSON.
    """
    if json_length == 0:
        return _raw_request(body, schema, model, limits)
    if json_length is None:
        json_length = len(body)
    if json_length > len(body):
        raise MalformedInput("Inference-Header-Content-Length is greater than the length of the body.")
    if json_length > limits.max_json_bytes:
        raise TooLarge(f"The JSON of a request may have at most {limits.max_json_bytes} bytes.")
    document = _document(bytes(body[:json_length]), schema, limits)
    tensors = _tensors(document, memoryview(body)[json_length:], model)
    parameters = _parameters(document, "the request")
    all_binary = _flag(parameters, _ALL_BINARY, default=False)
    given = document.get("id") or ""
    if type(given) is not str or len(given) > MAX_ID_LENGTH:
        raise MalformedInput(f"'id' must be a string of at most {MAX_ID_LENGTH} characters.")
    rows = rows_from_tensors(tensors, schema, model=model, limits=limits)
    return InferBody(rows, _outputs(document, all_binary=all_binary), given, parameters, all_binary)


def _raw_request(body: bytes | memoryview, schema: InputSchema, model: str, limits: Limits) -> InferBody:
    """Nothing but the bytes of the only input: as many rows as they make."""
    known = schema.inputs
    if len(known) != 1:
        raise MalformedInput(f"a raw request needs a model with one input, and '{model}' has {len(known)}")
    name, datatype, row_shape = known[0].name, known[0].datatype, known[0].row_shape
    if datatype == BYTES:
        values = array_from_bytes(body, BYTES, (1, *row_shape), name=name, model=model)
    else:
        row_bytes = math.prod(row_shape) * DTYPES[datatype].itemsize
        values = array_from_bytes(body, datatype, (len(body) // row_bytes, *row_shape), name=name, model=model)
    rows = rows_from_tensors([Tensor(name, datatype, values)], schema, model=model, limits=limits)
    return InferBody(rows, all_binary=True)


# --- the JSON -------------------------------------------------------------------------------------------------------


def _document(content: bytes, schema: InputSchema, limits: Limits) -> dict[str, Any]:
    found = _document_fast(content) if len(content) >= _FAST_BYTES else None
    if found is None:
        check_containers(content, schema, limits)
        found, _ = parse_json(content, loosely=True)
    if type(found) is not dict:
        raise MalformedInput("The request must be a JSON object.")
    return found


def _document_fast(content: bytes) -> dict[str, Any] | None:
    """The document with the numbers of its tensors as buffers of float64; None where they are not all numbers."""
    try:
        document: Any = simdjson.Parser().parse(content)
        inputs = document["inputs"]
        if len(document) > _MAX_INPUTS or len(inputs) > _MAX_INPUTS:
            return None
        found = {key: _plain(value) for key, value in document.items() if key != "inputs"}
        found["inputs"] = [_tensor_fast(tensor) for tensor in inputs]
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError):
        return None
    return found


def _tensor_fast(tensor: Any) -> dict[str, Any]:
    if len(tensor) > _MAX_INPUTS or tensor["datatype"] not in ("FP32", "FP64"):
        raise ValueError
    return {
        key: np.frombuffer(value.as_buffer(of_type="d")) if key == "data" else _plain(value)
        for key, value in tensor.items()
    }


def _plain(value: Any) -> Any:
    if isinstance(value, simdjson.Object):
        return value.as_dict()
    return value.as_list() if isinstance(value, simdjson.Array) else value


def _tensors(document: Mapping[str, Any], blobs: memoryview, model: str) -> list[Tensor]:
    inputs = document.get("inputs")
    if type(inputs) is not list:
        raise MalformedInput("Unable to parse 'inputs': the request must have them as an array.")
    if len(inputs) > _MAX_INPUTS:
        raise MalformedInput(f"There are more inputs than model '{model}' has.")
    tensors, at = [], 0
    for given in inputs:
        tensor, size = _tensor(given, blobs[at:], model)
        tensors.append(tensor)
        at += size
    if at != len(blobs):
        raise MalformedInput(f"unexpected additional input data for model '{model}'")
    return tensors


def _tensor(given: Any, blobs: memoryview, model: str) -> tuple[Tensor, int]:
    """One input, and how many of the bytes behind the JSON are its own."""
    if type(given) is not dict or type(given.get("name")) is not str:
        raise MalformedInput("Every input must be an object with a 'name'.")
    name, datatype = shown(given["name"]), given.get("datatype")
    if type(datatype) is not str or datatype not in DATATYPES:
        raise MalformedInput(f"input '{name}' needs a 'datatype' of the protocol, such as FP32")
    shape = checked_shape(given.get("shape"), name)
    parameters = _parameters(given, f"input '{name}'")
    if "shared_memory_region" in parameters:
        raise MalformedInput("shared memory is not supported")
    size = parameters.get(BINARY_SIZE)
    if size is None:
        return Tensor(given["name"], datatype, _json_array(given, datatype, shape, model)), 0
    if type(size) is not int or size < 0 or "data" in given:
        raise MalformedInput(f"'{BINARY_SIZE}' of input '{name}' must be a whole number, without 'data' beside it")
    if size > len(blobs):
        raise MalformedInput(
            f"unexpected size for input '{name}', expecting {size - len(blobs)} additional bytes for model '{model}'"
        )
    values = array_from_bytes(blobs[:size], datatype, shape, name=name, model=model)
    return Tensor(given["name"], datatype, values), size


def _json_array(given: Mapping[str, Any], datatype: str, shape: tuple[int, ...], model: str) -> Array:
    name, values = shown(given["name"]), given.get("data")
    if isinstance(values, np.ndarray):
        return shaped(values, shape, name=name, model=model)
    if values is None:
        raise MalformedInput(f"input '{name}' has neither 'data' nor '{BINARY_SIZE}'")
    return array_from_json(values, datatype, shape, name=name, model=model)


def _outputs(document: Mapping[str, Any], *, all_binary: bool) -> tuple[WantedOutput, ...]:
    outputs = document.get("outputs")
    if outputs is None:
        return ()
    if type(outputs) is not list or len(outputs) > MAX_OUTPUTS:
        raise MalformedInput(f"'outputs' must be an array of at most {MAX_OUTPUTS} objects.")
    wanted = []
    for given in outputs:
        if type(given) is not dict or type(given.get("name")) is not str:
            raise MalformedInput("Every output must be an object with a 'name'.")
        parameters = _parameters(given, f"output '{shown(given['name'])}'")
        if "shared_memory_region" in parameters:
            raise MalformedInput("shared memory is not supported")
        if parameters.get("classification"):
            raise MalformedInput("classification is not supported")
        wanted.append(WantedOutput(given["name"], _flag(parameters, _BINARY, default=all_binary)))
    return tuple(wanted)


def _parameters(holder: Mapping[str, Any], of: str) -> dict[str, Any]:
    parameters = holder.get("parameters")
    if parameters is None:
        return {}
    if type(parameters) is not dict:
        raise MalformedInput(f"'parameters' of {of} must be an object.")
    return parameters


def _flag(parameters: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if type(value) is not bool:
        raise InvalidOption(f"parameter '{name}' must be true or false")
    return value


# --- the answer -----------------------------------------------------------------------------------------------------


def encode_infer(answer: InferAnswer) -> tuple[bytes, int | None]:
    """The body, and the length of its JSON where binary tensors follow it."""
    blobs: list[bytes | memoryview] = []
    outputs = []
    for wanted, array in answer.outputs:
        output: dict[str, Any] = {
            "name": wanted.name,
            "datatype": datatype_of_array(array),
            "shape": list(array.shape),
        }
        if wanted.binary:
            blobs.append(bytes_of_array(array))
            output["parameters"] = {BINARY_SIZE: len(blobs[-1])}
        else:
            output["data"] = json_values(array.reshape(-1))
        outputs.append(output)
    body: dict[str, Any] = {"model_name": answer.model, "model_version": str(answer.version), "outputs": outputs}
    if answer.id:
        body["id"] = answer.id
    if answer.parameters:
        body["parameters"] = answer.parameters
    header = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join([header, *blobs]), len(header)) if blobs else (header, None)
