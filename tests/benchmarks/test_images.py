"""The image benchmark, on digits written as IDX files."""

import csv
import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.datasets import load_digits

from benchmarks.cli import bench
from benchmarks.images import read_images
from service.errors import DataError


def write_idx(path: Path, array: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
    head = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(head + array.tobytes()))


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """400 digits to train on and 200 to test with, 12 x 12 pixels."""
    found = load_digits()
    images = np.pad(found.images[:600] * 15.9, ((0, 0), (2, 2), (2, 2))).astype(np.uint8)
    labels = found.target[:600].astype(np.uint8)
    folder = tmp_path / "small-digits"
    folder.mkdir()
    for start, rows in (("train", slice(0, 400)), ("t10k", slice(400, 600))):
        write_idx(folder / f"{start}-images-idx3-ubyte.gz", images[rows])
        write_idx(folder / f"{start}-labels-idx1-ubyte.gz", labels[rows])
    return folder


@pytest.mark.tf
@pytest.mark.slow
def test_every_metric_comes_from_a_published_version(digits: Path, tmp_path: Path) -> None:
    """Reconstruction, denoising and novelty, with PCA and the noisy images beside them."""
    out = tmp_path / "results.csv"
    arguments = ["images", "--data", str(digits), "--denoise", "--novelty", "3", "--out", str(out)]
    arguments += ["--store", str(tmp_path / "kept"), "--", "--epochs", "4", "--score", "reconstruction"]
    result = CliRunner().invoke(bench, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    began = [line for line in result.stderr.splitlines() if line.startswith("Training ")]
    assert began == [f"Training small-digits, {name}" for name in ("default", "denoiser", "without-3")]
    with out.open() as stream:
        lines = {(line["method"], line["metric"]): float(line["value"]) for line in csv.DictReader(stream)}
    assert 0 < lines["PCA, 32 components", "test MSE"] < lines["default", "test MSE"] < 0.2
    assert lines["denoiser", "denoise PSNR dB"] > lines["noisy input", "denoise PSNR dB"] > 5
    assert lines["default", "novelty AUROC, mean"] == lines["without-3", "novelty AUROC"]
    assert (tmp_path / "kept" / "small-digits" / "denoiser" / "1" / "saved_model.pb").exists()


def test_the_test_images_are_read_as_they_are(digits: Path) -> None:
    """Shapes and labels belong together."""
    images = read_images(digits)
    assert (images.name, images.train.shape, images.test.shape) == ("small-digits", (400, 12, 12), (200, 12, 12))
    np.testing.assert_array_equal(images.test_labels, load_digits().target[400:600])


def test_a_folder_without_the_files(tmp_path: Path) -> None:
    """The sentence names what is missing."""
    with pytest.raises(DataError, match="no file train-images"):
        read_images(tmp_path)
