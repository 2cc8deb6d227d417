"""``autoencoder recalibrate``: the same networks and scores, with a threshold and a drift reference of other rows."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from service.cli import app
from service.errors import DataError
from service.runtime.loaded_model import open_version
from service.schemas import INSTANCES
from service.store import HISTORY, KERAS_MODEL, LATENT_MAP, MODEL_CARD, REPORT, TRAVERSALS, Store
from service.training.data import read_dataset
from service.training.gate import unseen_rows
from service.training.imported import import_config
from service.training.recalibrate import recalibrate
from service.training.split import Split
from tests.conftest import readings, table_rows, write_csv, write_series

pytestmark = [pytest.mark.tf, pytest.mark.slow]


def again(store: Path, model: str, source: object, **options: Any) -> Any:
    """Recalibrate without the check in a fresh process; the new version's manifest."""
    chosen: dict[str, Any] = {"source": str(source), **options.pop("source", {})}
    result = recalibrate(import_config(), source=chosen, store=store, model=model, verify=lambda _: None, **options)
    return Store(store).manifest(model, result.version)


def test_a_version_is_recalibrated(trained_store: Path, tmp_path: Path) -> None:
    """The same networks and scores, a threshold and a reference of other rows; the gate compares it."""
    store = shutil.copytree(trained_store, tmp_path / "store")
    rows = table_rows(800, seed=7)
    csv = write_csv(tmp_path / "recent.csv", rows)
    arguments = ["recalibrate", "payments", "--rows", csv, "--store", store, "--false-alarm-rate", 0.02]
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert "Version 2 is in production now: it is not worse than version 1." in done.output
    opened = Store(store)
    versions = [open_version(opened.path("payments", number), opened.manifest("payments", number)) for number in (1, 2)]
    old, new = (version.run("anomaly_score", {INSTANCES: rows[:50]}) for version in versions)
    np.testing.assert_allclose(new["score"], old["score"], rtol=1e-5)
    first, second = (version.manifest for version in versions)
    assert (second.calibrated.rows, second.calibrated.false_alarm_rate) == (320, 0.02)
    assert second.reference != first.reference
    assert (second.training["recalibrated"], second.source) == ("version 1", "recent.csv")
    assert {MODEL_CARD, REPORT, KERAS_MODEL, HISTORY} <= set(second.digests)
    assert set(second.signatures) == set(first.signatures)
    found = second.metrics["reconstruction_error"]["autoencoder"]["test"]
    assert found == pytest.approx(first.metrics["reconstruction_error"]["autoencoder"]["test"], rel=0.5)
    assert "pca" not in second.metrics["reconstruction_error"], "it would be fitted on scaled rows, which nobody has"
    card = Store(store).read_file("payments", 2, MODEL_CARD)
    assert card is not None
    assert "trained on payments.csv, taken from version 1" in card.decode()
    assert "calibrated with rows of recent.csv" in card.decode()
    third = again(store, "payments", csv)
    assert third.calibrated.false_alarm_rate == 0.02, "that of the version"
    assert third.training["fitted"] == second.training["fitted"]
    np.save(tmp_path / "narrow.npy", table_rows(40, seed=0)[:, :2])
    with pytest.raises(DataError):
        again(store, "payments", tmp_path / "narrow.npy")


def test_images_are_recalibrated(store: Path) -> None:
    """On the very rows of training with those that were held back then, and no others; what was drawn then stays."""
    opened = Store(store)
    first = opened.manifest("digits", 1)
    second = again(store, "digits", "digits", version=1, promotion="auto")
    assert second.version == 3
    assert (second.row_counts, second.source_sha256) == (first.row_counts, first.source_sha256)
    assert second.calibrated.scores == pytest.approx(first.calibrated.scores, rel=1e-3)
    assert second.metrics["test_alarm_rate"] == pytest.approx(first.metrics["test_alarm_rate"], abs=0.01)
    assert second.metrics["denoising"] == first.metrics["denoising"]
    assert {HISTORY, LATENT_MAP, TRAVERSALS, KERAS_MODEL} <= set(second.digests)
    comparison = second.metrics["comparison"]
    assert comparison["production"] == 2
    assert 0 < comparison["rows"] < second.row_counts.test, "of the test rows some were fitted by version 2"


def test_a_series_is_recalibrated(series_store: Path, tmp_path: Path) -> None:
    """Windows and points; its times and channels are found again."""
    store = shutil.copytree(series_store, tmp_path / "store")
    first = Store(store).manifest("boiler", 1)
    source = write_series(tmp_path / "later.csv", readings(1200, seed=5))
    second = again(store, "boiler", source)
    assert (second.input, second.point_scale is None) == (first.input, False)
    assert second.point_calibration is not None
    assert first.point_calibration is not None
    assert second.point_calibration.scores != first.point_calibration.scores
    assert second.calibrated.rows == second.row_counts.calibration
    rows = {INSTANCES: readings(first.input.row_shape[0], seed=9)[None]}
    old, new = (
        open_version(Store(store).path("boiler", each.version), each).run("anomaly_score", rows)
        for each in (first, second)
    )
    np.testing.assert_allclose(new["score"], old["score"], rtol=1e-5)


def test_rows_that_the_networks_know_are_no_test(store: Path, tmp_path: Path) -> None:
    """Whoever calibrated the version in production: what counts is what its networks were fitted on."""
    csv = write_csv(tmp_path / "recent.csv", table_rows(600, seed=7))
    manifest = again(store, "payments", csv)
    fitted = Store(store).manifest("payments", 1)
    rows, none = sum(fitted.row_counts.model_dump().values()), np.empty(0, np.intp)
    everything = Split(none, none, none, np.arange(rows))
    for known in (manifest, fitted):
        unseen = unseen_rows(known, everything, rows=rows, sha256=fitted.source_sha256)
        assert len(unseen) == fitted.row_counts.calibration + fitted.row_counts.test
    others = read_dataset(str(csv))
    assert len(unseen_rows(manifest, everything, rows=rows, sha256=others.sha256)) == rows
