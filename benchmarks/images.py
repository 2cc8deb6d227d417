"""Image models by one protocol: reconstruction, denoising and novelty on a folder of IDX files, as MNIST has them.

Each model is trained by the command that users have, in a process of its own, and measured through the version that it
published: what is quoted is what is served.
"""

import gzip
import math
import resource
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.commands import complaint_of
from service.errors import DataError, TrainingFailed
from service.runtime.loaded_model import LoadedModel, load_version
from service.schemas import INSTANCES, Array
from service.store import Store

LATENT = 32
NOISE = 0.5
"""Standard deviation of the noise in units of the pixel range; noisy pixels are cut to the range."""
WHITE = 255
BATCH = 500


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Pixels of 0 to 255 (rows, height, width), and the class of each image."""

    name: str
    train_file: Path
    train: NDArray[np.uint8]
    test: NDArray[np.uint8]
    train_labels: NDArray[np.uint8]
    test_labels: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Line:
    """One result: ``value`` of a metric for one way of making a model."""

    images: str
    method: str
    metric: str
    value: float
    fit_s: float | None = None
    """Time of the fitting alone."""
    cpu_s: float | None = None
    """Processor time of the whole training command."""


def read_images(folder: Path) -> ImageSet:
    """The four files of ``folder``, named as those of MNIST, plain or gzipped.

    Raises:
        DataError: one is not there, or is not an IDX file of bytes.
    """

    def find(start: str) -> Path:
        found = sorted(folder.glob(f"{start}*"))
        if not found:
            raise DataError(f"There is no file {start}… in {folder.name}: the four files of MNIST are needed.")
        return found[0]

    train_file = find("train-images")
    files = [train_file, find("t10k-images"), find("train-labels"), find("t10k-labels")]
    train, test, train_labels, test_labels = (_read_idx(file) for file in files)
    return ImageSet(folder.name, train_file, train, test, train_labels, test_labels)


def measure_images(
    images: ImageSet,
    folder: Path,
    *,
    tutorial: bool,
    denoise: bool,
    novelty: Sequence[int],
    options: Sequence[str],
    begin: Callable[[str], None],
) -> Iterator[Line]:
    """Train and measure, one model after the other; versions are left in ``folder``.

    Args:
        tutorial: beside the default, the preset ``keras-tutorial``.
        novelty: classes to hold out, one after the other; their mean comes last.
        options: of ``autoencoder train``, for every model.
        begin: is told which model is trained next.

    Raises:
        TrainingFailed: a training ended without a version.
    """
    yield Line(images.name, f"PCA, {LATENT} components", "test MSE", _pca_error(images))
    run = _Trainer(images.name, folder, ("--latent", str(LATENT), *options), begin)
    test = images.test
    yield run(images.train_file, "default", (), "test MSE", lambda model: _error(model, test, test))
    if tutorial:
        tutorial_options = ("--preset", "keras-tutorial")
        yield run(images.train_file, "keras-tutorial", tutorial_options, "test MSE", lambda m: _error(m, test, test))
    if denoise:
        noise = ("--noise", "gaussian", "--noise-level", str(NOISE))
        yield Line(images.name, "noisy input", "denoise PSNR dB", _psnr_db(_mean_square(_noisy(test), test)))
        yield run(
            images.train_file,
            "denoiser",
            noise,
            "denoise PSNR dB",
            lambda model: _psnr_db(_error(model, _noisy(test), test, operation="denoise")),
        )
    areas = []
    for held_out in novelty:
        rows = folder / f"without-{held_out}.npy"
        np.save(rows, images.train[images.train_labels != held_out])
        line = run(
            rows, f"without-{held_out}", (), "novelty AUROC", partial(_novelty, images=images, held_out=held_out)
        )
        areas.append(line.value)
        yield line
    if areas:
        yield Line(images.name, "default", "novelty AUROC, mean", float(np.mean(areas)))


@dataclass(frozen=True, slots=True)
class _Trainer:
    images: str
    folder: Path
    options: tuple[str, ...]
    begin: Callable[[str], None]

    def __call__(
        self,
        rows: Path,
        method: str,
        options: Sequence[str],
        metric: str,
        measure: Callable[[LoadedModel], float],
    ) -> Line:
        self.begin(f"{self.images}, {method}")
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        target = ("--store", self.folder, "--model", method, "--promote", "never")
        complaint = complaint_of("train", rows, *target, *self.options, *options)
        if complaint is not None:
            raise TrainingFailed(f"Training {method} failed: {complaint}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        newest = Store(self.folder).versions(method)[-1]
        model = load_version(self.folder / method / str(newest))
        return Line(self.images, method, metric, measure(model), float(model.manifest.metrics["fit_s"]), cpu_s)


def _read_idx(path: Path) -> NDArray[np.uint8]:
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        dimensions = content[3]
        shape = np.frombuffer(content, ">u4", dimensions, 4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise DataError(f"{path.name} is not an IDX file of bytes.") from error


def _outputs(model: LoadedModel, signature: str, output: str, rows: Array) -> Array:
    starts = range(0, len(rows), BATCH)
    batches = [np.asarray(rows[start : start + BATCH], np.float32) for start in starts]
    return np.concatenate([model.run(signature, {INSTANCES: batch})[output] for batch in batches])


def _error(model: LoadedModel, rows: Array, targets: Array, *, operation: str = "reconstruct") -> float:
    """Mean squared error, pixels counted from 0 to 1."""
    output = "denoised" if operation == "denoise" else "reconstruction"
    return _mean_square(_outputs(model, operation, output, rows), targets)


def _mean_square(found: Array, targets: Array) -> float:
    return float(np.mean(np.square((found - targets.astype(np.float64)) / WHITE)))


def _psnr_db(error: float) -> float:
    return -10 * math.log10(error)


def _noisy(rows: NDArray[np.uint8]) -> NDArray[np.float32]:
    noise = np.random.default_rng(0).normal(0, NOISE * WHITE, rows.shape)
    noisy: NDArray[np.float32] = np.clip(rows + noise, 0, WHITE).astype(np.float32)
    return noisy


def _pca_error(images: ImageSet) -> float:
    from sklearn.decomposition import PCA

    train, test = (rows.reshape(len(rows), -1).astype(np.float32) for rows in (images.train, images.test))
    pca = PCA(LATENT, random_state=0).fit(train)
    return _mean_square(pca.inverse_transform(pca.transform(test)), test)


def _novelty(model: LoadedModel, *, images: ImageSet, held_out: int) -> float:
    """AUROC of test images of the class held out against those of the others."""
    from sklearn.metrics import roc_auc_score

    scores: Any = _outputs(model, "anomaly_score", "score", images.test)
    return float(roc_auc_score(images.test_labels == held_out, scores))
