"""TensorFlow Serving's REST API under ``/v1``: predict, status and metadata, with its texts and statuses.

Source: TensorFlow Serving's documentation of its RESTful API, and how its server answers.
"""

import asyncio
import re
from functools import partial
from typing import Any, Final
from urllib.parse import unquote

from service.api.access import Role
from service.api.exchange import Exchange
from service.api.lifecycle import Lifecycle, Reply
from service.api.protocols import ProtocolRoutes, error_reply, json_reply
from service.api.signatures import SERVING_DEFAULT
from service.codecs.options import NO_OPTIONS
from service.codecs.predict import decode_predict, encode_predictions
from service.codecs.tensors import shown
from service.errors import InvalidOption, ModelNotFound, NotFound, VersionNotFound, VersionNotLoaded
from service.runtime import ModelManager, ModelStatus, Target, VersionState, VersionStatus
from service.runtime.loaded_model import LoadedModel
from service.schemas import nbytes
from service.store import TensorSpec

METHOD_NAME: Final = "tensorflow/serving/predict"
_WHICH: Final = r"(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_RUN: Final = re.compile(rf"/v1/models/(?P<model>[^/:]+){_WHICH}:(?P<method>classify|regress|predict)", re.I | re.ASCII)
_SHOW: Final = re.compile(rf"/v1/models(?:/(?P<model>[^/:]+))?{_WHICH}(?:/(?P<metadata>metadata))?", re.I | re.ASCII)
_MAX_DIGITS: Final = 19
_MAX_PATH_SHOWN: Final = 200

_STATES: Final = {
    VersionState.AVAILABLE: "AVAILABLE",
    VersionState.LOADING: "LOADING",
    VersionState.FAILED: "END",
    VersionState.RETIRED: "END",
}
TYPES: Final = {"float32": "DT_FLOAT", "float64": "DT_DOUBLE", "bool": "DT_BOOL", "string": "DT_STRING"}
"""Names of dtypes where they are not ``DT_`` and the dtype's own."""


class ModelChoice:
    """Whom a request of this protocol names: a model, and perhaps a version or a label, which is an alias."""

    def __init__(self, manager: ModelManager, model: str, version: int | None, label: str | None) -> None:
        self._manager = manager
        self.model = model
        self.version = version
        self.label = label

    def acquire(self) -> LoadedModel:
        """
        Raises:
            ModelNotFound, InvalidOption: there is none, in the words of TensorFlow Serving.
            NotReady: no version of this model could be loaded yet.
        """
        try:
            self._require_name()
            return self._manager.acquire(Target(self.model, self.version, self.label))
        except (NotFound, VersionNotLoaded) as error:
            if self.label is not None:
                raise InvalidOption(f"Unrecognized servable version label: {shown(self.label)}") from error
            name = shown(self.model)
            which = f"Latest({name})" if self.version is None else f"Specific({name}, {self.version})"
            raise ModelNotFound(f"Servable not found for request: {which}") from error

    def statuses(self) -> tuple[ModelStatus, list[VersionStatus]]:
        """The model, and the versions that are asked for.

        Raises:
            ModelNotFound, VersionNotFound, InvalidOption: there are none.
        """
        try:
            self._require_name()
            model = self._manager.model(self.model)
        except NotFound as error:
            raise ModelNotFound(f"Could not find any versions of model {shown(self.model)}") from error
        version = self.version
        if self.label is not None:
            version = self._labelled(model)
        found = [status for status in model.versions if version in (None, status.version)]
        if not found:
            which = f"version {version}" if version is not None else "any versions"
            raise VersionNotFound(f"Could not find {which} of model {model.name}")
        return model, found

    def _require_name(self) -> None:
        if not self.model:  # the manager would take the default one
            raise ModelNotFound("The request names no model.")

    def _labelled(self, model: ModelStatus) -> int:
        label = self.label or ""
        if label not in model.aliases:
            raise InvalidOption(f"Unrecognized servable version label: {shown(label)}")
        return model.serving.get(label, model.aliases[label])


def checked_signature(loaded: LoadedModel, named: str) -> str:
    """The signature that a request names; none, or ``serving_default``, is the version's default one.

    Raises:
        InvalidOption: the version has no such signature.
    """
    signature = loaded.default_signature if named in ("", SERVING_DEFAULT) else named
    if signature not in loaded.signature_names:
        raise InvalidOption(f'Serving signature name: "{shown(named)}" not found in signature def')
    return signature


def state_of(status: VersionStatus) -> tuple[str, str, str]:
    """TensorFlow Serving's state of a version, with the error code and message that belong to it."""
    failed = status.state is VersionState.FAILED
    return _STATES[status.state], "UNKNOWN" if failed else "OK", (status.reason or "") if failed else ""


class TFServingRoutes(ProtocolRoutes):
    """Whatever begins with ``/v1/``."""

    def claims(self, path: str) -> bool:
        return path.startswith("/v1/")

    async def reply(self, exchange: Exchange) -> Reply | None:
        method = exchange.scope["method"]
        path = exchange.scope.get("raw_path", exchange.scope["path"].encode()).decode("latin-1")
        found = (_RUN if method == "POST" else _SHOW).fullmatch(path) if method in ("GET", "POST") else None
        if found is None:
            shown_path = "".join(one if "!" <= one <= "~" else "?" for one in path[:_MAX_PATH_SHOWN])
            return error_reply(400, f"Malformed request: {method[:16]} {shown_path}")
        choice = self._choice(found)
        if method == "POST":
            await self.serve(
                exchange, "predict", choice.acquire, partial(self._predict, exchange, found["method"].lower())
            )
            return None
        self._serving.access.check(exchange.headers, Role.CALLER)
        if found["model"] is None:
            return self._list(found)
        if found["metadata"]:
            return json_reply(await asyncio.to_thread(_metadata, choice.acquire()))
        return self._status(choice)

    def _choice(self, found: re.Match[str]) -> ModelChoice:
        if found["version"] is not None and len(found["version"]) > _MAX_DIGITS:
            raise InvalidOption("Failed to convert version to numeric.")
        version = None if found["version"] is None else int(found["version"])
        label = None if found["label"] is None else unquote(found["label"])
        return ModelChoice(self._serving.manager, unquote(found["model"] or ""), version, label)

    # --- predict ----------------------------------------------------------------------------------------------------

    async def _predict(self, exchange: Exchange, method: str, life: Lifecycle, loaded: LoadedModel) -> Reply:
        if method != "predict":
            kind = "classification" if method == "classify" else "regression"
            raise InvalidOption(
                f"Expected {kind} signature method_name to be tensorflow/serving/{method}. Was: {METHOD_NAME}"
            )
        settings = self._serving.settings
        life.deadline = asyncio.get_running_loop().time() + exchange.timeout_s(settings.request_timeout_ms)
        most = settings.max_json_bytes
        content = bytes(await self._serving.body(exchange, most, most, deadline=life.deadline))
        decode = partial(decode_predict, content, loaded.schema, model=loaded.name, limits=self._serving.limits)
        body = await life.stage("decode", decode, len(content))
        signature = checked_signature(loaded, body.signature)
        answer = await life.run(loaded, (signature,), body.rows, NO_OPTIONS, received=content)
        wanted = loaded.manifest.signatures[signature].outputs
        results = {name: answer.results[name] for name in sorted(wanted) if name in answer.results}
        accepted = exchange.headers.get(b"accept-encoding")
        return await life.stage(
            "encode",
            lambda: Reply(encode_predictions(results, by_row=body.by_row)).compressed(accepted),
            sum(map(nbytes, results.values())),
        )

    # --- what there is ----------------------------------------------------------------------------------------------

    def _list(self, found: re.Match[str]) -> Reply:
        if found["version"] or found["label"] or found["metadata"]:
            return error_reply(400, "Missing model name in request.")
        return json_reply({"models": list(self._serving.manager.models)})

    def _status(self, choice: ModelChoice) -> Reply:
        model, statuses = choice.statuses()
        listed = [_status_json(status) for status in sorted(statuses, key=lambda status: -status.version)]
        body: dict[str, Any] = {"model_version_status": listed}
        if not self._serving.settings.kserve_v1:
            return json_reply(body)
        ready = any(status.state is VersionState.AVAILABLE for status in statuses)
        return json_reply({**body, "name": model.name, "ready": ready}, 200 if ready else 503)


def _status_json(status: VersionStatus) -> dict[str, Any]:
    state, code, message = state_of(status)
    return {
        "version": str(status.version),
        "state": state,
        "status": {"error_code": code, "error_message": message},
    }


def _metadata(loaded: LoadedModel) -> dict[str, Any]:
    signatures = {SERVING_DEFAULT: loaded.default_signature} | {name: name for name in loaded.signature_names}
    return {
        "model_spec": {"name": loaded.name, "signature_name": "", "version": str(loaded.version)},
        "metadata": {
            "signature_def": {
                "signature_def": {key: _signature_json(loaded, key, name) for key, name in signatures.items()}
            }
        },
    }


def _signature_json(loaded: LoadedModel, key: str, name: str) -> dict[str, Any]:
    spec = loaded.manifest.signatures[name]
    return {
        "inputs": {each: _tensor_json(tensor, tensor_name(key, each)) for each, tensor in spec.inputs.items()},
        "outputs": {each: _tensor_json(tensor, tensor_name(key, each)) for each, tensor in spec.outputs.items()},
        "method_name": METHOD_NAME,
        "defaults": {},
    }


def tensor_name(signature: str, name: str) -> str:
    """A stand-in for the name of a tensor in the graph, which the manifest does not know."""
    return f"{signature}_{name}:0"


def type_name(dtype: str) -> str:
    return TYPES.get(dtype) or f"DT_{dtype.upper()}"


def _tensor_json(tensor: TensorSpec, name: str) -> dict[str, Any]:
    sizes = [{"size": str(-1 if size is None else size), "name": ""} for size in tensor.shape]
    return {"dtype": type_name(tensor.dtype), "tensor_shape": {"dim": sizes, "unknown_rank": False}, "name": name}
