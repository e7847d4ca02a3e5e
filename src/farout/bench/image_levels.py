"""Images whose anomalies have levels of severity: folders with level names, solar cells, and painted defects.

A folder holds ``level_0``, ``level_1`` and so on, or ``0``, ``1``, ``1.5``; level 0 is normal. With ``train`` and
``test`` beside each other, ``train`` (or its ``good`` or ``level_0``) is what to learn from, and the levels are in
``test``; otherwise every other normal image is learned from.

What the levels of named sets mean: in ``solar_mono`` the probability of a defect that experts gave a cell, 0, 1/3, 2/3
or 1; in ``painted/NAME`` the strength of one and the same patch of noise, painted on normal images of a set of defects,
so that no level holds other images than the next.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from farout.bench._defect_cells import spread
from farout.bench._mad_bench_files import Scored
from farout.bench.defects import default_methods, detectors
from farout.bench.suites import Progress
from farout.data.defects import NORMAL, defect_folder, defect_set, image_files
from farout.errors import BadInput

__all__ = ["STRENGTHS", "GradedImages", "graded_images", "painted", "scored_images"]

STRENGTHS = (0.1, 0.2, 0.4, 0.7, 1.0)  # of painted defects: levels 1 to 5
SOLAR = "solar_mono"
MOST = {"small": (40, 15), "full": (None, None)}  # images to learn from, and of each level
_LEVEL = re.compile(r"^(?:level[_ -]?)?(\d+(?:\.\d+)?)$", re.IGNORECASE)


@dataclass(frozen=True)
class GradedImages:
    """Normal images to learn from, and images with levels to score.

    Attributes
    ----------
    name : str
    train, test : list
        Paths, or uint8 arrays (H, W, 3).
    severity : float64 array (n_test,)
        0 = normal, larger = worse.
    """

    name: str
    train: list[Any]
    test: list[Any]
    severity: NDArray[np.float64]

    def cut(self, train: int | None, level: int | None) -> GradedImages:
        """Return at most so many images to learn from, and of each level, evenly spread."""
        chosen = [
            np.flatnonzero(self.severity == one)[spread(int(np.sum(self.severity == one)), level)]
            for one in np.unique(self.severity)
        ]
        places = np.sort(np.concatenate(chosen))
        learned = [self.train[i] for i in spread(len(self.train), train)]
        return GradedImages(self.name, learned, [self.test[i] for i in places], self.severity[places])


def graded_images(source: str | Path) -> GradedImages:
    """Find images with levels.

    Parameters
    ----------
    source : str or Path
        ``"solar_mono"``; ``"painted/"`` and what :func:`farout.data.defects.defect_set` takes; or a folder.

    Returns
    -------
    GradedImages

    Raises
    ------
    BadInput
        The folder has no levels, or no normal image to learn from.
    """
    word = str(source)
    if word == SOLAR:
        return _solar()
    if word.startswith("painted/"):
        return painted(word.removeprefix("painted/"))
    folder = Path(source)
    if not folder.is_dir():
        raise BadInput(f"there is no folder '{word}' with images; give one, '{SOLAR}', or painted/magnetic_tile")
    both = (folder / "train").is_dir() and (folder / "test").is_dir()
    levels = _levels(folder / "test" if both else folder)
    if 0.0 not in levels or len(levels) < 2:
        seen = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_dir())) or "no folder"
        raise BadInput(f"'{folder}' needs folders level_0 (normal), level_1 and so on; it holds {seen}")
    if both:
        inner = [path for path in sorted((folder / "train").iterdir()) if path.is_dir() and _is_normal(path.name)]
        train = image_files(inner[0] if inner else folder / "train")
    else:
        train, levels[0.0] = levels[0.0][0::2], levels[0.0][1::2]
    severity = np.repeat(list(levels), [len(paths) for paths in levels.values()])
    if not train:
        raise BadInput(f"'{folder}' holds no normal image to learn from")
    return GradedImages(folder.name, list(train), [path for paths in levels.values() for path in paths], severity)


def painted(source: str | Path, strengths: Sequence[float] = STRENGTHS, seed: int = 0) -> GradedImages:
    """Paint a patch of noise on normal images at several strengths.

    Parameters
    ----------
    source : str or Path
        A set of defects, of which only normal images are used: every other one of the test is painted, at all
        strengths, and the others are level 0.
    strengths : sequence of float
        Between 0 and 1, rising.
    seed : int

    Returns
    -------
    GradedImages
    """
    import torch

    from farout.image._defects import noise_blob
    from farout.io.images import read_images

    found = defect_set(source)
    normal = [path for path, kind in zip(found.test, found.kinds) if kind == "good"]
    if len(normal) < 2:
        raise BadInput(f"'{found.name}' has {len(normal)} normal test images; two are needed, to paint one of them")
    test: list[Any] = list(normal[0::2])
    severity = [0.0] * len(test)
    for place, image in enumerate(read_images(normal[1::2]).arrays):
        x_CHW = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        for level, strength in enumerate(strengths, 1):
            generator = torch.Generator().manual_seed(1_000 * seed + place)  # the same patch at every strength
            changed_CHW, _ = noise_blob(x_CHW, generator, strength)
            test.append(changed_CHW.permute(1, 2, 0).numpy())
            severity.append(float(level))
    return GradedImages(f"painted/{found.name}", list(found.train), test, np.array(severity))


def scored_images(
    images: Iterable[str | Path | GradedImages],
    methods: Iterable[str] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    budget: str = "small",
    *,
    device: str = "auto",
    problems: list[str] | None = None,
    progress: Progress | None = None,
) -> Iterator[Scored]:
    """Score images with detectors, fitted to the normal ones.

    Parameters
    ----------
    images : iterable of str, path or GradedImages
    methods : iterable of str, optional
        As :func:`farout.bench.defects.detectors` takes them; by default all that learn from normal images alone.
    seeds : sequence of int
        Where a detector draws nothing, only the first is run.
    budget : {"small", "full"}
        ``"small"``: few images and short trainings.
    device : str
    problems : list of str, optional
        A method that fails is named here, and the rest goes on; without it, it raises.
    progress : callable, optional

    Yields
    ------
    Scored
    """
    train, level = MOST[budget]
    found = [one if isinstance(one, GradedImages) else graded_images(one) for one in images]
    found = [one.cut(train, level) for one in found]
    made = detectors(default_methods() if methods is None else methods, device, short=budget == "small")
    runs = [
        (graded, method, seed)
        for graded in found
        for method in made
        for seed in (seeds if "random_state" in made[method](0).get_params() else seeds[:1])
    ]
    for done, (graded, method, seed) in enumerate(runs):
        if progress is not None:
            progress(f"{method} on {graded.name}", done / len(runs))
        try:
            score = made[method](seed).fit(graded.train).outlier_score(graded.test)
        except Exception as error:  # whatever a method raises, the others go on
            if problems is None:
                raise
            problems.append(f"{method} on {graded.name}, seed {seed}: {type(error).__name__}: {error}".splitlines()[0])
            continue
        yield Scored(method, graded.name, graded.name, graded.severity, score, seed)


def _solar() -> GradedImages:
    """Solar cells, by the rank of the probability that they are defective."""
    folder, found = defect_folder(SOLAR), defect_set(SOLAR)
    with (folder / "origin.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    probability = {row["file"]: float(row["proba"]) for row in rows}
    given = [probability[path.relative_to(folder.parent).as_posix()] for path in found.test]
    return GradedImages(SOLAR, list(found.train), list(found.test), np.round(3 * np.array(given)))


def _levels(folder: Path) -> dict[float, list[Path]]:
    """Images by level, in rising order."""
    found: dict[float, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        match = _LEVEL.match(path.name)
        if path.is_dir() and (match or path.name in NORMAL):
            found.setdefault(float(match[1]) if match else 0.0, []).extend(image_files(path))
    return dict(sorted((level, paths) for level, paths in found.items() if paths))


def _is_normal(name: str) -> bool:
    match = _LEVEL.match(name)
    return name in NORMAL or (match is not None and float(match[1]) == 0)
