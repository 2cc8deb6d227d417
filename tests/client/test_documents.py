"""docs/client.md says what the client does: its examples run, its table of errors is complete."""

import re
from pathlib import Path

import pandas as pd
import pytest

import service.client as package
from service.client import errors
from service.settings import Settings
from tests.api.samples import payments
from tests.conftest import COLUMNS
from tests.live import LiveService, serve_live

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/client.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
URL = "http://127.0.0.1:8000"


def test_every_error_is_in_the_table() -> None:
    """With the status that it stands for, and it can be imported."""
    table = PAGE.partition("<!-- errors -->")[2].partition("<!-- /errors -->")[0]
    listed = dict(re.findall(r"^\| `(\w+)` \| (\d+)?", table, flags=re.M))
    by_status = {kind.__name__: str(status) for status, kind in errors._BY_STATUS.items()}
    assert listed == {**by_status, "Unreachable": ""}
    assert all(getattr(package, name) for name in listed)


@pytest.mark.tf
def test_the_examples_run(store: Path) -> None:
    """All of them, in order, against a live service with the model ``payments``."""
    frame = pd.DataFrame(payments(80), columns=list(COLUMNS))
    with serve_live(Settings(store=store, port=0, default_model="payments")) as live:
        names: dict[str, object] = {"frame": frame, "batches": [frame, frame]}
        for example in re.findall(r"```python\n(.*?)```", PAGE, flags=re.S):
            exec(compile(example.replace(URL, live.url), "docs/client.md", "exec"), names)
        names["client"].close()  # type: ignore[attr-defined]


def test_the_example_of_the_readme_runs(fake_service: LiveService, capsys: pytest.CaptureFixture[str]) -> None:
    """It prints a table of scores."""
    example = (
        README.partition("<!-- client -->")[2]
        .partition("<!-- /client -->")[0]
        .strip()
        .strip("`")
        .removeprefix("python")
    )
    exec(compile(example.replace(URL, fake_service.url), "README.md", "exec"), {"rows": [[1.0, 2.0]]})
    assert "p_values" in capsys.readouterr().out
