"""Services in processes of their own: ``python -m tests.api.processes SETTINGS DELAY_S`` serves fakes."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

START_TIMEOUT_S = 240
ROOT = Path(__file__).parents[2]
RUNNING = re.compile(rb"(?:running|serving) on (http://[0-9.]+:[0-9]+)")


@dataclass(frozen=True)
class ServiceProcess:
    url: str
    process: "subprocess.Popen[bytes]"
    log_file: Path

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")


@contextmanager
def running(command: list[str], *, user: int | None = None, **environment: str) -> Iterator[ServiceProcess]:
    """Start a service and wait until it serves."""
    with tempfile.NamedTemporaryFile(suffix=".log") as log:
        arguments = [sys.executable, "-W", "error::ResourceWarning", "-m", *command]
        process = subprocess.Popen(
            arguments, cwd=ROOT, env={**os.environ, **environment}, stdout=log, stderr=log, user=user
        )
        try:
            yield ServiceProcess(_await_address(process, Path(log.name)), process, Path(log.name))
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def fakes(store: Path, *, delay_s: float = 0, **settings: object) -> list[str]:
    """The command of a service over fakes."""
    return ["tests.api.processes", json.dumps({"store": str(store), "port": 0, **settings}), str(delay_s)]


def _await_address(process: "subprocess.Popen[bytes]", log: Path) -> str:
    deadline = time.monotonic() + START_TIMEOUT_S
    while (found := RUNNING.search(log.read_bytes())) is None:
        assert process.poll() is None, log.read_text(errors="replace")
        assert time.monotonic() < deadline, "the service did not start in time"
        time.sleep(0.05)
    return found[1].decode()


def main(settings_json: str, delay_s: str) -> None:
    from service.api.app import create_app
    from service.api.server import GuardedServer, bound, server_config
    from service.settings import Settings
    from service.telemetry import configure_logging
    from tests.fakes import load_fake

    settings = Settings(**json.loads(settings_json))
    configure_logging("info", "json")
    load = partial(load_fake, before=partial(time.sleep, float(delay_s)))
    GuardedServer(server_config(create_app(settings, load=load), settings), settings).run([bound(settings)])


if __name__ == "__main__":
    main(*sys.argv[1:])
