"""``autoencoder score`` and its kind: files in, files out, killed and gone on with."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result
from pyarrow import dataset, feather, parquet

from service.cli import app
from service.errors import ConfigurationError, DataError
from service.pipelines import Scorer
from service.pipelines.files import Job, run
from service.scoring import discoveries
from tests.conftest import COLUMNS, table_rows
from tests.live import LiveService

pytestmark = pytest.mark.tf
COUNT = 2000


def rows() -> pd.DataFrame:
    frame = pd.DataFrame(table_rows(COUNT, seed=7).astype(np.float64), columns=list(COLUMNS))
    frame.insert(0, "id", [f"00{at}, {'é' if at % 3 else 'x'}" for at in range(COUNT)])
    return frame


def write(path: Path, frame: pd.DataFrame) -> Path:
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".ndjson":
        frame.to_json(path, orient="records", lines=True, double_precision=15)
    elif path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pandas(frame), path, row_group_size=100)
    else:
        feather.write_feather(frame, path, chunksize=100)
    return path


def read(path: Path) -> pd.DataFrame:
    if path.suffix == ".csv":
        return pd.read_csv(path)
    if path.suffix == ".ndjson":
        return pd.read_json(path, lines=True, precise_float=True)
    return dataset.dataset(path, format=path.suffix[1:].replace("feather", "arrow")).to_table().to_pandas()


def command(*arguments: object, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


@pytest.fixture(scope="module")
def scorer(trained_store: Path) -> Scorer:
    return Scorer(str(trained_store), "payments")


@pytest.fixture(scope="module")
def expected(scorer: Scorer) -> pd.DataFrame:
    scored: pd.DataFrame = scorer(rows())
    return scored


def assert_scored(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    """Each row once, in order, with the score that the scorer gives it."""
    assert found["id"].tolist() == expected["id"].tolist()
    np.testing.assert_allclose(found["anomaly_score"], expected["anomaly_score"], rtol=1e-5)
    np.testing.assert_allclose(found["p_value"], expected["p_value"], rtol=1e-5)
    assert found["is_anomaly"].tolist() == expected["is_anomaly"].tolist()


@pytest.mark.parametrize("source", [".csv", ".parquet", ".feather", ".ndjson"])
@pytest.mark.parametrize("target", [".csv", ".parquet", ".feather", ".ndjson"])
def test_every_format_into_every_format(
    source: str, target: str, tmp_path: Path, scorer: Scorer, expected: pd.DataFrame
) -> None:
    """Input columns are kept, score columns stand behind them."""
    into = tmp_path / f"out{target}"
    outcome = run(Job(str(write(tmp_path / f"in{source}", rows())), str(into), batch_rows=333), scorer)
    assert outcome.rows == COUNT
    found = read(into)
    assert found.columns.tolist() == expected.columns.tolist()
    assert_scored(found, expected)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_cells_of_a_csv_stay_as_they_stand(tmp_path: Path, trained_store: Path) -> None:
    """Leading zeros, trailing zeros, quoted delimiters: what was read is written."""
    (tmp_path / "in.csv").write_text(
        'note,amount,age,visits,balance,tenure,score\n"a ""b"", c",200.10,040,8,3e3,5.0,.50\n'
    )
    done = command("score", tmp_path / "in.csv", tmp_path / "out.csv", "--store", trained_store, "--model", "payments")
    assert done.exit_code == 0, done.output
    header, line = (tmp_path / "out.csv").read_text().splitlines()
    assert header == "note,amount,age,visits,balance,tenure,score,anomaly_score,p_value,is_anomaly"
    assert line.startswith('"a ""b"", c","200.10","040","8","3e3","5.0",".50",')


@pytest.mark.parametrize("operation", ["encode", "reconstruct"])
def test_the_other_commands(operation: str, tmp_path: Path, trained_store: Path, series_store: Path) -> None:
    """Lists of numbers are columns of their own in CSV."""
    write(tmp_path / "in.csv", rows().head(20))
    done = command(
        operation, tmp_path / "in.csv", tmp_path / "out.csv", "--store", trained_store, "--model", "payments"
    )
    assert done.exit_code == 0, done.output
    wanted = {"encode": ["latent_0", "latent_1"], "reconstruct": ["reconstruction_error", "reconstruction_amount"]}
    assert set(wanted[operation]) <= set(read(tmp_path / "out.csv").columns)
    refused = command("denoise", tmp_path / "in.csv", tmp_path / "x.csv", "--store", series_store, "--model", "boiler")
    assert refused.exit_code == 1
    assert "not trained for denoise" in refused.stderr


@pytest.mark.parametrize("target", ["out.parquet", "out/", "out.csv"])
def test_a_false_discovery_rate_over_all_files(
    target: str, tmp_path: Path, scorer: Scorer, trained_store: Path
) -> None:
    """Read twice, the flags are those of one batch of all rows, whatever the size of the parts."""
    frame = rows()
    frame.loc[:99, "amount"] += 10_000
    (tmp_path / "in").mkdir()
    for at in range(4):
        write(tmp_path / "in" / f"{at}.csv", frame.iloc[at * 500 : (at + 1) * 500])
    done = command(
        *("score", tmp_path / "in", f"{tmp_path}/{target}", "--batch-rows", 150, "--out-format", "parquet"),
        *("--store", trained_store, "--model", "payments", "--false-discovery-rate", 0.2),
    )
    assert done.exit_code == 0, done.output
    path = tmp_path / target
    found = dataset.dataset(path, format="parquet").to_table().to_pandas()
    whole = scorer(frame)
    flags, once = discoveries(whole["anomaly_score"], whole["p_value"], 0.2, calibration_rows=scorer.calibration_rows)
    assert 100 <= flags.sum() < COUNT
    assert found["is_anomaly"].tolist() == flags.tolist()
    assert f"{flags.sum()} rows flagged at a false discovery rate of 0.2" in done.stderr
    assert once["threshold"] == np.float32(found["anomaly_score"][found["is_anomaly"]].min())


def test_a_false_discovery_rate_that_cannot_be_kept(tmp_path: Path, trained_store: Path) -> None:
    """Too few calibration rows are said, standard input and a second choice of flags refused."""
    source = write(tmp_path / "in.csv", rows().head(50))
    options = ["--store", trained_store, "--model", "payments", "--false-discovery-rate", 0.0001]
    done = command("score", source, tmp_path / "out.csv", *options, "--quiet")
    assert done.exit_code == 0, done.output
    assert "needs 9999 for any row to be flagged" in done.stderr
    assert not read(tmp_path / "out.csv")["is_anomaly"].any()
    for more, words in ((["--threshold", 1], "not both"), (["--false-alarm-rate", 0.1], "not both")):
        assert words in command("score", source, tmp_path / "o.csv", *options, *more).stderr
    piped = command("score", "-", tmp_path / "o.csv", "--format", "csv", *options, stdin=source.read_bytes())
    assert "cannot be read twice" in piped.stderr


def test_a_pipe(trained_store: Path, tmp_path: Path, expected: pd.DataFrame) -> None:
    """Standard input to standard output, in another format; what is for people goes to standard error."""
    source = write(tmp_path / "in.csv", rows())
    options = ["score", "-", "-", "--format", "csv", "--out-format", "ndjson", "--explain", "1"]
    options += ["--store", str(trained_store), "--model", "payments"]
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", *options],
        input=source.read_bytes(),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert_scored(pd.DataFrame(lines), expected)
    assert lines[0]["contributions"][0]["feature"] in COLUMNS
    assert b"2,000 rows by version 1 of payments" in done.stderr


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("in.csv", {"row": 1500, "column": "age", "value": "secret"}, 'row 1501, column "age" must be a number'),
        ("in.ndjson", {"row": 1500, "column": "age", "value": "secret"}, 'row 1501, column "age" must be a number'),
        ("in.parquet", {"row": 1500, "column": "age", "value": np.inf}, 'row 1501, column "age" must be a finite'),
    ],
)
def test_a_bad_row(name: str, change: dict[str, object], words: str, tmp_path: Path, trained_store: Path) -> None:
    """Ends the run with file, row and column, and no output; or, when asked for, is kept without a score."""
    frame = rows()
    frame[change["column"]] = frame[change["column"]].astype(object if change["value"] == "secret" else float)
    frame.loc[change["row"], change["column"]] = change["value"]
    if name == "in.ndjson":
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in frame.to_dict("records")))
    else:
        write(tmp_path / name, frame)
    options = ["--store", trained_store, "--model", "payments", "--batch-rows", 100]
    refused = command("score", tmp_path / name, tmp_path / "out.parquet", *options)
    assert refused.exit_code == 1
    assert f"{name}: {words}" in refused.stderr
    assert "secret" not in refused.output
    assert not (tmp_path / "out.parquet").exists()
    kept = command("score", tmp_path / name, tmp_path / "out.ndjson", *options, "--errors", "null")
    assert kept.exit_code == 0, kept.output
    found = pd.read_json(tmp_path / "out.ndjson", lines=True)
    assert found["problem"].notna().tolist() == [at == 1500 for at in range(COUNT)]
    assert found["anomaly_score"].isna().tolist() == [at == 1500 for at in range(COUNT)]


@pytest.mark.parametrize("target", ["out.csv", "out/"])
def test_a_run_without_any_result_fails(target: str, tmp_path: Path, scorer: Scorer) -> None:
    """Empty results for all rows are no success; the sentence says what is wrong with the first row."""
    frame = rows().head(50)
    frame["age"] = "old"
    job = Job(str(write(tmp_path / "in.csv", frame)), f"{tmp_path}/{target}", batch_rows=20)
    nulls = Scorer.of(scorer, errors="null")
    with pytest.raises(DataError, match=r"No row has a result; the first one, of .*in\.csv: age: must be a number"):
        run(job, nulls)
    assert not list(tmp_path.rglob("out.csv"))
    assert not list(tmp_path.rglob("part-*"))
    frame.loc[49, "age"] = 40
    write(tmp_path / "in.csv", frame)
    assert run(Job(job.source, f"{tmp_path}/some.csv", batch_rows=20), nulls).rows == 50


def test_one_clear_sentence(tmp_path: Path, trained_store: Path) -> None:
    """For what is missing, unknown or in the way."""
    source = write(tmp_path / "in.csv", rows().head(5))
    store = ["--store", trained_store, "--model", "payments"]
    for arguments, words in (
        (["nothing.csv", "out.csv", *store], "There is no file"),
        ([source, "out.csv", "--store", trained_store], "choose one by --model"),
        ([source, tmp_path / "out.dat", *store], "does not say its format"),
        ([source, "-", "--resume", *store], "name a file"),
        ([source, tmp_path / "o.csv", *store, "--columns", "age"], "as many, in its order"),
        ([source, tmp_path / "o.csv", *store, "--columns", "a,b,c,d,e,f"], 'column "a" is not a column of the table'),
    ):
        refused = command("score", *arguments)
        assert refused.exit_code == 1
        assert words in refused.stderr
        assert len(refused.stderr.strip().splitlines()) == 1


class StopsAfter:
    """Ends a run as Ctrl-C does, when N parts are done."""

    def __init__(self, folder: Path, parts: int) -> None:
        self._folder, self._parts = folder, parts

    def __call__(self, done: int, total: int | None) -> None:
        if len(list(self._folder.rglob("part-*"))) == self._parts:
            raise KeyboardInterrupt


@pytest.mark.parametrize("source", [".csv", ".parquet"])
@pytest.mark.parametrize("target", ["out/", "out.csv", "out.parquet", "out.feather", "out.ndjson"])
def test_an_interrupted_run_goes_on(
    source: str, target: str, tmp_path: Path, scorer: Scorer, expected: pd.DataFrame
) -> None:
    """Parts that were done are not done again, and the output is as if nothing had happened."""
    path = tmp_path / "in"
    path.mkdir()
    for at in range(4):
        write(path / f"{at}{source}", rows().iloc[at * 500 : (at + 1) * 500])
    job = Job(str(path), str(tmp_path / target), resume=True, part_rows=200, batch_rows=64)
    if target == "out/":
        job = Job(str(path), f"{tmp_path}/out/", resume=True, part_rows=200, batch_rows=64, target_format="parquet")
    with pytest.raises(KeyboardInterrupt):
        run(job, scorer, progress=StopsAfter(tmp_path, 2))
    outcome = run(job, scorer)
    assert outcome.skipped_parts == 2
    assert 0 < outcome.rows < COUNT
    if target == "out/":
        found = dataset.dataset(tmp_path / "out", format="parquet").to_table().to_pandas()
    else:
        found = read(tmp_path / target)
        assert not (tmp_path / f"{target}.parts").exists()
    assert_scored(found, expected)


def test_parts_of_another_run_are_not_mixed_in(tmp_path: Path, scorer: Scorer) -> None:
    """Other options, other input, or no --resume: the sentence says what to do."""
    source = write(tmp_path / "in.parquet", rows())
    job = Job(str(source), f"{tmp_path}/out/", resume=True, part_rows=200)
    with pytest.raises(KeyboardInterrupt):
        run(job, scorer, progress=StopsAfter(tmp_path, 1))
    with pytest.raises(ConfigurationError, match="--resume"):
        run(Job(str(source), f"{tmp_path}/out/", part_rows=200), scorer)
    with pytest.raises(ConfigurationError, match="model, version or options"):
        run(job, Scorer.of(scorer, prefix="x_"))
    write(source, rows().head(900))
    with pytest.raises(ConfigurationError, match="another input"):
        run(job, scorer)


def test_a_failed_run_leaves_no_output(tmp_path: Path, scorer: Scorer) -> None:
    """Neither a part of a file nor a temporary one; what was there before stays."""
    frame = rows()
    frame.loc[1999, "age"] = np.inf
    source = write(tmp_path / "in.parquet", frame)
    (tmp_path / "out.parquet").write_text("before")
    with pytest.raises(DataError, match="row 2000"):
        run(Job(str(source), str(tmp_path / "out.parquet"), batch_rows=100), scorer)
    assert (tmp_path / "out.parquet").read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.parquet", "out.parquet"]


@pytest.mark.slow
def test_a_killed_run_goes_on(tmp_path: Path, trained_store: Path, scorer: Scorer) -> None:
    """SIGKILL in the middle, then the same command again: every row once."""
    frame = pd.concat([rows()] * 30, ignore_index=True)
    parquet.write_table(pa.Table.from_pandas(frame), tmp_path / "in.parquet", row_group_size=1000)
    arguments = ["score", tmp_path / "in.parquet", tmp_path / "out.parquet", "--resume", "--part-rows", "1000"]
    arguments += ["--store", trained_store, "--model", "payments", "--batch-rows", "200", "--threads", "1"]
    full = [sys.executable, "-m", "service.cli", *map(str, arguments)]
    parts = tmp_path / "out.parquet.parts"
    process = subprocess.Popen(full, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(parts.glob("part-*"))) < 3:
        assert time.monotonic() < deadline
        assert process.poll() is None, "it was done before it could be killed"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = len(list(parts.glob("part-*")))
    assert not (tmp_path / "out.parquet").exists()
    again = subprocess.run(full, capture_output=True, check=True)
    assert f"{done} of 60 parts were there already".encode() in again.stderr
    assert_scored(read(tmp_path / "out.parquet"), scorer(frame))


@pytest.mark.parametrize("operation", ["score", "encode", "reconstruct"])
def test_a_running_service_does_the_work(
    operation: str, service: LiveService, tmp_path: Path, trained_store: Path
) -> None:
    """The same columns and numbers as by a model in this process, explanations and bad rows included."""
    frame = rows().head(300)
    frame.loc[5, "age"] = np.inf
    source = write(tmp_path / "in.parquet", frame)
    options = ["--model", "payments", "--errors", "null", *(["--explain", 1] if operation == "score" else [])]
    for name, where in (("far", ["--url", service.url]), ("near", ["--store", trained_store])):
        done = command(operation, source, tmp_path / f"{name}.parquet", *where, *options)
        assert done.exit_code == 0, done.output
    far, near = (parquet.read_table(tmp_path / f"{name}.parquet") for name in ("far", "near"))
    assert sorted(far.column_names) == sorted(near.column_names)
    for name in set(near.column_names) - {"contributions"}:
        ours, theirs = (table[name].to_pandas().dropna() for table in (near, far))
        assert ours.index.equals(theirs.index)
        if pa.types.is_string(near.schema.field(name).type):
            assert ours.equals(theirs)
        else:
            np.testing.assert_allclose(np.stack(theirs.to_list()), np.stack(ours.to_list()), rtol=1e-5, atol=1e-6)
    if operation == "score":
        named = [[row and row[0]["feature"] for row in table["contributions"].to_pylist()] for table in (near, far)]
        assert named[0] == named[1]
    refused = command("score", source, tmp_path / "x.csv", "--url", service.url, "--model", "nothing")
    assert refused.exit_code == 1
    assert "no version of model nothing" in refused.stderr
