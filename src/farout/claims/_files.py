"""Claims in files: a JSON with the machine, versions, commit and date, and a page beside it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path

from farout.cards import find
from farout.claims._claim import Claim
from farout.claims._page import write_page
from farout.errors import BadInput
from farout.io.files import writing
from farout.scoring import versions


def save(claim: Claim, folder: str | Path = "claims/results") -> Path:
    """Write a claim as JSON, with the machine, versions, commit and date, and a page beside it.

    Parameters
    ----------
    claim : Claim
    folder : path
        Made where it is missing.

    Returns
    -------
    pathlib.Path
        The JSON, ``<slug>.json``; the page is ``<slug>.html``. Each is written whole or not at all.
    """
    path = Path(folder) / f"{find(claim.paper).slug}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    circumstances = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": {"cpu": _cpu(), "cores": os.cpu_count()},
        "versions": versions(),
    }
    values = asdict(claim) | {"ratio": claim.ratio}
    with writing(path) as temporary:
        temporary.write_text(json.dumps(values | circumstances, indent=1) + "\n", encoding="utf-8")
    write_page(claim, circumstances, path.with_suffix(".html"))
    return path


def read(path: str | Path) -> Claim:
    """Read a claim that :func:`save` wrote.

    Parameters
    ----------
    path : path

    Returns
    -------
    Claim

    Raises
    ------
    BadInput
        The file is missing or holds no claim.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        known = {one.name: values[one.name] for one in fields(Claim)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"'{path}' holds no claim ({type(error).__name__}: {error}); write one with save") from error
    pairs = {name: tuple(known[name]) for name in ("baseline", "peer", "seeds")}
    return Claim(**known | pairs)


def _commit() -> str | None:
    """Return the commit of the work tree that farout is run from, marked where files were changed since."""
    here = ["git", "-C", str(Path(__file__).parent)]
    try:
        done = subprocess.run([*here, "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None


def _cpu() -> str:
    """Return the model of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
