"""Every example of the README and of docs/ works as it stands, or is named with the test of what it shows.

A page is followed from top to bottom by a ``Reader``. ``given.py`` has what the page takes for granted, and
``elsewhere.py`` what cannot be run here.
"""

import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import pytest

from tests.commands import check_command
from tests.examples.elsewhere import ELSEWHERE, Elsewhere, elsewhere, forgotten, tried
from tests.examples.given import GIVEN, given
from tests.examples.pages import ROOT, Block, agrees, blocks_of, pages, read_page, renewed
from tests.examples.reader import ExampleFailed, Reader, free_address
from tests.examples.warm import warm_commands
from tests.live import LiveService

BLOCKS = {page: blocks_of(page, read_page(page)) for page in pages()}
FOLLOWED = [page for page, blocks in BLOCKS.items() if tried(blocks)]
SERVED_BY_FAKES = "docs/protocols.md"


@pytest.fixture(scope="session")
def commands() -> Iterator[Path]:
    """The folder with ``autoencoder`` and ``python``."""
    with warm_commands() as folder:
        yield folder


def follow(reader: Reader, blocks: list[Block]) -> None:
    try:
        for block in tried(blocks):
            reader.follow(block)
    finally:
        reader.leave()


@pytest.mark.parametrize("page", BLOCKS)
def test_no_example_is_forgotten(page: str) -> None:
    """Where this fails: make it an example that runs, or say in ``elsewhere.py`` which test has it."""
    assert not forgotten(BLOCKS[page])


@pytest.mark.parametrize("each", ELSEWHERE, ids=lambda each: f"{each.page}: {each.begins[:20]}")
def test_what_cannot_run_here_is_tested_elsewhere(each: Elsewhere, tmp_path: Path) -> None:
    """The page still has it, the test exists, and the command line understands its commands."""
    blocks = [block for block in BLOCKS[each.page] if elsewhere(block) is each]
    assert len(blocks) == 1
    file, _, function = each.test.partition("::")
    assert re.search(rf"^ *def {function}\(", (ROOT / file).read_text(encoding="utf-8"), flags=re.M)
    for command in re.findall(r"^[^#\n]*\bautoencoder ([a-z][^#|\n]*)", blocks[0].text, flags=re.M):
        with chdir(tmp_path):
            for folder in re.findall(r"--data (\S+)", command):
                Path(folder).mkdir()
            for file in re.findall(r"(?<= )\w+\.csv", command):
                Path(file).touch()
            check_command(shlex.split(command))


def test_pages_that_take_something_for_granted_exist() -> None:
    """Nobody is given what no page asks for."""
    assert GIVEN.keys() <= BLOCKS.keys()


@pytest.mark.tf
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl")
# Keras copies TensorFlow variables in a way that NumPy 2 deprecates.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("page", FOLLOWED)
def test_the_examples_work(page: str, commands: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """In order, as a reader comes to them; where the page shows what they print, they print that."""
    there = given(page)
    there.lay_out(tmp_path, request.getfixturevalue("trained_store") if there.models else tmp_path)
    fakes = request.getfixturevalue("fake_service").url if page == SERVED_BY_FAKES else None
    address = fakes.removeprefix("http://") if fakes else free_address()
    names = dict(there.names(tmp_path))
    follow(Reader(tmp_path, commands, address, is_served=bool(fakes), names=names, brief=there.brief), BLOCKS[page])


# --- the controls: an example that does not work is found -------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("```sh\ntrue\n```\n", []),
        ("```ruby\nputs 1\n```\n", [1]),
        ("```\nwhat is this?\n```\n", [1]),
        ("```sh\ntrue\n```\nprints\n```\nthis\n```\n", []),
        ("```sh\ntrue\n```\n## Next\n```\nthis\n```\n", [5]),
        ("- in a list\n\n  ```yaml\n  a: 1\n  ```\n", [3]),
    ],
)
def test_an_example_that_nobody_tries_is_found(text: str, lines: list[int]) -> None:
    """In whatever place of the page."""
    assert [block.line for block in forgotten(blocks_of("invented.md", text))] == lines


def test_a_fence_that_does_not_end_is_found() -> None:
    """It would hide what comes after it."""
    with pytest.raises(AssertionError, match="without its end"):
        blocks_of("invented.md", "```sh\ntrue\n```\n\n```sh\nfalse\n")


@pytest.mark.parametrize(
    ("shown", "printed", "agree"),
    [
        ('{"scores":[0.1,0.2,…],\n "is_anomaly":[true,…]}', '{"scores":[1.5,2e-7,3],"is_anomaly":[false,true]}', True),
        ('{"scores":[0.1,…]}', '{"scores":[0.1],"p_values":[1]}', False),
        ('{"scores":[0.1,…],"threshold":1}', '{"scores":[0.1,2],"p_values":[1],"threshold":1}', False),
        ('{"latents":[[0.1,…],…],…', '{"latents":[[0.1,0.2],[3,4]],"version":1}', True),
        ('{"scores":[0.1]}', '{"errors":[0.1]}', False),
        ("Version 2 is in production", "Reading rows\nVersion 3 is in production now", True),
        ("Version 2 is in production", "Version 2 is not in production", False),
        ("first 1\nthird 3", "first 2\nsecond 4\nthird 5", True),
        ("┃ a ┃  b ┃\n┡━━━╇━━━━┩", "┃ a    ┃ b ┃\n┡━━━━━━╇━━━┩", True),
    ],
)
def test_outputs_are_compared(shown: str, printed: str, agree: bool) -> None:
    """Names and words count; numbers, flags, spaces and what is left out do not."""
    assert agrees(shown, printed) is agree


@pytest.mark.parametrize(
    ("shown", "printed", "agree"),
    [
        ("error 0.034", "error 0.041", True),
        ("error 0.98", "error 0.0098", False),
        ("p 0.0037", "p 0.0041", True),
        ("60 of 60", "3 of 60", False),
        ("version 2: 0.9", "version 1: 0.1\nversion 2: 0.8", True),
    ],
)
def test_numbers_of_the_same_model_are_close(shown: str, printed: str, agree: bool) -> None:
    """Where a page is followed as it stands, not with few epochs."""
    assert agrees(shown, printed, by_numbers=True) is agree


@pytest.mark.parametrize(
    ("shown", "printed", "new"),
    [
        ("error 1.5, 7 of …\n", "now\nerror 12.25, 8 of 10\n", "error 12.25, 8 of …\n"),
        ('{"a":[1,…],\n "b":true}\n', '{"a":[2,3],"b":false}', '{"a":[2,…],\n "b":false}\n'),
        ("last 1\n\nfirst 2\n", "first 3\nmiddle 4\nlast 5\n", "last 5\n\nfirst 3\n"),
        ("│ a │  1.5 │\n", "│ a │ 12.5 │\n", "│ a │ 12.5 │\n"),
        ("  title\na 1\n", "before\n  title  \na  2\n", "  title\na  2\n"),
        ('{"version":2},…\n', '{"version":1},"b":3}', '{"version":2},…\n'),
    ],
)
def test_outputs_are_renewed(shown: str, printed: str, new: str) -> None:
    """With what was printed; what the page leaves out stays left out."""
    assert renewed(shown, printed) == new


def test_words_are_not_renewed() -> None:
    """Another sentence is for the author of the page to read."""
    with pytest.raises(ValueError, match="Not printed: Version 2 stays"):
        renewed("Version 2 stays", "Version 2 goes")


@pytest.mark.tf
@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("```sh\nautoencoder models lost\n```\n", "No such command 'lost'"),
        ("```sh\nautoencoder score rows.csv scored.csv | true\n```\n", "rows.csv"),
        ("```sh\ncurl -s http://127.0.0.1:8000/no-route\n```\n", "exit code 22"),
        ("```sh\nautoencoder --version\n```\n\n```\nautoencoder, number\n```\n", "autoencoder, version"),
        ("```python\nfrom service.client import Clint\n```\n", "Clint"),
        ('```json\n{"columns": }\n```\n', "Expecting value"),
        ('```json\n{"columns": {}}\n```\n', "No command uses"),
    ],
)
def test_an_example_that_does_not_work_is_found(
    text: str, sentence: str, commands: Path, tmp_path: Path, fake_service: LiveService
) -> None:
    """The message names what went wrong."""
    reader = Reader(tmp_path, commands, fake_service.url.removeprefix("http://"), is_served=True)
    with pytest.raises(ExampleFailed, match=re.escape(sentence)):
        follow(reader, blocks_of("invented.md", text))
