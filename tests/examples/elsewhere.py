"""Examples that no test can run as they stand: why, and the test of what they show."""

from dataclasses import dataclass

from tests.examples.pages import Block


@dataclass(frozen=True)
class Elsewhere:
    page: str
    begins: str
    """With these words the block begins."""
    reason: str
    test: str
    """``file::function``."""

    def means(self, block: Block) -> bool:
        return block.page == self.page and block.text.startswith(self.begins)


FRAMEWORKS = "tests/pipelines/test_examples.py"
ELSEWHERE = (
    Elsewhere(
        "README.md",
        "make test",
        "is what runs this",
        "tests/deploy/test_makefile.py::test_ci_runs_what_the_readme_says_and_installs_nothing_before_it",
    ),
    Elsewhere(
        "README.md",
        "docker compose up",
        "needs Docker and builds an image",
        "tests/deploy/test_containers.py::test_service_waits_for_the_trained_model",
    ),
    Elsewhere(
        "docs/stores.md",
        "model_store/digits/1/",
        "the files of a version, not a command",
        "tests/test_docs.py::test_files_of_a_version",
    ),
    Elsewhere(
        "docs/benchmarks.md",
        'make bench ARGS="load',
        "takes minutes and wrk",
        "tests/benchmarks/test_load.py::test_load_prints_and_writes_every_workload",
    ),
    Elsewhere(
        "docs/benchmarks.md",
        'make bench ARGS="swap',
        "takes an hour and wrk",
        "tests/benchmarks/test_load.py::test_swaps_are_checked_answer_by_answer",
    ),
    Elsewhere(
        "docs/benchmarks.md",
        'make bench ARGS="pipelines',
        "takes minutes and gigabytes",
        "tests/benchmarks/test_pipelines.py::test_the_command",
    ),
    Elsewhere(
        "docs/benchmarks.md",
        "python -m benchmarks quality",
        "takes hours and data sets",
        "tests/benchmarks/test_quality.py::test_the_command_measures_and_goes_on",
    ),
    Elsewhere(
        "docs/benchmarks.md",
        "python -m benchmarks columns",
        "needs a data set",
        "tests/benchmarks/test_columns.py::test_attacks_are_told_apart",
    ),
    Elsewhere(
        "docs/benchmarks.md",
        "python -m benchmarks images",
        "takes hours and a data set",
        "tests/benchmarks/test_images.py::test_every_metric_comes_from_a_published_version",
    ),
    Elsewhere(
        "docs/benchmarks.md",
        "python -m benchmarks series",
        "takes minutes and a data set",
        "tests/benchmarks/test_series.py::test_points_are_told_apart",
    ),
    Elsewhere(
        "docs/client.md",
        "pip install",
        "installs from a package index",
        "tests/deploy/test_requirements.py::test_client_needs_only_its_own_lock",
    ),
    Elsewhere(
        "docs/orchestration.md",
        "docker compose --profile nightly",
        "needs Docker and a night",
        "tests/deploy/test_orchestration.py::test_the_nightly_script_waits_for_its_hour_and_survives_failures",
    ),
    Elsewhere(
        "docs/orchestration.md",
        "30 2 * * *",
        "a line for cron",
        "tests/deploy/test_orchestration.py::test_commands_of_the_page_exist",
    ),
    Elsewhere(
        "docs/orchestration.md",
        "docker build",
        "needs a registry and a cluster",
        "tests/deploy/test_orchestration.py::test_manifests_are_valid",
    ),
    Elsewhere(
        "docs/orchestration.md",
        "kubectl apply",
        "needs a cluster with KServe",
        "tests/deploy/test_orchestration.py::test_the_kserve_service_is_valid",
    ),
    Elsewhere(
        "docs/pipelines.md",
        "import pandas as pd",
        "compared with the signature, in a process of its own",
        f"{FRAMEWORKS}::test_scorer",
    ),
    Elsewhere("docs/pipelines.md", "import dask", "in a process of its own", f"{FRAMEWORKS}::test_dask"),
    Elsewhere("docs/pipelines.md", "import ray", "in a process of its own", f"{FRAMEWORKS}::test_ray"),
    Elsewhere("docs/pipelines.md", "from pyspark.sql", "needs Java", f"{FRAMEWORKS}::test_spark"),
    Elsewhere("docs/pipelines.md", "from pyspark.ml", "needs Java", f"{FRAMEWORKS}::test_spark"),
    Elsewhere("docs/pipelines.md", "import json\n\nimport apache_beam", "needs Beam", f"{FRAMEWORKS}::test_beam"),
    Elsewhere(
        "docs/pipelines.md",
        "autoencoder score rows/ scored/ --engine ray",
        "needs a Ray cluster",
        "tests/pipelines/test_ray.py::test_the_command_on_a_cluster",
    ),
    Elsewhere(
        "docs/pipelines.md",
        "autoencoder serve --engine ray",
        "needs a Ray cluster",
        "tests/api/test_ray_serve.py::test_scores_are_those_of_the_signature",
    ),
    Elsewhere(
        "docs/pipelines.md",
        "autoencoder tune payments.csv --drop id --trials 100 --engine ray",
        "needs a Ray cluster",
        "tests/training/test_ray.py::test_the_command",
    ),
    Elsewhere(
        "docs/pipelines.md",
        "from pathlib import Path\n\nimport ray",
        "in a process of its own",
        f"{FRAMEWORKS}::test_ray_trains",
    ),
    Elsewhere(
        "docs/stores.md",
        "autoencoder train payments.csv --store s3://",
        "needs a bucket",
        "tests/store/test_objects.py::test_train_into_a_bucket_and_serve_from_it",
    ),
)


LANGUAGES = ("sh", "python", "json", "toml")
"""What a ``Reader`` can follow."""


def elsewhere(block: Block) -> Elsewhere | None:
    return next((each for each in ELSEWHERE if each.means(block)), None)


def tried(blocks: list[Block]) -> list[Block]:
    """Those that are not named above; a block without a language belongs to the one before it, as its output."""
    found: list[Block] = []
    skipped: Block | None = None
    for block in blocks:
        if elsewhere(block):
            skipped = block
        elif block.language or skipped is None or skipped.section != block.section:
            found.append(block)
            skipped = None
    return found


def forgotten(blocks: list[Block]) -> list[Block]:
    """Blocks that nobody tries: of a language that is none, or outputs of nothing."""
    followed = tried(blocks)
    before = [None, *followed]
    return [
        block
        for block, last in zip(followed, before, strict=False)
        if block.language not in LANGUAGES and (block.language or last is None or last.section != block.section)
    ]
