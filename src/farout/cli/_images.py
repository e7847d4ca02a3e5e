"""``farout fit`` and ``farout score`` where the data are images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from farout.cli._common import beside, check_outputs, parameters, progress, talk, write_json
from farout.errors import BadInput

if TYPE_CHECKING:
    from farout.scoring.images import ImageResult

BROWSED = (".html", ".htm")


def about_images(data: str, method: str | None, saved: Any = None) -> bool:
    """Whether data, a method or a saved detector are of images."""
    from farout.cards import find
    from farout.scoring._image_source import holds_images

    fitted = getattr(saved, "detector_", saved)
    word = method if saved is None else getattr(fitted, "__paper__", None)
    return (word is not None and find(word).room == "image") or holds_images(data)


def none_of(tables: dict[str, Any]) -> None:
    """Refuse options that mean nothing to images."""
    given = [option for option, value in tables.items() if value]
    if given:
        raise BadInput(
            f"{', '.join(given)} {'belong' if len(given) > 1 else 'belongs'} to tables, and these are images"
        )


def fit(
    data: str,
    output: Path | None,
    export: Path | None,
    method: str | None,
    quiet: bool,
    *,
    size: int | None,
    set_: list[str],
    **options: Any,
) -> None:
    """Learn from normal images; save the alarm, and the detector as an ONNX graph."""
    from farout.scoring import versions
    from farout.scoring.images import fit_images, parts_of

    for path in (output, export):
        if path is not None and not path.parent.is_dir():
            raise BadInput(f"cannot write '{path}': there is no folder '{path.parent}'; make it first")
    with progress(quiet) as report:
        alarm = fit_images(data, method, parameters=_parameters(set_, size), progress=report, **options)
    _, detector = parts_of(alarm)
    if output is not None:
        alarm.save(output)
    if export is not None:
        detector.export(export)
    first = output if output is not None else export
    assert first is not None
    settings = beside(first, ".farout.json")
    about = {name: value for name, value in alarm.images_.items() if name != "few"}
    chosen = {"data": data, "method": _slug(detector), "parameters": detector.get_params(deep=False)}
    chosen |= {"rate": alarm.rate, "threshold": -alarm.offset_, "seed": options["seed"]}
    write_json(settings, chosen | about | {"versions": versions()})
    for note in alarm.images_["notes"]:
        talk(f"note: {note}", quiet)
    held = len(alarm.calibration_scores_)
    wrote = ", ".join(str(path) for path in (output, export, settings) if path is not None)
    talk(
        f"fitted {detector!r} to {alarm.images_['learned']:,} images; {held:,} others set the line, "
        f"{-alarm.offset_:.4g} at a rate of {alarm.rate:.2g}; wrote {wrote}",
        quiet,
    )


def score(
    data: str,
    method: str | None,
    output: list[Path],
    maps: str | None,
    quiet: bool,
    *,
    size: int | None,
    set_: list[str],
    saved: Any,
    **options: Any,
) -> ImageResult:
    """Score images, with heat maps beside the first page."""
    from farout.scoring.images import maps_beside, score_images

    if saved is not None and (method or options["fit_on"] or set_ or size):
        raise BadInput(
            "--with scores by a saved detector, so --method, --fit-on, --set and --size have no place beside it"
        )
    check_outputs([path.with_suffix(".jsonl") if path.suffix == ".json" else path for path in output])
    page = next((path for path in output if path.suffix.lower() in BROWSED), None)
    if page is None and not output:
        page = Path(f"{options['name']}.farout.html")
    if page is None and maps not in (None, "none"):
        raise BadInput("--maps are written beside a page: name one (-o PAGE.html)")
    with progress(quiet) as report:
        found = score_images(
            data,
            method,
            saved=saved,
            parameters=_parameters(set_, size),
            maps=None if page is None or maps == "none" else maps_beside(page),
            which=maps,
            progress=report,
            **options,
        )
    for note in found.notes:
        talk(f"note: {note}", quiet)
    if found.written:
        talk(f"wrote {len(found.written):,} heat maps to {found.folder}", quiet)
    return found


def _parameters(set_: list[str], size: int | None) -> dict[str, Any]:
    return parameters(set_) | ({"size": size} if size is not None else {})


def _slug(detector: Any) -> str:
    from farout.cards import find

    return find(detector.__paper__).slug
