"""A warm interpreter: it has imported TensorFlow, and forks for each command that ``ask.py`` brings.

A command of a page so takes what it takes, without the seconds of an import: it has its own process, folder,
environment and terminal. ``python -m tests.examples.warm FOLDER`` listens there; FOLDER/bin has the commands.
"""

import importlib
import json
import multiprocessing.spawn  # noqa: F401 - remembers the real interpreter
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from service.cli import app

ROOT = Path(__file__).parents[2]
COMMANDS = ("autoencoder", "python", "python3")
BRIEF = "EXAMPLES_ARE_BRIEF"
BRIEF_DEFAULTS = {"train": {"epochs": 2}, "tune": {"trials": 2}}
"""What commands take for granted where the variable above is set; a reader has options for it."""
HEAVY = (
    "service.runtime.quiet", "keras", "pandas", "sklearn.manifold", "matplotlib.pyplot", "service.training.train",
    "service.runtime.loaded_model", "service.pipelines", "service.api.app",
)  # fmt: skip


@contextmanager
def warm_commands() -> Iterator[Path]:
    """A folder with the commands ``autoencoder`` and ``python``, which work as long as this context lasts."""
    with tempfile.TemporaryDirectory() as folder:
        bin_folder = Path(folder) / "bin"
        bin_folder.mkdir()
        for name in COMMANDS:
            text = (Path(__file__).parent / "ask.py").read_text()
            (bin_folder / name).write_text(f"#!{sys.executable} -IS\n{text}")
            (bin_folder / name).chmod(0o755)
        command = [sys.executable, "-m", "tests.examples.warm", str(bin_folder)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == b"ready\n"
                yield bin_folder
            finally:
                os.killpg(process.pid, signal.SIGKILL)  # it, and what a page left running


def main(bin_folder: Path) -> None:
    for module in HEAVY:
        importlib.import_module(module)
    sys.executable = str(bin_folder / "python")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(bin_folder / "socket"))
        listening.listen()
        print("ready", flush=True)
        while True:
            asking, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                _answer(asking)
            asking.close()


def _answer(asking: socket.socket) -> NoReturn:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, descriptors, _, _ = socket.recv_fds(asking, 4, 3)
    request = asking.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL)
    folder, environment, arguments = json.loads(request)
    for standard, given in enumerate(descriptors):
        os.dup2(given, standard)
        os.close(given)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    app.context_settings["default_map"] = BRIEF_DEFAULTS if BRIEF in environment else {}
    asking.sendall(os.getpid().to_bytes(4, "big"))
    code = _run(arguments)
    asking.sendall(bytes([code]))
    os._exit(code)


def _run(arguments: list[str]) -> int:
    """As the interpreter runs them: ``-m MODULE …``, ``FILE …``, or ``-`` for standard input; the exit code."""
    try:
        if arguments[0] == "-m":
            sys.argv = arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        elif arguments[0] == "-":
            sys.argv = arguments
            exec(compile(sys.stdin.read(), "<stdin>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = arguments
            sys.path[0] = str(Path(arguments[0]).resolve().parent)
            runpy.run_path(arguments[0], run_name="__main__")
        code: Any = 0
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else int(code is not None)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
