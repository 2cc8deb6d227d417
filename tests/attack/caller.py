"""Somebody else's requests: ``python caller.py URL TIMEOUT_S`` asks until its input ends, a line of JSON an answer.

A process of its own: a thread beside the attack would wait for the attacker too.
"""

import json
import sys
import threading
import time
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_S = 20.0
PAUSE_S = 0.02
ROW = json.dumps({"instances": [[1.0, 2.0]]}).encode()
JSON = {"content-type": "application/json"}
REQUESTS: dict[str, tuple[Any, ...]] = {"score": ("POST", "/anomaly-score", ROW, JSON), "probe": ("GET", "/livez")}


def ask(url: str, name: str, timeout_s: float = TIMEOUT_S) -> str:
    """Send one of ``REQUESTS`` on a connection of its own; return what is wrong with the answer."""
    address, request = urlsplit(url), REQUESTS[name]
    with closing(HTTPConnection(address.hostname or "", address.port, timeout_s)) as connection:
        try:
            connection.request(*request)
            answer = connection.getresponse()
            text = answer.read().decode()
        except (OSError, HTTPException) as error:
            return f"{request[1]}: {error!r}"
    return "" if answer.status == 200 else f"{request[1]}: {answer.status} {text[:200]}"


def main(url: str, timeout_s: float) -> None:
    """Ask until standard input ends."""
    ended = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    while True:
        for name in REQUESTS:
            began = time.monotonic()
            failure = ask(url, name, timeout_s)
            print(json.dumps([name, time.monotonic() - began, failure]), flush=True)
        if ended.wait(PAUSE_S):
            return


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
