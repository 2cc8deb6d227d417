"""A search for better options, by Optuna: trials on the training rows, judged by the validation rows alone.

Calibration and test rows are never touched, so that what ``train`` reports afterwards still holds. Trials that fall
behind are stopped early (successive halving, Jamieson and Talwalkar, AISTATS 2016); new ones are drawn near the good
ones (TPE, Bergstra et al., NIPS 2011). The first trial is the configuration as it was given: none found is worse.
"""

import importlib
import itertools
import math
import os
import time
import uuid
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.errors import ConfigurationError, TrainingFailed
from service.runtime.ray import connected
from service.schemas import take_rows
from service.training.config import TrainingConfig, hidden_widths, latent_width, settle
from service.training.data import Dataset
from service.training.progress import Epoch, Reporter
from service.training.split import split_rows

HIDDEN_SHARE = 0.2
FIRST_RUNG, REDUCTION = 4, 3
"""Trials are compared after ``FIRST_RUNG`` epochs, and after each ``REDUCTION`` times as many; one in ``REDUCTION``
goes on."""
STARTUP_TRIALS = 8
"""Drawn at random, before the good ones among them are known."""
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
    """The options that a search has found."""

    config: TrainingConfig
    """The configuration that was given, with what was found."""
    found: dict[str, Any]
    """The fields that were searched, with their best values; ``corruption_level`` only where there is noise."""
    error: float
    first_error: float
    """Error of the configuration as it was given."""
    trials: int
    stopped: int
    """Trials that were stopped early or diverged."""


FallsBehind: TypeAlias = Callable[[int, float], bool]
"""Whether a trial is to be stopped whose error after an epoch, counted from 1, is this."""


@dataclass(frozen=True, slots=True)
class Order:
    """The trials that a runner is to run."""

    trials: int | None
    seconds_left: Callable[[], float]
    ended: Callable[[int, float | None], None]
    """To be called after each trial, in the thread that searches, as ``Study.tell``."""

    def is_done(self, started: int) -> bool:
        """Whether no trial is to be started after ``started`` of them."""
        return started == self.trials or self.seconds_left() <= 0


@dataclass(frozen=True, slots=True)
class Summary:
    """The results of a study."""

    best: dict[str, Any] | None
    """Parameters; None when no trial has ended well."""
    best_error: float
    first_error: float
    """Error of trial 0."""
    trials: int
    stopped: int


class Study:
    """That of Optuna: asked for configurations, and told how trials are getting on.

    ``several`` trials may run at a time; then those under way count as bad ones, so that no two are alike.
    """

    def __init__(self, space: dict[str, Any], start: dict[str, Any], *, seed: int, several: bool = False) -> None:
        optuna = import_optuna()
        with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
            sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS, constant_liar=several)
        pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=FIRST_RUNG, reduction_factor=REDUCTION)
        self._study = optuna.create_study(sampler=sampler, pruner=pruner)
        self._study.enqueue_trial(start)
        self._space = space
        self._running: dict[int, Any] = {}
        self._verdicts: dict[tuple[int, int], bool] = {}

    def ask(self) -> tuple[int, dict[str, Any]]:
        """Number, from 0, and parameters of a new trial."""
        trial = self._study.ask(self._space)
        self._running[trial.number] = trial
        return trial.number, trial.params

    def falls_behind(self, number: int, epoch: int, error: float) -> bool:
        """Whether a trial is to be stopped; the same again where it is run again and asks again."""
        if (number, epoch) not in self._verdicts:
            self._running[number].report(error, epoch)
            self._verdicts[number, epoch] = bool(self._running[number].should_prune())
        return self._verdicts[number, epoch]

    def tell(self, number: int, error: float | None) -> None:
        """A trial has ended; None: it was stopped, NaN: it diverged."""
        states = import_optuna().trial.TrialState
        state = states.PRUNED if error is None else states.FAIL if math.isnan(error) else states.COMPLETE
        self._study.tell(self._running.pop(number), error if state == states.COMPLETE else None, state)

    def summary(self) -> Summary:
        ended = {trial.number: trial for trial in self._study.trials if trial.state.name == "COMPLETE"}
        return Summary(
            best=self._study.best_params if ended else None,
            best_error=self._study.best_value if ended else math.nan,
            first_error=ended[0].value if 0 in ended else math.nan,
            trials=len(self._study.trials),
            stopped=len(self._study.trials) - len(ended),
        )


Runner: TypeAlias = Callable[["Search", Order], Summary]


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
        from service.runtime.signature import in_batches

        rebuilt = in_batches(lambda part: network(self._seen[part], training=False), len(self._seen))
        squares = np.where(self._present, np.square(rebuilt - np.nan_to_num(self._targets)), 0.0)
        parts = [squares[part & self._present] for part in (self._hidden, ~self._hidden)]
        return float(np.mean([part.mean() if len(part) else 0.0 for part in parts]))


def tune(
    dataset: Dataset,
    config: TrainingConfig,
    *,
    fixed: Collection[str] = (),
    trials: int | None = 50,
    time_budget_s: float | None = None,
    on_trial: Callable[[Trial], None] = lambda _trial: None,
    run: Runner | None = None,
) -> Tuned:
    """Search until ``trials`` have ended, or the time is over, whichever is first.

    Args:
        fixed: fields of ``config`` that stay as they are.
        on_trial: is called with each trial that has ended, by the thread that searches.
        run: where the trials run, as ``ray_trials`` gives it; None: one by one in this process.

    Raises:
        ConfigurationError: Optuna is not installed, nothing is left to search, or the time was too short for one trial.
    """
    import_optuna()
    search = Search(dataset, config, fixed=tuple(fixed))
    began, best = time.monotonic(), math.inf

    def ended(number: int, error: float | None) -> None:
        nonlocal best
        error = None if error is None or math.isnan(error) else error
        best = best if error is None else min(best, error)
        on_trial(Trial(number + 1, error, best if math.isfinite(best) else math.nan, time.monotonic() - began))

    limit_s = math.inf if time_budget_s is None else time_budget_s
    order = Order(trials, lambda: limit_s - (time.monotonic() - began), ended)
    summary = (run or run_here)(search, order)
    if summary.best is None:
        raise ConfigurationError("The time was over before the first trial was; give the search more.")
    found = search.fields(summary.best)
    return Tuned(
        config=search.configured(found),
        found=found,
        error=summary.best_error,
        first_error=summary.first_error,
        trials=summary.trials,
        stopped=summary.stopped,
    )


def run_here(search: "Search", order: Order) -> Summary:
    """Trials one by one in this process."""
    study = Study(search.space, search.start, seed=search.seed)
    for started in itertools.count():
        if order.is_done(started):
            break
        number, parameters = study.ask()
        error = search.error_of(parameters, partial(study.falls_behind, number), seconds_left=order.seconds_left())
        study.tell(number, error)
        order.ended(number, error)
    return study.summary()


class Search:
    """The rows, made ready once, and what a trial does with them. A copy in another process makes them ready again."""

    def __init__(self, dataset: Dataset, config: TrainingConfig, fixed: tuple[str, ...] = ()) -> None:
        """
        Raises:
            ConfigurationError: nothing is left to search.
        """
        from service.training.fit import make_reproducible, use_devices
        from service.training.latent import settle_latent
        from service.training.preprocessing import fit_preprocessing

        self._made_of = dataset, config, fixed
        self._given, self._schema = config, dataset.schema
        split = split_rows(len(dataset), config, blocks=dataset.blocks)
        settled = settle(config, dataset.schema, rows=len(split.train))
        self._searched = [
            name for name in SEARCHED if name not in fixed and (name != "hidden" or settled.network == "dense")
        ]
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

    def __reduce__(self) -> Any:
        return Search, self._made_of

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

    def error_of(
        self, parameters: dict[str, Any], falls_behind: FallsBehind, *, seconds_left: float = math.inf
    ) -> float | None:
        """Fit one configuration; the objective of the weights that it keeps. None: it was stopped, NaN: it diverged."""
        from service.runtime.quiet import keras
        from service.training.architecture import build_autoencoder, start_as_pca
        from service.training.fit import fit

        config = self.configured(self.fields(parameters))
        keras.backend.clear_session()
        keras.utils.set_random_seed(config.seed)
        autoencoder = build_autoencoder(self._schema, config, self._preprocessing.layout)
        start_as_pca(autoencoder, self._train.inputs, seed=config.seed)
        judge = _Judge(
            falls_behind, lambda: self._objective(autoencoder.network), deadline=time.monotonic() + seconds_left
        )
        try:
            fit(
                autoencoder,
                self._preprocessing,
                config,
                train=self._train,
                validation=self._validation,
                reporter=judge,
            )
        except _Stopped:
            return None
        except TrainingFailed:
            return math.nan
        return self._objective(autoencoder.network)

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

    @property
    def seed(self) -> int:
        return self._given.seed

    @property
    def space(self) -> dict[str, Any]:
        """The options to search, as Optuna's distributions."""
        of = import_optuna().distributions
        known = {
            "latent_dim": of.IntDistribution(1, self._widest_latent(), log=True),
            "learning_rate": of.FloatDistribution(*LEARNING_RATES, log=True),
            "dropout": of.FloatDistribution(0.0, MOST_DROPOUT),
            "corruption": of.CategoricalDistribution(["none", "gaussian", "masking", "salt_and_pepper"]),
            "corruption_level": of.FloatDistribution(*LEVELS),
        }
        space = {name: known[name] for name in self._searched if name in known}
        if "hidden" in self._searched:
            space |= {"width": of.CategoricalDistribution(WIDTHS), "layers": of.IntDistribution(1, 3)}
        return space

    def _widest_latent(self) -> int:
        return max(1, min(WIDEST_LATENT, self._schema.features - 1))


class _Stopped(Exception):
    """A trial fell behind, or the time is over."""


class _Judge(Reporter):
    """Says how a trial is getting on, and stops one that falls behind."""

    def __init__(self, falls_behind: FallsBehind, error: Callable[[], float], *, deadline: float) -> None:
        self._falls_behind, self._error, self._deadline = falls_behind, error, deadline
        self._next = FIRST_RUNG

    def epoch(self, epoch: Epoch) -> None:
        if time.monotonic() > self._deadline:
            raise _Stopped
        if epoch.number < self._next:
            return
        self._next *= REDUCTION
        if self._falls_behind(epoch.number, self._error()):
            raise _Stopped


def import_optuna() -> Any:
    """The module ``optuna``.

    Raises:
        ConfigurationError: it is not installed.
    """
    try:
        optuna = importlib.import_module("optuna")
    except ImportError as error:
        raise ConfigurationError(
            "The search needs Optuna, which is not installed: pip install 'autoencoder-service[tune]'."
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


# --- on a Ray cluster -------------------------------------------------------------------------------------------------


_searches: dict[str, Search] = {}
"""The search that this process has made ready; one at a time."""


def ray_trials(address: str | None = None, *, workers: int | None = None) -> Runner:
    """Runs trials as tasks of a cluster, for ``tune``.

    A trial whose node is lost is run again elsewhere, with the same configuration, and counts once. The package
    must be installed on all nodes; the rows are sent there.

    Args:
        address: of the cluster, as for ``ray.init``; ``local`` starts one on this machine, None finds or starts one.
        workers: trials at a time, a CPU each; one for each CPU of the cluster when None.

    Raises:
        ConfigurationError: by the runner: Ray is not installed, or no cluster answers at the address.
    """

    def run(search: Search, order: Order) -> Summary:
        with connected(address) as cluster:
            return run_on_cluster(cluster.ray, search, order, at_a_time=workers or cluster.cpus)

    return run


@dataclass(frozen=True, slots=True)
class SharedSearch:
    """The parts that all trials of a search share."""

    key: str
    search: list[Any]
    """The reference of it, in a list so that Ray does not make the search ready again for each trial."""
    study: Any
    """Handle of the actor."""


def run_on_cluster(ray: Any, search: Search, order: Order, *, at_a_time: int) -> Summary:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # On the node of this process: the study is lost only where this process is lost too.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(num_cpus=0, scheduling_strategy=here)(Study)
    study = actor.remote(search.space, search.start, seed=search.seed, several=at_a_time > 1)
    shared = SharedSearch(uuid.uuid4().hex, [ray.put(search)], study)
    task = ray.remote(num_cpus=1, max_retries=-1)(_run_trial)
    running: dict[Any, int] = {}
    started = 0
    while True:
        while len(running) < at_a_time and not order.is_done(started):
            number, parameters = ray.get(study.ask.remote())
            running[task.remote(shared, number, parameters, order.seconds_left())] = number
            started += 1
        if not running:
            summary: Summary = ray.get(study.summary.remote())
            return summary
        (ended,), _ = ray.wait(list(running))
        number, error = running.pop(ended), ray.get(ended)
        ray.get(study.tell.remote(number, error))
        order.ended(number, error)


def _run_trial(shared: SharedSearch, number: int, parameters: dict[str, Any], seconds_left: float) -> float | None:
    """One trial, in a process of the cluster."""
    import ray

    def falls_behind(epoch: int, error: float) -> bool:
        return bool(ray.get(shared.study.falls_behind.remote(number, epoch, error)))

    if shared.key not in _searches:
        os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")  # a trial has one CPU
        _searches.clear()
        _searches[shared.key] = ray.get(shared.search[0])
    return _searches[shared.key].error_of(parameters, falls_behind, seconds_left=seconds_left)
