"""How wide the latent should be, found in the training rows themselves. Imports no TensorFlow.

Reconstruction errors always fall with a wider latent, on held-out rows too, so they cannot say when to stop. Hidden
values can: a component that is structure helps to predict values that it was not shown, one that is noise does not.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.training.config import TrainingConfig

MAX_ROWS = 4_000
MAX_FEATURES = 256
MAX_WIDTH = 64
MAX_HELD_OUT = 300
HIDDEN_SHARE = 0.2
NEIGHBOURS = 15
SMALLEST_DISTANCE = 1e-12


def settle_latent(
    config: TrainingConfig, rows: NDArray[np.float32], *, features: int
) -> tuple[TrainingConfig, str | None]:
    """The configuration with a width for scaled training rows (rows, *layout.shape) where that is ``auto``, and why.

    ``features``: columns, which may have several scaled values each.
    """
    if config.latent_dim != "auto":
        return config, None
    choice = choose_latent(rows.reshape(len(rows), -1), features=features, seed=config.seed)
    return config.model_copy(update={"latent_dim": choice.width}), choice.reason


@dataclass(frozen=True, slots=True)
class LatentChoice:
    width: int
    reason: str
    """A sentence for the summary and the model card."""


def choose_latent(rows: NDArray[np.float32], *, seed: int, features: int | None = None) -> LatentChoice:
    """A width for scaled training rows (rows, features) without gaps; always less than the number of features.

    It is the least number of principal components that predicts hidden values of held-out rows as well as any number
    does, within one standard error. Where those leave more than half of the variance unexplained, columns are connected
    by curves if at all, and it is at least the rows' intrinsic dimension. At most two thirds of the features.
    """
    random = np.random.default_rng([seed, 4])
    chosen = rows[random.permutation(len(rows))[:MAX_ROWS]]
    sample = chosen[:, np.sort(random.permutation(rows.shape[1])[:MAX_FEATURES])].astype(np.float64)
    held_out = sample[: min(MAX_HELD_OUT, max(1, len(sample) // 4))]
    errors = hidden_value_errors(sample[len(held_out) :], held_out, random)
    means, best = errors.mean(axis=0), int(np.argmin(errors.mean(axis=0)))
    noise = errors[:, best].std() / np.sqrt(len(errors))
    at = int(np.argmax(means <= means[best] + noise))
    linear = _widths(sample[len(held_out) :])[at]
    unexplained = float(means[at] / max(sample.var(axis=0).mean(), 1e-12))
    reason = (
        f"with {linear} principal component{'s' if linear > 1 else ''} hidden values of held-out rows "
        f"are predicted best (unexplained: {unexplained:.0%} of the variance)"
    )
    width = linear
    if unexplained > 0.5:
        dimension = intrinsic_dimension(sample)
        width = max(linear, round(dimension))
        reason += f", and the rows' intrinsic dimension is about {dimension:.1f}"
    # A latent nearly as wide as the row would let nearly anything through.
    most = max(1, min(MAX_WIDTH, (features or rows.shape[1]) * 2 // 3))
    if width > most:
        width, reason = most, f"{reason}; it is at most two thirds of a row, and {MAX_WIDTH}"
    return LatentChoice(width, f"Latent of {width}: {reason}.")


def hidden_value_errors(
    rows: NDArray[np.float64], held_out: NDArray[np.float64], random: np.random.Generator
) -> NDArray[np.float64]:
    """Mean squared error of the hidden values of each held-out row for each number of components of ``_widths``.

    A fifth of each held-out row is hidden and predicted from the rest of it: the latent is the posterior mean under
    probabilistic PCA (Tipping and Bishop, JRSS B 61, 1999). Comparing predictions of hidden elements is the way to
    cross-validate PCA (Bro et al., Analytical and Bioanalytical Chemistry 390, 2008).
    """
    mean = rows.mean(axis=0)
    _, singular, axes = np.linalg.svd(rows - mean, full_matrices=False)
    variances = np.square(singular) / max(1, len(rows) - 1)
    features = rows.shape[1]
    centred = held_out - mean
    hidden = random.random(centred.shape) < HIDDEN_SHARE
    hidden[np.arange(len(hidden)), random.integers(features, size=len(hidden))] = True
    widths, seen = _widths(rows), (~hidden).astype(np.float64)
    errors = np.empty((len(held_out), len(widths)))
    for at, width in enumerate(widths):
        noise = max(variances[width:].sum() / max(1, features - width), 1e-9 * variances.sum(), 1e-12)
        loadings = axes[:width].T * np.sqrt(np.maximum(variances[:width] - noise, 0.0))
        products = np.einsum("rf,fa,fb->rab", seen, loadings, loadings, optimize=True)
        products += noise * np.eye(width)
        latents = np.linalg.solve(products, ((centred * seen) @ loadings)[..., None])[..., 0]
        squares = np.square(centred - latents @ loadings.T) * hidden
        errors[:, at] = squares.sum(axis=1) / hidden.sum(axis=1)
    return errors


def _widths(rows: NDArray[np.float64]) -> list[int]:
    """Numbers of components to try, denser where they are few."""
    most = max(1, min(MAX_WIDTH, rows.shape[1] - 1, len(rows) - 1))
    return [width for width in range(1, most + 1) if width <= 16 or width % 4 == 0]


def intrinsic_dimension(rows: NDArray[np.float64]) -> float:
    """Dimension of the surface near which the rows lie, from how distances to neighbours grow.

    Source: Levina and Bickel, Maximum likelihood estimation of intrinsic dimension (NIPS 2004), averaged as by
    MacKay and Ghahramani (2005).
    """
    from sklearn.neighbors import NearestNeighbors

    distinct = np.unique(rows, axis=0)
    neighbours = min(NEIGHBOURS, len(distinct) - 1)
    if neighbours < 3:
        return 1.0
    distances = NearestNeighbors(n_neighbors=neighbours).fit(distinct).kneighbors()[0]
    logs = np.log(np.maximum(distances, SMALLEST_DISTANCE))
    inverse = (logs[:, -1:] - logs[:, :-1]).sum(axis=1) / (neighbours - 2)
    return float(1 / max(inverse.mean(), 1 / rows.shape[1]))
