"""Latents as a codec: sizes and quality against PNG and JPEG, and what a byte for each value costs."""

import io
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from service.training.train import TrainedModel

pytestmark = pytest.mark.tf


def test_bytes_and_quality_are_those_of_the_test_images(digits_model: "TrainedModel") -> None:
    """PNG sizes are of real files; the PSNR is that of the reconstructions, int8 being a little below float32."""
    compression = digits_model.metrics.compression
    assert compression is not None
    rows = digits_model.dataset.rows["instances"][digits_model.split.test]
    assert (compression.images, compression.pixel_bytes) == (len(rows), 64)
    assert (compression.float32.bytes, compression.int8.bytes) == (48, 12)
    sizes = []
    for row in rows:
        sink = io.BytesIO()
        Image.fromarray(np.rint(row / 16 * 255).astype(np.uint8)).save(sink, format="PNG", optimize=True)
        sizes.append(len(sink.getvalue()))
    assert compression.png_bytes == pytest.approx(np.mean(sizes))
    error = digits_model.metrics.autoencoder.test
    assert compression.float32.psnr_db == pytest.approx(-10 * np.log10(error), abs=0.05)
    assert compression.float32.psnr_db - 0.5 < compression.int8.psnr_db <= compression.float32.psnr_db + 0.01
    assert 0.5 < compression.int8.ssim < 1
    assert compression.jpeg.psnr_db >= compression.int8.psnr_db or compression.jpeg_quality == 95
    assert 100 < compression.jpeg_header_bytes < compression.jpeg.bytes


def test_quantised_latents_come_back_within_half_a_step() -> None:
    """On the rows that it was fitted on; farther out they are cut."""
    from service.training.compression import fit_quantisation

    latents = (np.random.default_rng(0).normal(size=(500, 3)) * [1, 100, 0]).astype(np.float32)
    quantisation = fit_quantisation(latents)
    restored = quantisation.restore(quantisation.quantise(latents))
    assert (np.abs(restored - latents) <= 0.51 * np.array(quantisation.scale)).all()
    assert quantisation.quantise(latents + 1000).max() == 127


def test_tables_are_no_codec(table_model: "TrainedModel") -> None:
    """There is nothing to compare columns with."""
    assert table_model.metrics.compression is None
