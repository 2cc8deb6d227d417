"""Faults that need processes of their own: ``python -m tests.store.faults <fault> <folder> [<operation>]``.

This process imports everything once and forks a child for each run, so that thousands of deaths take seconds. It
prints a ``Report`` as JSON; ``run`` starts it and reads that.
"""

import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import service.store
from service.errors import (
    AutoencoderError,
    InvalidVersion,
    StoreError,
    StoreReadOnly,
    StoreUnavailable,
    TrainingFailed,
    VersionNotFound,
)
from service.store import Store

from . import trainer
from .trainer import MODEL, fill, publish, publish_naively, publish_staged, staged_in, whole

REPOSITORY = Path(__file__).parents[2]
DONE, REFUSED, CRASHED = 0, 3, 4
TRACED_FILES = (str(Path(service.store.__file__).parent), trainer.__file__)
ENOUGH_PROBLEMS = 5
LINES_AFTER_A_CHANGE = 6
AUDITED_CHANGES = frozenset({"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "fcntl.flock"})
CHANGING_CALLS = ("openat", "write", "fsync", "mkdir", "rename", "renameat2")
SYSTEM_CALLS = (
    *CHANGING_CALLS,
    *("fchmod", "chmod", "fchmodat", "unlink", "unlinkat", "rmdir", "flock", "getdents64", "fcntl"),
)
EARLIER = {1: [], 2: [1], 3: [2, 1]}
"""Where ``production`` goes on rollbacks, by where it points."""


@dataclass(frozen=True)
class Report:
    runs: int = 0
    done: int = 0
    refused: int = 0
    problems: list[str] = field(default_factory=list)


def run(fault: str, folder: Path, *arguments: str, within: tuple[str, ...] = ()) -> Report:
    """Start this module, within another command where that is given."""
    command = [*within, sys.executable, "-W", "error", "-m", "tests.store.faults", fault, str(folder), *arguments]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=110)
    assert ended.returncode == 0, ended.stderr
    return Report(**json.loads(ended.stdout))


# What is done while the fault strikes, and what may be there afterwards.


def _publish(store: Store) -> None:
    with store.stage(MODEL) as staging:
        try:
            fill(staging.path, "faulty")
        except OSError as error:
            # The trainer's own fault; of the store's no OSError may come out.
            raise TrainingFailed("The files could not be written.") from error
        publish_staged(staging, "faulty")


def _publish_naively(store: Store) -> None:
    publish_naively(store, "faulty")


def _promote(store: Store) -> None:
    store.set_alias(MODEL, "production", 3)


def _roll_back(store: Store) -> None:
    store.rollback(MODEL)


def _delete(store: Store) -> None:
    store.delete(MODEL, 3)


OPERATIONS: dict[str, Callable[[Store], None]] = {
    "publish": _publish,
    "publish_naively": _publish_naively,
    "promote": _promote,
    "roll_back": _roll_back,
    "delete": _delete,
}
EXPECTED: dict[str, dict[str, set[object]]] = {
    "publish": {"versions": {(1, 2, 3), (1, 2, 3, 4)}, "production": {2}},
    "publish_naively": {"versions": {(1, 2, 3), (1, 2, 3, 4)}, "production": {2}},
    "promote": {"versions": {(1, 2, 3)}, "production": {2, 3}},
    "roll_back": {"versions": {(1, 2, 3)}, "production": {2, 1}},
    "delete": {"versions": {(1, 2, 3), (1, 2)}, "production": {2}},
}


def make_store(root: Path) -> Store:
    """Versions 1, 2 and 3; ``production`` points at 2, and at 1 before."""
    root.mkdir()
    store = Store(root)
    for token in ("one", "two", "three"):
        publish(store, token)
    store.set_alias(MODEL, "production", 1)
    store.set_alias(MODEL, "production", 2)
    return store


def problems_after(root: Path, operation: str) -> Iterator[str]:
    """What is wrong with the store after a fault in the operation."""
    store = Store(root)
    versions, production = store.versions(MODEL), store.aliases(MODEL)["production"]
    if tuple(versions) not in EXPECTED[operation]["versions"] or production not in EXPECTED[operation]["production"]:
        yield f"versions {versions}, production {production}"
    for number in versions:
        try:
            if not whole(store, number):
                yield f"version {number} is merged"
        except StoreError as error:
            yield f"version {number}: {error}"
    if publish(store, "next") <= max(3, *versions):
        yield "a number came back"
    store.sweep()
    if left := staged_in(store):
        yield f"not swept: {left}"
    for number in EARLIER[production]:
        if store.rollback(MODEL) != number:
            yield f"rollback from {production} went astray"
    with suppress(VersionNotFound):
        yield f"rollback from {production} went on to {store.rollback(MODEL)}"


# Children.


def in_child(work: Callable[[], None]) -> int:
    """Fork a child that does the work and exits with what became of it."""
    if child := os.fork():
        return child
    code = CRASHED
    try:
        work()
        code = DONE
    except AutoencoderError:
        code = REFUSED
    except BaseException as error:
        print(repr(error), file=sys.stderr)
    finally:
        os._exit(code)


def end_of(child: int) -> int:
    """Exit code, or the negative number of the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at(step: int, root: Path) -> None:
    """Have this process kill itself at the given step of changing what is below root.

    A step is an audited call that changes something there (the standard library's own included: shutil's, file by
    file), or one of the lines of the store's code that follow it. Lines further on do nothing to the disk.
    """
    left, lines_to_come = step, 0

    def count() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_line(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal lines_to_come
        if not frame.f_code.co_filename.startswith(TRACED_FILES):
            return None
        if event == "line" and lines_to_come:
            lines_to_come -= 1
            count()
        return on_line

    def on_call(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal lines_to_come
        below = any(isinstance(argument, str | bytes) and str(root) in str(argument) for argument in arguments)
        if event in AUDITED_CHANGES and (below or isinstance(arguments[0], int)) and _writes(event, arguments):
            lines_to_come = LINES_AFTER_A_CHANGE
            count()

    sys.addaudithook(on_call)
    sys.settrace(on_line)


def _writes(event: str, arguments: tuple[object, ...]) -> bool:
    return event != "open" or (isinstance(arguments[2], int) and bool(arguments[2] & (os.O_CREAT | os.O_WRONLY)))


# The faults.


def kills(folder: Path, operation: str) -> Report:
    """SIGKILL at every step of the operation."""
    make_store(folder / "template")
    gc.freeze()
    problems: list[str] = []
    for step in range(1, 5000):
        with fresh_copy(folder) as root:

            def work(step: int = step, root: Path = root) -> None:
                kill_at(step, root)
                OPERATIONS[operation](Store(root))

            code = end_of(in_child(work))
            if code not in (DONE, -signal.SIGKILL):
                problems.append(f"step {step}: exit code {code}")
            problems += [f"step {step}: {problem}" for problem in problems_after(root, operation)]
            if code == DONE:
                return Report(runs=step, done=1, problems=problems)
    return Report(runs=5000, problems=["never ended"])


def system_calls(folder: Path, operation: str) -> Report:
    """SIGKILL, EIO and ENOSPC at every system call of the operation, by strace."""
    make_store(folder / "template")
    with fresh_copy(folder) as root:
        trace, code = traced(root, operation, f"trace={','.join(SYSTEM_CALLS)}")
        if code != DONE:
            return Report(problems=[f"without a fault: exit code {code}"])
    codes, problems = Counter[int](), list[str]()
    for fault in _faults_at(calls_in(trace)):
        with fresh_copy(folder) as root:
            call = fault.split(":")[0]
            _, code = traced(root, operation, f"trace={call}", f"inject={fault}")
            codes[code] += 1
            if code not in (DONE, REFUSED, -signal.SIGKILL) or (code < 0) != ("KILL" in fault):
                problems.append(f"{fault}: exit code {code}")
            problems += [f"{fault}: {problem}" for problem in problems_after(root, operation)]
        if len(problems) > ENOUGH_PROBLEMS:
            break
    return Report(runs=codes.total(), done=codes[DONE], refused=codes[REFUSED], problems=problems)


def _faults_at(calls: Counter[str]) -> Iterator[str]:
    for call, count in sorted(calls.items()):
        for injected in ("signal=KILL", "error=EIO", *(("error=ENOSPC",) if call in CHANGING_CALLS else ())):
            for step in range(1, count + 1):
                yield f"{call}:{injected}:when={step}"


def refused_flag(folder: Path) -> Report:
    """A file system that has no exclusive rename: publishing goes on by other means."""
    make_store(folder / "template")
    problems: list[str] = []
    for error in ("EINVAL", "ENOSYS", "EOPNOTSUPP"):
        with fresh_copy(folder) as root:
            _, code = traced(root, "publish", "trace=renameat2", f"inject=renameat2:error={error}")
            if code != DONE or Store(root).versions(MODEL) != [1, 2, 3, 4]:
                problems.append(f"{error}: exit code {code}, versions {Store(root).versions(MODEL)}")
            problems += [f"{error}: {problem}" for problem in problems_after(root, "publish")]
    return Report(runs=3, problems=problems)


STRANGERS: dict[str, Callable[[Path], object]] = {
    "empty folder": Path.mkdir,
    "version": lambda target: shutil.copytree(target.with_name("1"), target),
    "file": Path.touch,
    "link": lambda target: target.symlink_to("1"),
}


def strangers(folder: Path) -> Report:
    """Somebody who knows nothing of locks puts something under the number right before the rename."""
    make_store(folder / "template")
    problems: list[str] = []
    for kind, put in STRANGERS.items():
        with fresh_copy(folder) as root:
            child = in_child(lambda root=root, put=put: _publish_after(Store(root), put))  # type: ignore[misc]
            if (code := end_of(child)) != DONE:
                problems.append(f"{kind}: exit code {code}")
    return Report(runs=len(STRANGERS), problems=problems)


def _publish_after(store: Store, put: Callable[[Path], object]) -> None:
    target = store.root / MODEL / "4"

    def on_call(event: str, arguments: tuple[object, ...]) -> None:
        if event == "os.rename" and arguments[1] == str(target) and not target.exists():
            put(target)

    sys.addaudithook(on_call)
    assert publish(store, "late") == 5
    assert whole(store, 5)
    if target.is_dir() and not target.is_symlink():
        assert not list(target.glob("[.s]*")) or trainer.token_of(target / trainer.FILES[0]) == "one"


def durability(folder: Path, operation: str) -> Report:
    """What a power cut could take: names and bytes that were not on the disk when the rename was done."""
    make_store(folder / "template")
    with fresh_copy(folder) as root:
        trace, _ = traced(root, operation, "trace=openat,write,mkdir,chmod,fchmod,unlink,rename,renameat2,fsync")
        number = Store(root).versions(MODEL)[-1]
        paths = [Path(), *(path.relative_to(Store(root).path(MODEL, number)) for path in root.rglob(f"{number}/**/*"))]
        lines = [line.replace(str(root / MODEL), "") for line in trace.splitlines()]
    renamed = next((at for at, line in enumerate(lines) if "renameat2(" in line), None)
    if renamed is None:
        return Report(runs=1, problems=["there is no exclusive rename"])
    staged = re.findall(r'"([^"]+)"', lines[renamed])[0]
    problems = [str(path) for path in paths if not _is_synced(lines[:renamed], str(staged / path))]
    if not any(re.search(r"fsync\(\d+<>\)", line) for line in lines[renamed:]):
        problems.append("the name of the version")
    return Report(runs=len(paths) + 1, problems=problems)


def _is_synced(lines: list[str], path: str) -> bool:
    """Whether the last thing that happened to a file or to the names in a folder is an fsync."""
    changes = (
        rf'(write|fchmod)\(\d+<{path}>|(chmod|unlink)\("{path}"|(mkdir|unlink|openat)\([^"]*"{path}/[^/"]+",.*CREAT'
    )
    last_change = max((at for at, line in enumerate(lines) if re.search(changes, line)), default=0)
    return any(re.search(rf"fsync\(\d+<{path}>\) += 0", line) for line in lines[last_change:])


def trainers(folder: Path, operation: str) -> Report:
    """Eight trainers at once, several rounds: every one must get a number of its own and keep its files."""
    store = make_store(folder / "store")
    problems: list[str] = []
    publish_once = {"publish": publish, "publish_naively": publish_naively}[operation]
    for round_number in range(8):
        (folder / "numbers").mkdir()
        start, release = os.pipe()

        def work(token: str, start: int = start, release: int = release) -> None:
            os.close(release)
            os.read(start, 1)
            (folder / "numbers" / token).write_text(str(publish_once(store, token)))

        children = [in_child(lambda token=f"t{index}": work(token)) for index in range(8)]  # type: ignore[misc]
        os.close(release)
        codes = [end_of(child) for child in children]
        os.close(start)
        numbers = {int(path.read_text()): path.name for path in (folder / "numbers").iterdir()}
        first = 4 + 8 * round_number
        if codes != [DONE] * 8 or sorted(numbers) != list(range(first, first + 8)):
            problems.append(f"round {round_number}: exit codes {codes}, numbers {sorted(numbers)}")
        problems += [f"version {number}" for number, token in numbers.items() if not _is_of(store, number, token)]
        shutil.rmtree(folder / "numbers")
    if store.versions(MODEL) != list(range(1, 68)):
        problems.append(f"versions {store.versions(MODEL)}")
    return Report(runs=64, problems=problems)


def _is_of(store: Store, number: int, token: str) -> bool:
    try:
        return whole(store, number) and store.manifest(MODEL, number).source == token
    except AutoencoderError:
        return False


def full_disk(folder: Path) -> Report:
    """A tmpfs that fills up after each possible number of pages, then of files. Needs a mount namespace of its own."""
    problems, refused, limit = list[str](), 0, 0
    mount(folder, "-t", "tmpfs", "-o", "size=64m,nr_inodes=1000", "tmpfs")
    make_store(folder / "template")
    for kind in ("pages", "inodes"):
        for limit in range(60):
            with fresh_copy(folder) as root:
                used = os.statvfs(root)
                pages, inodes = used.f_blocks - used.f_bfree, used.f_files - used.f_ffree
                size = f"size={(pages + limit) * used.f_frsize}" if kind == "pages" else f"nr_inodes={inodes + limit}"
                mount(folder, "-o", f"remount,{size}")
                code = end_of(in_child(lambda root=root: _publish(Store(root))))  # type: ignore[misc]
                mount(folder, "-o", "remount,size=64m,nr_inodes=1000")
                if code not in (DONE, REFUSED):
                    problems.append(f"{limit} {kind}: exit code {code}")
                problems += [f"{limit} {kind}: {problem}" for problem in problems_after(root, "publish")]
            if code == DONE:
                break
            refused += 1
        else:
            problems.append(f"no number of {kind} was enough")
    return Report(runs=refused + 2, done=2, refused=refused, problems=problems)


def read_only(folder: Path) -> Report:
    """A store mounted read-only: all reading works, all writing is refused. Needs a mount namespace of its own."""
    make_store(folder / "store")
    mount(folder, "--bind", str(folder))
    mount(folder, "-o", "remount,bind,ro")
    return refusals(folder / "store")


def other_user(folder: Path) -> Report:
    """A store whose root, model or version may not be read, then one that may not be written, as the modes say.

    Modes do not bind root, which therefore becomes somebody else, as the service does in its container.
    """
    store = make_store(folder / "store")
    problems: list[str] = []
    forbidden = ((store.root, 0o000), (store.root, 0o311), (store.root / MODEL, 0o000), (store.root / MODEL / "3", 0))
    for path, mode in forbidden:
        path.chmod(mode)
        code = end_of(in_child(lambda path=path: _read_as_somebody_else(store, path)))  # type: ignore[misc]
        path.chmod(0o755)
        if code != DONE:
            problems.append(f"{path.name} {mode:o}: exit code {code}")
    folders = [store.root, *(path for path in store.root.rglob("*") if path.is_dir())]
    for path in folders:
        path.chmod(0o555)
    child = in_child(lambda: _write_as_somebody_else(store))
    if (code := end_of(child)) != DONE:
        problems.append(f"writing: exit code {code}")
    for path in folders:
        path.chmod(0o755)
    return Report(runs=len(forbidden) + 1, problems=problems)


def _read_as_somebody_else(store: Store, forbidden: Path) -> None:
    become_somebody_else()
    if forbidden.name == "3":
        assert store.versions(MODEL) == [1, 2, 3], "one bad version hides others"
        assert whole(store, 2)
        expect(InvalidVersion, lambda: store.verify_digests(MODEL, 3))
        return
    for read in (store.versions, store.aliases, store.resolve):
        expect(StoreUnavailable, lambda read=read: read(MODEL))  # type: ignore[misc]
    if forbidden == store.root:
        expect(StoreUnavailable, store.models)


def _write_as_somebody_else(store: Store) -> None:
    become_somebody_else()
    report = refusals(store.root)
    assert not report.problems, report.problems


def become_somebody_else() -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)


def expect(error: type[Exception], work: Callable[[], object]) -> None:
    try:
        work()
    except error:
        return
    raise AssertionError(f"no {error.__name__}")


def refusals(root: Path) -> Report:
    """Try to read and to write a store that may only be read."""
    store, problems, refused = Store(root), list[str](), 0
    if not all(whole(store, number) for number in store.versions(MODEL)) or store.resolve(MODEL) != 2:
        problems.append("reading does not work")
    writes: dict[str, Callable[[], object]] = {
        **{name: lambda work=work: work(store) for name, work in OPERATIONS.items() if name != "publish_naively"},  # type: ignore[misc]
        "delete_alias": lambda: store.delete_alias(MODEL, "production"),
        "new model": lambda: publish(store, model="another"),
        "trying first": lambda: store.check_writable(MODEL),
    }
    for name, write in writes.items():
        try:
            write()
        except StoreReadOnly:
            refused += 1
        else:
            problems.append(f"{name} was not refused")
    return Report(runs=len(writes), refused=refused, problems=problems)


# Tools.


@contextmanager
def fresh_copy(folder: Path) -> Iterator[Path]:
    root = Path(tempfile.mkdtemp(dir=folder)) / "store"
    shutil.copytree(folder / "template", root)
    try:
        yield root
    finally:
        shutil.rmtree(root.parent)


def traced(root: Path, operation: str, *expressions: str) -> tuple[str, int]:
    """Do the operation in a child under strace with these ``-e`` expressions; the trace and how the child ended."""
    start, release = os.pipe()

    def work() -> None:
        os.close(release)
        os.read(start, 1)
        OPERATIONS[operation](Store(root))

    child = in_child(work)
    os.close(start)
    options = [part for expression in expressions for part in ("-e", expression)]
    log = root.parent / "trace"
    with subprocess.Popen(
        ["strace", "-f", "-y", "-s", "0", "-o", str(log), *options, "-p", str(child)],
        stderr=subprocess.PIPE,
        text=True,
    ) as strace:
        assert strace.stderr is not None
        attached = strace.stderr.readline()
        assert "attached" in attached, attached
        os.close(release)
        code = end_of(child)
    return log.read_text(), code


def calls_in(trace: str) -> Counter[str]:
    return Counter(re.findall(r"^\d+ +(\w+)\(", trace, flags=re.MULTILINE))


def mount(target: Path, *options: str) -> None:
    subprocess.run(["mount", *options, str(target)], check=True, capture_output=True)


FAULTS: dict[str, Callable[..., Report]] = {
    work.__name__: work
    for work in (kills, system_calls, refused_flag, strangers, durability, trainers, full_disk, read_only, other_user)
}

if __name__ == "__main__":
    print(json.dumps(asdict(FAULTS[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:]))))
