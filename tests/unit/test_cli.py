"""The command line as a user meets it: what it prints where, how it ends, and what it leaves behind."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import polars as pl
import pytest

from farout.io.state import FORMAT

FAROUT = [sys.executable, "-m", "farout"]


def run(*words, cwd, stdin=None, **more):
    words = [str(word) for word in words]
    return subprocess.run([*FAROUT, *words], cwd=cwd, input=stdin, capture_output=True, timeout=120, **more)


@pytest.fixture
def call(monkeypatch, capfdbinary):
    """Run the program in this process, which saves its start; signals and folder are put back."""
    old = signal.getsignal(signal.SIGTERM)

    def main(*words, cwd):
        from farout.cli import main

        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["farout", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capfdbinary.readouterr()
        return subprocess.CompletedProcess(words, end.value.code, out, err)

    yield main
    signal.signal(signal.SIGTERM, old)


def refused(done, match, code=1):
    """One clear line on stderr, nothing on stdout."""
    talk = done.stderr.decode()
    assert done.returncode == code, talk
    assert done.stdout == b""
    assert match in talk
    if code == 1:
        assert (
            talk.startswith("farout: ") and talk.count("\n") == 1 and "Traceback" not in talk and "--trace" not in talk
        )


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with a table of one far row, normal rows, and a detector that was fitted on them."""
    folder = tmp_path_factory.mktemp("cli")
    r = np.random.default_rng(0)
    for name, n in (("table", 300), ("normal", 1500)):
        cities = r.choice(["Rome", "Oslo", "Bern"], n).tolist()
        frame = pl.DataFrame({"price": r.normal(100, 10, n), "weight": r.exponential(size=n), "city": cities})
        if name == "table":
            frame[7, "price"], frame[7, "weight"] = 900.0, 90.0
        frame.write_csv(folder / f"{name}.csv")
    done = run("fit", "normal.csv", "-o", "saved.farout", "--rate", "0.05", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout == b"" and b"calibrated on 450 held-out rows" in done.stderr
    return folder


def test_score_prints_data_on_stdout_and_talk_on_stderr(here, tmp_path):
    outputs = [tmp_path / name for name in ("o.parquet", "o.csv", "o.html")]
    done = run("score", here / "table.csv", "--top", "3", *(w for path in outputs for w in ("-o", path)), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    head, names, first, *rest = done.stdout.decode().splitlines()
    assert head.startswith("Default: 300 rows, 3 above the line") and names.split() == ["row", "score", "p", "why"]
    assert first.split()[0] == "7" and "price = 900: above all other rows" in first and len(rest) == 2
    talk = done.stderr.decode()
    assert "numeric: 2  price, weight" in talk and "category: 1  city" in talk and "wrote " in talk
    parquet, csv = pl.read_parquet(outputs[0]), pl.read_csv(outputs[1])
    assert parquet.columns == csv.columns == ["row", "score", "p_value", "alarm", "reasons"]
    assert parquet["score"].arg_max() == 7 and csv["score"].to_list() == parquet["score"].to_list()
    assert b"<html" in outputs[2].read_bytes()
    settings = json.loads((tmp_path / "o.farout.json").read_text())
    assert settings["method"] == "default" and settings["command"][:2] == ["farout", "score"] and settings["versions"]
    assert sorted(os.listdir(tmp_path)) == ["o.csv", "o.farout.json", "o.html", "o.parquet"]


def test_scores_on_stdout_are_a_table_again_and_quiet_is_quiet(here, tmp_path):
    done = run("score", "-", "-o", "-", "-q", cwd=tmp_path, stdin=(here / "table.csv").read_bytes())
    assert done.returncode == 0 and done.stderr == b""
    frame = pl.read_csv(done.stdout)
    assert frame.height == 300 and frame["score"].arg_max() == 7
    assert not os.listdir(tmp_path)


def test_a_reader_that_goes_early_costs_no_file(here, tmp_path):
    command = [*FAROUT, "score", str(here / "table.csv"), "-q", "-o", "o.csv"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert pl.read_csv(tmp_path / "o.csv").height == 300


def test_options_reach_the_method_and_the_columns(here, tmp_path, call):
    words = (
        "-m",
        "ecod",
        "--set",
        "rule=per_dimension",
        "--kind",
        "weight=category",
        "--leave-out",
        "city",
        "-o",
        "o.parquet",
    )
    done = call("score", here / "table.csv", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    talk = done.stderr.decode()
    assert "category: 1  weight" in talk and "left out: city  (said by you)" in talk
    assert json.loads((tmp_path / "o.farout.json").read_text())["parameters"]["rule"] == "per_dimension"


def test_fit_then_score_with_it(here, tmp_path, call):
    done = call("score", here / "table.csv", "--with", here / "saved.farout", "-o", "o.parquet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "at most 5 % of normal rows ring" in done.stdout.decode()  # the rate it was saved with
    frame = pl.read_parquet(tmp_path / "o.parquet")
    assert frame["alarm"][7] and frame["p_value"][7] == pytest.approx(1 / 451)
    direct = call(
        "score", here / "table.csv", "--fit-on", here / "normal.csv", "--rate", "0.05", "-o", "p.parquet", cwd=tmp_path
    )
    assert direct.returncode == 0
    assert pl.read_parquet(tmp_path / "p.parquet").equals(frame)


def csv(text):
    return lambda path: path.write_bytes(text if isinstance(text, bytes) else text.encode())


def cut_parquet(path):
    pl.DataFrame({"x": np.arange(5000.0)}).write_parquet(path)
    path.write_bytes(path.read_bytes()[:-2000])


BAD = {
    "empty.csv": (csv(""), "'empty.csv' is empty"),
    "header.csv": (csv("a,b\n"), "'header.csv' has a header but no rows"),
    "one.csv": (csv("a,b\n1,2\n"), "no column to score: 'a': constant: 1"),
    "constant.csv": (csv("a,b\n" + "1,x\n" * 40), "'b': constant: x"),
    "double.csv": (csv("a,b,a\n1,2,3\n4,5,6\n"), "more than one column called 'a'"),
    "latin.csv": (csv("n\u00e4me,x\n".encode("latin-1") + b"1,2\n3,4\n"), "latin.csv"),
    "cut.parquet": (cut_parquet, "'cut.parquet' cannot be read as parquet"),
    "table.xyz": (csv("a\n1\n"), "cannot tell the format of 'table.xyz'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_tables_end_in_one_line(tmp_path, name, call):
    make, match = BAD[name]
    make(tmp_path / name)
    refused(call("score", name, "-o", "o.parquet", cwd=tmp_path), match)
    assert os.listdir(tmp_path) == [name]


WRONG = {
    "missing file": (["score", "tabel.csv"], "there is no file 'tabel.csv'; nearest: 'table.csv'", 1),
    "folder": (["score", "."], "is a folder", 1),
    "method": (["score", "table.csv", "-m", "ecodd"], "no method is called 'ecodd'; nearest: 'ecod'", 1),
    "parameter": (
        ["score", "table.csv", "-m", "ecod", "--set", "rulez=paper"],
        "no parameter of 'ecod' is called 'rulez'",
        1,
    ),
    "assignment": (["score", "table.csv", "--set", "rule"], "--set takes name=value, not 'rule'", 1),
    "value": (
        ["score", "table.csv", "-m", "ecod", "--set", "rule=mean"],
        "rule is 'paper' or 'per_dimension', not 'mean'",
        1,
    ),
    "column": (["score", "table.csv", "--leave-out", "prise"], "no column 'prise'; nearest: 'price'", 1),
    "rate": (["score", "table.csv", "--rate", "7"], "rate is a share of the rows between 0 and 1, not 7", 1),
    "small rate": (["fit", "normal.csv", "-o", "x", "--rate", "0.0001"], "at least 9,999 normal rows", 1),
    "rate of saved": (
        ["score", "table.csv", "--with", "saved.farout", "--rate", "1e-9"],
        "normal rows to calibrate",
        1,
    ),
    "ending": (["score", "table.csv", "-o", "o.xyz"], "cannot tell the format of 'o.xyz'", 1),
    "no folder": (["score", "table.csv", "-o", "no/o.csv"], "there is no folder 'no'", 1),
    "no saved": (["score", "table.csv", "--with", "gone"], "there is no saved detector at 'gone'", 1),
    "with and set": (
        ["score", "table.csv", "--with", "saved.farout", "--kind", "x=date"],
        "have no place beside it",
        1,
    ),
    "room": (["list", "tables"], "no room is called 'tables'; nearest: 'table'", 1),
    "card": (["card", "ecodd"], "no method is called 'ecodd'", 1),
    "verb": (["scor", "table.csv"], "No such command 'scor'", 2),
    "option": (["score", "table.csv", "--tpo", "3"], "--tpo", 2),
    "argument": (["score"], "Missing argument", 2),
    "seed": (["score", "table.csv", "--seed", "-1"], "--seed", 2),
    "number": (["score", "table.csv", "--top", "many"], "--top", 2),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_usage_ends_in_one_line_and_writes_nothing(here, name, call):
    words, match, code = WRONG[name]
    before = sorted(os.listdir(here))
    refused(call(*words, cwd=here), match, code)
    assert sorted(os.listdir(here)) == before


def test_trace_shows_where_an_error_came_from(here):
    done = run("score", "tabel.csv", "--trace", cwd=here)
    assert done.returncode == 1 and b"Traceback" in done.stderr and b"there is no file 'tabel.csv'" in done.stderr


def test_odd_tables_are_scored_and_what_is_left_out_is_named(tmp_path, call):
    r = np.random.default_rng(1)
    n = 100
    mixed = [f"{x:.2f}" for x in r.normal(size=n - 2)] + ["much", "little"]
    frame = pl.DataFrame({"mixed": mixed, "x": [*r.normal(size=n - 2), np.inf, -np.inf]})
    frame = frame.with_columns(same=pl.lit(3), gone=pl.lit(None, pl.Float64), id=pl.int_range(n))
    frame.write_csv(tmp_path / "t.csv")
    done = call("score", "t.csv", "-o", "o.parquet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    talk = done.stderr.decode()
    for words in (
        "mixed (2 cells are no numbers: read as missing)",
        "same  (constant: 3)",
        "gone  (no values)",
        "id  (id-like",
    ):
        assert words in talk
    scores = pl.read_parquet(tmp_path / "o.parquet")["score"]
    assert scores.is_finite().all() and scores[98] > scores.median() < scores[99]
    done = call("score", "t.csv", "-m", "pca", "-o", "p.parquet", cwd=tmp_path)
    refused(done, "column 'x' holds infinity in row 98")


def test_ten_thousand_columns(tmp_path, call):
    X = np.random.default_rng(2).normal(size=(30, 10_000))
    pl.DataFrame(X, schema=[f"c{j}" for j in range(10_000)]).write_parquet(tmp_path / "wide.parquet")
    done = call("score", "wide.parquet", "-o", "o.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert b"numeric: 10,000  c0, c1" in done.stderr and len(done.stderr) < 1000
    assert pl.read_csv(tmp_path / "o.csv")["reasons"].is_not_null().all()


def test_other_columns_at_scoring_time(here, tmp_path, call):
    table = pl.read_csv(here / "table.csv")
    saved = here / "saved.farout"
    table.with_columns(colour=pl.lit("red")).write_csv(tmp_path / "more.csv")
    done = call("score", "more.csv", "--with", saved, "-o", "o.csv", cwd=tmp_path)
    assert done.returncode == 0 and "not read: colour  (unknown when fitted)" in done.stderr.decode()
    table.drop("price").write_csv(tmp_path / "less.csv")
    refused(call("score", "less.csv", "--with", saved, cwd=tmp_path), "are missing: 'price'")
    table.with_columns(price=pl.lit("much")).write_csv(tmp_path / "other.csv")
    refused(
        call("score", "other.csv", "--with", saved, cwd=tmp_path),
        "'price' held numbers when it was fitted and holds text",
    )


def test_saved_detectors_that_are_damaged_newer_or_hostile(here, tmp_path, call):
    import pickle
    import zipfile

    bad, mark = tmp_path / "bad.farout", tmp_path / "boom"
    whole = (here / "saved.farout").read_bytes()
    ask = ("score", here / "table.csv", "--with", bad)
    bad.write_bytes(whole[: len(whole) // 2])
    refused(call(*ask, cwd=tmp_path), "truncated, damaged or another kind of file; nothing in it was run")
    with zipfile.ZipFile(bad, "w") as bundle:
        bundle.writestr("farout.json", json.dumps({"format": FORMAT + 1, "farout": "9.9", "tree": None}))
    refused(call(*ask, cwd=tmp_path), "saved by farout 9.9")
    hostile = type("Hostile", (), {"__reduce__": lambda self: (os.mkdir, (str(mark),))})
    bad.write_bytes(pickle.dumps(hostile()))
    refused(call(*ask, cwd=tmp_path), "nothing in it was run")
    assert sorted(os.listdir(tmp_path)) == ["bad.farout"]


@pytest.mark.parametrize("name", ["o.csv", "o.parquet", "o.html"])
def test_a_full_disk_leaves_the_old_file_whole(here, tmp_path, name):
    (tmp_path / name).write_text("old")

    def small_files():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    done = run("score", here / "table.csv", "-q", "-o", name, cwd=tmp_path, preexec_fn=small_files)
    refused(done, f"cannot write '{name}'")
    assert (tmp_path / name).read_text() == "old" and os.listdir(tmp_path) == [name]


def slow_program(folder, *words):
    """Start the program with a pause inside the writing of its output, and wait until it is there."""
    code = (
        "import sys, time, pyarrow as pa; real = pa.output_stream\n"
        "def slow(path, **more):\n"
        "    stream = real(path, **more); stream.write(b'half'); stream.flush(); time.sleep(60); return stream\n"
        "pa.output_stream = slow\n"
        "from farout.cli import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    until = time.monotonic() + 60
    while not list(folder.glob(".farout-*.tmp")) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    assert list(folder.glob(".farout-*.tmp"))
    return process


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_removes_what_is_half_written(here, tmp_path, sent, code):
    (tmp_path / "o.csv").write_text("old")
    process = slow_program(tmp_path, "score", here / "table.csv", "-q", "-o", "o.csv")
    process.send_signal(sent)
    out, talk = process.communicate(timeout=60)
    assert process.returncode == code and out == b"" and b"Traceback" not in talk
    if sent == signal.SIGINT:
        assert talk == b"farout: interrupted; files that were being written are as they were\n"
    assert (tmp_path / "o.csv").read_text() == "old" and os.listdir(tmp_path) == ["o.csv"]


def test_a_table_that_changes_while_it_is_read(here, tmp_path):
    (tmp_path / "t.csv").write_bytes((here / "table.csv").read_bytes())
    code = (
        "import polars as pl, farout.kit.columns as c; real = c.Columns.guess.__func__\n"
        "def slow(cls, *a, **k):\n"
        "    open('t.csv', 'a').write('1,2,Rome\\n'); return real(cls, *a, **k)\n"
        "c.Columns.guess = classmethod(slow)\n"
        "from farout.cli import main; main()"
    )
    words = [sys.executable, "-c", code, "score", "t.csv", "--engine", "stream", "-o", "o.csv"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, timeout=60)
    refused(done, "'t.csv' ")
    assert os.listdir(tmp_path) == ["t.csv"]


def test_list_card_doctor_and_version(here, tmp_path, call):
    done = call("list", "table", cwd=tmp_path)
    assert done.returncode == 0 and b"ecod" in done.stdout and done.stderr == b""
    done = call("card", "ecod", cwd=tmp_path)
    assert done.returncode == 0 and b"arxiv.org/abs/2201.00382" in done.stdout and b"rule='paper'" in done.stdout
    done = call("doctor", cwd=tmp_path)
    assert done.returncode == 0 and b"numpy" in done.stdout and b"extra dist" in done.stdout
    import farout

    assert call("--version", cwd=tmp_path).stdout.decode().strip() == farout.__version__
    done = call(cwd=tmp_path)
    assert done.returncode == 2 and b"score" in done.stdout
    assert not os.listdir(tmp_path)
