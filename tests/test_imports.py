"""What must start at once does not import TensorFlow."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("tensorflow", "keras", "sklearn", "matplotlib", "scipy", "pyarrow", "PIL")
ROOT = Path(__file__).parents[1]


def imported_by(statement: str) -> set[str]:
    """Top-level names of all modules after a statement in a fresh interpreter."""
    code = f"import sys\n{statement}\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}), sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.splitlines())


LIGHT = (
    "service",
    "service.client",
    "service.store",
    "service.codecs",
    "service.scoring",
    "service.settings",
    "service.schemas",
    "service.words",
    "service.batching",
    "service.telemetry",
    "service.runtime",
    "service.pipelines",
    "service.pipelines.files",
    "service.api.app",
    "service.api.server",
    "service.cli",
)


def test_importing_is_light() -> None:
    """Neither TensorFlow nor any other library that only some requests or commands need: all together bring none."""
    assert imported_by(f"import {', '.join(LIGHT)}") & set(HEAVY) == set()


@pytest.mark.tf
def test_serving_leaves_keras_out() -> None:
    """And what Keras brings, which is 170 MB; who asks for ``tf.keras`` afterwards gets Keras 3."""
    statement = "from service.runtime.quiet import tf"
    assert imported_by(statement) & {"keras", "sklearn", "pandas", "matplotlib"} == set()
    asked = "import os\nassert tf.keras.__version__ >= '3'\nassert 'TF_USE_LEGACY_KERAS' not in os.environ"
    assert "keras" in imported_by(f"{statement}\n{asked}")


def test_the_client_imports_nothing_of_the_server() -> None:
    """It may be copied elsewhere."""
    server = {"fastapi", "starlette", "uvicorn", "pydantic", "prometheus_client", "structlog"}
    assert imported_by("import service.client") & server == set()


def test_the_control_sees_what_is_imported() -> None:
    """The same look at a module that does import a heavy library."""
    assert "PIL" in imported_by("import PIL.Image")


def test_help_is_light() -> None:
    """``autoencoder --help`` and its kind need neither TensorFlow nor numpy nor a web framework."""
    asked = ("", "--help", "--version", "train --help", "serve -h", "models --help", "score -h")
    statement = (
        "from service.cli import main\n"
        "import io, contextlib\n"
        f"for arguments in {asked!r}:\n"
        "    sys.argv = ['autoencoder', *arguments.split()]\n"
        "    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):\n"
        "        with contextlib.suppress(SystemExit):\n            main()\n"
    )
    assert imported_by(statement) & {*HEAVY, "numpy", "fastapi", "uvicorn", "httpx2", "rich"} == set()
