"""TensorFlow Serving over gRPC: ``tensorflow.serving.PredictionService`` and ``ModelService``."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from service.api.grpc.messages import check_parsed_size, field, message_bytes, message_class, parse
from service.api.grpc.methods import Incoming, Methods
from service.api.signatures import SERVING_DEFAULT
from service.api.tfserving import METHOD_NAME, ModelChoice, checked_signature, state_of, tensor_name, type_name
from service.codecs import Limits
from service.codecs.options import NO_OPTIONS
from service.codecs.tensors import (
    BYTES,
    DTYPES,
    Tensor,
    array_from_bytes,
    bytes_of_array,
    checked_shape,
    datatype_of_array,
    objects,
    rows_from_tensors,
    shown,
)
from service.errors import InvalidOption, MalformedInput, TooLarge
from service.runtime import ModelManager
from service.runtime.loaded_model import LoadedModel
from service.schemas import Array, Rows

PREDICTION: Final = Methods("tensorflow.serving.PredictionService")
MODELS: Final = Methods("tensorflow.serving.ModelService")
_REQUEST: Final = "tensorflow.serving.PredictRequest"
SIGNATURE_DEF: Final = "signature_def"
_DEFAULT_SIGNATURE: Final = SERVING_DEFAULT
_ERROR_CODES: Final = {"OK": 0, "UNKNOWN": 2}
_DATATYPES: Final[Mapping[int, tuple[str, str]]] = {
    1: ("FP32", "float_val"),
    2: ("FP64", "double_val"),
    3: ("INT32", "int_val"),
    4: ("UINT8", "int_val"),
    5: ("INT16", "int_val"),
    6: ("INT8", "int_val"),
    7: (BYTES, "string_val"),
    9: ("INT64", "int64_val"),
    10: ("BOOL", "bool_val"),
    14: ("BF16", "half_val"),
    17: ("UINT16", "int_val"),
    19: ("FP16", "half_val"),
    22: ("UINT32", "uint32_val"),
    23: ("UINT64", "uint64_val"),
}
"""TensorFlow's types by number: their name in the codecs, and the field of their values."""
_NUMBERS: Final = {datatype: (number, values) for number, (datatype, values) in _DATATYPES.items()}
_PACKED: Final[Mapping[str, int]] = {"FP32": 5, "FP64": 6, "BOOL": 11}
"""Fields whose packed form is the array as it lies in memory."""
_OUTPUTS: Final = 1


def _choice(manager: ModelManager, request: Any) -> ModelChoice:
    if not request.HasField("model_spec"):
        raise MalformedInput("Missing ModelSpec")
    spec = request.model_spec
    chosen = spec.WhichOneof("version_choice")
    return ModelChoice(
        manager,
        spec.name,
        spec.version.value if chosen == "version" else None,
        spec.version_label if chosen == "version_label" else None,
    )


def _spec(loaded: LoadedModel, signature: str = "") -> Any:
    spec = message_class("tensorflow.serving.ModelSpec")(name=loaded.name, signature_name=signature)
    spec.version.value = loaded.version
    return spec


# --- predict --------------------------------------------------------------------------------------------------------


@PREDICTION.add("Predict", operation="predict")
async def _predict(incoming: Incoming) -> bytes:
    serving = incoming.serving
    content, limits = await incoming.message(), serving.limits

    def decode() -> tuple[LoadedModel, Any, Rows]:
        check_parsed_size(_REQUEST, content, limits.max_decoded_bytes)
        request = parse(_REQUEST, content)
        loaded = _choice(serving.manager, request).acquire()
        incoming.life.loaded = loaded
        checked_signature(loaded, request.model_spec.signature_name)
        tensors = [_tensor(name, proto, loaded.name, limits) for name, proto in request.inputs.items()]
        return loaded, request, rows_from_tensors(tensors, loaded.schema, model=loaded.name, limits=limits)

    loaded, request, rows = await incoming.life.stage("decode", decode, len(content))
    named = request.model_spec.signature_name
    signature = checked_signature(loaded, named)
    known = sorted(loaded.manifest.signatures[signature].outputs)
    for name in request.output_filter:
        if name not in known:
            raise InvalidOption(
                f"output tensor alias not found in signature: {shown(name)} "
                f"Outputs expected to be in the set {{{','.join(known)}}}."
            )
    wanted = list(dict.fromkeys(request.output_filter)) or known
    answer = await incoming.life.run(loaded, (signature,), rows, NO_OPTIONS)
    results = {name: answer.results[name] for name in wanted}
    size = sum(array.nbytes for array in results.values())

    def encode() -> bytes:
        spec = _spec(loaded, named or _DEFAULT_SIGNATURE)
        parts: list[bytes | memoryview] = []
        for name, array in results.items():
            parts += field(_OUTPUTS, *field(1, name.encode()), *field(2, *_proto(array)))
        return message_bytes(message_class("tensorflow.serving.PredictResponse")(model_spec=spec), parts)

    return await incoming.life.stage("encode", encode, size)


def _tensor(name: str, proto: Any, model: str, limits: Limits) -> Tensor:
    known = _DATATYPES.get(proto.dtype)
    if known is None:
        raise MalformedInput(f"input '{shown(name)}' has a dtype that is not supported")
    datatype, values_field = known
    shape = checked_shape([dimension.size for dimension in proto.tensor_shape.dim], shown(name))
    content = proto.tensor_content
    if content and datatype != BYTES:
        return Tensor(name, datatype, array_from_bytes(content, datatype, shape, name=shown(name), model=model))
    return Tensor(name, datatype, _values(getattr(proto, values_field), datatype, shape, shown(name), limits))


def _values(values: Sequence[Any], datatype: str, shape: tuple[int, ...], name: str, limits: Limits) -> Array:
    """Elements one by one; as in TensorFlow the last one stands for all that follow."""
    count = math.prod(shape)
    if count > limits.max_decoded_bytes // 4:
        raise TooLarge(f"The decoded rows may take at most {limits.max_decoded_bytes} bytes.")
    if len(values) > count or (count and not values):
        raise MalformedInput(f"input '{name}' has {len(values)} values, but its shape has {count}")
    missing = count - len(values)
    if datatype == BYTES:
        return objects([*values, *list(values[-1:]) * missing]).reshape(shape)
    # Small integers, and the bits of small floats, are int32 in the message.
    is_wide = _NUMBERS[datatype][1] in ("int_val", "half_val")
    array: Array = np.fromiter(values, np.dtype("<i4") if is_wide else DTYPES[datatype], count=len(values))
    if missing:
        array = np.concatenate([array, np.repeat(array[-1:], missing)])
    return array.astype(np.uint16).view(np.float16).reshape(shape) if datatype == "FP16" else array.reshape(shape)


def _proto(array: Array) -> list[bytes | memoryview]:
    """A TensorProto with its values in ``float_val`` and the like, where clients of TensorFlow Serving look."""
    datatype = datatype_of_array(array)
    number, values_field = _NUMBERS[datatype]
    proto = message_class("tensorflow.TensorProto")(dtype=number)
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    packed = _PACKED.get(datatype)
    if packed is not None:
        return [proto.SerializeToString(), *field(packed, bytes_of_array(array))]
    getattr(proto, values_field).extend(array.reshape(-1).tolist())
    return [proto.SerializeToString()]


# --- what there is --------------------------------------------------------------------------------------------------


@PREDICTION.add("GetModelMetadata")
async def _metadata(incoming: Incoming) -> bytes:
    request = await incoming.control_message("tensorflow.serving.GetModelMetadataRequest")
    if list(request.metadata_field) != [SIGNATURE_DEF]:
        raise InvalidOption(f"metadata_field must be '{SIGNATURE_DEF}', the only one that is supported")
    loaded = _choice(incoming.serving.manager, request).acquire()
    response = message_class("tensorflow.serving.GetModelMetadataResponse")(model_spec=_spec(loaded))
    packed = response.metadata[SIGNATURE_DEF]
    packed.type_url = "type.googleapis.com/tensorflow.serving.SignatureDefMap"
    packed.value = _signatures(loaded).SerializeToString()
    return message_bytes(response)


def _signatures(loaded: LoadedModel) -> Any:
    found = message_class("tensorflow.serving.SignatureDefMap")()
    named = {SERVING_DEFAULT: loaded.default_signature} | {name: name for name in loaded.signature_names}
    for key, name in named.items():
        signature, spec = found.signature_def[key], loaded.manifest.signatures[name]
        signature.method_name = METHOD_NAME
        for tensors, specs in ((signature.inputs, spec.inputs), (signature.outputs, spec.outputs)):
            for each, tensor in specs.items():
                tensors[each].MergeFrom(
                    message_class("tensorflow.TensorInfo")(name=tensor_name(key, each), dtype=type_name(tensor.dtype))
                )
                for size in tensor.shape:
                    tensors[each].tensor_shape.dim.add(size=-1 if size is None else size)
    return found


@MODELS.add("GetModelStatus")
async def _status(incoming: Incoming) -> bytes:
    request = await incoming.control_message("tensorflow.serving.GetModelStatusRequest")
    _, statuses = _choice(incoming.serving.manager, request).statuses()
    response = message_class("tensorflow.serving.GetModelStatusResponse")()
    for status in sorted(statuses, key=lambda status: -status.version):
        state, code, message = state_of(status)
        listed = response.model_version_status.add(version=status.version, state=state)
        listed.status.error_code = _ERROR_CODES[code]
        listed.status.error_message = message
    return message_bytes(response)
