"""The page of scored images: how the scores lie, and each image with the heat of what is odd in it."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from farout.report._heat import heat_png, jpeg, picture
from farout.report._lanes import lanes
from farout.report._page import Section, page, render, table, write
from farout.report.inputs import _auroc, _percent, _settings

if TYPE_CHECKING:
    from markupsafe import Markup

ImageResult = Any  # farout.scoring.images.ImageResult, which stands above this room and so is not imported
LARGE, SIDES = 24, (400, 260)  # images that are shown larger, and pixels of both
HEAT_SIDE = 128  # pixels of a map; a browser smooths it
BYTES = 8_000_000  # of all pictures
MEANINGS = {
    "AUROC": "how often a defective image scores higher than a normal one; 0.5 is chance",
    "average precision": "of the images sorted by score, the defective ones to be found first",
    "outliers that ring": "defective images above the alarm line",
    "usual that ring": "normal images above the alarm line",
    "pixel AUROC": "how often a marked pixel is hotter than one that is not marked",
    "pixel average precision": "of all pixels sorted by heat, the marked ones to be found first",
    "hottest pixel is marked": "defective images whose hottest pixel lies within the marked defect",
}
CALLED = {"outliers that ring": "Defects found", "usual that ring": "False alarms"}
SPENT = {
    "fit": "learning from normal images and setting the line",
    "decode": "waiting for images to be read and scaled",
    "model": "the model",
    "maps": "hottest regions, and writing heat maps",
}


def write_page(result: ImageResult, path: str | PathLike[str]) -> None:
    """Write the page of scored images: one HTML file, whole or not at all.

    Parameters
    ----------
    result : ImageResult
        From :func:`farout.scoring.images.score_images`.
    path : str or path
    """
    pictures, left_out = _pictures(result, path)
    shown = {one["row"]: one for one in pictures}
    sections = [_scores(result, set(shown)), _gallery(result, pictures, left_out)]
    if result.kinds is not None:
        sections.append(_by_kind(result))
    if result.quality:
        sections.append(_measured(result))
    sections += [_time(result), _settings(result)]
    lead = render("images_lead.html", **_headline(result))
    kind = f"{result.card.name} of images"
    write(path, page(result.name, sections, kind=kind, lead=lead, facts=_facts(result), script="images.js"))


def _headline(result: ImageResult) -> dict[str, Any]:
    """Collect what the first sentences say."""
    known, quality = result.known, result.quality
    defects = 0 if known is None else int(known.sum())
    normal = 0 if known is None else len(known) - defects
    counts = [0, 0] if known is None else [int(result.alarms[known].sum()), int(result.alarms[~known].sum())]
    expected = result.rate * len(result.scores)
    return {
        "rang": int(result.alarms.sum()),
        "n": len(result.scores),
        "defects": defects,
        "normal": normal,
        "caught": counts[0],
        "wrong": counts[1],
        "expected": f"{expected:.2g}" if expected < 10 else f"{expected:,.0f}",
        "auroc": f"{quality['AUROC']:.3f}" if quality else "",
        "pointed": _percent(quality["hottest pixel is marked"]) if "hottest pixel is marked" in quality else "",
        "held": 0 if result.held is None else len(result.held),
        "learned": result.settings["learned from"] or 0,
        "method": result.card.name,
        "rate": _percent(result.rate),
        "smallest": "" if result.held is None else f"{1 / (len(result.held) + 1):.2g}",
        "notes": [note.rstrip(".") for note in result.notes],
    }


def _facts(result: ImageResult) -> list[tuple[str, str]]:
    n, rang = len(result.scores), int(result.alarms.sum())
    facts = [("Images", f"{n:,}"), ("Above the line", f"{rang:,} ({100 * rang / n:.2g} %)")]
    if result.quality:
        facts.append(("AUROC", f"{result.quality['AUROC']:.3f}"))
    if result.settings["learned from"]:
        facts.append(("Learned from", f"{result.settings['learned from']:,} normal"))
    if result.held is not None:
        facts.append(("Line set on", f"{len(result.held):,} normal"))
    return [*facts, ("Images a second", f"{_speed(result):.3g}")]


def _speed(result: ImageResult) -> float:
    spent = result.settings["seconds"]
    return len(result.scores) / max(spent["decode"] + spent["model"] + spent["maps"], 1e-3)


def _scores(result: ImageResult, shown: set[int]) -> Section:
    """Lay out the scores of all images, a lane for each kind, with the normal ones that set the line."""
    groups: list[tuple[str, np.ndarray]] = []
    if result.kinds is None:
        groups.append(("scored", np.arange(len(result.scores))))
    else:
        kinds = np.array(result.kinds)
        names = sorted(set(result.kinds) - {"good"}, key=lambda kind: -float(np.median(result.scores[kinds == kind])))
        groups += [(kind, np.flatnonzero(kinds == kind)) for kind in [*(["good"] if "good" in kinds else []), *names]]
    body = lanes(groups, result.scores, result.alarms, result.images.names, result.threshold, result.held, shown)
    intro = "Each dot is an image; farther right is farther out. Orange ones lie above the alarm line; click one."
    return Section("Scores", body, intro)


def _gallery(result: ImageResult, pictures: Sequence[dict[str, Any]], left_out: int) -> Section:
    kinds = sorted(set(result.kinds or []), key=lambda kind: (kind != "good", kind))
    glow = (
        "Colour begins at what is the hottest spot of a middling normal image, and is half strong at what few normal "
        "images reach; the box is around the hottest region, whether or not it means anything. Point at an image, or "
        "move its slider, to see it bare; its name leads to its heat map in full size."
        if result.boxes is not None
        else f"{result.card.name} scores whole images and does not say where in them."
    )
    first = result.order[: len(pictures)].tolist()
    last = sum(one["row"] not in first for one in pictures)
    intro = "Farthest out first."
    if last:
        intro += f" The last {last:,} are the defects with the lowest scores."
    if left_out:
        intro += f" {left_out:,} {'in between' if last else 'that score lower'} are left out; the table has them."
    intro += f" {glow}"
    body = render(
        "images_gallery.html",
        pictures=pictures,
        large=LARGE,
        kinds=kinds,
        known=result.known is not None and bool(result.known.any()),
        maps=result.boxes is not None,
        rang=int(result.alarms.sum()),
    )
    return Section("Images", body, intro)


def _pictures(result: ImageResult, path: str | PathLike[str]) -> tuple[list[dict[str, Any]], int]:
    """Draw the images that the page shows, and count the others."""
    rows = [row for row in result.order.tolist() if row in result.kept]
    if result.boxes is None:
        rows = result.order.tolist()[:180]
    pictures: list[dict[str, Any]] = []
    spent = 0
    for place, row in enumerate(rows):
        side = SIDES[place >= LARGE]
        image = jpeg(picture(result.images.items[row], side))
        height, width = result.shapes[row]
        heat = heat_png(result.kept[row], result.heat, HEAT_SIDE) if row in result.kept else ""
        spent += len(image) + len(heat)
        if spent > BYTES:
            break
        left, top, right, bottom = result.share(row)
        known = "" if result.kinds is None else result.kinds[row]
        pictures.append(
            {
                "row": row,
                "name": result.images.names[row],
                "image": image,
                "heat": heat,
                "ratio": f"{width} / {height}",
                "tall": height > width,
                "box": f"left:{100 * left:.2f}%;top:{100 * top:.2f}%;"
                f"width:{100 * (right - left):.2f}%;height:{100 * (bottom - top):.2f}%",
                "where": result.words(row).rpartition("hottest at ")[2] if result.boxes else "",
                "score": f"{result.scores[row]:.4g}",
                "p": f"{result.p_values[row]:.2g}",
                "alarm": bool(result.alarms[row]),
                "kind": known,
                "wrong": _wrong(result, row),
                "link": result.link(row, path),
            }
        )
    return pictures, len(result.scores) - len(pictures)


def _wrong(result: ImageResult, row: int) -> str:
    if result.known is None or result.known[row] == result.alarms[row]:
        return ""
    return "missed" if result.known[row] else "false alarm"


def _by_kind(result: ImageResult) -> Section:
    """Count the alarms of each kind."""
    kinds, usual = np.array(result.kinds), result.scores[~result.known]
    rows = []
    for kind in sorted(set(result.kinds), key=lambda kind: (kind != "good", kind)):
        mine = kinds == kind
        rang, scores = int(result.alarms[mine].sum()), result.scores[mine]
        apart = "" if kind == "good" or not len(usual) else _auroc(scores, usual)
        rows.append(
            (kind, f"{len(scores):,}", f"{rang:,}", _percent(rang / len(scores)), f"{np.median(scores):.4g}", apart)
        )
    head = ["Kind", "Images", "Ring", "Share", "Median score", "AUROC"]
    body = table(head, rows, label="Alarms by kind", numbers=head[1:])
    return Section("By kind", body, "Of 'good' images none should ring, of the others all. AUROC: against 'good' ones.")


def _measured(result: ImageResult) -> Section:
    """List how well defects are told apart."""
    rows = [
        (CALLED.get(name, name[0].upper() + name[1:]), f"{result.quality[name]:.3f}", meaning)
        for name, meaning in MEANINGS.items()
        if name in result.quality
    ]
    body = table(["Measure", "Value", "Is"], rows, label="How well defects are told apart", numbers=["Value"])
    return Section("Defects told apart", body, "By the kinds of the folders; by pixel where masks mark the defects.")


def _time(result: ImageResult) -> Section:
    """List where the time went."""
    spent, n = result.settings["seconds"], len(result.scores)
    rows = [
        (
            meaning[0].upper() + meaning[1:],
            f"{spent[name]:.3g}",
            "" if name == "fit" else f"{1000 * spent[name] / n:.3g}",
        )
        for name, meaning in SPENT.items()
        if name in spent
    ]
    body: Markup = table(["Step", "Seconds", "ms an image"], rows, label="Time", numbers=["Seconds", "ms an image"])
    intro = f"{_speed(result):.3g} images a second. Images are read while the model works on others."
    return Section("Time", body, intro)
