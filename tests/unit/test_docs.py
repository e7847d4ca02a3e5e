"""The documents are true: their examples run and print what stands beside them, and results are shown as they are."""

from __future__ import annotations

import contextlib
import doctest
import importlib.util
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from farout.cards import find
from farout.claims import Claim, save
from farout.cli import app
from farout.data import load

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs/use").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SAME = doctest.OutputChecker().check_output
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def _blocks(path: Path) -> list[tuple[str, str]]:
    """Language and text of the fenced blocks of a page."""
    return BLOCK.findall(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_run_and_print_what_the_page_shows(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    printed = ""
    for language, text in _blocks(page):
        if language == "python":
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(text, page.name, "exec"), names)
            printed = out.getvalue()
        elif language == "console":
            _check_commands(text)
        elif language == "text":  # what the block of Python before it prints
            assert SAME(text, printed, FLAGS), f"the page shows\n{text}\nand the code prints\n{printed}"


def _check_commands(text: str) -> None:
    """Run the ``$ farout`` commands of a block; what stands under one is what a terminal shows, stderr and stdout."""
    for command, shown in re.findall(r"^\$ farout (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE):
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            app(shlex.split(command), standalone_mode=False)
        if shown.strip():
            assert SAME(shown, said.getvalue(), FLAGS), (
                f"under 'farout {command}' the page shows\n{shown}\nand the terminal\n{said.getvalue()}"
            )


def test_the_two_files_of_contributing_are_all_that_a_paper_needs(tmp_path):
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    shutil.copytree(ROOT / "src/farout", tmp_path / "farout", ignore=shutil.ignore_patterns("__pycache__"))
    files = re.findall(r"`src/(farout/[a-z_/]+\.py)`.*?^```py\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert [path for path, _ in files] == ["farout/table/modified_z.py", "farout/claims/modified_z.py"]
    for path, code in files:
        (tmp_path / path).write_text(code, encoding="utf-8")

    def run(*words: str) -> str:
        command = [sys.executable, "-m", *words]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tmp_path)})
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "from farout.table.modified_z import ModifiedZ" in run("farout", "card", "modified_z")
    output = tmp_path / "scores.csv"
    run("farout", "score", "breast_cancer", "--method", "Modified z-score", "-o", str(output))
    X = load("breast_cancer").X.to_numpy()
    away = np.abs(X - np.median(X, axis=0))
    expected = (0.6745 * away / np.median(away, axis=0)).sum(axis=1)
    np.testing.assert_allclose(pl.read_csv(output)["score"], expected, rtol=1e-12)
    claimed = run("farout", "claim", "modified_z", "-o", str(tmp_path))
    assert "HOLDS" in claimed and "NOT HOLD" not in claimed
    tests = [str(tmp_path / "farout/table/modified_z.py"), str(ROOT / "tests/contract")]
    ran = run("pytest", "-q", "-p", "no:cacheprovider", "-k", "modified_z or ModifiedZ", *tests)
    assert int(re.findall(r"(\d+) passed", ran)[0]) > 50


@pytest.fixture
def generate(tmp_path, monkeypatch):
    """The script ``docs/generate.py``, with the results of claims in a folder of its own."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    return module


def test_the_catalogue_shows_published_beside_measured_and_says_what_does_not_hold(generate, tmp_path):
    measured = {
        "measure": "mean AUROC",
        "threshold": "best of three",
        "note": "IForest is ahead.",
        "budget": "full",
    }
    rivals = {"baseline": ("IForest", 0.76234), "peer": ("KNN", 0.7)}
    save(Claim("ECOD", "best | of all", ours=0.731, holds=False, **measured, **rivals), tmp_path / "results")
    page = generate.catalogue([find("ecod"), find("knn")])
    assert "| best \\| of all | **0.731** mean AUROC | 0.7623 IForest | 0.7 KNN | **does not hold** |" in page
    assert "IForest is ahead." in page and "- to hold: best of three" in page
    assert f"| {find('knn').claim} | not run in full yet |" in page
    assert "| does not hold |" in generate.methods_table([find("ecod")])


def test_check_names_what_is_stale_and_writes_nothing(generate, tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    monkeypatch.setattr(generate, "generated", lambda: {page: "new"})
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    page.write_text("old")
    assert generate.main() == 1
    assert "'page.md' is stale" in capsys.readouterr().err and page.read_text() == "old"
    monkeypatch.setattr(sys, "argv", ["generate.py"])
    assert generate.main() == 0 and page.read_text() == "new"
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    assert generate.main() == 0
