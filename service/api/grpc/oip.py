"""The Open Inference Protocol over gRPC: ``inference.GRPCInferenceService``."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from service import __version__
from service.api.access import Role
from service.api.grpc.messages import check_parsed_size, field, message_bytes, message_class, parse, split_field
from service.api.grpc.methods import Incoming, Methods
from service.api.oip import (
    SERVER_NAME,
    acquire,
    infer,
    load_model,
    model_metadata,
    repository_index,
    unload_model,
)
from service.codecs import Limits
from service.codecs.infer import MAX_ID_LENGTH, MAX_OUTPUTS, InferAnswer, InferBody, WantedOutput
from service.codecs.tensors import (
    BYTES,
    DATATYPES,
    DTYPES,
    Tensor,
    array_from_bytes,
    bytes_of_array,
    checked_shape,
    datatype_of_array,
    objects,
    rows_from_tensors,
    shaped,
    shown,
)
from service.errors import MalformedInput, NotFound, NotReady
from service.runtime.loaded_model import LoadedModel

EXTENSIONS: Final = ("model_repository", "parameters")
INFERENCE: Final = Methods("inference.GRPCInferenceService")
_CONTENTS: Final[Mapping[str, str]] = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}
"""Where the protocol has the elements of each datatype; 16-bit floats are sent raw only."""
_REQUEST: Final = "inference.ModelInferRequest"
_WIDE: Final = {"int_contents": np.dtype("<i4"), "uint_contents": np.dtype("<u4")}
_RAW_INPUT: Final = 7
_RAW_OUTPUT: Final = 6
_OUTPUT: Final = 5
_OUTPUT_CONTENTS: Final = 5
_PACKED: Final[Mapping[str, int]] = {"BOOL": 1, "FP32": 6, "FP64": 7}
"""Fields whose packed form is the array as it lies in memory."""


def _response(method: str, /, **fields: Any) -> bytes:
    content: bytes = message_class(f"inference.{method}Response")(**fields).SerializeToString()
    return content


@INFERENCE.add("ServerLive", Role.ANYONE)
async def _server_live(_incoming: Incoming) -> bytes:
    return _response("ServerLive", live=True)


@INFERENCE.add("ServerReady", Role.ANYONE)
async def _server_ready(incoming: Incoming) -> bytes:
    return _response("ServerReady", ready=incoming.serving.not_ready_reason is None)


@INFERENCE.add("ModelReady")
async def _model_ready(incoming: Incoming) -> bytes:
    request = await incoming.control_message("inference.ModelReadyRequest")
    try:
        acquire(incoming.serving.manager, request.name, request.version)
    except (NotFound, NotReady):
        return _response("ModelReady", ready=False)
    return _response("ModelReady", ready=True)


@INFERENCE.add("ServerMetadata")
async def _server_metadata(_incoming: Incoming) -> bytes:
    return _response("ServerMetadata", name=SERVER_NAME, version=__version__, extensions=EXTENSIONS)


@INFERENCE.add("ModelMetadata")
async def _model_metadata(incoming: Incoming) -> bytes:
    request = await incoming.control_message("inference.ModelMetadataRequest")
    manager = incoming.serving.manager
    loaded = acquire(manager, request.name, request.version)
    return _response("ModelMetadata", **model_metadata(loaded, manager.model(loaded.name)))


@INFERENCE.add("RepositoryIndex")
async def _repository_index(incoming: Incoming) -> bytes:
    request = await incoming.control_message("inference.RepositoryIndexRequest")
    models = repository_index(incoming.serving.manager, only_ready=request.ready)
    return _response("RepositoryIndex", models=models)


@INFERENCE.add("RepositoryModelLoad", Role.ADMIN)
async def _load(incoming: Incoming) -> bytes:
    request = await incoming.control_message("inference.RepositoryModelLoadRequest")
    await load_model(incoming.serving.manager, request.model_name)
    return _response("RepositoryModelLoad")


@INFERENCE.add("RepositoryModelUnload", Role.ADMIN)
async def _unload(incoming: Incoming) -> bytes:
    request = await incoming.control_message("inference.RepositoryModelUnloadRequest")
    unload_model(incoming.serving.manager, request.model_name)
    return _response("RepositoryModelUnload")


# --- infer ----------------------------------------------------------------------------------------------------------


@INFERENCE.add("ModelInfer", operation="infer")
async def _model_infer(incoming: Incoming) -> bytes:
    serving, began = incoming.serving, asyncio.get_running_loop().time()
    limits, content = serving.limits, await incoming.message()

    def decode() -> tuple[LoadedModel, InferBody, bool]:
        check_parsed_size(_REQUEST, content, limits.max_decoded_bytes)
        fields, raw = split_field(content, _RAW_INPUT)
        request = parse(_REQUEST, fields)
        loaded = acquire(serving.manager, request.model_name, request.model_version)
        incoming.life.loaded = loaded
        return loaded, _body(request, raw, loaded, limits), bool(raw)

    loaded, body, is_raw = await incoming.life.stage("decode", decode, len(content))
    answer = await infer(incoming.life, loaded, body, began=began)
    size = sum(array.nbytes for _, array in answer.outputs)
    return await incoming.life.stage("encode", lambda: _encode(answer, is_raw=is_raw), size)


def _body(request: Any, raw: list[memoryview], loaded: LoadedModel, limits: Limits) -> InferBody:
    if len(request.outputs) > MAX_OUTPUTS:
        raise MalformedInput(f"At most {MAX_OUTPUTS} outputs can be requested.")
    if len(request.id) > MAX_ID_LENGTH:
        raise MalformedInput(f"'id' must be a string of at most {MAX_ID_LENGTH} characters.")
    model, inputs = loaded.name, request.inputs
    if raw and len(raw) != len(inputs):
        raise MalformedInput(f"expected {len(inputs)} raw input contents for model '{model}', got {len(raw)}")
    tensors = [_tensor(given, raw[at] if raw else None, model) for at, given in enumerate(inputs)]
    chosen = {name: (value, value.WhichOneof("parameter_choice")) for name, value in request.parameters.items()}
    return InferBody(
        rows=rows_from_tensors(tensors, loaded.schema, model=model, limits=limits),
        outputs=tuple(WantedOutput(output.name) for output in request.outputs),
        id=request.id,
        parameters={name: choice and getattr(value, choice) for name, (value, choice) in chosen.items()},
    )


def _tensor(given: Any, raw: memoryview | None, model: str) -> Tensor:
    name, datatype = shown(given.name), given.datatype
    if datatype not in DATATYPES:
        raise MalformedInput(f"input '{name}' needs a datatype of the protocol, such as FP32")
    shape = checked_shape(list(given.shape), name)
    if "shared_memory_region" in given.parameters:
        raise MalformedInput("shared memory is not supported")
    if raw is not None:
        if given.HasField("contents"):
            raise MalformedInput(f"contents field must not be specified when using raw_input_contents for '{name}'")
        return Tensor(given.name, datatype, array_from_bytes(raw, datatype, shape, name=name, model=model))
    held = _CONTENTS.get(datatype)
    if held is None:
        raise MalformedInput(f"{datatype} tensors are sent as raw_input_contents only: input '{name}'")
    values: Sequence[Any] = getattr(given.contents, held)
    if datatype == BYTES:
        array = objects(values)
    else:
        array = np.fromiter(values, _WIDE.get(held, DTYPES[datatype]), count=len(values))
    return Tensor(given.name, datatype, shaped(array, shape, name=name, model=model))


def _encode(answer: InferAnswer, *, is_raw: bool) -> bytes:
    """Raw outputs for raw inputs, typed ones for typed inputs."""
    response = message_class("inference.ModelInferResponse")(
        model_name=answer.model, model_version=str(answer.version), id=answer.id
    )
    for name, value in answer.parameters.items():
        choice = "string_param" if isinstance(value, str) else "double_param"
        setattr(response.parameters[name], choice, value)
    parts: list[bytes | memoryview] = []
    for wanted, array in answer.outputs:
        output = message_class("inference.ModelInferResponse.InferOutputTensor")(
            name=wanted.name, datatype=datatype_of_array(array), shape=array.shape
        )
        if is_raw:
            response.outputs.append(output)
            parts += field(_RAW_OUTPUT, bytes_of_array(array))
            continue
        number = _PACKED.get(output.datatype)
        contents: list[bytes | memoryview] = []
        if number is None:
            getattr(output.contents, _CONTENTS[output.datatype]).extend(array.reshape(-1).tolist())
        else:
            contents = field(_OUTPUT_CONTENTS, *field(number, bytes_of_array(array)))
        parts += field(_OUTPUT, output.SerializeToString(), *contents)
    return message_bytes(response, parts)
