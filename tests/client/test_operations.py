"""The client against live services: every form of rows in, the same form out, in parts and in streams."""

import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from service.api.access import hash_key
from service.client import AnomalyScores, Client, InvalidRows, NotFound, ServiceError, Unauthenticated
from service.client.calls import PartLimits
from service.store import Store
from tests.api.samples import digits, in_columns, named, payments
from tests.client.conftest import COLUMNS
from tests.conftest import COLUMNS as PAYMENTS
from tests.fakes import load_fake, publish_fake
from tests.live import LiveService

Array = np.ndarray[Any, np.dtype[np.float32]]
FEW = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)

FORMS: dict[str, Callable[[Array], Any]] = {
    "array": lambda rows: rows,
    "float64, Fortran order": lambda rows: np.asfortranarray(rows.astype(np.float64)),
    "view": lambda rows: np.repeat(rows, 2, axis=0)[::2],
    "lists": lambda rows: rows.tolist(),
    "objects": lambda rows: [dict(zip(COLUMNS, row, strict=True)) for row in rows.tolist()],
    "columns": lambda rows: {name: rows[:, at] for at, name in enumerate(COLUMNS)},
    "columns of lists": lambda rows: {name: rows[:, at].tolist() for at, name in enumerate(COLUMNS)},
    "pandas": lambda rows: pd.DataFrame(rows, columns=list(COLUMNS), index=range(7, 7 + len(rows))),
    "pandas without names": pd.DataFrame,
    "polars": lambda rows: pl.DataFrame(rows, schema=list(COLUMNS)),
    "Arrow": lambda rows: pa.table({name: rows[:, at] for at, name in enumerate(COLUMNS)}),
    "Arrow batch": lambda rows: pa.record_batch({name: rows[:, at] for at, name in enumerate(COLUMNS)}),
}


@pytest.mark.parametrize("count", [2, 1000])
@pytest.mark.parametrize("form", FORMS)
def test_rows_in_every_form(named_client: Client, rows: Array, form: str, count: int) -> None:
    """Few in one request or many in parts, the scores are those of the rows, in order."""
    scored = named_client.anomaly_score(FORMS[form](rows[:count]))
    assert scored.scores.tolist() == list(range(count))
    assert scored.scores.dtype == scored.p_values.dtype == np.float32
    assert scored.is_anomaly.tolist() == [score > 3 for score in range(count)]
    assert (scored.model, scored.version, scored.threshold, scored.false_alarm_rate) == ("wells", 1, 3.0, 0.25)
    assert len(scored) == count
    assert named_client.encode(FORMS[form](rows[:count])).latents.shape == (count, 1)


@pytest.mark.parametrize("count", [2, 1000])
@pytest.mark.parametrize("form", FORMS)
def test_rows_come_back_in_their_form(named_client: Client, rows: Array, form: str, count: int) -> None:
    """Reconstructions and denoised rows are what the rows were: frame, table, array, lists."""
    given = FORMS[form](rows[:count])
    rebuilt = named_client.reconstruct(given)
    assert rebuilt.errors.shape == (count,)
    for back in (rebuilt.reconstructions, named_client.denoise(given).denoised):
        if isinstance(given, pd.DataFrame) and form == "pandas":
            pd.testing.assert_frame_equal(back, given * 0 + 1)
        elif isinstance(given, pl.DataFrame):
            assert back.equals(pl.DataFrame({name: [1.0] * count for name in COLUMNS}, schema_overrides=given.schema))
        elif isinstance(given, pa.Table | pa.RecordBatch):
            assert back.to_pydict() == {name: [1.0] * count for name in COLUMNS}
        elif isinstance(given, dict):
            assert {name: list(values) for name, values in back.items()} == {name: [1.0] * count for name in COLUMNS}
        elif form == "objects":
            assert back == [dict.fromkeys(COLUMNS, 1.0)] * count
        else:
            assert np.array_equal(back, np.ones((count, 2)))


def test_options_and_targets_are_passed_on(client: Client) -> None:
    """Threshold, false-alarm rate, explanations, versions."""
    assert client.anomaly_score(FEW, threshold=5.0).is_anomaly.tolist() == [False, True]
    assert client.anomaly_score(FEW, false_alarm_rate=0.5).false_alarm_rate == 0.5
    assert client.anomaly_score(FEW.tolist(), threshold=5.0).threshold == 5.0
    assert client.anomaly_score(FEW.tolist(), false_discovery_rate=0.6).false_discovery_rate == 0.6
    explained = client.anomaly_score(FEW, explain=1).contributions
    assert explained is not None
    assert [len(row) for row in explained] == [1, 1]
    assert explained[0][0].share == 0.5
    assert client.encode(FEW, model="pumps", version=1).version == 1
    assert client.encode(FEW, model="pumps").version == 2
    with pytest.raises(NotFound, match="alias"):
        client.encode(FEW, model="pumps", alias="nothing")


@pytest.mark.parametrize("few", [True, False])
def test_a_false_discovery_rate_is_for_all_rows(named_client: Client, rows: Array, few: bool) -> None:
    """Also where they are sent in parts, in the second of which alone all rows would be flagged."""
    rows = rows * 0
    rows[500:, 0] = 9
    given: Any = rows[490:510].tolist() if few else rows
    found = named_client.anomaly_score(given, false_discovery_rate=0.3)
    assert not found.is_anomaly.any()
    assert (found.threshold, found.false_alarm_rate, found.calibration_rows) == (math.inf, 0, 4)
    assert found.warning is not None
    assert f"Of {len(found)} rows at least {14 if few else 667} are flagged or none" in found.warning
    found = named_client.anomaly_score(given, false_discovery_rate=0.5)
    assert found.is_anomaly.tolist() == (found.scores == 9).tolist()
    assert (found.threshold, found.warning) == (9, None)
    assert len(found.to_pandas()) == len(found)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"version": 1}, "needs its model"),
        ({"model": "pumps", "version": 1, "alias": "stable"}, "not both"),
        ({"threshold": 1.0, "false_alarm_rate": 0.1}, "not both"),
        ({"false_alarm_rate": 0.1, "false_discovery_rate": 0.1}, "not both"),
        ({"timeout_s": 0}, "positive"),
        ({"treshold": 1.0}, "no option 'treshold'"),
    ],
)
def test_wrong_options_are_refused_at_once(client: Client, options: dict[str, Any], sentence: str) -> None:
    """Before anything is sent."""
    with pytest.raises((ValueError, TypeError), match=sentence):
        client.anomaly_score(FEW, **options)


@pytest.mark.parametrize("form", ["array", "lists", "objects", "columns", "pandas", "polars", "Arrow"])
def test_errors_name_the_callers_rows(named_client: Client, rows: Array, form: str) -> None:
    """Also in the second part, and where JSON has no infinity."""
    rows[777, 1] = np.inf
    with pytest.raises(InvalidRows) as refused:
        named_client.anomaly_score(FORMS[form](rows))
    assert [(problem.row, problem.column) for problem in refused.value.problems] == [(777, "flow")]
    assert "Row 777, column flow" in str(refused.value)
    with pytest.raises(InvalidRows) as refused:
        named_client.anomaly_score(FORMS[form](rows[770:780]))
    assert refused.value.problems[0].row == 7


def test_what_cannot_be_rows_is_refused(client: Client) -> None:
    """Generators, text, columns of several lengths, mixed columns; a mixed column is named."""
    for given in ((row for row in FEW), "text", 3, np.array(1.0), None):
        with pytest.raises(TypeError, match="Rows cannot be"):
            client.encode(given)
    with pytest.raises(ValueError, match="same length"):
        client.encode({"a": [1], "b": [1, 2]})
    with pytest.raises(TypeError, match="Column 'a' mixes"):
        client.encode(pd.DataFrame({"a": [1, "secret"]}))
    with pytest.raises(InvalidRows, match="no rows"):
        client.encode(FEW[:0])


def test_tables_of_results(named_client: Client, rows: Array) -> None:
    """pandas keeps the index; ``passthrough`` puts the rows' own columns beside; all three libraries agree."""
    frame = FORMS["pandas"](rows)
    scored = named_client.anomaly_score(frame, passthrough=True)
    table = scored.to_pandas()
    assert table.index.equals(frame.index)
    assert list(table) == ["scores", "p_values", "is_anomaly", *COLUMNS]
    assert table["pressure"].tolist() == frame["pressure"].tolist()
    assert scored.to_arrow().to_pylist() == scored.to_polars().to_dicts() == table.to_dict("records")
    assert list(named_client.anomaly_score(frame).to_pandas()) == ["scores", "p_values", "is_anomaly"]
    assert named_client.encode(frame).to_polars().columns == list(named_client.encode(frame).to_pandas())
    rebuilt = named_client.reconstruct(frame, passthrough=True).to_polars()
    assert rebuilt.columns == ["errors", *COLUMNS, "reconstruction.pressure", "reconstruction.flow"]
    explained = named_client.anomaly_score(rows[:3], explain=2)
    assert explained.to_arrow().column("contributions")[0].as_py()[0]["feature"] == "pressure"
    assert len(explained.to_pandas()) == 3
    with pytest.raises(ValueError, match="named columns"):
        named_client.anomaly_score(rows, passthrough=True).to_pandas()


def test_progress_is_told(
    named_service: LiveService, named_client: Client, rows: Array, capsys: pytest.CaptureFixture[str]
) -> None:
    """After each part: rows done, and all of them; or drawn."""
    told: list[tuple[int, int | None]] = []
    with Client(named_service.url, limits=PartLimits(rows=400)) as client:
        client.encode(rows, progress=lambda done, total: told.append((done, total)))
    assert told == [(400, 1000), (800, 1000), (1000, 1000)]
    named_client.encode(rows, progress=True)
    assert "1000/1000" in capsys.readouterr().err


def test_streams_answer_batch_by_batch(client: Client, rows: Array) -> None:
    """In order, whatever the sizes, with at most so many batches read ahead as may be under way."""
    read: list[int] = []

    def batches() -> Iterator[Array]:
        for at in range(20):
            read.append(at)
            yield rows[: 1 + at]

    ahead = []
    sizes = []
    for answered in client.stream("anomaly_score", batches()):
        sizes.append(len(answered))
        ahead.append(len(read) - len(sizes))
    assert sizes == list(range(1, 21))
    assert max(ahead) <= 4


def test_a_stream_may_be_left(client: Client, rows: Array) -> None:
    """Nothing is left behind that keeps ``close`` waiting, and the batches are not read on."""
    read: list[int] = []
    for _ in client.stream("encode", (read.append(at) or rows for at in range(100))):  # type: ignore[func-returns-value]
        break
    assert len(read) < 10


def test_errors_in_streams_name_the_row_of_the_batch(client: Client, rows: Array) -> None:
    """And the batches before have been answered."""
    bad = rows[:10].copy()
    bad[4, 0] = np.nan
    stream = client.stream("encode", [rows, bad])
    assert len(next(stream)) == 1000
    with pytest.raises(InvalidRows) as refused:
        next(stream)
    assert refused.value.problems[0].row == 4


def test_one_result_is_of_one_version(fake_store: Path, serve: Callable[..., LiveService], rows: Array) -> None:
    """A version published and promoted between two parts does not answer the second."""
    service = serve(fake_store, load=load_fake)
    with Client(service.url) as client:

        def batches() -> Iterator[Array]:
            yield rows
            publish_fake(Store(fake_store))
            service.service.manager.refresh()
            yield rows

        assert [found.version for found in client.stream("anomaly_score", batches())] == [2, 2]
        assert client.anomaly_score(rows).version == 3


def test_parts_are_as_large_as_the_service_takes(named_service: LiveService, rows: Array) -> None:
    """The service takes 500 rows: the first part of 1,000 is halved, and those after it are not larger."""
    sizes: list[int] = []
    with Client(named_service.url, concurrency=1) as client:
        client.encode(rows, progress=lambda done, _: sizes.append(done))
        assert sizes == [1000]
        sizes.clear()
        client.anomaly_score(np.concatenate([rows] * 20), progress=lambda done, _: sizes.append(done))
    assert np.diff(sizes).max() <= 500
    with Client(named_service.url, limits=PartLimits(rows=100)) as client:
        sizes.clear()
        client.encode(rows, progress=lambda done, _: sizes.append(done))
    assert sizes == list(range(100, 1001, 100))


def test_many_threads_share_a_client(client: Client, rows: Array) -> None:
    """Each gets its own answers."""
    found: dict[int, list[float]] = {}

    def ask(at: int) -> None:
        found[at] = client.anomaly_score(rows[at : at + 100]).scores.tolist()

    threads = [threading.Thread(target=ask, args=(at,)) for at in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {at: list(range(at, at + 100)) for at in range(20)}


def test_models_aliases_and_readiness(fake_store: Path, serve: Callable[..., LiveService]) -> None:
    """What is there, whether it answers, and moving an alias forth and back."""
    service = serve(fake_store, load=load_fake)
    with Client(service.url) as client:
        client.wait_until_ready()
        assert client.ready()
        (model,) = client.models()
        assert (model.name, model.default_version, model.aliases) == ("pumps", 2, {})
        assert [(version.version, version.state) for version in client.versions("pumps")] == [
            (1, "available"),
            (2, "available"),
        ]
        assert client.version("pumps", 1)["latent_dim"] == 1
        assert client.model("pumps")["version"]["version"] == 2
        assert client.promote("pumps", 1).previous is None
        assert client.promote("pumps", 2).previous == 1
        assert client.aliases("pumps") == {"production": 2}
        assert client.encode(FEW).version == 2
        back = client.rollback("pumps")
        assert (back.version, back.previous, back.serving) == (1, 2, 1)
        assert client.encode(FEW).version == 1
        with pytest.raises(NotFound, match="not pointed at another version"):
            client.rollback("pumps")
        assert client.delete_alias("pumps", "production").version is None
        client.anomaly_score(FEW)
        assert client.drift("pumps")["model"] == "pumps"
        assert client.drift("pumps", 1)["version"] == 1
        assert "autoencoder_requests_total{" in client.metrics()


def test_readiness_says_why_not() -> None:
    """Nobody there is an answer too, and waiting for it ends."""
    with Client("http://127.0.0.1:1") as nobody:
        assert not nobody.ready()
        assert nobody.readiness().reason == "The service does not answer."
        with pytest.raises(Exception, match="not ready"):
            nobody.wait_until_ready(0.2)


def test_a_key_is_sent(fake_store: Path, serve: Callable[..., LiveService]) -> None:
    """As a bearer token."""
    service = serve(fake_store, load=load_fake, key_hashes=[hash_key("secret")])
    with Client(service.url, key="secret") as client:
        assert client.encode(FEW).latents.shape == (2, 1)
    with Client(service.url) as stranger, pytest.raises(Unauthenticated) as refused:
        stranger.encode(FEW)
    assert isinstance(refused.value, ServiceError)
    assert refused.value.status == 401


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none", "auto"])
def test_bodies_may_be_compressed(named_service: LiveService, rows: Array, compression: Any) -> None:
    """Both ways, with the same answers."""
    with Client(named_service.url, compression=compression) as client:
        assert client.anomaly_score(rows).scores.tolist() == list(range(1000))


@pytest.mark.tf
def test_all_encodings_agree(service: LiveService) -> None:
    """JSON, npy and Arrow, few rows or many: the same scores to 1e-5."""
    rows = payments(300)
    with Client(service.url) as client:
        forms = [rows, rows.tolist(), named(rows), in_columns(rows), pd.DataFrame(rows, columns=list(PAYMENTS))]
        found = [client.anomaly_score(form, model="payments") for form in forms]
        single = [client.anomaly_score(rows[at : at + 1], model="payments").scores[0] for at in range(5)]
    for scored in found:
        np.testing.assert_allclose(scored.scores, found[0].scores, rtol=1e-5)
        np.testing.assert_allclose(scored.p_values, found[0].p_values, rtol=1e-5)
    np.testing.assert_allclose(single, found[0].scores[:5], rtol=1e-5)


@pytest.mark.tf
def test_real_models_answer_images_and_named_rows(service: LiveService) -> None:
    """Images as arrays; rows with named columns as frames; what a version was not trained for is a conflict."""
    with Client(service.url) as client:
        for count in (3, 100):
            assert client.reconstruct(digits(count)).reconstructions.shape == (count, 8, 8)
            assert client.denoise(digits(count)).denoised.shape == (count, 8, 8)
            maps = client.anomaly_score(digits(count), explain="map").error_maps
            assert maps is not None
            assert maps.shape == (count, 8, 8)
        scored: AnomalyScores = client.anomaly_score(digits(3), explain="map")
        assert len(scored.to_pandas()) == scored.to_arrow().num_rows == 3
        assert client.reconstruct(digits(3)).to_polars().shape == (3, 2)
        frame = pd.DataFrame(payments(100), columns=list(PAYMENTS))
        assert list(client.reconstruct(frame, model="payments").reconstructions) == list(PAYMENTS)
        assert list(client.denoise(frame, model="payments").denoised) == list(PAYMENTS)
