"""The KServe Python client: V1, V2 with JSON and binary tensors, and gRPC."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.api.samples import digits
from tests.compat.conftest import grpc_url
from tests.live import LiveService

pytestmark = [
    pytest.mark.tf,
    pytest.mark.skipif(find_spec("kserve") is None, reason="`make clients` installs what this drives"),
]

CALLS = Path(__file__).parent / "kserve_calls.py"


@pytest.fixture(scope="module")
def found(trained: LiveService) -> dict[str, Any]:
    rows = json.dumps(digits(3).tolist())
    command = [sys.executable, str(CALLS), trained.url, grpc_url(trained), rows]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    answers: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answers


@pytest.fixture(scope="module")
def own(trained: LiveService) -> dict[str, Any]:
    """What the service's own routes say of the same rows."""
    body = {"instances": digits(3).tolist()}
    scored: dict[str, Any] = trained.post("/anomaly-score", json=body).json()
    return {**scored, **trained.post("/encode", json=body).json()}


def test_v1(found: dict[str, Any], own: dict[str, Any]) -> None:
    """Ready, rows, and an error with its text."""
    assert found["v1"]["ready"] is True
    assert np.allclose([row["score"] for row in found["v1"]["predictions"]], own["scores"], rtol=1e-5)
    assert found["v1"]["unknown"] == [404, "Servable not found for request: Latest(nope)"]


def test_v2_health(found: dict[str, Any]) -> None:
    """The client reads bodies here, and statuses there."""
    health = {name: found["v2"][name] for name in ("live", "ready", "model_ready", "unknown_ready")}
    assert health == {"live": True, "ready": True, "model_ready": True, "unknown_ready": False}


@pytest.mark.parametrize("encoding", ["json", "binary"])
def test_v2_infer(found: dict[str, Any], own: dict[str, Any], encoding: str) -> None:
    """The same numbers as the service's own routes; flags by the caller's threshold."""
    answer = found["v2"][encoding]
    assert answer["model"] == "digits"
    assert np.allclose(answer["score"], own["scores"], rtol=1e-5)
    assert np.allclose(answer["latent"], own["latents"], rtol=1e-5, atol=1e-6)
    assert answer["is_anomaly"] == [score > 0.5 for score in own["scores"]]


def test_v2_error(found: dict[str, Any]) -> None:
    """The client shows the text of an error."""
    assert found["v2"]["wrong_output"].startswith("unexpected inference output 'x' for model 'digits'")


def test_grpc(found: dict[str, Any], own: dict[str, Any]) -> None:
    """KServe's client speaks the same service as Triton's."""
    answer = found["grpc"]
    assert answer["is_anomaly"] == [score > 0.5 for score in own["scores"]]
    assert answer["live"] is answer["ready"] is answer["model_ready"] is True
    assert np.allclose(answer["score"], own["scores"], rtol=1e-5)
    assert np.allclose(answer["latent"], own["latents"], rtol=1e-5, atol=1e-6)
