"""Call a running service from Python. Imports neither TensorFlow nor anything of the server.

with Client("http://127.0.0.1:8000") as service:
    answer = service.anomaly_score(rows)
    answer["scores"], answer["is_anomaly"]
"""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import orjson

try:
    import httpx2 as httpx
except ImportError:  # pragma: no cover - the maintained fork is preferred, its ancestor will do
    import httpx  # type: ignore[import-not-found, no-redef, unused-ignore]

Instances = np.ndarray[Any, Any] | Sequence[Any]


class ServiceError(Exception):
    """The service refused a request.

    ``status`` is the HTTP status, ``problem`` the whole problem object; ``problem["errors"]`` names rows and columns.
    """

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        self.status = status
        self.problem = problem
        super().__init__(f"{status} {problem.get('title', '')}: {problem.get('detail', '')}")


class Client:
    """One service, one connection pool. Use it as a context manager or ``close`` it."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        key: str | None = None,
        timeout_s: float = 10.0,
        transport: Any = None,
    ) -> None:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout_s, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def encode(self, instances: Instances, **target: Any) -> dict[str, Any]:
        """``latents``, an array (rows, latent width)."""
        return self._run("encode", instances, {}, **target)

    def reconstruct(self, instances: Instances, **target: Any) -> dict[str, Any]:
        """``reconstructions`` in the rows' own units, and ``errors`` (rows,)."""
        return self._run("reconstruct", instances, {}, **target)

    def denoise(self, instances: Instances, **target: Any) -> dict[str, Any]:
        """``denoised`` rows. Raises ServiceError 409 when the model was not trained for it."""
        return self._run("denoise", instances, {}, **target)

    def anomaly_score(
        self,
        instances: Instances,
        *,
        threshold: float | None = None,
        false_alarm_rate: float | None = None,
        explain: int | Literal["map"] | None = None,
        **target: Any,
    ) -> dict[str, Any]:
        """``scores`` (higher = more anomalous), ``p_values``, ``is_anomaly``, each (rows,), and what they rest on."""
        options = {"threshold": threshold, "false_alarm_rate": false_alarm_rate, "explain": explain}
        return self._run("anomaly-score", instances, options, **target)

    def ready(self) -> bool:
        try:
            return bool(self._http.get("/readyz").status_code == 200)
        except httpx.TransportError:
            return False

    def models(self) -> dict[str, Any]:
        return self._answer(self._http.get("/models"))

    def _run(
        self,
        operation: str,
        instances: Instances,
        options: Mapping[str, Any],
        *,
        model: str | None = None,
        version: int | None = None,
        alias: str | None = None,
    ) -> dict[str, Any]:
        if isinstance(instances, np.ndarray):
            instances = np.ascontiguousarray(instances)
        given = {name: value for name, value in options.items() if value is not None}
        body = orjson.dumps({"instances": instances, **given}, option=orjson.OPT_SERIALIZE_NUMPY)
        path = f"{_prefix(model, version, alias)}/{operation}"
        answer = self._answer(self._http.post(path, content=body, headers={"Content-Type": "application/json"}))
        return {name: _as_array(value) for name, value in answer.items()}

    @staticmethod
    def _answer(response: Any) -> dict[str, Any]:
        if response.status_code != 200:
            try:
                problem = orjson.loads(response.content)
            except orjson.JSONDecodeError:
                problem = {"title": response.reason_phrase}
            raise ServiceError(response.status_code, problem)
        answer: dict[str, Any] = orjson.loads(response.content)
        return answer


def _prefix(model: str | None, version: int | None, alias: str | None) -> str:
    if model is None:
        if version is not None or alias is not None:
            raise ValueError("A version or an alias needs its model.")
        return ""
    if version is not None:
        return f"/models/{model}/versions/{version}"
    return f"/models/{model}" if alias is None else f"/models/{model}/aliases/{alias}"


def _as_array(value: Any) -> Any:
    """Lists of numbers as arrays; rows of named columns stay lists of objects."""
    if not isinstance(value, list) or (value and isinstance(value[0], dict)) or _is_listing(value):
        return value
    return np.asarray(value)


def _is_listing(value: list[Any]) -> bool:
    """Contributions: lists of objects, one list a row."""
    return bool(value) and isinstance(value[0], list) and bool(value[0]) and isinstance(value[0][0], dict)


__all__ = ["Client", "ServiceError"]
