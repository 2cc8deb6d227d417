"""Load from wrk: a generator in C, so that what is measured is the service and not the client."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from service.errors import ConfigurationError

_MARK = "@@"
_SCRIPT = """
local body = io.open(os.getenv("BENCH_BODY"), "rb")
wrk.method = "POST"
wrk.body = body:read("*a")
body:close()
for line in string.gmatch(os.getenv("BENCH_HEADERS"), "[^\\n]+") do
  local name, value = string.match(line, "^(.-): (.*)$")
  wrk.headers[name] = value
end
done = function(summary, latency)
  local e = summary.errors
  io.write(string.format(
    '@@{"requests":%d,"us":%d,"refused":%d,"broken":%d,"p50_us":%f,"p99_us":%f}\\n', summary.requests, summary.duration,
    e.status, e.connect + e.read + e.write + e.timeout, latency:percentile(50), latency:percentile(99)))
end
"""


@dataclass(frozen=True, slots=True)
class Load:
    """What came of a closed loop: every connection sends its next request when it has the answer to its last."""

    requests_s: float
    p50_ms: float
    p99_ms: float
    refused: int
    """Answers with a status of 400 or more."""
    broken: int
    """Connections that failed, and answers that did not come."""
    seconds: float

    @property
    def good_s(self) -> float:
        """Answers a second that were no refusals."""
        return (round(self.requests_s * self.seconds) - self.refused) / self.seconds


def is_installed() -> bool:
    return shutil.which("wrk") is not None


@contextmanager
def prepared(body: bytes) -> Iterator[Path]:
    """A folder with what wrk reads."""
    if not is_installed():
        raise ConfigurationError("wrk makes the load and is not installed; on Debian: apt-get install wrk.")
    with tempfile.TemporaryDirectory(prefix="autoencoder-bench-") as name:
        folder = Path(name)
        (folder / "post.lua").write_text(_SCRIPT, encoding="utf-8")
        (folder / "body").write_bytes(body)
        yield folder


def run(url: str, body: bytes, headers: dict[str, str], *, connections: int, seconds: float) -> Load:
    """POST ``body`` over so many connections, for so long.

    Raises:
        ConfigurationError: wrk is not installed, or the service does not answer.
    """
    with prepared(body) as folder:
        lines = "\n".join(f"{name}: {value}" for name, value in headers.items())
        environment = {**os.environ, "BENCH_BODY": str(folder / "body"), "BENCH_HEADERS": lines}
        size = ["-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "30s", "--latency"]
        command = ["wrk", *size, "-s", str(folder / "post.lua"), url]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    found = done.stdout.partition(_MARK)[2]
    if not found:
        reason = (done.stderr or done.stdout).strip().splitlines()[:1]
        raise ConfigurationError(f"wrk could not load the service: {' '.join(reason)}")
    counted = json.loads(found)
    return Load(
        requests_s=counted["requests"] / counted["us"] * 1e6,
        p50_ms=counted["p50_us"] / 1e3,
        p99_ms=counted["p99_us"] / 1e3,
        refused=counted["refused"],
        broken=counted["broken"],
        seconds=counted["us"] / 1e6,
    )
