"""The Open Inference Protocol (KServe V2, as Triton and MLServer speak it) over REST, under ``/v2``.

``infer`` with the binary tensor extension, and what there is: server, models, repository, statistics, configuration.
Sources: the protocol's REST document, and Triton's extensions for binary tensors, repository, statistics and
configuration.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np

from service import __version__
from service.api.access import Role
from service.api.exchange import Exchange
from service.api.lifecycle import Lifecycle, Reply
from service.api.protocols import OCTETS, ProtocolRoutes, error_reply, json_reply
from service.api.signatures import VersionStatistics, score_options
from service.codecs.infer import InferAnswer, InferBody, WantedOutput, decode_infer, encode_infer
from service.codecs.options import NO_OPTIONS
from service.codecs.tensors import BYTES, datatype_of, shown
from service.errors import (
    Conflict,
    InvalidOption,
    InvalidRows,
    MalformedInput,
    ModelNotFound,
    NotFound,
    NotReady,
    VersionNotFound,
    VersionNotLoaded,
)
from service.runtime import ModelManager, ModelStatus, Target, VersionState
from service.runtime.loaded_model import LoadedModel
from service.schemas import nbytes, row_count

SERVER_NAME: Final = "autoencoder-service"
PLATFORM: Final = "tensorflow_savedmodel"
EXTENSIONS: Final = ("binary_tensor_data", "model_repository", "statistics", "model_configuration", "parameters")
HEADER_LENGTH: Final = b"inference-header-content-length"
TIMEOUT: Final = "timeout"
"""Parameter of a request: microseconds; 0 stands for none."""

_MODEL: Final = r"/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?"
_NUMBER: Final = re.compile(r"[0-9]{1,18}", re.ASCII)
_MICROSECONDS: Final = 1e-6

STATES: Final = {
    VersionState.AVAILABLE: "READY",
    VersionState.LOADING: "LOADING",
    VersionState.FAILED: "UNAVAILABLE",
    VersionState.RETIRED: "UNAVAILABLE",
}


# --- what REST and gRPC share ---------------------------------------------------------------------------------------


def acquire(manager: ModelManager, model: str, version: str | None) -> LoadedModel:
    """The version that a request names by its number or by an alias; none: the default one.

    Raises:
        ModelNotFound, VersionNotFound: there is none, or it is not loaded.
        NotReady: no version of this model could be loaded yet.
    """
    try:
        if not model:
            raise ModelNotFound("The request names no model.")
        if not version:
            return manager.acquire(Target(model))
        is_number = _NUMBER.fullmatch(version)
        return manager.acquire(Target(model, int(version)) if is_number else Target(model, alias=version))
    except ModelNotFound as error:
        raise ModelNotFound(f"Request for unknown model: '{shown(model)}' is not found") from error
    except (NotFound, VersionNotLoaded) as error:
        which = f"'{shown(model)}' version {shown(version)}"
        raise VersionNotFound(f"Request for unknown model: {which} is not found") from error


def model_metadata(loaded: LoadedModel, status: ModelStatus) -> dict[str, Any]:
    """Inputs and outputs of a version, and the versions that answer."""
    return {
        "name": loaded.name,
        "versions": [str(version) for version in sorted(status.loaded)],
        "platform": PLATFORM,
        "inputs": [
            {"name": each.name, "datatype": each.datatype, "shape": each.shape} for each in loaded.schema.inputs
        ],
        "outputs": [
            {"name": name, "datatype": datatype_of(spec.dtype), "shape": [-1 if n is None else n for n in spec.shape]}
            for name, (_, spec) in loaded.outputs.items()
        ],
    }


def repository_index(manager: ModelManager, *, only_ready: bool) -> list[dict[str, str]]:
    return [
        {
            "name": model.name,
            "version": str(status.version),
            "state": STATES[status.state],
            "reason": status.reason or "",
        }
        for model in manager.models.values()
        for status in model.versions
        if not only_ready or status.state is VersionState.AVAILABLE
    ]


async def load_model(manager: ModelManager, model: str) -> None:
    """Look at the store now, and load what its policy wants of this model.

    Raises:
        ModelNotFound: the store has no such model.
        NotReady: none of its versions can be loaded.
    """
    await asyncio.to_thread(manager.refresh)
    try:
        status = manager.model(model)
    except ModelNotFound as error:
        raise ModelNotFound(f"failed to load '{shown(model)}', the store has no such model") from error
    if not status.loaded:
        reason = next((version.reason for version in reversed(status.versions) if version.reason), "no version")
        raise NotReady(f"load failed for model '{status.name}': {reason}")


def unload_model(manager: ModelManager, model: str) -> None:
    """Versions are unloaded when neither the store nor an alias wants them any more, and not by callers.

    Raises:
        ModelNotFound: the store has no such model.
        Conflict: it is loaded, and stays so.
    """
    try:
        status = manager.model(model)
    except ModelNotFound as error:
        raise ModelNotFound(f"failed to unload '{shown(model)}', the store has no such model") from error
    if status.loaded:
        raise Conflict(
            f"failed to unload '{status.name}': the store and its aliases decide what is loaded; "
            "delete its versions from the store"
        )


async def infer(
    life: Lifecycle, loaded: LoadedModel, body: InferBody, *, began: float, received: bytes | memoryview = b""
) -> InferAnswer:
    """Run the signatures that the outputs of a request belong to; of one that names none, the default one.

    ``began`` is when the request did, on the event loop's clock; ``received`` its body over HTTP.

    Raises:
        InvalidRows: an output that the version does not have, or one twice.
        InvalidOption: a parameter has a wrong value.
        AutoencoderError: as ``Lifecycle.run``.
    """
    started, known, statistics = time.perf_counter(), loaded.outputs, life.serving.statistics
    try:
        if body.outputs:
            for wanted in body.outputs:
                if wanted.name not in known:
                    name = shown(wanted.name)
                    raise InvalidRows([], f"unexpected inference output '{name}' for model '{loaded.name}'")
            if len({wanted.name for wanted in body.outputs}) < len(body.outputs):
                raise InvalidRows([], f"an output of model '{loaded.name}' is requested twice")
            outputs = body.outputs
            signatures = tuple(dict.fromkeys(known[wanted.name][0] for wanted in outputs))
        else:
            signatures = (loaded.default_signature,)
            outputs = tuple([WantedOutput(name, body.all_binary) for name in known if known[name][0] in signatures])
        options = score_options(body.parameters, loaded, signatures) if body.parameters else NO_OPTIONS
        timeout = body.parameters.get(TIMEOUT, 0)
        if type(timeout) is not int or timeout < 0:
            raise InvalidOption(f"parameter '{TIMEOUT}' must be a whole number of microseconds")
        if timeout:
            life.deadline = min(life.deadline, began + timeout * _MICROSECONDS)
        answer = await life.run(loaded, signatures, body.rows, options, received=received)
    except Exception:
        statistics.failed(loaded, seconds=time.perf_counter() - started)
        raise
    took_s = time.perf_counter() - started
    statistics.answered(loaded, rows=row_count(body.rows), runs=len(signatures), seconds=took_s)
    parameters = {
        # The shortest number that is read back as this float32.
        name: float(str(value)) if isinstance(value, np.float32) else value
        for name, value in answer.once.items()
        if value is not None
    }
    named = [(wanted, answer.results[wanted.name]) for wanted in outputs]
    return InferAnswer(loaded.name, loaded.version, body.id, parameters, named)


# --- REST -----------------------------------------------------------------------------------------------------------

Answering = Callable[["OIPRoutes", Exchange, re.Match[str]], Awaitable[Reply | None]]


@dataclass(frozen=True, slots=True)
class _Route:
    method: str
    pattern: re.Pattern[str]
    answering: Answering
    role: Role = Role.CALLER


class OIPRoutes(ProtocolRoutes):
    """``/v2`` and everything under it."""

    def claims(self, path: str) -> bool:
        return path == "/v2" or path.startswith("/v2/")

    async def reply(self, exchange: Exchange) -> Reply | None:
        path, method = exchange.scope["path"], exchange.scope["method"]
        allowed = []
        for route in _ROUTES:
            found = route.pattern.fullmatch(path)
            if found is None:
                continue
            if route.method == method:
                if route.role is not Role.ANYONE:
                    self._serving.access.check(exchange.headers, route.role)
                return await route.answering(self, exchange, found)
            allowed.append(route.method)
        if allowed:
            return error_reply(405, f"This route takes {allowed[0]} only.", [(b"allow", allowed[0].encode())])
        return error_reply(404, "There is no such route.")

    # --- the server -------------------------------------------------------------------------------------------------

    async def server(self, _exchange: Exchange, _found: re.Match[str]) -> Reply:
        return json_reply({"name": SERVER_NAME, "version": __version__, "extensions": list(EXTENSIONS)})

    async def live(self, _exchange: Exchange, _found: re.Match[str]) -> Reply:
        return json_reply({"live": True})

    async def ready(self, _exchange: Exchange, _found: re.Match[str]) -> Reply:
        reason = self._serving.not_ready_reason
        return json_reply({"ready": True}) if reason is None else error_reply(503, reason, [(b"retry-after", b"1")])

    async def models(self, _exchange: Exchange, _found: re.Match[str]) -> Reply:
        return json_reply({"models": list(self._serving.manager.models)})

    # --- a model ----------------------------------------------------------------------------------------------------

    def _loaded(self, found: re.Match[str]) -> LoadedModel:
        return acquire(self._serving.manager, found["model"], found["version"])

    async def model_ready(self, _exchange: Exchange, found: re.Match[str]) -> Reply:
        return json_reply({"name": self._loaded(found).name, "ready": True})

    async def model(self, _exchange: Exchange, found: re.Match[str]) -> Reply:
        loaded = self._loaded(found)
        return json_reply(model_metadata(loaded, self._serving.manager.model(loaded.name)))

    async def config(self, _exchange: Exchange, found: re.Match[str]) -> Reply:
        """Triton's model configuration, as far as it has a meaning here; the row's shape without the rows."""
        loaded = self._loaded(found)
        metadata = model_metadata(loaded, self._serving.manager.model(loaded.name))
        body: dict[str, Any] = {"name": loaded.name, "platform": PLATFORM}
        for kind in ("input", "output"):
            body[kind] = [
                {
                    "name": each["name"],
                    "data_type": f"TYPE_{'STRING' if each['datatype'] == BYTES else each['datatype']}",
                    "dims": each["shape"][1:] or [1],
                }
                for each in metadata[f"{kind}s"]
            ]
        return json_reply({**body, "max_batch_size": self._serving.settings.max_rows})

    async def statistics(self, _exchange: Exchange, found: re.Match[str]) -> Reply:
        groups = found.groupdict()
        if "model" not in groups:
            versions = [each for model in self._serving.manager.models.values() for each in model.loaded.values()]
        elif groups["version"] is None:
            self._loaded(found)  # its errors
            versions = list(self._serving.manager.model(groups["model"]).loaded.values())
        else:
            versions = [self._loaded(found)]
        return json_reply({"model_stats": [_stats(each, self._serving.statistics.of(each)) for each in versions]})

    async def infer(self, exchange: Exchange, found: re.Match[str]) -> None:
        await self.serve(exchange, "infer", lambda: self._loaded(found), partial(self._infer, exchange))

    async def _infer(self, exchange: Exchange, life: Lifecycle, loaded: LoadedModel) -> Reply:
        settings, limits = self._serving.settings, self._serving.limits
        began = asyncio.get_running_loop().time()
        life.deadline = began + exchange.timeout_s(settings.request_timeout_ms)
        announced = exchange.headers.get(HEADER_LENGTH)
        if announced is not None and (not announced.isdigit() or len(announced) > 18):
            raise MalformedInput("Inference-Header-Content-Length must be a whole number of bytes.")
        json_length = None if announced is None else int(announced)
        limit = settings.max_json_bytes if json_length is None else settings.max_body_bytes
        most = settings.max_json_bytes if json_length is None else settings.max_decoded_bytes
        begins = None if json_length is None else lambda _head: json_length
        content = await self._serving.body(exchange, limit, most, deadline=life.deadline, begins=begins)
        decode = partial(decode_infer, content, json_length, loaded.schema, model=loaded.name, limits=limits)
        body = await life.stage("decode", decode, len(content))
        answer = await infer(life, loaded, body, began=began, received=content)

        def encode() -> Reply:
            encoded, length = encode_infer(answer)
            binary: dict[str, Any] = {}
            if length is not None:
                binary = {"media_type": OCTETS, "headers": [(HEADER_LENGTH, b"%d" % length)]}
            return Reply(encoded, **binary).compressed(exchange.headers.get(b"accept-encoding"))

        return await life.stage("encode", encode, sum(nbytes(array) for _, array in answer.outputs))

    # --- the repository ---------------------------------------------------------------------------------------------

    async def index(self, exchange: Exchange, _found: re.Match[str]) -> Reply:
        only_ready = (await self.control_body(exchange)).get("ready", False)
        if type(only_ready) is not bool:
            raise InvalidOption("'ready' must be true or false.")
        return json_reply(repository_index(self._serving.manager, only_ready=only_ready))

    async def load(self, exchange: Exchange, found: re.Match[str]) -> Reply:
        parameters = (await self.control_body(exchange)).get("parameters") or {}
        if parameters:
            raise MalformedInput("A model is loaded as the store has it: 'parameters' are not supported.")
        await load_model(self._serving.manager, found["model"])
        return json_reply({"name": found["model"], "load": True})

    async def unload(self, exchange: Exchange, found: re.Match[str]) -> Reply:
        await self.control_body(exchange)
        unload_model(self._serving.manager, found["model"])
        return json_reply({"name": found["model"], "unload": True})


def _route(method: str, pattern: str, answering: Answering, role: Role = Role.CALLER) -> _Route:
    return _Route(method, re.compile(pattern), answering, role)


_ROUTES: Final = (
    _route("POST", f"{_MODEL}/infer", OIPRoutes.infer, Role.ANYONE),  # its lifecycle asks for the key, and counts it
    _route("GET", "/v2/health/live", OIPRoutes.live, Role.ANYONE),
    _route("GET", "/v2/health/ready", OIPRoutes.ready, Role.ANYONE),
    _route("GET", f"{_MODEL}/ready", OIPRoutes.model_ready),
    _route("GET", "/v2/?", OIPRoutes.server),
    _route("GET", "/v2/models/?", OIPRoutes.models),
    _route("GET", "/v2/models/stats", OIPRoutes.statistics),
    _route("GET", f"{_MODEL}/stats", OIPRoutes.statistics),
    _route("GET", f"{_MODEL}/config", OIPRoutes.config),
    _route("GET", _MODEL, OIPRoutes.model),
    _route("POST", "/v2/repository/index", OIPRoutes.index),
    _route("POST", "/v2/repository/models/(?P<model>[^/]+)/load", OIPRoutes.load, Role.ADMIN),
    _route("POST", "/v2/repository/models/(?P<model>[^/]+)/unload", OIPRoutes.unload, Role.ADMIN),
)


def _stats(loaded: LoadedModel, counted: VersionStatistics) -> dict[str, Any]:
    none = {"count": 0, "ns": 0}
    return {
        "name": loaded.name,
        "version": str(loaded.version),
        "last_inference": counted.last_ms,
        "inference_count": counted.rows,
        "execution_count": counted.runs,
        "inference_stats": {
            "success": {"count": counted.successes, "ns": counted.success_ns},
            "fail": {"count": counted.failures, "ns": counted.failure_ns},
            "queue": none,
            "compute_input": none,
            "compute_infer": {"count": counted.successes, "ns": counted.success_ns},
            "compute_output": none,
        },
        "batch_stats": [],
    }
