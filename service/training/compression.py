"""The worth of an image model as a codec: bytes of its latents and their quality, against PNG and JPEG.

All sizes are of whole files, since that is what somebody would store; what of a JPEG are headers is told as well, as in
small images they are most of it. Nobody can read a latent without the decoder, so its size is told too.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.runtime.quiet import tf
from service.runtime.signature import in_batches
from service.training.graph import ServingGraph

MAX_ROWS = 500
CHANNELS = (1, 3)
SSIM_WINDOW = 11
BEST_JPEG = 95
"""Above it JPEG files grow without getting better, says Pillow."""
START_OF_SCAN = b"\xff\xda"
INT8_LEVELS = 127


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How well images come back, and for how many bytes each on average."""

    bytes: float
    psnr_db: float
    """Of the mean squared error over all images, the peak being white."""
    ssim: float
    """Mean structural similarity (Wang et al., IEEE TIP 13, 2004): 1 is the image itself."""


@dataclass(frozen=True, slots=True)
class Quantisation:
    """One byte for each value of a latent: ``round((latent - offset) / scale)``, cut to -127 to 127."""

    offset: tuple[float, ...]
    scale: tuple[float, ...]

    def quantise(self, latents: NDArray[np.float32]) -> NDArray[np.int8]:
        steps = np.rint((latents - np.array(self.offset)) / np.array(self.scale))
        return np.asarray(np.clip(steps, -INT8_LEVELS, INT8_LEVELS), np.int8)

    def restore(self, quantised: NDArray[np.int8]) -> NDArray[np.float32]:
        latents: NDArray[np.float32] = (quantised * np.array(self.scale) + np.array(self.offset)).astype(np.float32)
        return latents


@dataclass(frozen=True, slots=True)
class Compression:
    """Measured on test rows."""

    images: int
    pixel_bytes: int
    png_bytes: float
    float32: Fidelity
    int8: Fidelity
    jpeg: Fidelity
    """Of the smallest files that are at least as near to the images as ``int8``."""
    jpeg_quality: int
    jpeg_header_bytes: float
    """Part of ``jpeg.bytes`` that is the same for all images of a size: headers and tables."""
    decoder_bytes: int
    quantisation: Quantisation


def fit_quantisation(latents: NDArray[np.float32]) -> Quantisation:
    """From the least to the greatest value of each dimension of training latents (rows, latent_dim)."""
    low, high = latents.min(axis=0).astype(np.float64), latents.max(axis=0).astype(np.float64)
    scale = np.where(high > low, (high - low) / (2 * INT8_LEVELS), 1.0)
    return Quantisation(tuple(((high + low) / 2).tolist()), tuple(scale.tolist()))


def measure_compression(
    graph: ServingGraph, *, train: NDArray[np.float32], test: NDArray[np.float32]
) -> Compression | None:
    """``train`` and ``test``: scaled rows without gaps. None where rows are not pixels in [0, 1], grey or colour."""
    shape = graph.schema.row_shape if graph.schema.kind == "image" else ()
    size = shape if len(shape) == 3 else (*shape, 1)
    if len(size) != 3 or size[2] not in CHANNELS or not graph.preprocessing.scaling.bounded:
        return None
    test = test[:MAX_ROWS]
    pixels = _pixels(test, size)
    quantisation, latents = fit_quantisation(_call(graph.trained.encoder, train)), _call(graph.trained.encoder, test)

    def fidelity(latents: NDArray[np.float32], latent_bytes: int) -> Fidelity:
        rebuilt = _pixels(_call(graph.trained.decoder, latents), size)
        return _fidelity(pixels, rebuilt, latent_bytes)

    int8 = fidelity(quantisation.restore(quantisation.quantise(latents)), graph.latent_dim)
    jpeg, quality, header_bytes = _jpeg_as_good_as(int8.psnr_db, pixels)
    return Compression(
        images=len(pixels),
        pixel_bytes=int(pixels[0].size),
        png_bytes=float(np.mean([len(_encoded(image, "PNG", optimize=True)) for image in pixels])),
        float32=fidelity(latents, 4 * graph.latent_dim),
        int8=int8,
        jpeg=jpeg,
        jpeg_quality=quality,
        jpeg_header_bytes=header_bytes,
        decoder_bytes=4 * graph.trained.decoder.count_params(),
        quantisation=quantisation,
    )


def _pixels(scaled: NDArray[Any], size: tuple[int, int, int]) -> NDArray[np.uint8]:
    return np.asarray(np.rint(np.clip(scaled, 0, 1) * 255), np.uint8).reshape(len(scaled), *size)


def _fidelity(pixels: NDArray[np.uint8], rebuilt: NDArray[np.uint8], size: float) -> Fidelity:
    error = float(np.mean(np.square(pixels.astype(np.float64) - rebuilt)))
    window = min(SSIM_WINDOW, *pixels.shape[1:3])
    similar = in_batches(
        lambda part: tf.image.ssim(tf.constant(pixels[part]), tf.constant(rebuilt[part]), 255, filter_size=window),
        len(pixels),
        size=50,
    )
    return Fidelity(size, float(10 * np.log10(255**2 / max(error, 1e-6))), float(np.mean(similar)))


def _call(model: Any, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    called: NDArray[np.float32] = in_batches(lambda part: model(tf.constant(rows[part]), training=False), len(rows))
    return called


def _jpeg_as_good_as(psnr_db: float, pixels: NDArray[np.uint8]) -> tuple[Fidelity, int, float]:
    """The smallest JPEG files with at least that PSNR, their quality setting, and the bytes of their headers."""
    low, high = 1, BEST_JPEG
    while low < high:
        middle = (low + high) // 2
        if _jpeg(pixels, middle)[0].psnr_db >= psnr_db:
            high = middle
        else:
            low = middle + 1
    found, files = _jpeg(pixels, low)
    # Headers end with the segment that starts the compressed pixels, which begins with its own length.
    starts = [(file, file.index(START_OF_SCAN) + 2) for file in files]
    header_bytes = [start + int.from_bytes(file[start : start + 2], "big") for file, start in starts]
    return found, low, float(np.mean(header_bytes))


def _jpeg(pixels: NDArray[np.uint8], quality: int) -> tuple[Fidelity, Sequence[bytes]]:
    from PIL import Image

    files = [_encoded(image, "JPEG", quality=quality, optimize=True) for image in pixels]
    rebuilt = np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files]).reshape(pixels.shape)
    return _fidelity(pixels, rebuilt, float(np.mean([len(file) for file in files]))), files


def _encoded(image: NDArray[np.uint8], kind: str, **options: Any) -> bytes:
    from PIL import Image

    sink = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(sink, format=kind, **options)
    return sink.getvalue()
