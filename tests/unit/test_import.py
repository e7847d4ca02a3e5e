"""What loads when: names are cheap, and rooms keep to their layers."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def loaded_after(code):
    """Names of the modules that a fresh interpreter holds after running some code."""
    code += "\nimport sys; print(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_importing_farout_loads_nothing_heavy():
    assert "farout" in loaded_after("import farout; dir(farout); farout.__version__")
    heavy = {"torch", "sklearn", "scipy", "polars", "pandas", "pyarrow", "numpy", "dask", "plotly", "typer"}
    assert not heavy & loaded_after("import farout")


def test_listing_the_catalogue_imports_no_method():
    code = "import sys; sys.argv = ['farout', 'list']; from farout.cli import main"
    code += "\ntry: main()\nexcept SystemExit: pass"
    names = loaded_after(code)
    assert "farout.cards" in names
    assert not [name for name in names if name.startswith("farout.table.")]
    assert not {"torch", "sklearn", "scipy", "polars", "numpy"} & names


def test_names_load_when_they_are_used():
    import farout

    assert set(farout.__all__) <= set(dir(farout))
    for name in farout.__all__:
        assert getattr(farout, name) is getattr(farout, name)
    with pytest.raises(AttributeError, match="no attribute 'skore'"):
        farout.skore  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'ECODD'"):
        from farout import table

        table.ECODD  # noqa: B018


def test_rooms_keep_to_their_layers():
    tool = Path(sys.executable).with_name("lint-imports")
    if not (tool.exists() or shutil.which("lint-imports")) or not (ROOT / "pyproject.toml").exists():
        pytest.skip("needs import-linter and the source tree")
    command = [str(tool) if tool.exists() else "lint-imports", "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
