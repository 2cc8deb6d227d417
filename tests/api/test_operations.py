"""The four operations over HTTP, on real models: results, routes, options, and the meaning of a score."""

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.store import Store
from service.training.config import load_config
from tests.api.samples import (
    OPERATIONS,
    assert_problem,
    digits,
    in_columns,
    named,
    payments,
)
from tests.conftest import COLUMNS
from tests.live import LiveService

pytestmark = pytest.mark.tf

LATENT_DIM = int(load_config("demo").latent_dim or 0)
RESULTS: dict[str, dict[str, tuple[int, ...]]] = {
    "encode": {"latents": (LATENT_DIM,)},
    "reconstruct": {"reconstructions": (8, 8), "errors": ()},
    "denoise": {"denoised": (8, 8)},
    "anomaly-score": {"scores": (), "p_values": (), "is_anomaly": ()},
}
ONCE = {"anomaly-score": {"threshold", "false_alarm_rate"}}
ROUTES = {
    "": 2,
    "/models/digits": 2,
    "/models/digits/versions/1": 1,
    "/models/digits/versions/2": 2,
    "/models/digits/aliases/stable": 1,
}
TOLERANCE = 1e-5


def score(service: LiveService, model: str = "digits", **body: Any) -> dict[str, Any]:
    response = service.post(f"/models/{model}/anomaly-score", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def calibration_scores(trained_store: Path, model: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    store = Store(trained_store)
    return np.asarray(store.manifest(model, store.versions(model)[-1]).calibrated.scores, np.float32)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("prefix", ROUTES)
def test_every_operation_answers_on_every_route_form(service: LiveService, prefix: str, operation: str) -> None:
    """The result arrays of API.md, one entry a row, and the version that ran in the body and the headers."""
    response = service.post(f"{prefix}/{operation}", json={"instances": digits(3).tolist()})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    answer = response.json()
    assert set(answer) == {"model", *RESULTS[operation], *ONCE.get(operation, ())}
    for name, shape in RESULTS[operation].items():
        assert np.asarray(answer[name]).shape == (3, *shape)
    assert answer["model"] == {"name": "digits", "version": ROUTES[prefix]}
    assert response.headers["x-model-name"] == "digits"
    assert response.headers["x-model-version"] == str(ROUTES[prefix])
    assert response.headers["x-request-id"]


def test_versions_answer_differently(service: LiveService) -> None:
    """The version in the path is the one that runs."""
    body = {"instances": digits(1).tolist()}
    one, two = (service.post(f"/models/digits/versions/{number}/encode", json=body).json() for number in (1, 2))
    assert not np.allclose(one["latents"], two["latents"], rtol=0.01)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_rows_are_answered_in_their_order(service: LiveService, operation: str) -> None:
    """Entry i belongs to row i, whatever the order of the rows."""
    rows = digits(20)
    forth = service.post(f"/{operation}", json={"instances": rows.tolist()}).json()
    back = service.post(f"/{operation}", json={"instances": rows[::-1].tolist()}).json()
    for name in RESULTS[operation]:
        np.testing.assert_allclose(np.asarray(back[name])[::-1], forth[name], rtol=TOLERANCE, atol=1e-5)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_named_rows_columns_and_arrays_mean_the_same(service: LiveService, operation: str) -> None:
    """Rows as objects in any key order, as arrays, and column by column give one answer."""
    rows = payments(4)
    bodies: list[dict[str, Any]] = [
        {"instances": named(rows)},
        {"instances": [dict(reversed(row.items())) for row in named(rows)]},
        {"instances": rows.tolist()},
        {"inputs": in_columns(rows)},
    ]
    answers = [service.post(f"/models/payments/{operation}", json=body) for body in bodies]
    assert [answer.status_code for answer in answers] == [200] * 4
    assert all(answer.json() == answers[0].json() for answer in answers)


def test_inputs_of_a_model_without_columns_is_the_whole_array(service: LiveService) -> None:
    """``inputs`` and ``instances`` are the same where there are no columns."""
    rows = digits(2).tolist()
    by_rows = service.post("/encode", json={"instances": rows}).json()
    assert service.post("/encode", json={"inputs": rows}).json() == by_rows


def test_reconstructions_of_named_columns_are_named_columns_in_raw_units(service: LiveService) -> None:
    """Each reconstruction is an object with the model's columns, near the row that was sent."""
    rows = payments(50)
    answer = service.post("/models/payments/reconstruct", json={"instances": named(rows)}).json()
    assert all(list(row) == list(COLUMNS) for row in answer["reconstructions"])
    rebuilt = np.array([[row[name] for name in COLUMNS] for row in answer["reconstructions"]])
    assert (np.abs(rebuilt - rows).mean(axis=0) < 0.5 * rows.std(axis=0)).all()
    assert len(answer["errors"]) == 50


@pytest.mark.parametrize("level", [0.2, 1.0])
def test_a_table_is_denoised_though_it_was_trained_without_noise(service: LiveService, level: float) -> None:
    """Noise of any level: six columns with two causes behind them leave much of it to remove."""
    clean = payments(200)
    noise = level * np.random.default_rng(1).normal(size=clean.shape)
    noisy = named((clean + noise * clean.std(axis=0)).astype(np.float32))
    denoised = service.post("/models/payments/denoise", json={"instances": noisy}).json()["denoised"]
    left = np.array([[row[name] for name in COLUMNS] for row in denoised]) - clean
    assert np.mean(np.square(left / clean.std(axis=0))) < 0.6 * level**2


def test_missing_values_are_refused_where_the_schema_has_none(service: LiveService) -> None:
    """``null`` in a column that was never missing: 422 with the row and the column."""
    rows: list[dict[str, Any]] = [*named(payments(2))]
    rows[1]["age"] = None
    problem = assert_problem(service.post("/models/payments/anomaly-score", json={"instances": rows}), 422)
    assert problem["errors"] == [{"row": 1, "column": "age", "problem": "may not be missing"}]


# --- the meaning of a score -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["digits", "payments"])
def test_p_values_are_conformal(service: LiveService, trained_store: Path, model: str) -> None:
    """(1 + number of calibration scores >= score) / (calibration rows + 1), from the manifest's scores."""
    known = calibration_scores(trained_store, model)
    rows = digits(100) if model == "digits" else payments(100)
    answer = score(service, model, instances=rows.tolist())
    scores = np.asarray(answer["scores"], np.float32)
    expected = (1 + (known[None, :] >= scores[:, None]).sum(axis=1)) / (len(known) + 1)
    np.testing.assert_allclose(answer["p_values"], expected, rtol=1e-6)


@pytest.mark.parametrize("model", ["digits", "payments"])
@pytest.mark.parametrize("rate", [None, 0.001, 0.02, 0.25, 0.5])
def test_the_threshold_is_the_conformal_quantile(
    service: LiveService, trained_store: Path, model: str, rate: float | None
) -> None:
    """The k-th smallest calibration score, k = ceil((n + 1) * (1 - rate)); the version's own rate is 0.01."""
    known = np.sort(calibration_scores(trained_store, model))
    rows = digits(50) if model == "digits" else payments(50)
    options = {} if rate is None else {"false_alarm_rate": rate}
    answer = score(service, model, instances=rows.tolist(), **options)
    wanted = 0.01 if rate is None else rate
    rank = min(len(known), math.ceil((len(known) + 1) * (1 - wanted) - 1e-9))
    assert np.float32(answer["threshold"]) == known[rank - 1]
    assert answer["false_alarm_rate"] == wanted
    assert answer["is_anomaly"] == (np.asarray(answer["scores"], np.float32) > known[rank - 1]).tolist()


def test_a_given_threshold_is_echoed_and_strict(service: LiveService) -> None:
    """A row whose score is the threshold is no anomaly; just below its score it is."""
    rows = digits(5).tolist()
    own = score(service, instances=rows)["scores"][2]
    at = score(service, instances=rows, threshold=own)
    below = score(service, instances=rows, threshold=float(np.nextafter(np.float32(own), np.float32(-1))))
    assert at["threshold"] == own
    assert (at["is_anomaly"][2], below["is_anomaly"][2]) == (False, True)
    assert 0 <= at["false_alarm_rate"] <= 1


def test_the_versions_own_threshold_is_strict(service: LiveService) -> None:
    """Without an override the flags are those of the version's threshold, the same as when it is sent back."""
    rows = digits(300).tolist()
    own = score(service, instances=rows)
    again = score(service, instances=rows, threshold=own["threshold"])
    assert own["is_anomaly"] == again["is_anomaly"]


def test_threshold_and_false_alarm_rate_exclude_each_other(service: LiveService) -> None:
    """Both at once: 422."""
    body = {"instances": digits(1).tolist(), "threshold": 1.0, "false_alarm_rate": 0.1}
    assert_problem(service.post("/anomaly-score", json=body), 422)


@pytest.mark.parametrize(
    "options",
    [
        {"false_alarm_rate": 0},
        {"false_alarm_rate": 1},
        {"false_alarm_rate": "0.1"},
        {"false_discovery_rate": 1},
        {"false_discovery_rate": 0.1, "false_alarm_rate": 0.1},
        {"threshold": "high"},
        {"threshold": True},
        {"explain": 0},
        {"explain": 65},
        {"explain": 1.5},
        {"explain": "all"},
        {"unknown": 1},
    ],
)
def test_wrong_options_are_refused(service: LiveService, options: dict[str, Any]) -> None:
    """An option of a wrong value, or an unknown one: 422."""
    assert_problem(service.post("/anomaly-score", json={"instances": digits(1).tolist(), **options}), 422)


@pytest.mark.parametrize("operation", ["encode", "reconstruct", "denoise"])
def test_options_belong_to_anomaly_score(service: LiveService, operation: str) -> None:
    """The other operations have none: 422."""
    assert_problem(service.post(f"/{operation}", json={"instances": digits(1).tolist(), "threshold": 1.0}), 422)


def test_normal_rows_rarely_raise_an_alarm(service: LiveService) -> None:
    """On 4,000 normal rows kept from training the alarms at 0.05 are within sampling error of it."""
    answer = score(service, "payments", instances=payments(4000).tolist(), false_alarm_rate=0.05)
    # Calibration on 450 rows and 4,000 test rows: standard deviation about 0.011.
    assert abs(np.mean(answer["is_anomaly"]) - 0.05) < 0.035


def test_a_false_discovery_rate_chooses_the_flags(service: LiveService, trained_store: Path) -> None:
    """Benjamini-Hochberg over the rows of the request, by hand; the least score that is flagged is the threshold."""
    odd = payments(10)
    odd[:, 0] += 10_000
    rows = np.concatenate([payments(90), odd])
    p_values = np.array(score(service, "payments", instances=rows.tolist())["p_values"])
    ranks = (p_values[:, None] >= p_values[None, :]).sum(axis=1)
    within = p_values[p_values <= 0.2 * ranks / len(rows) + 1e-9]
    expected = p_values <= within.max()
    assert expected[-10:].all()
    assert 0 < expected.sum() < len(rows)
    answer = score(service, "payments", instances=rows.tolist(), false_discovery_rate=0.2)
    assert answer["is_anomaly"] == expected.tolist()
    scores = np.array(answer["scores"], np.float32)
    assert np.float32(answer["threshold"]) == scores[expected].min()
    known = calibration_scores(trained_store, "payments")
    assert (answer["false_discovery_rate"], answer["calibration_rows"]) == (0.2, len(known))
    assert answer["false_alarm_rate"] == np.mean(known >= scores[expected].min())
    assert "warning" not in answer


def test_too_few_calibration_rows_are_said(service: LiveService, trained_store: Path) -> None:
    """No row can be flagged at so low a false discovery rate: the answer says why, and has no threshold."""
    rows = payments(3)
    rows[:, 0] += 10_000
    answer = score(service, "payments", instances=rows.tolist(), false_discovery_rate=0.0001)
    assert (answer["threshold"], answer["false_alarm_rate"], any(answer["is_anomaly"])) == (None, 0, False)
    assert f"with {len(calibration_scores(trained_store, 'payments'))} no p-value is under" in answer["warning"]
    assert "0.0001 needs 9999 for any row to be flagged" in answer["warning"]


def test_a_stream_has_no_false_discovery_rate(service: LiveService) -> None:
    """Lines are answered before the last one is there: 422 and a sentence."""
    response = service.post(
        "/models/payments/anomaly-score?false_discovery_rate=0.1",
        content=b"[1,2,3,4,5,6]\n",
        headers={"Content-Type": "application/x-ndjson"},
    )
    assert_problem(response, 422)
    assert "a stream is answered line by line" in response.json()["detail"]


def test_damaged_rows_score_higher(service: LiveService) -> None:
    """Higher = more anomalous: noise in the image raises the score of every digit."""
    clean = digits(50)
    noise = np.random.default_rng(0).uniform(0, 16, clean.shape).astype(np.float32)
    assert (
        np.asarray(score(service, instances=noise.tolist())["scores"])
        > np.asarray(score(service, instances=clean.tolist())["scores"])
    ).all()


# --- explain ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", COLUMNS)
def test_the_column_at_fault_contributes_most(service: LiveService, column: str) -> None:
    """A row with one column far off is explained by that column, with what was observed and what was expected."""
    rows, at = payments(5), COLUMNS.index(column)
    usual = rows[:, at].copy()
    rows[:, at] += np.float32(6 * payments(1000).std(axis=0)[at])
    answer = score(service, "payments", instances=named(rows), explain=2)
    for row, contributions in enumerate(answer["contributions"]):
        assert len(contributions) == 2
        first = contributions[0]
        assert set(first) == {"feature", "observed", "expected", "share"}
        assert first["feature"] == column
        assert np.float32(first["observed"]) == rows[row, at]
        assert abs(first["expected"] - usual[row]) < abs(first["expected"] - rows[row, at])


@pytest.mark.parametrize(("model", "features"), [("payments", 6), ("digits", 64)])
def test_shares_of_all_features_sum_to_one(service: LiveService, model: str, features: int) -> None:
    """With k = all features the shares are sorted, not negative, and sum to 1; with fewer, the largest of them."""
    rows = (payments(3) if model == "payments" else digits(3)).tolist()
    everything = score(service, model, instances=rows, explain=features)["contributions"]
    for row in everything:
        shares = [entry["share"] for entry in row]
        assert len(row) == len({str(entry["feature"]) for entry in row}) == features
        assert shares == sorted(shares, reverse=True)
        assert min(shares) >= 0
        assert sum(shares) == pytest.approx(1, abs=1e-5)
    few = score(service, model, instances=rows, explain=3)["contributions"]
    assert [[entry["feature"] for entry in row] for row in few] == [
        [entry["feature"] for entry in row[:3]] for row in everything
    ]


def test_explain_map_gives_the_error_map_of_an_image(service: LiveService) -> None:
    """One share for each pixel, and no contributions; the changed pixel has the largest."""
    image = digits(1)
    image[0, 0, 0] = 16
    answer = score(service, instances=image.tolist(), explain="map")
    maps = np.asarray(answer["error_maps"])
    assert "contributions" not in answer
    assert maps.shape == (1, 8, 8)
    assert maps.sum() == pytest.approx(1, abs=1e-5)
    assert np.unravel_index(maps[0].argmax(), (8, 8)) == (0, 0)


def test_there_is_no_error_map_of_named_columns(service: LiveService) -> None:
    """``"explain": "map"`` is for images: 422."""
    body = {"instances": named(payments(1)), "explain": "map"}
    assert_problem(service.post("/models/payments/anomaly-score", json=body), 422)


def test_explaining_does_not_change_the_score(service: LiveService) -> None:
    """The scores beside contributions are those without them."""
    rows = digits(2).tolist()
    explained = score(service, instances=rows, explain=4)
    del explained["contributions"]
    assert explained == score(service, instances=rows)


# --- one row, one answer ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["digits", "payments"])
def test_a_row_scores_the_same_alone_in_a_batch_and_in_a_bare_savedmodel(
    service: LiveService, trained_store: Path, model: str
) -> None:
    """Score, p-value and flag agree to 1e-5 relative: alone, in 1,000 rows, and through ``tf.saved_model.load``."""
    import tensorflow as tf

    rows = digits(1000) if model == "digits" else payments(1000)
    batch = score(service, model, instances=rows.tolist())
    version = trained_store / model / str(batch["model"]["version"])
    bare_model = tf.saved_model.load(str(version))
    bare = bare_model.signatures["serving_default"](instances=tf.constant(rows))
    np.testing.assert_allclose(batch["scores"], bare["score"].numpy(), rtol=TOLERANCE)
    np.testing.assert_allclose(batch["p_values"], bare["p_value"].numpy(), rtol=TOLERANCE)
    assert batch["is_anomaly"] == bare["is_anomaly"].numpy().tolist()
    for at in (0, 1, 499, 999):
        alone = score(service, model, instances=rows[at : at + 1].tolist())
        assert alone["scores"][0] == pytest.approx(batch["scores"][at], rel=TOLERANCE)
        assert alone["p_values"][0] == pytest.approx(batch["p_values"][at], rel=TOLERANCE)


def test_concurrent_mixed_requests_each_get_their_own_answer(service: LiveService) -> None:
    """400 requests at once over operations, versions and models: each equals the same request on an idle service."""
    random = np.random.default_rng(0)
    requests: list[tuple[str, Any]] = []
    for _ in range(40):
        version, count, at = (int(random.integers(*limits)) for limits in ((1, 3), (1, 9), (0, 900)))
        operation = OPERATIONS[random.integers(4)]
        requests.append((f"/models/digits/versions/{version}/{operation}", digits(1000)[at : at + count].tolist()))
        operation = OPERATIONS[random.integers(4)]
        requests.append((f"/models/payments/{operation}", payments(1000)[at : at + count].tolist()))
    expected = [service.post(path, json={"instances": rows}).json() for path, rows in requests]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda request: service.post(request[0], json={"instances": request[1]}), requests * 5))
    for at, response in enumerate(answers):
        assert response.status_code == 200
        assert_close(response.json(), expected[at % len(expected)])


def assert_close(answer: Any, expected: Any) -> None:
    """The same, numbers within the tolerance."""
    if isinstance(expected, dict):
        assert answer.keys() == expected.keys()
        for name, value in expected.items():
            assert_close(answer[name], value)
    elif isinstance(expected, list) and expected and isinstance(expected[0], dict | list):
        assert len(answer) == len(expected)
        for one, other in zip(answer, expected, strict=True):
            assert_close(one, other)
    elif isinstance(expected, str):
        assert answer == expected
    else:
        np.testing.assert_allclose(answer, expected, rtol=TOLERANCE, atol=1e-4)
