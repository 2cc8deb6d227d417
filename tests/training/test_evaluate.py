"""Metrics with their baseline, and the warnings that they lead to."""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from service.schemas import take_rows
from service.store import Calibration
from service.training import load_config

if TYPE_CHECKING:
    from service.training.train import TrainedModel

pytestmark = pytest.mark.tf


def test_pca_error_is_what_the_small_eigenvalues_leave(table_model: "TrainedModel") -> None:
    """The baseline's training error is the variance outside of its components, by numpy's own eigenvalues."""
    rows = table_model.dataset.rows["instances"][table_model.split.train].astype(np.float64)
    eigenvalues = np.linalg.eigvalsh(np.corrcoef(rows.T))
    assert table_model.metrics.pca.train == pytest.approx(eigenvalues[:-2].sum() / 6, rel=1e-3)


def test_autoencoder_errors_are_of_their_splits(table_model: "TrainedModel") -> None:
    """The recorded error of the test rows is the mean of their reconstruction errors."""
    rows = take_rows(table_model.dataset.rows, table_model.split.test)
    error = table_model.graph.reconstruct(rows)["error"].numpy().mean()
    assert table_model.metrics.autoencoder.test == pytest.approx(error, rel=1e-5)


def test_denoising_is_measured_on_images(digits_model: "TrainedModel") -> None:
    """Noise of the trained level costs what it should, and the model removes some of it."""
    denoising = digits_model.metrics.denoising
    assert denoising is not None
    assert denoising.denoised < denoising.noisy < digits_model.config.corruption_level**2
    assert denoising.noisy_psnr_db == pytest.approx(-10 * np.log10(denoising.noisy))


def test_warnings(table_model: "TrainedModel") -> None:
    """Overfitting, a baseline not beaten, nothing learnt, false alarms far from the rate that was asked for, too few
    calibration rows; none where all is well."""
    from service.training.evaluate import Denoising, Errors, Metrics, find_warnings

    fine = replace(
        table_model.metrics, autoencoder=Errors(1, 1, 1), pca=Errors(2, 2, 2), test_alarm_rate=0.01, best_epoch=5
    )
    enough, config = table_model.calibration, load_config()

    def warned(metrics: Metrics, calibration: Calibration = enough, *, rows: int = 2000) -> str:
        return " ".join(find_warnings(metrics, calibration, config, test_rows=rows))

    assert warned(fine) == ""
    assert "Overfitting" in warned(replace(fine, autoencoder=Errors(1, 1.5, 1.6)))
    assert "PCA with the same latent size" in warned(replace(fine, pca=Errors(0.5, 0.5, 0.5)))
    assert "reconstructed no better" in warned(replace(fine, pca=Errors(1, 1, 1.005)))
    assert "No epoch was better" in warned(replace(fine, best_epoch=0))
    in_vain = replace(fine, denoising=Denoising(1, 2, None, None))
    assert warned(in_vain) == ""  # nobody asked for it
    config = load_config(corruption="gaussian")
    assert "noisy" in warned(in_vain)
    assert "7.80% of the test rows" in warned(replace(fine, test_alarm_rate=0.078))
    assert "0.00% of the test rows" in warned(replace(fine, test_alarm_rate=0.0))
    assert warned(replace(fine, test_alarm_rate=0.015)) == ""  # less than twice the rate
    assert warned(replace(fine, test_alarm_rate=1 / 30), rows=30) == ""  # one alarm, which chance explains
    few = Calibration(rows=98, false_alarm_rate=0.01, threshold=1, scores=(1.0,) * 98)
    assert "99 are needed" in warned(fine, few)
