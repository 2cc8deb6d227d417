"""Answers in JSON and NDJSON."""

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.codecs import Answer, decode_json, encode_json, encode_ndjson
from service.schemas import MISSING_TIMESTAMP, InputSchema
from service.words import ANOMALY_SCORE, DENOISE, ENCODE, RECONSTRUCT, Operation
from tests.codecs.samples import IMAGE, MIXED, NUMBERS, VECTOR, same_rows

VALUES = np.arange(12, dtype=np.float32).reshape(2, 2, 3) / 8
SCORES = {
    "score": np.array([0.1, 2], np.float32),
    "p_value": np.array([0.5, 0.25], np.float32),
    "is_anomaly": np.array([False, True]),
}


EXPLAINED = {"contribution", "expected", "expected_categories", "expected_timestamps"}


def answer(schema: InputSchema, operation: Operation, results: dict[str, Any], **more: Any) -> Answer:
    more["explained"] = {name: more.pop(name) for name in EXPLAINED & more.keys()}
    return Answer(operation=operation, schema=schema, model="payments", version=3, results=results, **more)


def test_scores() -> None:
    """Arrays for the rows, and once what belongs to all of them."""
    body = encode_json(
        answer(VECTOR, ANOMALY_SCORE, SCORES, once={"threshold": np.float32(0.1), "false_alarm_rate": 0.01})
    )
    assert body == (
        b'{"model":{"name":"payments","version":3},"scores":[0.1,2.0],"p_values":[0.5,0.25],"is_anomaly":[false,true],'
        b'"threshold":0.1,"false_alarm_rate":0.01}'
    )


@given(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
)
def test_printed_scores_compare_as_scores_do(score: float, threshold: float) -> None:
    """Whoever compares the numbers of the answer finds what ``is_anomaly`` says."""
    with np.errstate(over="ignore"):
        below = np.nextafter(np.float32(score), np.float32(-np.inf))
    for limit in (threshold, score, below):
        if not np.isfinite(limit):
            continue
        results = SCORES | {"score": np.array([score], np.float32)}
        once = {"threshold": np.float32(limit)}
        printed = orjson.loads(encode_json(answer(VECTOR, ANOMALY_SCORE, results, once=once)))
        assert (printed["scores"][0] > printed["threshold"]) == (np.float32(score) > np.float32(limit))


def test_arrays_of_any_shape() -> None:
    """Latents, and reconstructions with their errors."""
    body = orjson.loads(encode_json(answer(IMAGE, ENCODE, {"latent": VALUES[:, 0]})))
    assert body == {"model": {"name": "payments", "version": 3}, "latents": VALUES[:, 0].tolist()}
    results = {"reconstruction": VALUES, "error": np.ones(2, np.float32)}
    body = orjson.loads(encode_json(answer(IMAGE, RECONSTRUCT, results)))
    assert body["reconstructions"] == VALUES.tolist()
    assert body["errors"] == [1, 1]


def test_named_reconstructions_are_objects() -> None:
    """In the schema's order, booleans and labels as such, missing values as null."""
    results = {
        "denoised": np.array([[1.5, 0.8], [-2, 0.1], [0.1, np.nan]], np.float32),
        "denoised_categories": np.array([[b"DE", b"a,b"], [b"", b'"'], [b"FR", b"a,b"]], dtype=object),
        "denoised_timestamps": np.array([[1704164645000], [0], [MISSING_TIMESTAMP]]),
    }
    body = encode_json(answer(MIXED, DENOISE, results))
    assert list(orjson.loads(body)["denoised"][0]) == [column.name for column in MIXED.columns]
    assert orjson.loads(body)["denoised"] == [
        {"country": "DE", "amount": 1.5, "at": "2024-01-02T03:04:05.000Z", "active": True, "kind": "a,b"},
        {"country": None, "amount": -2, "at": "1970-01-01T00:00:00.000Z", "active": False, "kind": '"'},
        {"country": "FR", "amount": 0.1, "at": None, "active": None, "kind": "a,b"},
    ]


def test_named_reconstructions_are_rows_again() -> None:
    """They can be sent back as they are."""
    results = {
        "denoised": np.array([[1.1, 1], [2, np.nan]], np.float32),
        "denoised_categories": np.array([[b"DE", b"a"], [b"", b"b"]], dtype=object),
        "denoised_timestamps": np.array([[1704164645123], [MISSING_TIMESTAMP]]),
    }
    objects = orjson.loads(encode_json(answer(MIXED, DENOISE, results)))["denoised"]
    rows, _ = decode_json(orjson.dumps({"instances": objects}), MIXED, operation=ENCODE)
    assert same_rows(
        rows,
        {name.removeprefix("denoised_").replace("denoised", "instances"): array for name, array in results.items()},
    )


def test_one_named_row_looks_like_one_of_many() -> None:
    """Its shorter way gives the same bytes."""
    results = {"reconstruction": np.array([[1.5, 2, 1]] * 2, np.float32), "error": np.ones(2, np.float32)}
    many = orjson.loads(encode_json(answer(NUMBERS, RECONSTRUCT, results)))
    one = orjson.loads(encode_json(answer(NUMBERS, RECONSTRUCT, {name: a[:1] for name, a in results.items()})))
    assert many["reconstructions"][0] == one["reconstructions"][0] == {"amount": 1.5, "age": 2, "active": True}


def test_contributions() -> None:
    """The largest shares first, ties in the order of the features."""
    more: dict[str, Any] = {
        "rows": {"instances": np.array([[7, np.nan, 1], [1, 2, 0]], np.float32)},
        "contribution": np.array([[0.25, 0.5, 0.25], [0, 0.1, 0.9]], np.float32),
        "expected": np.array([[1.5, 2, 0.1], [1, 2, 1]], np.float32),
    }
    body = orjson.loads(encode_json(answer(NUMBERS, ANOMALY_SCORE, SCORES, explain=2, **more)))
    assert body["contributions"] == [
        [
            {"feature": "age", "observed": None, "expected": 2, "share": 0.5},
            {"feature": "amount", "observed": 7, "expected": 1.5, "share": 0.25},
        ],
        [
            {"feature": "active", "observed": False, "expected": True, "share": 0.9},
            {"feature": "age", "observed": 2, "expected": 2, "share": 0.1},
        ],
    ]


def test_contributions_of_categories_and_times() -> None:
    """Their features follow those of the numbers."""
    more: dict[str, Any] = {
        "rows": {
            "instances": np.array([[7, 1]], np.float32),
            "categories": np.array([[b"", b"a"]], dtype=object),
            "timestamps": np.array([[1704164645000]]),
        },
        "contribution": np.array([[0.1, 0, 0.2, 0.3, 0.4]], np.float32),
        "expected": np.array([[1.5, 2]], np.float32),
        "expected_categories": np.array([[b"DE", b"b"]], dtype=object),
        "expected_timestamps": np.array([[1704164646000]]),
    }
    body = orjson.loads(encode_json(answer(MIXED, ANOMALY_SCORE, SCORES, explain=4, **more)))
    found = [(entry["feature"], entry["observed"], entry["expected"]) for entry in body["contributions"][0]]
    assert found == [
        ("at", "2024-01-02T03:04:05.000Z", "2024-01-02T03:04:06.000Z"),
        ("kind", "a", "b"),
        ("country", None, "DE"),
        ("amount", 7, 1.5),
    ]


@pytest.mark.parametrize(("schema", "feature"), [(VECTOR, 3), (IMAGE, [1, 0])])
def test_unnamed_features_are_indices(schema: InputSchema, feature: Any) -> None:
    """A number in one dimension, a list of them in more."""
    contribution = np.zeros((1, *schema.row_shape), np.float32)
    contribution.reshape(-1)[3] = 1
    more: dict[str, Any] = {"contribution": contribution, "expected": contribution, "rows": {"instances": contribution}}
    body = orjson.loads(encode_json(answer(schema, ANOMALY_SCORE, SCORES, explain=1, **more)))
    assert body["contributions"] == [[{"feature": feature, "observed": 1, "expected": 1, "share": 1}]]


def test_the_largest_of_many_features() -> None:
    """The largest first, ties in the order of the features."""
    shares = np.random.default_rng(0).integers(0, 50, (20, 784)).astype(np.float32)
    schema = InputSchema(kind="image", row_shape=(784,))
    more: dict[str, Any] = {"contribution": shares, "expected": shares, "rows": {"instances": shares}}
    body = orjson.loads(encode_json(answer(schema, ANOMALY_SCORE, SCORES, explain=5, **more)))
    for row, entries in zip(shares, body["contributions"], strict=True):
        assert [entry["share"] for entry in entries] == sorted(row.tolist(), reverse=True)[:5]
        assert [entry["feature"] for entry in entries] == np.argsort(-row, kind="stable")[:5].tolist()


def test_an_error_map() -> None:
    """Has the row's shape."""
    body = orjson.loads(encode_json(answer(IMAGE, ANOMALY_SCORE, SCORES, explain="map", contribution=VALUES)))
    assert body["error_maps"] == VALUES.tolist()


def test_ndjson_is_one_object_a_line() -> None:
    """With the signature's names for what one row has."""
    assert encode_ndjson(answer(VECTOR, ANOMALY_SCORE, SCORES, once={"threshold": 1.0})) == (
        b'{"score":0.1,"p_value":0.5,"is_anomaly":false}\n{"score":2.0,"p_value":0.25,"is_anomaly":true}\n'
    )
    assert encode_ndjson(answer(IMAGE, ENCODE, {"latent": VALUES[:1, 0]})) == b'{"latent":[0.0,0.125,0.25]}\n'
    results = {"reconstruction": np.array([[1.5, 2, 1]], np.float32), "error": np.ones(1, np.float32)}
    assert encode_ndjson(answer(NUMBERS, RECONSTRUCT, results)) == (
        b'{"reconstruction":{"amount":1.5,"age":2.0,"active":true},"error":1.0}\n'
    )
    more: dict[str, Any] = {"contribution": VALUES, "expected": VALUES, "rows": {"instances": VALUES}}
    lines = encode_ndjson(answer(IMAGE, ANOMALY_SCORE, SCORES, explain=1, **more)).splitlines()
    assert orjson.loads(lines[1])["contributions"] == [
        {"feature": [1, 2], "observed": 1.375, "expected": 1.375, "share": 1.375}
    ]
    lines = encode_ndjson(answer(IMAGE, ANOMALY_SCORE, SCORES, explain="map", **more)).splitlines()
    assert orjson.loads(lines[1])["error_map"] == VALUES[1].tolist()


def test_odd_arrays_are_encoded() -> None:
    """Views, other memory orders and non-finite numbers do not break an answer."""
    latent = np.asfortranarray(VALUES[:, 0])[:, ::2].copy(order="F")
    latent[0, 0] = np.nan
    assert orjson.loads(encode_json(answer(IMAGE, ENCODE, {"latent": latent})))["latents"][0] == [None, 0.25]
