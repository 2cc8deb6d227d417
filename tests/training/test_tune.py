"""The search for better options."""

import math
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from optuna.distributions import FloatDistribution

from service.cli import app
from service.errors import ConfigurationError
from service.store import Store
from service.training import load_config
from service.training.tune import SEARCHED, Objective, Study, Trial, tune
from tests.conftest import table_rows, write_csv
from tests.training.conftest import table_dataset

START: dict[str, Any] = {
    "epochs": 13,
    "learning_rate": 1e-4,
    "batch_size": 64,
    "linear_path": False,
    "latent_dim": 5,
    "hidden": (16,),
}


class Listener:
    def __init__(self) -> None:
        self.trials: list[Trial] = []

    def trial(self, trial: Trial) -> None:
        self.trials.append(trial)


@pytest.mark.tf
def test_objective_wants_structure_not_the_identity() -> None:
    """Two causes behind six columns: a projection onto them beats the identity, and both beat knowing nothing."""
    rows = table_rows(3000, seed=0)
    scaled = ((rows - rows.mean(axis=0)) / rows.std(axis=0)).astype(np.float32)
    axes = np.linalg.svd(scaled, full_matrices=False)[2][:2]
    targets = scaled.copy()
    targets[::2, 3] = np.nan
    judge = Objective(scaled[:500], targets[:500], scaled.mean(axis=0), np.arange(6))

    def project(rows: Any, *, training: bool) -> Any:
        from service.runtime.quiet import tf

        return tf.constant(np.asarray(rows) @ axes.T @ axes)

    known = judge(project)
    identity = judge(lambda rows, training: rows)
    nothing = judge(lambda rows, training: 0 * rows)
    assert known < identity < nothing
    assert nothing == pytest.approx(1, abs=0.15)


@pytest.mark.tf
def test_finds_better_options_than_bad_ones() -> None:
    """The first trial is what was given; the best is no worse; what is fixed stays; all is told."""
    listener = Listener()
    given = load_config("dense", **START)
    tuned = tune(
        table_dataset(table_rows(700, seed=0)), given, fixed=("epochs", "hidden"), trials=7, on_trial=listener.trial
    )
    assert tuned.error < 0.8 * tuned.first_error
    assert tuned.trials == len(listener.trials) == 7
    assert tuned.stopped == sum(trial.error is None for trial in listener.trials)
    assert listener.trials[0].error == tuned.first_error
    assert tuned.error == min(trial.error for trial in listener.trials if trial.error is not None)
    assert tuned.config.hidden == (16,)
    assert "hidden" not in tuned.found
    assert set(tuned.found) <= set(SEARCHED)
    assert all(getattr(tuned.config, name) == value for name, value in tuned.found.items())
    assert isinstance(tuned.config.latent_dim, int)
    assert tuned.config.latent_dim < 6


@pytest.mark.tf
def test_keeps_to_the_time_budget() -> None:
    """It ends soon after; too little for one trial is one sentence."""
    with pytest.raises(ConfigurationError, match="time was over"):
        tune(table_dataset(table_rows(300, seed=0)), load_config("dense", **START), trials=50, time_budget_s=0.001)


@pytest.mark.tf
def test_nothing_to_search_is_one_sentence() -> None:
    """Where every option was given."""
    with pytest.raises(ConfigurationError, match="Every option"):
        tune(table_dataset(table_rows(300, seed=0)), load_config("dense", **START), fixed=SEARCHED, trials=2)


def test_without_optuna_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what to install."""
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'autoencoder-service\[tune\]'"):
        tune(table_dataset(table_rows(300, seed=0)), load_config("dense"), trials=1)


def test_a_trial_that_is_run_again_hears_the_same() -> None:
    """On a cluster a trial may be lost and run again: its verdicts stay, and it counts once."""
    space = {"learning_rate": FloatDistribution(0.1, 1.0)}
    study = Study(space, {"learning_rate": 0.5}, seed=0, several=True)
    asked = [study.ask() for _ in range(4)]
    assert asked[0] == (0, {"learning_rate": 0.5})
    verdicts = [study.falls_behind(number, 4, float(number)) for number, _ in asked]
    assert verdicts == [False, True, True, True]
    assert [study.falls_behind(number, 4, -1.0) for number, _ in asked] == verdicts
    study.tell(0, 0.25)
    study.tell(1, None)
    study.tell(2, math.nan)
    summary = study.summary()
    assert (summary.best, summary.best_error, summary.first_error) == ({"learning_rate": 0.5}, 0.25, 0.25)


@pytest.mark.tf
def test_command_prints_a_command_that_trains(tmp_path: Path) -> None:
    """With the options that were given and those that were found; --train publishes a version of them."""
    csv = write_csv(tmp_path / "rows.csv", table_rows(400, seed=0))
    options = ["--drop", "score", "--epochs", "3", "--store", str(tmp_path / "store"), "--no-linear-path"]
    options += ["--score", "reconstruction"]
    result = CliRunner().invoke(app, ["tune", str(csv), *options, "--trials", "2", "--train"])
    assert result.exit_code == 0, result.output
    assert "trial 2/2" in result.stderr
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("autoencoder train")]
    words = shlex.split(line)
    assert words[2] == str(csv)
    assert set(options) <= set(words)
    assert "--trials" not in words
    training = Store(tmp_path / "store").manifest("rows", 1).training
    assert training["epochs"] == 3
    assert words[words.index("--latent") + 1] == str(training["latent_dim"])
    assert words[words.index("--hidden") + 1] == ",".join(map(str, training["hidden"]))
    again = CliRunner().invoke(app, words[1:])
    assert again.exit_code == 0, again.output
    assert Store(tmp_path / "store").versions("rows") == [1, 2]
    first, second = (Store(tmp_path / "store").manifest("rows", number).training for number in (1, 2))
    assert {**first, "preset": ""} == {**second, "preset": ""}
