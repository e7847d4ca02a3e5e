"""Logs as tables of events."""

from __future__ import annotations

import gzip
import sys
import warnings

import polars as pl
import pytest

from farout.errors import BadInput, MissingExtra
from farout.io._logs import PARAMETERS, begins_like_a_log
from farout.io.tables import TableFile

pytest.importorskip("drain3")

HEADS = {
    "iso": ("2024-03-05 18:01:47,978 INFO [main] org.acme.Master: {}", "18 h", "INFO", "org.acme.Master"),
    "zone": ("2024-03-05T18:01:47.978Z ERROR payments - {}", "18 h", "ERROR", "payments"),
    "python": ("2024-03-05 18:01:47,978 - payments - WARNING - {}", "18 h", "WARNING", None),
    "compact": (
        "081109 203615 148 INFO dfs.DataNode$PacketResponder: {}",
        "20 h",
        "INFO",
        "dfs.DataNode$PacketResponder",
    ),
    "syslog": ("Jun 14 15:16:01 combo sshd(pam_unix)[19939]: {}", "15 h", None, "sshd(pam_unix)"),
    "spaces": ("2016-09-28 04:30:30, Info                  CBS    {}", "04 h", "INFO", "CBS"),
    "apache": ("[Sun Dec 04 04:47:44 2005] [error] {}", "04 h", "ERROR", None),
    "access": ('10.0.0.7 - - [10/Oct/2023:13:55:36 -0700] "{}" ok', "13 h", None, None),
    "node": (
        "- 1117838570 2005.06.03 R02-M1 2005-06-03-15.42.50.675872 R02-M1 RAS KERNEL INFO {}",
        "15 h",
        "INFO",
        None,
    ),
}


def written(path, lines):
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("kind", HEADS)
def test_heads_of_many_forms_are_read(tmp_path, kind):
    form, hour, level, component = HEADS[kind]
    users = ["ann", "bob", "eve"]
    lines = [form.format(f"user {users[i % 3]} opened session {i}") for i in range(30)]
    frame = TableFile(written(tmp_path / "x.log", lines)).read()
    assert frame.height == 30
    assert frame["hour"].unique().to_list() == [hour]
    assert ("level" in frame.columns) == (level is not None)
    assert ("component" in frame.columns) == (component is not None)
    if level:
        assert frame["level"].unique().to_list() == [level]
    if component:
        assert frame["component"].unique().to_list() == [component]
    assert frame["template"].n_unique() == 1 and "user <*> opened session <NUM>" in frame["template"][0]
    parameters = [frame[name].to_list() for name in frame.columns if name.startswith("param")]
    assert [users[i % 3] for i in range(30)] in parameters


def test_fields_of_the_head_and_weekdays_of_long_logs(tmp_path):
    lines = [f"2024-03-{1 + i // 2:02d} 10:00:00 web{i % 2} 4711 INFO shop: order {i} done" for i in range(40)]
    frame = TableFile(written(tmp_path / "x.log", lines)).read()
    assert frame["field1"].to_list() == ["web0", "web1"] * 20 and "field2" not in frame.columns  # 4711 is a number
    assert frame["weekday"][:4].to_list() == ["Friday", "Friday", "Saturday", "Saturday"]  # 1 and 2 March 2024
    short = TableFile(written(tmp_path / "y.log", lines[:20])).read()
    assert "weekday" not in short.columns


def test_lines_without_a_stamp_stay_and_are_reported(tmp_path):
    lines = [f"2024-03-05 18:01:{i:02d} ERROR shop: order {i} failed" for i in range(20)]
    lines[7:7] = ["Traceback (most recent call last):", "", "  ValueError: no stock"]
    with pytest.warns(
        UserWarning, match=r"'x.log': 2 of 22 lines have no time stamp, the first is line 8 \('Traceback"
    ):
        frame = TableFile(written(tmp_path / "x.log", lines)).read()
    assert frame.height == 22
    assert frame["hour"][7] is None and frame["level"][7] is None
    assert frame["template"][7] == "Traceback (most recent call last):" and frame["hour"][9] == "18 h"


def test_text_without_stamps_has_templates_alone(tmp_path):
    lines = [f"device eth{i % 3} is {'up' if i % 5 else 'down'}" for i in range(30)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frame = TableFile(written(tmp_path / "x.log", lines)).read()
    assert frame.columns == ["template", "param1", "param2"]


def test_a_txt_file_is_a_log_when_its_first_line_begins_with_a_stamp(tmp_path):
    lines = [f"Jun 14 15:16:0{i} host cron[1]: job {i} ran" for i in range(9)]
    assert TableFile(written(tmp_path / "a.txt", lines)).format == "log"
    assert TableFile(written(tmp_path / "b.txt", ["time,host", *lines])).format == "txt"
    assert TableFile(written(tmp_path / "c.dat", lines), as_="log").read().height == 9
    assert not begins_like_a_log("order 2024-03-05 10:00:00 shipped")


def test_a_packed_log_in_another_encoding(tmp_path):
    text = "\r\n".join(f"2024-03-05 18:01:{i:02d} INFO shop: Käufer {'Zoë' if i % 2 else 'Bo'} kam" for i in range(20))
    (tmp_path / "x.log.gz").write_bytes(gzip.compress(text.encode("latin-1")))
    frame = TableFile(tmp_path / "x.log.gz", encoding="latin-1").read()
    assert frame["param1"].to_list() == ["Bo", "Zoë"] * 10
    with pytest.raises(BadInput, match=r"line 1.*encoding"):
        TableFile(tmp_path / "x.log.gz").read()


def test_parts_and_batches_are_the_rows_of_the_whole(tmp_path):
    lines = [f"2024-03-05 18:01:{i % 60:02d} INFO shop: order {i} of user{i % 7}" for i in range(500)]
    table = TableFile(written(tmp_path / "x.log", lines))
    whole = table.read()
    assert table.n_rows() == 500 and table.columns() == whole.columns
    assert pl.concat(table.batches(64)).equals(whole)
    assert pl.concat([part.read() for part in table.parts(3)]).equals(whole)


def test_more_parameters_than_columns_share_the_last(tmp_path):
    lines = [" ".join(f"the word {'abcdefghijkl'[k]} w{i}x{k}" for k in range(12)) for i in range(20)]
    frame = TableFile(written(tmp_path / "x.log", lines)).read()
    assert frame.columns[-1] == f"param{PARAMETERS}"
    assert frame[f"param{PARAMETERS}"][3] == " ".join(f"w3x{k}" for k in range(PARAMETERS - 1, 12))


def test_what_is_no_log_is_refused(tmp_path, monkeypatch):
    with pytest.raises(BadInput, match="blank lines only"):
        TableFile(written(tmp_path / "x.log", ["", "  "]))
    monkeypatch.setitem(sys.modules, "drain3", None)
    with pytest.raises(MissingExtra, match=r"farout\[logs\]"):
        TableFile(written(tmp_path / "y.log", ["2024-03-05 18:01:00 a"]))
