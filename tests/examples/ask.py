"""Has ``warm.py`` run a command in this process's folder and environment, on its terminal; ends as the command does.

A copy called ``autoencoder`` is that command, one called ``python`` an interpreter.
"""

import json
import os
import signal
import socket
import sys
from pathlib import Path


def main() -> int:
    me = Path(__file__)
    arguments = ["-m", "service.cli"] if me.name == "autoencoder" else []
    request = json.dumps([os.getcwd(), dict(os.environ), [*arguments, *sys.argv[1:]]]).encode()  # noqa: PTH109 - quick
    with socket.socket(socket.AF_UNIX) as warm:
        warm.connect(str(me.resolve().parent / "socket"))
        socket.send_fds(warm, [len(request).to_bytes(4, "big")], [0, 1, 2])
        warm.sendall(request)
        process = int.from_bytes(warm.recv(4, socket.MSG_WAITALL), "big")
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: os.kill(process, number))
        code = warm.recv(1)
    return code[0] if code else 1  # nothing: it was killed


if __name__ == "__main__":
    sys.exit(main())
