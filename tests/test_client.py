"""The Python client against a live service."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from service.api.access import hash_key
from service.client import Client, ServiceError
from tests.api.samples import digits, named, payments
from tests.conftest import COLUMNS
from tests.fakes import load_fake
from tests.live import LiveService

Serve = Callable[..., LiveService]

ROWS = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)


@pytest.fixture
def client(fake_service: LiveService) -> Iterator[Client]:
    with Client(fake_service.url) as opened:
        yield opened


def test_operations_give_arrays(client: Client) -> None:
    """Each result is an array with one entry a row, beside the model that ran."""
    assert client.encode(ROWS)["latents"].tolist() == [[1.0], [3.0]]
    rebuilt = client.reconstruct(ROWS)
    assert rebuilt["reconstructions"].shape == (2, 2)
    assert rebuilt["errors"].shape == (2,)
    assert client.denoise(ROWS)["denoised"].shape == (2, 2)
    scored = client.anomaly_score(ROWS)
    assert scored["scores"].tolist() == [3.0, 7.0]
    assert scored["is_anomaly"].dtype == bool
    assert scored["model"] == {"name": "pumps", "version": 2}
    assert scored["threshold"] == 3.0


@pytest.mark.parametrize("rows", [ROWS, ROWS.tolist(), ROWS.astype(np.float64), np.asfortranarray(ROWS), ROWS[::1, :]])
def test_rows_may_be_arrays_or_lists(client: Client, rows: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> None:
    """Any memory order and width."""
    assert client.encode(rows)["latents"].tolist() == [[1.0], [3.0]]


def test_options_and_targets_are_passed_on(client: Client) -> None:
    """Threshold, false-alarm rate, explanations, versions."""
    assert client.anomaly_score(ROWS, threshold=5.0)["is_anomaly"].tolist() == [False, True]
    assert client.anomaly_score(ROWS, false_alarm_rate=0.5)["false_alarm_rate"] == 0.5
    explained = client.anomaly_score(ROWS, explain=1)["contributions"]
    assert [len(row) for row in explained] == [1, 1]
    assert client.encode(ROWS, model="pumps", version=1)["model"]["version"] == 1
    assert client.encode(ROWS, model="pumps")["model"]["version"] == 2
    with pytest.raises(ServiceError, match="alias"):
        client.encode(ROWS, model="pumps", alias="nothing")
    with pytest.raises(ValueError, match="needs its model"):
        client.encode(ROWS, version=1)


def test_refusals_are_errors_with_the_problem(client: Client) -> None:
    """Status, problem object, and a message with both."""
    with pytest.raises(ServiceError) as refused:
        client.encode([[1.0, "x"]])
    assert refused.value.status == 422
    assert refused.value.problem["errors"][0]["column"] == 1
    assert "422" in str(refused.value)


def test_models_and_readiness(client: Client) -> None:
    """What is there, and whether it answers."""
    assert client.ready()
    assert [model["name"] for model in client.models()["models"]] == ["pumps"]
    with Client("http://127.0.0.1:1") as nobody:
        assert not nobody.ready()


def test_a_key_is_sent(fake_store: Path, serve: Serve) -> None:
    """As a bearer token."""
    service = serve(fake_store, load=load_fake, key_hashes=[hash_key("secret")])
    with Client(service.url, key="secret") as client:
        assert client.encode(ROWS)["latents"].shape == (2, 1)
    with Client(service.url) as stranger, pytest.raises(ServiceError) as refused:
        stranger.encode(ROWS)
    assert refused.value.status == 401


@pytest.mark.tf
def test_real_models_answer_images_and_named_rows(service: LiveService) -> None:
    """Images as arrays; named columns stay objects in reconstructions and contributions."""
    with Client(service.url) as client:
        assert client.reconstruct(digits(3))["reconstructions"].shape == (3, 8, 8)
        assert client.anomaly_score(digits(2), explain="map")["error_maps"].shape == (2, 8, 8)
        rows = named(payments(2))
        rebuilt = client.reconstruct(rows, model="payments")["reconstructions"]
        assert [list(row) for row in rebuilt] == [list(COLUMNS)] * 2
        with pytest.raises(ServiceError) as refused:
            client.denoise(rows, model="payments")
        assert refused.value.status == 409
