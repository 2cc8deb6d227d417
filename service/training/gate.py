"""The quality gate: a candidate against the version in production, on the same held-back rows.

Both are scored through their SavedModels. Two versions scale differently, so errors are compared in a common scale: raw
values over the spread that the held-back rows themselves have. Imports no TensorFlow until a version is loaded.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from service.errors import DataError, InvalidVersion, ModelNotFound, VersionNotFound
from service.runtime.loaded_model import LoadedModel, open_version
from service.runtime.signature import in_batches
from service.schemas import (
    CATEGORIES,
    INSTANCES,
    TIMESTAMPS,
    ColumnType,
    InputSchema,
    Results,
    Rows,
    row_count,
    take_rows,
    times_as_numbers,
)
from service.scoring import alarm_rate, is_anomaly
from service.store import Manifest, Store
from service.training.config import TrainingConfig
from service.training.data import Dataset, check_dataset
from service.training.split import Split, split_rows
from service.words import ANOMALY_SCORE, PRODUCTION, RECONSTRUCT

Promotion = Literal["auto", "always", "never"]
"""When ``production`` moves to a new version: where the gate finds it not worse, whatever it finds, or not at all."""

ERROR_TOLERANCE = 0.05
"""The error may be greater by this share."""
LABEL_TOLERANCE = 0.02
"""AUROC and AUPR may be less by this much."""
MIN_RANK_CORRELATION = 0.3
MIN_STABILITY_ROWS = 100
"""With fewer rows a rank correlation says too little to hold a version back."""
STANDARD_ERRORS = 2.0
"""A difference in error counts when it is larger than this many of its standard errors."""
SIGNIFICANT = 0.01
BAND = 0.95
"""The share of curves of false alarms that lies in their band, at each rate."""
FAR = 10.0
"""Spreads at which the distance of a value is cut: one wild value must not decide."""
COLUMNS_NAMED = 5
_RECONSTRUCTIONS = {
    INSTANCES: "reconstruction",
    CATEGORIES: f"reconstruction_{CATEGORIES}",
    TIMESTAMPS: f"reconstruction_{TIMESTAMPS}",
}


@dataclass(frozen=True, slots=True)
class Pair:
    """One measure of both versions."""

    candidate: float
    production: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """The measures of the gate. ``worse`` says why the candidate is not to be promoted; empty: it may be."""

    production: int
    """Version that the candidate was compared with."""
    rows: int
    worse: tuple[str, ...]
    """Sentences."""
    error: Pair | None = None
    """Mean squared reconstruction error in units of the held-back rows' own spread."""
    alarm_rate: Pair | None = None
    """Share of normal held-back rows over each version's own threshold."""
    nominal: Pair | None = None
    """False-alarm rates that the thresholds were chosen for."""
    rank_correlation: float | None = None
    """Spearman's, of the two versions' scores."""
    flags_differ: float | None = None
    """Share of rows that one version calls an anomaly and the other does not."""
    auroc: Pair | None = None
    aupr: Pair | None = None

    @property
    def passed(self) -> bool:
        return not self.worse

    def record(self) -> dict[str, Any]:
        """As the manifest keeps it."""
        return {**asdict(self), "passed": self.passed}


def compare(
    candidate: LoadedModel, production: LoadedModel, rows: Rows, *, labels: NDArray[np.bool_] | None = None
) -> Comparison:
    """Compare two versions on raw ``rows`` that neither was fitted on.

    Args:
        labels: of each row whether it is an anomaly. Errors and alarm rates are those of the other rows then.
    """
    refused = _schema_difference(candidate.schema, production.schema)
    if not refused and not row_count(rows):
        refused = "There are no rows that production was not fitted on."
    if refused:
        return Comparison(production.version, 0, (refused,))
    if production.manifest.calibration is None:  # anything is better than no score
        return Comparison(production.version, 0, ())
    versions, count = (candidate, production), row_count(rows)
    normal = np.ones(count, np.bool_) if labels is None else ~labels
    calibrations = calibrated, replaced = candidate.manifest.calibrated, production.manifest.calibrated
    new, old = (run_version(version, ANOMALY_SCORE.name, rows)["score"] for version in versions)
    error, old_error = (
        common_errors(rows, run_version(version, RECONSTRUCT.name, rows))[normal] for version in versions
    )
    rate, old_rate = (
        alarm_rate(scores[normal], version.threshold) for scores, version in zip((new, old), calibrations, strict=True)
    )
    from scipy.stats import spearmanr

    constant = count < 3 or np.ptp(new) == 0 or np.ptp(old) == 0  # one version gives all rows the same score
    comparison = Comparison(
        production=production.version,
        rows=count,
        worse=(),
        error=Pair(float(error.mean()), float(old_error.mean())),
        alarm_rate=Pair(rate, old_rate),
        nominal=Pair(calibrated.false_alarm_rate, replaced.false_alarm_rate),
        rank_correlation=None if constant else float(spearmanr(new, old).statistic),
        flags_differ=float(np.mean(is_anomaly(new, calibrated.threshold) != is_anomaly(old, replaced.threshold))),
    )
    if labels is not None and 0 < labels.sum() < count:
        from sklearn.metrics import average_precision_score, roc_auc_score

        auroc, aupr = (
            Pair(float(measure(labels, new)), float(measure(labels, old)))
            for measure in (roc_auc_score, average_precision_score)
        )
        comparison = replace(comparison, auroc=auroc, aupr=aupr)
    excess = error - (1 + ERROR_TOLERANCE) * old_error
    noise = STANDARD_ERRORS * float(excess.std()) / np.sqrt(len(excess)) if len(excess) > 1 else np.inf
    alarms, nominal = round(rate * len(excess)), calibrated.false_alarm_rate
    _, chance = chance_of_alarms(alarms, len(excess), nominal=nominal, calibration_rows=calibrated.rows)
    is_clear = float(excess.mean()) > noise
    return replace(comparison, worse=tuple(_reasons(comparison, is_clear_error=is_clear, chance_of_alarms=chance)))


def _reasons(comparison: Comparison, *, is_clear_error: bool, chance_of_alarms: float) -> Iterator[str]:
    """Why the candidate is worse, one sentence each."""
    error, rate, nominal = comparison.error, comparison.alarm_rate, comparison.nominal
    correlation = comparison.rank_correlation
    if error and is_clear_error:
        yield f"Its reconstruction error is {error.candidate:.4g}, that of production {error.production:.4g}."
    if rate and nominal and chance_of_alarms < SIGNIFICANT and rate.candidate > rate.production:
        yield (
            f"It flags {rate.candidate:.2%} of normal rows instead of {nominal.candidate:.2%}; "
            f"production flags {rate.production:.2%}."
        )
    if correlation is not None and comparison.rows >= MIN_STABILITY_ROWS and correlation < MIN_RANK_CORRELATION:
        yield f"It orders rows otherwise than production does: the rank correlation of the scores is {correlation:.2f}."
    for name, pair in (("AUROC", comparison.auroc), ("AUPR", comparison.aupr)):
        if pair and pair.candidate < pair.production - LABEL_TOLERANCE:
            yield f"Its {name} is {pair.candidate:.3f}, that of production {pair.production:.3f}."


def _schema_difference(new: InputSchema, old: InputSchema) -> str | None:
    """Why rows of one version cannot be given to the other; None when they can."""
    ours, theirs = ([(column.name, column.type) for column in schema.columns] for schema in (new, old))
    if ours != theirs:
        changed = sorted({name for name, _ in set(ours) ^ set(theirs)})
        which = ", ".join(changed[:COLUMNS_NAMED]) + (", …" if len(changed) > COLUMNS_NAMED else "")
        return f"Its columns are not those of production: {which or 'the order differs'}."
    if (new.kind, new.row_shape) != (old.kind, old.row_shape):
        shapes = [f"{schema.kind} {list(schema.row_shape)}" for schema in (new, old)]
        return f"Its rows are not those of production: {shapes[0]} instead of {shapes[1]}."
    return None


def run_version(version: LoadedModel, signature: str, rows: Rows) -> Results:
    """All outputs of a signature of a version for any number of rows."""
    outputs: Results = in_batches(lambda part: version.run(signature, take_rows(rows, part)), row_count(rows))
    return outputs


def common_errors(rows: Rows, rebuilt: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    """Mean squared error of each row's columns in units of the spread of the rows themselves; a gap cannot be wrong.

    An input is compared with the output ``reconstruction`` of its name, which is in raw units. A wrong label counts 1.
    """
    missed = []
    for name, output in _RECONSTRUCTIONS.items():
        if name in rows:
            actual = _as_numbers(rows[name])
            if actual is None:
                wrong = (rows[name] != rebuilt[output]) & (rows[name] != b"")
                missed.append(wrong.astype(np.float64))
            else:
                given = _as_numbers(rebuilt[output])
                missed.append(np.abs(given - actual) / spreads(actual, rounding=1e-7 if name == INSTANCES else 0.0))
    squares = np.square(np.minimum(np.nan_to_num(np.concatenate(missed, axis=1), nan=0.0, posinf=FAR), FAR))
    errors: NDArray[np.float64] = squares.mean(axis=1)
    return errors


def _as_numbers(array: NDArray[Any]) -> Any:
    """(rows, columns) float64 with NaN for gaps; None for labels."""
    if array.dtype.kind == "O":
        return None
    flat = array.reshape(len(array), -1)
    return flat.astype(np.float64) if array.dtype.kind == "f" else times_as_numbers(flat)


def spreads(actual: NDArray[np.float64], *, rounding: float = 0.0) -> NDArray[np.float64]:
    """Standard deviation of each column (rows, columns) without its gaps; 1 where it varies by rounding at most.

    ``rounding``: of a value, as a share of it.
    """
    present = np.ma.masked_invalid(actual)
    spread, size = present.std(axis=0).filled(0.0), np.abs(present.mean(axis=0)).filled(0.0)
    return np.where(spread > rounding * size, spread, 1.0)


def chance_of_alarms(alarms: int, rows: int, *, nominal: float, calibration_rows: int) -> tuple[float, float]:
    """The probabilities of no more and of no fewer alarms on ``rows`` rows like those that calibrated the threshold."""
    from scipy.stats import betabinom

    rank = min(calibration_rows, int(np.ceil((calibration_rows + 1) * (1 - nominal) - 1e-9)))
    # With the threshold at that rank of the scores, the chance of an alarm is itself uncertain: a beta distribution.
    chances = betabinom(rows, calibration_rows - rank + 1, rank)
    return float(chances.cdf(alarms)), float(chances.sf(alarms - 1))


@dataclass(frozen=True, slots=True)
class FalseAlarms:
    """Nominal false-alarm rates, the share of test rows over each one's threshold, and the band of this share."""

    rows: int
    """Test rows."""
    nominal: tuple[float, ...]
    """Ascending."""
    empirical: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def false_alarms(calibration_rows: int, p_values: NDArray[np.float32]) -> FalseAlarms:
    """The false alarms among test rows with these p-values, and the band that holds them by chance.

    The band is beta-binomial: with a threshold at a rank of finitely many calibration scores, the true rate of alarms
    is itself uncertain, Beta(k, n + 1 - k), and then come as many test rows as there are.
    """
    from scipy.stats import betabinom

    rows = len(p_values)
    ranks = np.unique(np.geomspace(1, max(1, (calibration_rows + 1) // 2), 60).round().astype(int))
    nominal = ranks / (calibration_rows + 1)
    # Rounded up in float32, as the p-values were, so that a p-value of exactly the rate counts.
    empirical = np.searchsorted(np.sort(p_values), nominal.astype(np.float32), side="right") / rows
    tails = ((1 - BAND) / 2, 1 - (1 - BAND) / 2)
    low, high = (betabinom.ppf(tail, rows, ranks, calibration_rows + 1 - ranks) / rows for tail in tails)
    return FalseAlarms(rows, *(tuple(each.tolist()) for each in (nominal, empirical, low, high)))


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a published version was promoted, and the sentence that says why."""

    promoted: bool
    sentence: str


def in_production(store: Store, model: str) -> int | None:
    """The version that answers by default; None when there is none."""
    try:
        return store.resolve(model)
    except (ModelNotFound, VersionNotFound):
        return None


def open_production(store: Store, model: str, version: int) -> LoadedModel | None:
    """The version in production with its digests checked, or None where it is damaged."""
    try:
        return open_version(store.path(model, version), store.verify_digests(model, version))
    except InvalidVersion:
        return None


def unseen_rows(
    production: Manifest, split: Split, *, rows: int, sha256: str, blocks: NDArray[np.intp] | None = None
) -> NDArray[np.intp]:
    """Test rows that the version in production was not fitted on either, as far as can be known.

    From the same rows its split follows again. Of other rows nothing is known, and all test rows are taken.

    Args:
        rows, sha256, blocks: number, fingerprint and blocks of the rows that ``split`` divides.
    """
    fitted = production.training.get("fitted", {"sha256": production.source_sha256, **production.training})
    if fitted["sha256"] != sha256:
        return split.test
    known = {name: fitted[name] for name in ("seed", "split") if name in fitted}
    theirs = split_rows(rows, TrainingConfig.model_validate(known), blocks=blocks)
    return split.test[~np.isin(split.test, np.concatenate([theirs.train, theirs.validation]))]


def hold_production(store: Store, model: str) -> None:
    """Let ``production`` name the version that answers now, so that a higher number does not take its place."""
    version = in_production(store, model)
    if version is not None and PRODUCTION not in store.aliases(model):
        store.set_alias(model, PRODUCTION, version)


def decide(promotion: Promotion, comparison: Comparison | None, *, version: int, before: int | None) -> Decision:
    """Whether ``version`` is to be promoted. ``before``: the version in production."""
    is_better = before is None or (comparison is not None and comparison.passed)
    promoted = promotion == "always" or (promotion == "auto" and is_better)
    if promoted:
        reasons = {
            "always": "as asked",
            "auto": f"it is not worse than version {before}" if before else "it is the first",
        }
        return Decision(True, f"Version {version} is in production now: {reasons[promotion]}.")
    if before is None:
        return Decision(False, f"No alias names version {version}, as asked; being the only one, it answers.")
    if promotion == "never":
        return Decision(False, f"Version {before} stays in production, as asked.")
    worse = comparison.worse if comparison else ("It cannot be loaded, so there is nothing to compare with.",)
    return Decision(False, f"Version {before} stays in production. {' '.join(worse)}")


def promote(
    store: Store, model: str, promotion: Promotion, comparison: Comparison | None, *, version: int, before: int | None
) -> Decision:
    """Decide, and move the alias ``production`` to ``version`` where it is to be promoted."""
    decision = decide(promotion, comparison, version=version, before=before)
    if decision.promoted:
        store.set_alias(model, PRODUCTION, version)
    return decision


def take_labels(dataset: Dataset, column: str) -> tuple[Dataset, NDArray[np.bool_]]:
    """The data set without one column, and of each row whether that says it is an anomaly (1, true) or not (0, false).

    Raises:
        DataError: there is no such column, it has other values, or too little is left without it.
    """
    numbers = [found.name for found in dataset.schema.columns_of(ColumnType.NUMERIC, ColumnType.BOOLEAN)]
    if column not in numbers:
        raise DataError(f"There is no column {column} of 0 and 1, or of true and false, to take for labels.")
    place = numbers.index(column)
    values = dataset.rows[INSTANCES][:, place]
    if not np.isin(values, (0, 1)).all():
        raise DataError(f"Column {column} has other values than 0 and 1; as labels, 1 is an anomaly and 0 is none.")
    rows = {**dataset.rows, INSTANCES: np.delete(dataset.rows[INSTANCES], place, axis=1)}
    if len(numbers) == 1:
        del rows[INSTANCES]
    columns = tuple(found for found in dataset.schema.columns if found.name != column)
    schema = dataset.schema.model_copy(update={"columns": columns, "row_shape": (len(numbers) - 1,)})
    return check_dataset(replace(dataset, rows=rows, schema=schema)), values == 1
