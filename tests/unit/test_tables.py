"""Reading and writing tables: what comes back is what was stored, and what is wrong is said in one sentence."""

from __future__ import annotations

import bz2
import csv
import datetime
import gzip
import io
import json
import os
import pickle
import sys
import tracemalloc

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from farout.errors import BadInput
from farout.io import _arrays, _lines
from farout.io.tables import TableFile, to_polars, write_table

N = 2500
RNG = np.random.default_rng(0)
FRAME = pl.DataFrame(
    {
        "whole": RNG.integers(-(10**9), 10**9, N),
        "real": RNG.normal(size=N),
        "some": [None if i % 7 == 0 else i / 8 for i in range(N)],
        "word": [f'a "{i}", b\nc;é' if i % 5 == 0 else f"w{i % 11}" for i in range(N)],
        "day": [datetime.date(2020, 1, 1) + datetime.timedelta(days=i) for i in range(N)],
        "time": [datetime.datetime(2020, 1, 1) + datetime.timedelta(seconds=i) for i in range(N)],
    },
    schema_overrides={"time": pl.Datetime("ns")},
)
MATRIX = FRAME.select(x0=pl.col("real"), x1=pl.col("whole").cast(pl.Float64))
SAME_TYPES = ["csv", "tsv", "csv.gz", "csv.zst", "csv.bz2", "tsv.gz", "parquet", "pq", "feather", "arrow"]


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few records, so that small files have many."""
    monkeypatch.setattr(_lines, "BLOCK", 2000)
    monkeypatch.setattr(_arrays, "SLICE", 8 * 6 * 100)


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def stored(tmp_path, ending):
    """Write the frame in any format; return the file and what must come back."""
    path = tmp_path / f"t.{ending}"
    if ending == "npy":
        np.save(path, MATRIX.to_numpy())
    elif ending == "npz":
        np.savez_compressed(path, X=MATRIX.to_numpy(), y=np.arange(N) % 2)
    elif ending == "json":
        FRAME.select("whole", "some", "word").write_json(path)
    elif ending.startswith("jsonl"):
        write_table(FRAME.select("whole", "some", "word"), path)
    else:
        write_table(FRAME, path)
    return path, MATRIX if ending[:2] == "np" else FRAME.select("whole", "some", "word") if "json" in ending else FRAME


@pytest.mark.parametrize("ending", [*SAME_TYPES, "json", "jsonl", "jsonl.gz", "jsonl.zst", "npy", "npz"])
def test_read_batches_and_parts_give_what_was_stored(tmp_path, ending, small_blocks, monkeypatch):
    path, expected = stored(tmp_path, ending)
    table = TableFile(path)
    assert table.columns() == expected.columns
    assert_frame_equal(TableFile(path).read(), expected)

    batches = list(TableFile(path).batches(rows=300))
    assert [len(batch) for batch in batches] == [300] * 8 + [100]
    assert_frame_equal(pl.concat(batches), expected)

    monkeypatch.chdir(tmp_path)
    parts = pickle.loads(pickle.dumps(TableFile(path.name).parts(4)))
    monkeypatch.chdir(tmp_path.parent)  # as on a worker
    heights = [part.read().height for part in parts]
    assert len(parts) == 4
    assert sum(heights) == N
    assert max(heights) < 0.35 * N
    assert_frame_equal(pl.concat([part.read() for part in parts]), expected)
    assert_frame_equal(pl.concat([batch for part in parts for batch in part.batches(77)]), expected)


@pytest.mark.parametrize("ending", ["parquet", "feather", "npy", "npz"])
def test_rows_and_size_are_exact_where_the_format_tells(tmp_path, ending):
    path, expected = stored(tmp_path, ending)
    table = TableFile(path)
    assert table.n_rows() == N
    assert table.size == 8 * N * len(expected.columns)


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_size_of_text_is_estimated(tmp_path, ending):
    path, expected = stored(tmp_path, ending)
    path = tmp_path / f"plain.{ending}"
    write_table(expected.select("whole", "some"), path)
    table = TableFile(path)
    assert table.n_rows() is None
    assert table.size == pytest.approx(8 * N * 2, rel=0.15)


def test_a_large_row_group_is_read_in_slices(tmp_path, small_blocks):
    path = tmp_path / "one_group.parquet"
    FRAME.write_parquet(path, row_group_size=N)
    pieces = list(TableFile(path)._reader.frames(130, 2001))
    assert max(piece.height for piece in pieces) == 100
    assert_frame_equal(pl.concat(pieces), FRAME.slice(130, 1871))
    FRAME.write_parquet(path, row_group_size=64)
    assert_frame_equal(pl.concat(list(TableFile(path)._reader.frames(130, 2001))), FRAME.slice(130, 1871))


def test_a_part_does_not_read_the_row_groups_of_others(tmp_path):
    path = tmp_path / "t.parquet"
    FRAME.write_parquet(path, row_group_size=N // 2, compression="uncompressed")
    last = TableFile(path).parts(2)[1]
    contents, stat = bytearray(path.read_bytes()), path.stat()
    contents[4:3000] = bytes(2996)
    path.write_bytes(contents)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # or the part would refuse a file that has changed
    assert_frame_equal(last.read(), FRAME.slice(N // 2))
    with pytest.raises(BadInput, match="cannot be read as parquet"):
        TableFile(path).read()


def test_batches_of_a_csv_need_bounded_memory(tmp_path, monkeypatch):
    path = tmp_path / "long.csv"
    path.write_text("a,b\n" + "1.25,2.5\n" * 400_000)
    monkeypatch.setattr(_lines, "BLOCK", 1 << 16)
    tracemalloc.start()
    total = sum(batch["a"].sum() for batch in TableFile(path).batches(rows=1000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 500_000
    assert peak < path.stat().st_size / 4


def test_types_fit_the_whole_file_and_nothing_is_lost(tmp_path, small_blocks):
    rows = [f"{i},{i},2020-01-01,007,," for i in range(1000)]
    rows += ["2.5,x,2020-01-01T12:00:00,a,,", "NA,?,None,null,nan,4"]
    path = write(tmp_path / "late.csv", "real,mixed,when,code,void,last\n" + "\n".join(rows))
    frames = [TableFile(path).read(), pl.concat(list(TableFile(path).batches(50)))]
    frames.append(pl.concat([part.read() for part in TableFile(path).parts(5)]))
    for frame in frames:
        assert frame["real"].to_list() == [*map(float, range(1000)), 2.5, None]
        assert frame["mixed"].to_list() == [*map(str, range(1000)), "x", None]
        assert frame["when"][0] == datetime.datetime(2020, 1, 1)
        assert frame["when"][1000] == datetime.datetime(2020, 1, 1, 12)
        assert frame["code"].to_list() == ["007"] * 1000 + ["a", None]
        assert frame["void"].dtype == pl.String
        assert frame["void"].null_count() == 1002
        assert frame["last"].to_list() == [None] * 1001 + [4]


def test_json_lines_agree_on_types_over_the_whole_file(tmp_path, small_blocks):
    records = [{"n": i, "m": i, "flag": True, "nest": [1]} for i in range(400)]
    records += [{"n": 0.5, "m": "x", "flag": 3, "late": 1}, {"nest": [0.5]}]
    path = write(tmp_path / "t.jsonl", "\n".join(map(json.dumps, records)))
    for frame in (TableFile(path).read(), pl.concat(list(TableFile(path).batches(64)))):
        assert frame.columns == ["n", "m", "flag", "nest", "late"]
        assert frame["n"].to_list() == [*map(float, range(400)), 0.5, None]
        assert frame["m"].to_list() == [*map(str, range(400)), "x", None]
        assert frame["flag"].dtype == pl.String
        assert frame["flag"][400] == "3"
        assert frame["nest"].dtype == pl.List(pl.Float64)
        assert frame["late"].to_list() == [None] * 400 + [1, None]


def test_truth_values_and_numbers_in_different_blocks_become_strings(tmp_path, monkeypatch):
    monkeypatch.setattr(_lines, "BLOCK", 100 * len('{"a": true}\n'))  # no block mixes the two
    path = write(tmp_path / "t.jsonl", '{"a": true}\n' * 300 + '{"a": 3}\n' * 300)
    assert TableFile(path).read()["a"].to_list() == ["true"] * 300 + ["3"] * 300
    path = write(tmp_path / "t.csv", "a\n" + "true\n" * 600 + "3\n" * 1200)
    assert TableFile(path).read()["a"].to_list() == ["true"] * 600 + ["3"] * 1200


cells = st.text(alphabet='ab1 ,;"\n\r\t.é?', max_size=6)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(cells, min_size=3, max_size=3), min_size=1, max_size=12), st.integers(1, 60), st.integers(1, 5)
)
def test_any_quoted_text_survives_cutting_into_blocks(tmp_path_factory, rows, block, n):
    path = tmp_path_factory.mktemp("cut") / "t.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerows([["a", "b", "c"], *(["w" + cell for cell in row] for row in rows)])
    expected = pl.DataFrame([["w" + cell for cell in row] for row in rows], schema=["a", "b", "c"], orient="row")
    old = _lines.BLOCK
    _lines.BLOCK = block
    try:
        assert_frame_equal(TableFile(path).read(), expected)
        assert_frame_equal(pl.concat([part.read() for part in TableFile(path).parts(n)]), expected)
    finally:
        _lines.BLOCK = old


@pytest.mark.parametrize(
    ("ending", "text"),
    [
        ("csv", "a;b;c\n1;2;3\n"),
        ("csv", "a|b|c\n1|2|3\n"),
        ("csv", "\ufeffa,b,c\r\n1,2,3\r\n"),
        ("csv", '"a",b,c\n1,"2",3'),
        ("tsv", "a\tb\tc\n1\t2\t3\n"),
        ("txt", "a b c\n1 2 3\n"),
        ("txt", "a\tb\tc\n1\t2\t3\n\n"),
    ],
)
def test_separators_marks_and_line_ends(tmp_path, ending, text):
    assert TableFile(write(tmp_path / f"t.{ending}", text)).read().to_dicts() == [{"a": 1, "b": 2, "c": 3}]


def test_a_separator_inside_a_quoted_name_does_not_count(tmp_path):
    path = write(tmp_path / "t.csv", '"a;b;c;d",e\n1,2\n')
    assert TableFile(path).read().to_dicts() == [{"a;b;c;d": 1, "e": 2}]


def test_a_blank_line_in_a_single_column_is_a_missing_value(tmp_path):
    assert TableFile(write(tmp_path / "t.csv", "a\n1\n\n3\n")).read()["a"].to_list() == [1, None, 3]
    assert TableFile(write(tmp_path / "u.csv", "a,b\n1,2\n\n3,4\n")).read()["a"].to_list() == [1, 3]


def test_a_cell_with_a_line_end_where_the_parser_cuts_its_blocks(tmp_path):
    before = ((1 << 20) - 8) // 4
    frame = TableFile(write(tmp_path / "t.csv", "a,b\n" + "1,x\n" * before + '1,"x\n2,y"\n')).read()
    assert frame.height == before + 1
    assert frame["b"][-1] == "x\n2,y"


def test_a_record_longer_than_the_parser_s_blocks(tmp_path):
    long = "x" * (3 << 20)
    frame = TableFile(write(tmp_path / "t.csv", f"a,b\n1,{long}\n2,y\n")).read()
    assert frame["b"].to_list() == [long, "y"]


def test_an_unnamed_column_gets_a_name(tmp_path):
    assert TableFile(write(tmp_path / "t.csv", ",b\n0,1\n")).columns() == ["column_1", "b"]


def test_compression_is_seen_in_the_bytes_not_the_name(tmp_path):
    text = b"a,b\n1,2\n"
    for name, data in {"x.csv": gzip.compress(text), "y.csv.gz": text, "z.csv": bz2.compress(text)}.items():
        assert TableFile(write(tmp_path / name, data)).read().to_dicts() == [{"a": 1, "b": 2}]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16"])
def test_other_encodings(tmp_path, encoding, small_blocks):
    text = "naïve,b\n" + "café,1\n" * 900
    path = write(tmp_path / "t.csv", text.encode(encoding))
    expected = pl.DataFrame({"naïve": ["café"] * 900, "b": [1] * 900})
    assert_frame_equal(TableFile(path, encoding=encoding).read(), expected)
    assert_frame_equal(pl.concat([p.read() for p in TableFile(path, encoding=encoding).parts(3)]), expected)


class Stdin:
    def __init__(self, data):
        self.buffer = io.BytesIO(data)


@pytest.mark.parametrize(
    "ending", ["csv", "tsv", "csv.gz", "csv.zst", "parquet", "feather", "npy", "npz", "json", "jsonl"]
)
def test_standard_input_is_recognised_by_its_bytes(tmp_path, monkeypatch, ending):
    path, expected = stored(tmp_path, ending)
    monkeypatch.setattr(sys, "stdin", Stdin(path.read_bytes()))
    table = TableFile("-")
    assert table.name == "stdin"
    assert_frame_equal(table.read(), expected)
    spool = table.path
    del table
    assert not spool.exists()


def test_the_format_can_be_said(tmp_path):
    path = write(tmp_path / "t.dat", "a,b\n1,2\n")
    assert TableFile(path, as_="csv").read().to_dicts() == [{"a": 1, "b": 2}]
    with pytest.raises(BadInput, match="no table format is called 'cvs'; nearest: 'csv'"):
        TableFile(path, as_="cvs")


def test_labels_of_an_archive_are_no_features(tmp_path):
    x, y = RNG.normal(size=(20, 3)), np.arange(20) % 2
    np.savez(tmp_path / "a.npz", X=x, Label=y[:, None], other=np.zeros((2, 2)))
    table = TableFile(tmp_path / "a.npz")
    assert table.read().to_numpy().tolist() == x.tolist()
    assert np.asarray(table.labels).tolist() == y.tolist()
    np.savez(tmp_path / "b.npz", data=x, y=np.zeros(19))
    assert TableFile(tmp_path / "b.npz").labels is None
    assert TableFile(tmp_path / "b.npz").columns() == ["x0", "x1", "x2"]
    assert TableFile(write(tmp_path / "t.csv", "y\n1\n")).labels is None


@pytest.mark.parametrize("array", [np.arange(5), np.arange(5.0)[:, None], np.asfortranarray(np.ones((4, 3), ">f4"))])
def test_npy_shapes_and_byte_orders(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    assert TableFile(tmp_path / "a.npy").read().to_numpy().tolist() == array.reshape(len(array), -1).tolist()


def test_the_unnamed_index_of_pandas_is_dropped_from_files(tmp_path):
    frame = pd.DataFrame({"a": [1, 2]}, index=["r", "s"])
    frame.to_parquet(tmp_path / "a.parquet")
    pa.feather.write_feather(pa.Table.from_pandas(frame), str(tmp_path / "a.feather"))
    for name in ("a.parquet", "a.feather"):
        assert TableFile(tmp_path / name).read().to_dicts() == [{"a": 1}, {"a": 2}]


def test_categories_in_files_are_strings(tmp_path):
    frame = FRAME.select(pl.col("word").cast(pl.Categorical))
    frame.write_parquet(tmp_path / "c.parquet")
    assert TableFile(tmp_path / "c.parquet").read()["word"].to_list() == FRAME["word"].to_list()


# --- what is wrong is said ---


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("empty.csv", b"", r"'empty.csv' is empty"),
        ("head.csv", b"a,b\n", r"'head.csv' has a header but no rows"),
        ("head.csv", b"a,b", r"no rows"),
        ("head.csv", b"a,b\n\n\n", r"no rows"),
        ("dup.csv", b"a,b,a\n1,2,3\n", r"'dup.csv' has more than one column called 'a'"),
        ("long.csv", b"a,b\n1,2\n4,5,6\n", r"'long.csv' line 3 has 3 cells where the header has 2"),
        ("short.csv", b'a,b\n1,"2\n3"\n7\n', r"line 4 has 1 cells where the header has 2"),
        ("latin.csv", b"a,b\n1,x\n2,caf\xe9\n", r"not UTF-8 text: byte 0xe9 at offset 13, line 3, column 'b'"),
        ("latin.csv", b"a,caf\xe9\n1,x\n", r"byte 0xe9 at offset 5, line 1 \(the header\)"),
        ("open.csv", b'a,b\n1,"2\n7,3\n4,5\n', r"a quote that is opened and never closed"),
        ("bad.jsonl", b'{"a": 1}\n\n{bad\n', r"'bad.jsonl' line 3 is no JSON object"),
        ("list.jsonl", b"[1, 2]\n", r"line 1 is no JSON object"),
        ("blank.jsonl", b"\n\n", r"is empty"),
        ("bad.json", b'[{"a": 1}', r"'bad.json' is not JSON"),
        ("object.json", b'{"a": [1, 2]}', r"no array of records"),
        ("none.json", b"[]", r"no rows"),
        ("t.parquet", b"PAR1 not really", r"'t.parquet' cannot be read as parquet: .*; it may be cut short"),
        ("t.feather", b"ARROW1 not really", r"'t.feather' cannot be read as feather"),
        ("t.npy", b"\x93NUMPY", r"'t.npy' cannot be read as npy"),
        ("t.npz", b"PK nothing", r"'t.npz' cannot be read as npz"),
        ("t.xlsx", b"PK", r"cannot tell the format of 't.xlsx' from its ending; known: csv, tsv, .*as_='csv'"),
        ("t.parquet.gz", b"\x1f\x8b", r"cannot tell the format"),
        ("noending", b"a\n1\n", r"cannot tell the format"),
    ],
)
def test_damaged_files_are_explained(tmp_path, name, text, said):
    path = write(tmp_path / name, text)
    for use in (TableFile.read, lambda table: list(table.batches()), lambda table: table.parts(2)):
        with pytest.raises(BadInput, match=said):
            use(TableFile(path))


def test_lines_and_offsets_count_from_the_start_of_the_file(tmp_path, small_blocks):
    good = "1,x\n" * 3000
    ragged = write(tmp_path / "r.csv", "a,b\n" + good + "1,2,3\n")
    with pytest.raises(BadInput, match="line 3002 has 3 cells"):
        TableFile(ragged).read()
    latin = write(tmp_path / "l.csv", ("a,b\n" + good).encode() + b"1,\xe9\n")
    with pytest.raises(BadInput, match=f"byte 0xe9 at offset {4 + 12000 + 2}, line 3002, column 'b'"):
        TableFile(latin).read()
    lines = write(tmp_path / "l.jsonl", '{"a": 1}\n' * 3000 + "oops\n")
    with pytest.raises(BadInput, match="line 3001 is no JSON object"):
        TableFile(lines).read()


@pytest.mark.parametrize("ending", ["csv.gz", "csv.zst", "csv.bz2", "parquet", "feather", "npy", "npz"])
def test_files_cut_short_never_read_as_shorter_tables(tmp_path, ending):
    path, _ = stored(tmp_path, ending)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(BadInput, match="cut short"):
        TableFile(path).read()


def test_missing_files_and_folders(tmp_path):
    write(tmp_path / "cardio.csv", "a\n1\n")
    with pytest.raises(BadInput, match=r"there is no file '.*cadrio.csv'; nearest: 'cardio.csv'"):
        TableFile(tmp_path / "cadrio.csv")
    with pytest.raises(BadInput, match="nor a folder"):
        TableFile(tmp_path / "nowhere" / "a.csv")
    with pytest.raises(BadInput, match=r"is a folder; give one file in it .*'cardio.csv'"):
        TableFile(tmp_path)


def test_wrong_encodings(tmp_path):
    path = write(tmp_path / "t.csv", "a\né\n")
    with pytest.raises(BadInput, match="no encoding is called 'latin-99'"):
        TableFile(path, encoding="latin-99")
    with pytest.raises(BadInput, match=r"'t.csv' is not 'ascii' text"):
        TableFile(path, encoding="ascii").read()
    path = write(tmp_path / "half.csv", "a\né\n".encode("utf-16")[:-1])
    with pytest.raises(BadInput, match=r"'half.csv' is not 'utf-16' text"):
        TableFile(path, encoding="utf-16").read()


def test_arrays_that_are_no_tables(tmp_path):
    class Unpickled:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was run",))

    np.save(tmp_path / "o.npy", np.array([Unpickled()], dtype=object))
    with pytest.raises(BadInput, match=r"'o.npy' holds Python objects, which are never unpickled"):
        TableFile(tmp_path / "o.npy")
    np.savez(tmp_path / "o.npz", X=np.array([[Unpickled()]], dtype=object))
    with pytest.raises(BadInput, match=r"array 'X' of 'o.npz' holds Python objects"):
        TableFile(tmp_path / "o.npz")
    np.save(tmp_path / "d.npy", np.zeros((2, 3, 4)))
    with pytest.raises(BadInput, match=r"shape \(2, 3, 4\)"):
        TableFile(tmp_path / "d.npy")
    np.savez(tmp_path / "two.npz", a=np.zeros((2, 2)), b=np.zeros((3, 3)))
    with pytest.raises(BadInput, match=r"no array 'X' .*'a' \(2, 2\), 'b' \(3, 3\)"):
        TableFile(tmp_path / "two.npz")


def test_a_file_that_changes_meanwhile(tmp_path, small_blocks):
    path = write(tmp_path / "t.csv", "a\n" + "1\n" * 5000)
    table = TableFile(path)
    with open(path, "a") as file:
        file.write("2\n")
    with pytest.raises(BadInput, match="changed while it was being read"):
        table.read()

    batches = TableFile(path).batches(100)
    next(batches)
    with open(path, "a") as file:
        file.write("2\n")
    with pytest.raises(BadInput, match="changed while it was being read"):
        list(batches)

    part = TableFile(path).parts(2)[1]
    with open(path, "a") as file:
        file.write("2\n")
    with pytest.raises(BadInput, match="when it was split; split it again"):
        part.read()

    part = TableFile(path).parts(2)[1]
    text, stat = path.read_text(), path.stat()
    path.write_text(text.replace("2", "3"))  # of the same size
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    with pytest.raises(BadInput, match="when it was split; split it again"):
        part.read()


def test_stopping_early_is_no_error(tmp_path):
    path = write(tmp_path / "t.csv", "a\n1\n2\n")
    batches = TableFile(path).batches(1)
    assert next(batches)["a"].to_list() == [1]
    path.write_text("a\n5\n")
    del batches


@pytest.mark.parametrize("call", [lambda t: t.parts(0), lambda t: list(t.batches(0))])
def test_numbers_below_one(tmp_path, call):
    with pytest.raises(BadInput, match="at least 1"):
        call(TableFile(write(tmp_path / "t.csv", "a\n1\n")))


def test_more_parts_than_rows_or_blank_lines_at_the_end(tmp_path):
    for text in ("a,b\n1,2\n" + "\n" * 50, '{"a": 1, "b": 2}\n' + "\n" * 50, '{"a": 1}\n' + "\n" * 50):
        path = write(tmp_path / ("t.csv" if text[0] == "a" else "t.jsonl"), text)
        assert [part.read().height for part in TableFile(path).parts(10)] == [1]
    path = write(tmp_path / "t.csv", "a\n1\n2\n")
    parts = TableFile(path).parts(50)
    assert len(parts) <= 2
    assert pl.concat([part.read() for part in parts])["a"].to_list() == [1, 2]


# --- frames of any kind ---


def test_frames_of_every_kind_agree():
    expected = pl.DataFrame({"a": [1, 2, None], "b": ["x", None, "z"]})
    kinds = [
        expected,
        expected.lazy(),
        expected.to_arrow(),
        expected.to_pandas(use_pyarrow_extension_array=True),
        pd.DataFrame({"a": pd.array([1, 2, None], dtype="Int64"), "b": ["x", None, "z"]}, index=[9, 8, 7]),
        [{"a": 1, "b": "x"}, {"a": 2}, {"b": "z"}],
        expected.with_columns(pl.col("b").cast(pl.Categorical)),
    ]
    for kind in kinds:
        assert_frame_equal(to_polars(kind), expected)


def test_dask_frames_are_collected():
    dask = pytest.importorskip("dask.dataframe")
    frame = dask.from_pandas(pd.DataFrame({"a": [1.5, 2.5, 3.5]}), npartitions=2)
    assert to_polars(frame)["a"].to_list() == [1.5, 2.5, 3.5]


def test_pandas_columns_of_every_kind():
    frame = pd.DataFrame(
        {
            0: pd.Series([1, "x", None, 2.5], dtype=object),
            "category": pd.Categorical([1, 2, None, 1]),
            "float": [1.0, np.nan, 3.0, 4.0],
            "whole": pd.Series([1, None, 3, 4], dtype=object),
            "numpy": pd.Series([np.float64(1), 2.0, np.float32(3), None], dtype=object),
            "time": pd.to_datetime(["2020-01-01", None, "2020-01-03", "2020-01-04"]),
            "nest": [[1], [2, 3], None, []],
            "truth": pd.Series([True, None, False, True], dtype=object),
        }
    ).set_index(pd.Index(list("abcd")))
    out = to_polars(frame)
    assert out.columns == ["0", *frame.columns[1:]]
    assert out["0"].to_list() == ["1", "x", None, "2.5"]
    assert out["category"].to_list() == ["1", "2", None, "1"]
    assert out["float"].to_list() == [1.0, None, 3.0, 4.0]
    assert out["whole"].to_list() == [1, None, 3, 4]
    assert out["numpy"].to_list() == [1.0, 2.0, 3.0, None]
    assert out["time"].to_list()[2] == datetime.datetime(2020, 1, 3)
    assert out["nest"].to_list() == [[1], [2, 3], None, []]
    assert out["truth"].to_list() == [True, None, False, True]


def test_arrays_and_lists():
    assert to_polars(np.arange(6).reshape(3, 2)).to_dict(as_series=False) == {"x0": [0, 2, 4], "x1": [1, 3, 5]}
    assert_frame_equal(to_polars(np.ones((2, 1), np.float16)), pl.DataFrame({"x0": [1.0, 1.0]}).cast(pl.Float32))
    mixed = to_polars(np.array([[1, "a", 0.5], [2, None, "b"]], dtype=object))
    assert mixed.to_dict(as_series=False) == {"x0": [1, 2], "x1": ["a", None], "x2": ["0.5", "b"]}
    assert to_polars([[1, "a"], [2, "b"]]).to_dict(as_series=False) == {"x0": [1, 2], "x1": ["a", "b"]}
    assert to_polars([[1.0, 2.0]]).rows() == [(1.0, 2.0)]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (np.zeros(3), r"shape \(3,\)"),
        (np.zeros((2, 2), complex), "complex128"),
        ([[1], [1, 2]], "rows differ in length"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "more than one column called 'a'"),
        (pd.DataFrame([[1, 2]], columns=[1, "1"]), "more than one column called '1'"),
        (pa.table([[1], [2]], names=["a", "a"]), "more than one column called 'a'"),
        (7, "cannot make a table of a 'int'"),
        ("a.csv", "cannot make a table of a 'str'"),
        (None, "cannot make a table of a 'NoneType'"),
    ],
)
def test_what_is_no_table(data, said):
    with pytest.raises(BadInput, match=said):
        to_polars(data)


# --- writing ---


def test_a_failed_write_keeps_the_old_table(tmp_path):
    path = tmp_path / "t.csv"
    write_table([{"a": 1}], path)
    with pytest.raises(BadInput, match=r"cannot write '.*t.csv' as csv"):
        write_table([{"a": [1, 2]}], path)
    assert TableFile(path).read().to_dicts() == [{"a": 1}]
    assert [entry.name for entry in tmp_path.iterdir()] == ["t.csv"]


@pytest.mark.parametrize("name", ["t.xlsx", "t.npy", "t.parquet.gz", "t"])
def test_endings_that_cannot_be_written(tmp_path, name):
    with pytest.raises(BadInput, match=name):
        write_table([{"a": 1}], tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("ending", "opened"), [("csv.gz", gzip.open), ("csv.bz2", bz2.open)])
def test_written_text_is_really_compressed(tmp_path, ending, opened):
    write_table([{"a": 1}], tmp_path / f"t.{ending}")
    assert opened(tmp_path / f"t.{ending}").read() == b"a\n1\n"
