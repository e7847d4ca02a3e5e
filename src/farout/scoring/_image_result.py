"""The scores of images as one result: what a table, a page and heat maps show of it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import polars as pl

from farout.cards import Card
from farout.io.files import writing
from farout.io.images import ImageList
from farout.io.tables import write_table
from farout.report._heat import Heat
from farout.scoring._image_maps import MapWriter

SIDES = ("left", "top", "right", "bottom")


@dataclass
class ImageResult:
    """The scores of images, and what they are compared with.

    Attributes
    ----------
    name : str
    images : ImageList
        Those that were scored; broken ones are left out.
    scores : float64 array (n,)
        Larger is farther out.
    p_values : float64 array (n,)
        Conformal p-values where the line was set on normal images (``calibrated``), else the share of images that
        score as high.
    alarms : bool array (n,)
    rate : float
    calibrated : bool
    threshold : float or None
        The alarm line; None where it is a share and no score.
    card : Card
        Of the method.
    detector : Detector
        The alarm, or the detector, that scored them; ``result.detector.save(path)`` keeps it.
    shapes : list of (int, int)
        Height and width of each image as stored.
    boxes : list of (int, int, int, int) or None
        Left, top, right and bottom of the hottest region of each image, in its pixels; None where there are no maps.
    seconds : float64 array (n,)
        Decoding and the model, shared evenly within a batch.
    kinds : list of str or None
        Of each image, where they are known; ``"good"`` is normal.
    quality : dict of str to float
        How well known defects are told apart, by image and, where there are masks, by pixel.
    kept : dict of int to float array (H, W)
        Maps of the images that a page shows.
    heat : (float, float)
        Values of a map at which colour begins, and is half strong.
    folder : Path or None
        Where heat maps were written.
    written : dict of int to str
        Their paths below it, by place of the image.
    notes : list of str
        What a user must know, in sentences.
    settings : dict
        What would repeat the run; and timings.
    """

    name: str
    images: ImageList
    scores: np.ndarray
    p_values: np.ndarray
    alarms: np.ndarray
    rate: float
    calibrated: bool
    threshold: float | None
    card: Card
    detector: Any
    shapes: list[tuple[int, int]]
    boxes: list[tuple[int, int, int, int]] | None
    seconds: np.ndarray
    kinds: list[str] | None
    quality: dict[str, float]
    kept: dict[int, np.ndarray]
    heat: Heat
    folder: Path | None = None
    written: dict[int, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    what: str = "images"

    @property
    def known(self) -> np.ndarray | None:
        """Which images are known to be defective (n,)."""
        return None if self.kinds is None else np.array([kind != "good" for kind in self.kinds])

    @property
    def held(self) -> np.ndarray | None:
        """Scores of the normal images that the line was set on."""
        return self.detector.calibration_scores_ if self.calibrated else None

    @property
    def order(self) -> np.ndarray:
        """The images, farthest out first."""
        return np.argsort(-self.scores, kind="stable")

    def frame(self) -> pl.DataFrame:
        """Return all that is known of each image, in the order given.

        Name, score, p-value, alarm, kind where it is known, height, width, the box of the hottest region in pixels
        where there are maps, and the seconds that it took.
        """
        columns: dict[str, Any] = {
            "row": np.arange(len(self.scores)),
            "name": self.images.names,
            "score": self.scores,
            "p_value": self.p_values,
            "alarm": self.alarms,
        }
        if self.kinds is not None:
            columns["kind"] = self.kinds
        columns |= {"height": [shape[0] for shape in self.shapes], "width": [shape[1] for shape in self.shapes]}
        if self.boxes is not None:
            columns |= {side: [box[at] for box in self.boxes] for at, side in enumerate(SIDES)}
        return pl.DataFrame(columns | {"seconds": self.seconds})

    def top(self, most: int = 20) -> pl.DataFrame:
        """Return the images that are farthest out."""
        return self.frame()[self.order[:most]]

    def lines(self, most: int = 20) -> list[tuple[int, float, float, bool, str]]:
        """Return row, score, p-value, alarm and words of the images that are farthest out."""
        return [
            (row, float(self.scores[row]), float(self.p_values[row]), bool(self.alarms[row]), self.words(row))
            for row in self.order[:most].tolist()
        ]

    def words(self, row: int) -> str:
        """Say which image it is, of which kind, and where it is hottest."""
        kind = "" if self.kinds is None or self.kinds[row] in self.images.names[row] else f" ({self.kinds[row]})"
        if self.boxes is None:
            return f"{self.images.names[row]}{kind}"
        left, top, right, bottom = self.boxes[row]
        height, width = self.shapes[row]
        where = f"x {left} to {right}, y {top} to {bottom} of {width} x {height}"
        return f"{self.images.names[row]}{kind}: hottest at {where}"

    def share(self, row: int) -> tuple[float, float, float, float]:
        """Return the box of an image's hottest region in shares of its width and height."""
        if self.boxes is None:
            return 0.0, 0.0, 1.0, 1.0
        (left, top, right, bottom), (height, width) = self.boxes[row], self.shapes[row]
        return left / width, top / height, right / width, bottom / height

    def save(self, path: str | Path) -> None:
        """Write a page (``.html``) or the table of scores (parquet, feather, csv, jsonl, json), whole or not at all.

        Beside a page stands a folder of heat maps as PNG files, ``NAME.maps``: of the images that the page shows,
        unless :func:`farout.scoring.images.score_images` has written maps already.
        """
        path = Path(path)
        ending = path.suffix.lower()
        if ending in (".html", ".htm"):
            from farout.report.images import write_page

            if self.folder is None and self.kept:
                with MapWriter(maps_beside(path), self.heat) as writer:
                    for row in sorted(self.kept):
                        writer.add(row, self.images.names[row], self.images.items[row], self.kept[row], self.share(row))
                self.folder, self.written = writer.folder, writer.written
            write_page(self, path)
        elif ending == ".json":
            with writing(path) as temporary:
                temporary.write_text(json.dumps(self.frame().to_dicts(), indent=1) + "\n", "utf-8")
        else:
            write_table(self.frame(), path)

    def link(self, row: int, page: str | os.PathLike[str]) -> str:
        """Return the address of an image's heat map as seen from a page; empty where there is none."""
        if self.folder is None or row not in self.written:
            return ""
        try:
            start = os.path.relpath(self.folder, Path(page).absolute().parent)
        except ValueError:  # on another drive
            start = str(self.folder)
        return quote(Path(start, self.written[row]).as_posix())


def maps_beside(page: str | Path) -> Path:
    """Return the folder of the heat maps of a page.

    Examples
    --------
    >>> maps_beside("out/tiles.farout.html").as_posix()
    'out/tiles.maps'
    """
    return Path(page).with_name(Path(page).name.split(".")[0] + ".maps")
