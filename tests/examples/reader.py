"""A reader who tries what a page shows: in a folder, with a terminal, and with the service that the page speaks of."""

import json
import os
import re
import signal
import socket
import subprocess
import time
import tomllib
from contextlib import chdir, redirect_stdout, suppress
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from service.client import Client
from tests.examples.pages import Block, agrees
from tests.examples.warm import BRIEF

ADDRESS = re.compile(r"(?:127\.0\.0\.1|localhost):8000")
AND_SO_ON = re.compile(r"(-?[\d.]+), …\]")
MAKE_DEMO = re.compile(r"^make demo\b", flags=re.M)
SERVES = re.compile(r"^[^#\n]*\bautoencoder (?:serve|demo)\b[^#\n]*", flags=re.M)
LONG_SERIES = 200
BLOCK_TIMEOUT_S = 280
START_TIMEOUT_S = 240
STOP_TIMEOUT_S = 30


class ExampleFailed(AssertionError):
    """An example does not work as the page shows it."""


@dataclass
class Reader:
    """Follows the blocks of one page in order. A section of it is a terminal, all of it one Python session."""

    folder: Path
    commands: Path
    """Where ``autoencoder`` and ``python`` are."""
    address: str
    """What ``127.0.0.1:8000`` stands for."""
    is_served: bool = False
    """By a service that is there already; else ``autoencoder serve`` is, when a block first asks for it."""
    names: dict[str, Any] = field(default_factory=dict)
    """What the page's Python takes for granted."""
    brief: bool = True
    """With few epochs; numbers are compared where it is not."""
    printed: str = ""
    """By the last block."""
    _section: str = ""
    _terminal: Path = Path()
    _draft: str = ""

    def __post_init__(self) -> None:
        (self.folder / ".venv").mkdir()
        (self.folder / ".venv/bin").symlink_to(self.commands)
        (self.folder / ".curlrc").write_text("fail-with-body\nnoproxy = *\n")

    def follow(self, block: Block) -> None:
        """Do what the block says; a block without a language is what the one before it prints.

        Raises:
            ExampleFailed: it does not work, or the page shows something else.
        """
        ways = {"sh": self._shell, "python": self._python, "json": self._write, "toml": self._write, "": self._compare}
        if block.section != self._section:
            self._section, self._terminal = block.section, self.folder
        if ADDRESS.search(block.text) and not (self.is_served or self._serving.exists()):
            self._run("autoencoder serve", self.folder)
        ways[block.language](block)

    def leave(self) -> None:
        """End what still runs.

        Raises:
            ExampleFailed: the page has a file that none of its commands uses.
        """
        for value in self.names.values():
            if isinstance(value, Client):
                value.close()
        self._stop_serving()
        if self._draft:
            raise ExampleFailed(f"No command uses the file\n{self._draft}")

    def _shell(self, block: Block) -> None:
        self._save_draft(block)
        ended = self._run(self._localised(block.text), self._terminal)
        if ended.returncode != 0:
            said = f"{ended.stdout[-1000:]}\n{ended.stderr[-3000:]}"
            raise ExampleFailed(f"{block} ends with exit code {ended.returncode}:\n{block.text}\n{said}")
        self._terminal = Path((self.folder / ".terminal").read_text().strip())
        self.printed = f"{ended.stdout}\n{ended.stderr}"

    def _run(self, text: str, folder: Path) -> "subprocess.CompletedProcess[str]":
        if SERVES.search(text):
            self._stop_serving()
        text = f"trap 'pwd > {self.folder}/.terminal' EXIT\n{SERVES.sub(self._in_the_background, text)}"
        variables = {name: value for name, value in os.environ.items() if not name.startswith("AUTOENCODER_")}
        variables |= {
            "PATH": f"{self.commands}:{os.environ['PATH']}",
            "CURL_HOME": str(self.folder),
            "COLUMNS": "200",
            "AUTOENCODER_PORT": self._port,
        }
        if self.brief:
            variables[BRIEF] = "1"
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text], cwd=folder, env=variables, text=True, stdin=subprocess.DEVNULL,
            capture_output=True, timeout=BLOCK_TIMEOUT_S, check=False,
        )  # fmt: skip

    def _in_the_background(self, command: "re.Match[str]") -> str:
        """The reader's second terminal: the command goes on there, and the next one comes when it is ready."""
        started = f"{command[0].rstrip()} > {self._log} 2>&1 & echo $! > {self._serving}"
        ready = f"curl -so /dev/null http://{self.address}/readyz"
        if "demo" in command[0]:
            ready = f"grep -q Ctrl-C {self._log}"
        wait = f"if kill -0 $! && [ $SECONDS -lt {START_TIMEOUT_S} ]; then sleep 0.1; else cat {self._log}; exit 1; fi"
        return f"{started}; until {ready}; do {wait}; done; cat {self._log} "

    @property
    def _log(self) -> Path:
        return self.folder / ".serve.log"

    @property
    def _serving(self) -> Path:
        """Has the number of the process that serves, while one does."""
        return self.folder / ".serving"

    def _stop_serving(self) -> None:
        """By Ctrl-C, as the reader does."""
        if not self._serving.exists():
            return
        process = int(self._serving.read_text())
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGINT)
            for _ in range(STOP_TIMEOUT_S * 10):
                os.kill(process, 0)
                time.sleep(0.1)
        self._serving.unlink()

    def _python(self, block: Block) -> None:
        printed = StringIO()
        code = compile("\n" * block.line + self._localised(block.text), block.page, "exec")
        with chdir(self.folder), redirect_stdout(printed):
            try:
                exec(code, self.names)
            except Exception as error:
                raise ExampleFailed(f"{block} raises {error!r}:\n{block.text}") from error
        self.printed = printed.getvalue()

    def _compare(self, block: Block) -> None:
        if not agrees(block.text, self.printed, by_numbers=not self.brief):
            raise ExampleFailed(f"{block} shows\n{block.text}\nand what was printed is\n{self.printed}")

    def _write(self, block: Block) -> None:
        """A file: the next command says what it is called."""
        try:
            {"json": json.loads, "toml": tomllib.loads}[block.language](block.text)
        except ValueError as error:
            raise ExampleFailed(f"{block}: {error}") from error
        self._draft = block.text

    def _save_draft(self, block: Block) -> None:
        named = re.search(r"[\w-]+\.(?:json|toml)\b", block.text)
        if self._draft and named:
            (self.folder / named[0]).write_text(self._draft)
            self._draft = ""

    def _localised(self, text: str) -> str:
        """With the address of the real service, series as long as a reader's own, and everything installed."""
        text = AND_SO_ON.sub(lambda found: ", ".join([found[1]] * LONG_SERIES) + "]", text)
        text = MAKE_DEMO.sub(f"autoencoder demo --port {self._port}", text)
        return ADDRESS.sub(self.address, text)

    @property
    def _port(self) -> str:
        return self.address.rpartition(":")[2]


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"
