"""Writing whole or not at all, and noticing files that change underneath a reader."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time

import pytest

from farout.errors import BadInput
from farout.io.files import fingerprint, unchanged, writing


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_the_old_file_whole(tmp_path, error):
    target = tmp_path / "out.txt"
    target.write_text("old")
    with pytest.raises(error), writing(target) as temporary:
        temporary.write_text("ne")
        raise error
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["out.txt"]


def test_the_new_contents_appear_only_at_the_end(tmp_path):
    target = tmp_path / "out.txt"
    target.write_text("old")
    with writing(target) as temporary:
        assert temporary.parent == tmp_path
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["out.txt"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_process_leaves_the_old_file_whole(tmp_path):
    target = tmp_path / "out.txt"
    target.write_text("old")
    script = (
        "import sys, time\nfrom farout.io.files import writing\n"
        "with writing(sys.argv[1]) as t:\n    t.write_text('half'); print('written', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(target)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"written\n"
    process.kill()
    process.wait()
    process.stdout.close()
    assert target.read_text() == "old"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs RLIMIT_FSIZE")
def test_a_full_disk_is_one_sentence_and_leaves_the_old_file(tmp_path):
    target = tmp_path / "out.bin"
    target.write_bytes(b"old")
    script = (
        "import resource, sys\nfrom farout.errors import BadInput\nfrom farout.io.files import writing\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    with writing(sys.argv[1]) as t:\n        t.write_bytes(bytes(5000))\n"
        "except BadInput as e:\n    print(e)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", script, str(target)], capture_output=True, text=True, check=True
    ).stdout
    assert said.startswith(f"cannot write '{target}': File too large; the old file")
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["out.bin"]


def test_a_failing_sync_counts_as_a_failed_write(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    target = tmp_path / "out.txt"
    target.write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BadInput, match="No space left on device"), writing(target) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["out.txt"]


def test_places_that_cannot_be_written_are_named(tmp_path):
    with pytest.raises(BadInput, match=r"there is no folder '.*missing'"), writing(tmp_path / "missing" / "a.csv"):
        pass
    with pytest.raises(BadInput, match="it is a folder"), writing(tmp_path):
        pass


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX modes and links")
def test_modes_links_and_devices_survive(tmp_path):
    target, link = tmp_path / "real.txt", tmp_path / "link.txt"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    with writing(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    with writing(os.devnull) as temporary:
        temporary.write_text("gone")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_fingerprint_tells_size_time_and_replacement(tmp_path):
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_text("12")
    before = fingerprint(path)
    assert before == fingerprint(path)
    os.utime(path, ns=(before[1] + 5, before[1] + 5))
    assert fingerprint(path)[1] == before[1] + 5
    other.write_text("12")
    os.utime(other, ns=(before[1], before[1]))
    os.replace(other, path)
    assert fingerprint(path)[:2] == before[:2]
    assert fingerprint(path) != before


def test_unchanged_notices_growth_and_removal_and_explains_other_errors(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("12")
    with unchanged(path):
        path.read_text()
    with pytest.raises(BadInput, match=r"'a.csv' changed .* \(2 bytes before, 3 bytes now\)"), unchanged(path):
        path.write_text("123")
    with pytest.raises(BadInput, match="changed") as caught, unchanged(path):
        path.write_text("1234")
        raise KeyError("half a record")
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(KeyError), unchanged(path):
        raise KeyError("its own fault")
    since = fingerprint(path)
    time.sleep(0.01)
    path.write_text("4321")
    with pytest.raises(BadInput, match="changed"), unchanged(path, since):
        pass
    with pytest.raises(BadInput, match="removed"), unchanged(path):
        path.unlink()
