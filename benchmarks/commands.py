"""Running the commands that a user would, in processes of their own: what is quoted is what they do."""

import subprocess
import sys


def complaint_of(command: str, *arguments: object) -> str | None:
    """Run ``autoencoder COMMAND ARGUMENTS``: None where it succeeds, else the last line that it says, its reason."""
    whole = [sys.executable, "-m", "service.cli", command, *map(str, arguments)]
    ended = subprocess.run(whole, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if not ended.returncode:
        return None
    return (ended.stderr.strip().splitlines() or [f"it ended with {ended.returncode} and said nothing"])[-1]
