"""Options of the query and of JSON."""

from typing import Any

import pytest

from service.codecs import Options, options_from_json, options_from_query
from service.errors import InvalidOption
from service.words import ANOMALY_SCORE, ENCODE
from tests.codecs.samples import IMAGE, MIXED


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, Options()),
        ({"threshold": "1.5"}, Options(threshold=1.5)),
        ({"threshold": "-2e-3", "explain": "6"}, Options(threshold=-0.002, explain=6)),
        ({"false_alarm_rate": ".05", "explain": "map"}, Options(false_alarm_rate=0.05, explain="map")),
        ({"false_discovery_rate": "0.1"}, Options(false_discovery_rate=0.1)),
        ({"passthrough": "true"}, Options(passthrough=True)),
        ({"passthrough": "0"}, Options(passthrough=False)),
    ],
)
def test_a_query_gives_options(query: dict[str, str], expected: Options) -> None:
    """Text becomes numbers."""
    found = options_from_query(query, schema=IMAGE, operation=ANOMALY_SCORE, passthrough_allowed=True)
    assert found == expected


@pytest.mark.parametrize(
    "query",
    [
        {"threshold": "nan"}, {"threshold": "inf"}, {"threshold": "1e39"}, {"threshold": "1_0"}, {"threshold": ""},
        {"threshold": "\u0661"}, {"threshold": "9" * 100}, {"false_alarm_rate": "0"}, {"false_alarm_rate": "1"},
        {"explain": "0"}, {"explain": "7"}, {"explain": "1.0"}, {"explain": "all"}, {"passthrough": "yes"},
        {"threshold": "1", "false_alarm_rate": "0.1"}, {"other": "1"}, {"Threshold": "1"},
        {"false_discovery_rate": "1"}, {"threshold": "1", "false_discovery_rate": "0.1"},
        {"false_alarm_rate": "0.1", "false_discovery_rate": "0.1"},
    ],
)  # fmt: skip
def test_wrong_queries_are_refused(query: dict[str, str]) -> None:
    """Values out of range, both thresholds, unknown names."""
    with pytest.raises(InvalidOption):
        options_from_query(query, schema=IMAGE, operation=ANOMALY_SCORE, passthrough_allowed=True)


def test_passthrough_is_for_arrow() -> None:
    """Elsewhere there is no such option."""
    with pytest.raises(InvalidOption):
        options_from_query({"passthrough": "true"}, schema=IMAGE, operation=ANOMALY_SCORE)
    passed = options_from_query({"passthrough": "1"}, schema=IMAGE, operation=ENCODE, passthrough_allowed=True)
    assert passed.passthrough


@pytest.mark.parametrize("name", ["threshold", "false_alarm_rate", "false_discovery_rate", "explain"])
def test_score_options_belong_to_anomaly_score(name: str) -> None:
    """The other operations refuse them."""
    with pytest.raises(InvalidOption, match="anomaly-score only"):
        options_from_query({name: "1"}, schema=IMAGE, operation=ENCODE)
    with pytest.raises(InvalidOption, match="anomaly-score only"):
        options_from_json({name: 1}, schema=IMAGE, operation=ENCODE)


@pytest.mark.parametrize(
    "values",
    [
        {"threshold": True}, {"threshold": "1"}, {"threshold": 1e39}, {"threshold": float("inf")}, {"threshold": [1]},
        {"false_alarm_rate": 0}, {"false_alarm_rate": 1.0}, {"explain": True}, {"explain": 1.0}, {"explain": 0},
        {"explain": 7}, {"explain": {}}, {"threshold": 1, "false_alarm_rate": 0.5}, {"other": None},
        {"false_discovery_rate": 0}, {"false_discovery_rate": "0.1"}, {"threshold": 1, "false_discovery_rate": 0.5},
    ],
)  # fmt: skip
def test_wrong_json_options_are_refused(values: dict[str, Any]) -> None:
    """Of another type or out of range."""
    with pytest.raises(InvalidOption):
        options_from_json(values, schema=IMAGE, operation=ANOMALY_SCORE)


def test_a_null_option_is_not_given() -> None:
    """As clients send it that always write all keys."""
    assert options_from_json({"threshold": None}, schema=IMAGE, operation=ANOMALY_SCORE) == Options()


def test_named_columns_have_no_map() -> None:
    """Their shares are asked for by number, up to all columns."""
    assert options_from_json({"explain": 5}, schema=MIXED, operation=ANOMALY_SCORE).explain == 5
    for value in ("map", 6):
        with pytest.raises(InvalidOption, match="from 1 to 5"):
            options_from_json({"explain": value}, schema=MIXED, operation=ANOMALY_SCORE)


@pytest.mark.parametrize("name", ["a b", "x" * 65, "\u00fc", "<script>", ""])
def test_odd_names_are_not_repeated(name: str) -> None:
    """A plain name helps the caller, anything else helps an attacker."""
    with pytest.raises(InvalidOption, match=r"^There is an option that is not known\.$"):
        options_from_json({name: 1}, schema=IMAGE, operation=ANOMALY_SCORE)
    with pytest.raises(InvalidOption, match="'plain_name'"):
        options_from_json({"plain_name": 1}, schema=IMAGE, operation=ANOMALY_SCORE)
