"""The search on a real Ray cluster of several nodes, one of which is killed."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from service.cli import app
from service.training import load_config
from service.training.tune import Trial, Tuned, tune
from tests.conftest import table_rows, write_csv
from tests.ray_cluster import NODE, await_true, processes_of, ray_cluster
from tests.training.conftest import table_dataset

ray = pytest.importorskip("ray", reason="pip install 'autoencoder-service[ray]'")

pytestmark = [pytest.mark.tf, pytest.mark.slow, pytest.mark.cluster, pytest.mark.filterwarnings("ignore")]


class Listener:
    def __init__(self) -> None:
        self.trials: list[Trial] = []

    def trial(self, trial: Trial) -> None:
        self.trials.append(trial)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without CPUs and a node of one."""
    with ray_cluster(1) as started:
        ray.init(address=started.address, log_to_driver=False, logging_level="error")
        yield started
        ray.shutdown()


def test_a_node_is_killed(cluster: Any) -> None:
    """While it runs a trial: every trial counts once, and the search finds what it finds without Ray."""
    from service.training.tune import ray_trials

    # Too few epochs for a comparison between trials, and too few trials for guided ones: their order does not matter.
    given = load_config("dense", epochs=3, batch_size=32, hidden=(16,), latent_dim=5)
    dataset = table_dataset(table_rows(600, seed=0))
    alone = tune(dataset, given, trials=6)
    doomed = cluster.add_node(**NODE)
    listener, found = Listener(), list[Tuned]()
    run = ray_trials(workers=2)
    thread = threading.Thread(
        target=lambda: found.append(tune(dataset, given, trials=6, on_trial=listener.trial, run=run))
    )
    thread.start()
    await_true(lambda: bool(processes_of(doomed, "_run_trial")), "the node does not take part")
    cluster.remove_node(doomed, allow_graceful=False)
    assert len(listener.trials) < 5, "the search was nearly over before the node was killed"
    thread.join(120)
    assert sorted(trial.number for trial in listener.trials) == [1, 2, 3, 4, 5, 6]
    (tuned,) = found
    assert (tuned.trials, tuned.stopped, tuned.found) == (6, 0, alone.found)
    assert tuned.error == pytest.approx(alone.error, rel=1e-3)
    assert tuned.first_error == pytest.approx(alone.first_error, rel=1e-3)


def test_the_command(cluster: Any, tmp_path: Path) -> None:
    """Trials that fall behind are stopped on a cluster too."""
    csv = write_csv(tmp_path / "rows.csv", table_rows(600, seed=0))
    options = ["--trials", "5", "--epochs", "13", "--engine", "ray", "--address", cluster.address]
    result = CliRunner().invoke(app, ["tune", str(csv), *options])
    assert result.exit_code == 0, result.output
    assert "trial 5/5" in result.stderr
    assert "stopped early" in result.stderr
    assert f"autoencoder train {csv} --epochs 13 --" in result.stdout
