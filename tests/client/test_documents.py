"""docs/client.md says what the client does: its table of errors is complete."""

import re
from pathlib import Path

import service.client as package
from service.client import errors

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/client.md").read_text(encoding="utf-8")


def test_every_error_is_in_the_table() -> None:
    """With the status that it stands for, and it can be imported."""
    table = PAGE.partition("<!-- errors -->")[2].partition("<!-- /errors -->")[0]
    listed = dict(re.findall(r"^\| `(\w+)` \| (\d+)?", table, flags=re.M))
    by_status = {kind.__name__: str(status) for status, kind in errors.BY_STATUS.items()}
    assert listed == {**by_status, "Unreachable": ""}
    assert all(getattr(package, name) for name in listed)
