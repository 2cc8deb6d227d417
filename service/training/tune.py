"""A search for better options, by Optuna: trials on the training rows, judged by the validation rows alone.

Calibration and test rows are never touched, so that what ``train`` reports afterwards still holds. Trials that fall
behind are stopped early (successive halving, Jamieson and Talwalkar, AISTATS 2016); new ones are drawn near the good
ones (TPE, Bergstra et al., NIPS 2011). The first trial is the configuration as it was given: none found is worse.
"""

import importlib
import math
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from service.errors import ConfigurationError, TrainingFailed
from service.schemas import take_rows
from service.training.config import TrainingConfig, hidden_widths, latent_width, settle
from service.training.data import Dataset
from service.training.progress import Epoch, SilentReporter
from service.training.split import split_rows

HIDDEN_SHARE = 0.2
FIRST_RUNG, REDUCTION = 4, 3
"""Trials are compared after so many epochs, and after each ``REDUCTION`` times as many; one in so many goes on."""
MAX_VALIDATION_ROWS = 2_000
WIDEST_LATENT = 64
WIDTHS = (16, 32, 64, 128, 256, 512)
LEARNING_RATES = (1e-4, 2e-2)
LEVELS = (0.05, 0.6)
MOST_DROPOUT = 0.3
SEARCHED = ("hidden", "latent_dim", "learning_rate", "dropout", "corruption", "corruption_level")
"""Fields of a configuration, unless they are fixed; ``hidden`` in dense networks only."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One that ended. Errors are those of ``Objective``; lower is better."""

    number: int
    error: float | None
    """None: it was stopped early, or diverged."""
    best_error: float
    seconds: float
    """Since the search began."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a search has found."""

    config: TrainingConfig
    """The configuration that was given, with what was found."""
    found: dict[str, Any]
    """The fields that were searched, with their best values; ``corruption_level`` only where there is noise."""
    error: float
    first_error: float
    """Of the configuration as it was given."""
    trials: int
    stopped: int
    """Of the trials, those that were stopped early or diverged."""


class TuneReporter(Protocol):
    """Is told of a search as it goes on, by the thread that searches."""

    def trial(self, trial: Trial) -> None: ...


class Objective:
    """How far a network is from rows of which it sees only a part.

    A fifth of the features of each validation row is hidden, replaced by their mean. The result is the mean of two
    squared errors in scaled units: of the hidden values and of the ones shown. The second alone would always want the
    widest latent; the first alone would not want a faithful reconstruction.
    """

    def __init__(self, inputs: NDArray[np.float32], targets: NDArray[np.float32], mean: Any, owner: Any) -> None:
        """``inputs``, ``targets``: scaled validation rows; ``mean`` of training inputs; ``owner`` as of a layout."""
        random = np.random.default_rng(0)
        features = int(owner[-1]) + 1
        hidden = random.random((len(inputs), features)) < HIDDEN_SHARE
        hidden[np.arange(len(hidden)), random.integers(features, size=len(hidden))] = True
        self._hidden = hidden[:, owner].reshape(inputs.shape)
        self._seen = np.where(self._hidden, mean, inputs).astype(np.float32)
        self._targets = targets
        self._present = ~np.isnan(targets)

    def __call__(self, network: Any) -> float:
        from service.training.graph import map_arrays

        rebuilt = map_arrays(lambda rows: network(rows, training=False), self._seen)
        squares = np.where(self._present, np.square(rebuilt - np.nan_to_num(self._targets)), 0.0)
        return float(np.mean([_mean(squares, part & self._present) for part in (self._hidden, ~self._hidden)]))


def tune(
    dataset: Dataset,
    config: TrainingConfig,
    *,
    fixed: Collection[str] = (),
    trials: int | None = 50,
    time_budget_s: float | None = None,
    reporter: TuneReporter | None = None,
) -> Tuned:
    """Search until so many trials have ended, or the time is over, whichever is first.

    Args:
        fixed: fields of ``config`` that stay as they are.

    Raises:
        ConfigurationError: Optuna is not installed, nothing is left to search, or the time was too short for one trial.
    """
    optuna = _optuna()
    search = _Search(dataset, config, fixed=fixed, time_budget_s=time_budget_s, reporter=reporter)
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=config.seed, n_startup_trials=8),
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=FIRST_RUNG, reduction_factor=REDUCTION),
    )
    study.enqueue_trial(search.start)
    study.optimize(search.run, n_trials=trials, timeout=time_budget_s, callbacks=[search.told], catch=(TrainingFailed,))
    ended = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
    if not ended:
        raise ConfigurationError("The time was over before the first trial was; give the search more.")
    found = search.fields(study.best_params)
    return Tuned(
        config=search.configured(found),
        found=found,
        error=study.best_value,
        first_error=ended[0].value if ended[0].number == 0 else math.nan,
        trials=len(study.trials),
        stopped=len(study.trials) - len(ended),
    )


class _Search:
    """The rows, made ready once, and what a trial does with them."""

    def __init__(
        self,
        dataset: Dataset,
        config: TrainingConfig,
        *,
        fixed: Collection[str],
        time_budget_s: float | None,
        reporter: TuneReporter | None,
    ) -> None:
        from service.training.fit import make_reproducible
        from service.training.latent import settle_latent
        from service.training.preprocessing import fit_preprocessing
        from service.training.workers import use_devices

        self._given, self._schema, self._reporter = config, dataset.schema, reporter
        split = split_rows(len(dataset), config, blocks=dataset.blocks)
        settled = settle(config, dataset.schema, rows=len(split.train))
        self._searched = [name for name in SEARCHED if name not in fixed and (name != "hidden" or _is_dense(settled))]
        if not self._searched:
            raise ConfigurationError("Every option that could be searched is given; leave one of them out.")
        use_devices()
        make_reproducible(config.seed)
        train = take_rows(dataset.rows, split.train)
        self._preprocessing = fit_preprocessing(train, dataset.schema, settled)
        self._train = self._preprocessing.scale_all(train)
        self._validation = self._preprocessing.scale_all(take_rows(dataset.rows, split.validation))
        self._config, _ = settle_latent(settled, self._train.inputs, features=dataset.schema.features)
        some = slice(MAX_VALIDATION_ROWS)
        self._objective = Objective(
            self._validation.inputs[some],
            self._validation.targets[some],
            self._train.inputs.mean(axis=0, dtype=np.float64),
            self._preprocessing.layout.owner,
        )
        self._started = time.monotonic()
        self._deadline = math.inf if time_budget_s is None else self._started + time_budget_s

    @property
    def start(self) -> dict[str, Any]:
        """The configuration as it was given, as Optuna has it."""
        config, features = self._config, self._schema.features
        widths = hidden_widths(config, features)
        values: dict[str, Any] = {
            "width": min(WIDTHS, key=lambda width: abs(width - max(widths, default=0))),
            "layers": min(3, max(1, len(widths))),
            "latent_dim": min(latent_width(config, features), self._widest_latent()),
            "learning_rate": float(np.clip(config.learning_rate, *LEARNING_RATES)),
            "dropout": min(config.dropout, MOST_DROPOUT),
            "corruption": config.corruption,
            "corruption_level": float(np.clip(config.corruption_level, *LEVELS)),
        }
        searched = {*self._searched, *(("width", "layers") if "hidden" in self._searched else ())}
        return {name: value for name, value in values.items() if name in searched}

    def run(self, trial: Any) -> float:
        """Fit one configuration; the objective of the weights that it keeps."""
        from service.training.architecture import build_autoencoder, start_as_pca
        from service.training.fit import fit
        from service.training.quiet import keras

        config = self.configured(self.fields(self._suggest(trial)))
        keras.backend.clear_session()
        keras.utils.set_random_seed(config.seed)
        autoencoder = build_autoencoder(self._schema, config, self._preprocessing.layout)
        start_as_pca(autoencoder, self._train.inputs, seed=config.seed)
        judge = _Judge(trial, self._objective, autoencoder.network, self._deadline)
        fit(
            autoencoder,
            self._preprocessing,
            config,
            train=self._train,
            validation=self._validation,
            reporter=judge,
        )
        return self._objective(autoencoder.network)

    def told(self, study: Any, trial: Any) -> None:
        """After each trial."""
        if self._reporter is None:
            return
        done = any(each.value is not None and each.state.name == "COMPLETE" for each in study.trials)
        error = trial.value if trial.state.name == "COMPLETE" else None
        best = study.best_value if done else math.nan
        self._reporter.trial(Trial(trial.number + 1, error, best, time.monotonic() - self._started))

    def fields(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Fields of a configuration from Optuna's parameters."""
        found = {name: value for name, value in parameters.items() if name in SEARCHED}
        if "layers" in parameters:
            found["hidden"] = tuple(max(4, parameters["width"] // 2**level) for level in range(parameters["layers"]))
        if found.get("corruption", self._given.corruption) == "none":
            found.pop("corruption_level", None)
        return {name: float(f"{value:.3g}") if isinstance(value, float) else value for name, value in found.items()}

    def configured(self, found: dict[str, Any]) -> TrainingConfig:
        return TrainingConfig.model_validate({**self._config.model_dump(), **found})

    def _suggest(self, trial: Any) -> dict[str, Any]:
        ask = {
            "latent_dim": lambda name: trial.suggest_int(name, 1, self._widest_latent(), log=True),
            "learning_rate": lambda name: trial.suggest_float(name, *LEARNING_RATES, log=True),
            "dropout": lambda name: trial.suggest_float(name, 0.0, MOST_DROPOUT),
            "corruption": lambda name: trial.suggest_categorical(
                name, ["none", "gaussian", "masking", "salt_and_pepper"]
            ),
            "corruption_level": lambda name: trial.suggest_float(name, *LEVELS),
        }
        parameters = {name: ask[name](name) for name in self._searched if name in ask}
        if "hidden" in self._searched:
            parameters["width"] = trial.suggest_categorical("width", WIDTHS)
            parameters["layers"] = trial.suggest_int("layers", 1, 3)
        return parameters

    def _widest_latent(self) -> int:
        return max(1, min(WIDEST_LATENT, self._schema.features - 1))


class _Judge(SilentReporter):
    """Tells Optuna how a trial is getting on, and stops one that falls behind."""

    def __init__(self, trial: Any, objective: Objective, network: Any, deadline: float) -> None:
        self._trial, self._objective, self._network, self._deadline = trial, objective, network, deadline
        self._next = FIRST_RUNG

    def epoch(self, epoch: Epoch) -> None:
        if time.monotonic() > self._deadline:
            raise _optuna().TrialPruned
        if epoch.number < self._next:
            return
        self._next *= REDUCTION
        self._trial.report(self._objective(self._network), epoch.number)
        if self._trial.should_prune():
            raise _optuna().TrialPruned


def _is_dense(config: TrainingConfig) -> bool:
    return config.network == "dense"


def _mean(values: NDArray[Any], where: NDArray[np.bool_]) -> float:
    return float(values[where].mean()) if where.any() else 0.0


def _optuna() -> Any:
    try:
        optuna = importlib.import_module("optuna")
    except ImportError as error:
        raise ConfigurationError(
            "The search needs Optuna, which is not installed: pip install 'autoencoder-service[tune]'."
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
