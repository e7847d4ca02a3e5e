"""NOVA: boxes against COCO's rule in a loop, texts against torchmetrics, answers as models write them, and files."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from farout.bench import nova
from farout.bench._nova_answers import Frame, boxes_in, diagnoses_in
from farout.bench._nova_files import Answer, Slice, read_answers, read_cases, read_synonyms
from farout.bench._nova_judges import Boxed, Captioned, Diagnosed, intervals, normalised
from farout.bench._nova_texts import (
    FINDINGS,
    MODALITY,
    bleu,
    bleu_counts,
    says_normal,
    set_f1,
    terms_in,
    tokens,
    unigram_f,
)
from farout.bench.boxes import LIMITS, Found, Localisation, iou, map_boxes, matched
from farout.cards import find
from farout.data.phantoms import PROTOCOLS, phantoms, write_cases
from farout.errors import BadInput, UnknownName

SIZE = (64, 64)


def drawn_boxes(rng, n):
    corner = rng.integers(0, 40, (n, 2))
    return np.concatenate([corner, corner + rng.integers(3, 24, (n, 2))], 1).astype(float)


def drawn(seed, n=12, ties=False):
    """Images with true boxes, and found ones of which some are true ones moved a little."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(n):
        truth = drawn_boxes(rng, int(rng.integers(0, 4)))
        near = truth + rng.integers(-3, 4, truth.shape)
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        boxes = np.concatenate([near, near[:1], drawn_boxes(rng, int(rng.integers(0, 3)))])
        scores = rng.random(len(boxes))
        images.append(Found(boxes, np.round(scores, 1) if ties else scores, truth))
    return images


def slow_ap(images, limit):
    """COCO's rule in loops, where no two scores are equal."""
    total = sum(len(found.truth) for found in images)
    listed = []
    for found in images:
        left = list(range(len(found.truth)))
        for i in sorted(range(len(found.boxes)), key=lambda i: -found.scores[i]):
            overlaps = {j: iou([found.boxes[i]], [found.truth[j]])[0, 0] for j in left}
            best = max(overlaps, key=overlaps.get, default=None)
            hit = best is not None and overlaps[best] >= limit
            if hit:
                left.remove(best)
            listed.append((found.scores[i], hit))
    listed.sort(key=lambda one: -one[0])
    right, points = 0, []
    for k, (_, hit) in enumerate(listed, 1):
        right += hit
        points.append((right / total, right / k))
    return float(np.mean([max([p for r, p in points if r >= x - 1e-9], default=0.0) for x in np.linspace(0, 1, 101)]))


def test_overlap_is_symmetric_scale_free_and_between_nothing_and_all():
    rng = np.random.default_rng(0)
    a, b = drawn_boxes(rng, 20), drawn_boxes(rng, 15)
    found = iou(a, b)
    np.testing.assert_array_equal(found, iou(b, a).T)
    np.testing.assert_allclose(found, iou(a * 3.7, b * 3.7))
    assert np.diag(iou(a, a)).tolist() == [1.0] * 20 and ((found >= 0) & (found <= 1)).all()
    assert iou([[0, 0, 1, 1]], [[1, 0, 2, 1]])[0, 0] == 0 and iou([[3, 3, 3, 3]], [[3, 3, 3, 3]])[0, 0] == 0
    for i in range(5):  # by pixels
        one, two = np.zeros(SIZE, bool), np.zeros(SIZE, bool)
        for grid, box in ((one, a[i]), (two, b[i])):
            left, top, right, bottom = box.astype(int)
            grid[top:bottom, left:right] = True
        assert found[i, i] == pytest.approx((one & two).sum() / (one | two).sum())


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_equals_a_loop(seed):
    images = drawn(seed)
    local = Localisation(images)
    for limit in (0.3, 0.5, 0.75):
        assert local.ap(limit) == pytest.approx(slow_ap(images, limit), abs=1e-12)
    assert local.mean_ap() == pytest.approx(np.mean([slow_ap(images, limit) for limit in LIMITS[1:]]), abs=1e-12)
    met = sum(matched(found, 0.5).sum() for found in images)
    boxes, truth = sum(len(found.boxes) for found in images), sum(len(found.truth) for found in images)
    assert local.f1(0.5) == pytest.approx(2 * met / (boxes + truth))


def test_known_values_of_average_precision():
    images = drawn(0)
    perfect = Localisation([Found(found.truth, np.ones(len(found.truth)), found.truth) for found in images])
    assert perfect.ap(0.5) == perfect.mean_ap() == perfect.f1(0.5) == 1 and perfect.false.sum() == 0
    assert np.nanmin(perfect.hit) == 1
    # two objects, one found at an overlap of 0.62: three of ten limits, 51 of 101 recalls
    truth = np.array([[0.0, 0, 100, 1], [0, 10, 100, 11]])
    one = Localisation([Found(np.array([[0.0, 0, 62, 1]]), np.ones(1), truth)])
    assert one.mean_ap() == pytest.approx(0.3 * 51 / 101)
    assert np.isnan(Localisation([Found(truth, np.ones(2), truth[:0])]).ap(0.5))


def test_duplicates_and_false_boxes_cost():
    truth = np.array([[0.0, 0, 10, 10]])
    twice = Localisation([Found(np.concatenate([truth, truth]), np.array([0.9, 0.8]), truth)])
    assert twice.false.tolist() == [1] and twice.f1(0.5) == pytest.approx(2 / 3) and twice.ap(0.5) == 1
    far = np.array([[40.0, 40, 50, 50]])
    above = Localisation([Found(np.concatenate([truth, far]), np.array([0.5, 0.9]), truth)])
    assert above.ap(0.5) == 0.5
    for seed in range(3):
        images = drawn(seed)
        before = Localisation(images).mean_ap()
        worse = [Found(np.r_[f.boxes, far], np.r_[f.scores, -1.0], f.truth) for f in images]
        assert Localisation(worse).mean_ap() <= before + 1e-12


def test_equal_scores_are_one_threshold_whatever_the_order_of_images():
    images = drawn(5, 20, ties=True)
    forth, back = Localisation(images), Localisation(images[::-1])
    assert forth.ap(0.5) == pytest.approx(back.ap(0.5), abs=1e-12)


def test_a_weight_of_two_is_the_image_twice():
    images = drawn(6, 10)
    weights = np.array([0, 1, 2, 1, 0, 3, 1, 1, 2, 0])
    repeated = [found for found, times in zip(images, weights) for _ in range(times)]
    weighted, plain = Localisation(images), Localisation(repeated)
    np.testing.assert_allclose(weighted.aps(weights), plain.aps(), atol=1e-9)
    np.testing.assert_allclose(weighted.f1s(weights), plain.f1s())
    both = np.stack([np.ones(10), weights])
    np.testing.assert_allclose(weighted.aps(both), [weighted.aps(), weighted.aps(weights)], atol=1e-12)
    np.testing.assert_allclose(weighted.f1s(both), [weighted.f1s(), weighted.f1s(weights)])
    assert np.isnan(weighted.aps(np.zeros(10))).all() and np.isnan(weighted.f1s(np.zeros(10))).all()


def test_a_hit_is_an_overlap_or_a_centre_inside():
    truth = np.array([[10.0, 10, 30, 30]])
    small, edge, off = [[18.0, 18, 20, 20]], [[10.0, 10, 30, 50]], [[0.0, 0, 12, 12]]
    assert [Localisation([Found(np.array(b), np.ones(1), truth)]).hit[0] for b in (small, edge, off)] == [1, 1, 0]


def test_maps_become_boxes_around_connected_parts():
    x = np.zeros((20, 30))
    x[2:5, 3:9], x[5, 9], x[15, 20] = 2, 5, 9
    boxes, scores = map_boxes(x, 1)
    assert boxes.tolist() == [[3, 2, 10, 6], [20, 15, 21, 16]]
    np.testing.assert_allclose(scores, [(18 * 2 + 5) / 19, 9])
    assert map_boxes(x, 1, least=2)[0].tolist() == [[3, 2, 10, 6]] and map_boxes(x, 9)[0].shape == (0, 4)


def test_broken_boxes_are_refused():
    truth = np.zeros((0, 4))
    with pytest.raises(BadInput, match="shape"):
        Localisation([Found(np.zeros((2, 4)), np.zeros(1), truth)])
    with pytest.raises(BadInput, match="finite"):
        Localisation([Found(np.full((1, 4), np.nan), np.zeros(1), truth)])
    with pytest.raises(BadInput, match="an overlap is one of"):
        Localisation([]).ap(0.42)


@pytest.mark.parametrize("letterbox", [False, True])
@pytest.mark.parametrize("order", ["xyxy", "yxyx", "xywh"])
@pytest.mark.parametrize("coordinates", ["pixels", "0-1000", "0-1"])
def test_numbers_of_an_answer_come_back_to_the_same_box(coordinates, order, letterbox):
    boxes = drawn_boxes(np.random.default_rng(0), 30)
    frame = Frame((90, 70), coordinates, order, seen=(448, 448), letterbox=letterbox)
    np.testing.assert_allclose(frame.to_pixels(frame.from_pixels(boxes)), boxes, atol=1e-9)
    if coordinates != "0-1":  # models say whole numbers
        said = np.round(frame.from_pixels(boxes))
        np.testing.assert_allclose(frame.to_pixels(said), boxes, atol=1)


def test_boxes_are_turned_and_cut_off_at_the_edges():
    assert Frame((50, 40)).to_pixels([[30, 20, 10, 90]]).tolist() == [[10, 20, 30, 40]]
    with pytest.raises(UnknownName, match="coordinates"):
        Frame((50, 40), "percent")
    with pytest.raises(UnknownName, match="order"):
        Frame((50, 40), order="yx")


# Answers as chat models write them.
ANSWERS = {
    "bare": ("[[10, 20, 30, 40]]", [[10, 20, 30, 40]]),
    "one": ("[10, 20, 30, 40]", [[10, 20, 30, 40]]),
    "fenced": (
        'Here is what I see:\n```json\n[{"bbox_2d": [1, 2, 3, 4], "label": "lesion"}]\n```\nTake care [1].',
        [[1, 2, 3, 4]],
    ),
    "named": ('{"abnormalities": [{"box": [5, 6, 7, 8], "confidence": 0.4}], "comment": "none"}', [[5, 6, 7, 8]]),
    "corners": ('[{"x1": 1, "y1": 2, "x2": 3.5, "y2": 4}]', [[1, 2, 3.5, 4]]),
    "thinking": ("I saw [9, 9, 9, 9] first. Final: [[1, 2, 3, 4], [5, 6, 7, 8]]", [[1, 2, 3, 4], [5, 6, 7, 8]]),
    "nothing": ('{"boxes": []}', []),
    "empty": ("[]", []),
    "prose": ("There is a mass in the left frontal lobe.", None),
    "refusal": ("I'm sorry, I can't help with that.", None),
    "silence": ("", None),
    "cut off": ('[{"bbox_2d": [1, 2, 3', None),
    "words": ('[{"bbox": ["left", "top", 3, 4]}]', None),
    "three": ("[[1, 2, 3]]", None),
    "true": ("[[true, 2, 3, 4]]", None),
    "infinite": ("[[1e999, 2, 3, 4]]", None),
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_boxes_are_read_from_answers(kind):
    text, expected = ANSWERS[kind]
    found = boxes_in(text)
    assert (None if found is None else found.numbers.tolist()) == expected


def test_scores_and_labels_of_boxes_are_read():
    found = boxes_in('[{"bbox": [1, 2, 3, 4], "confidence": 0.25, "label": "mass"}, {"bbox": [1, 2, 3, 4]}]')
    assert found.scores.tolist() == [0.25, 1.0] and found.labels == ["mass", ""]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('["Glioma", "Abscess"]', ["Glioma", "Abscess"]),
        ('```json\n{"differential": [{"name": "Glioma", "p": 0.5}]}\n```', ["Glioma"]),
        ("1. **Glioma** - because it enhances\n2. Abscess: less likely\n", ["Glioma", "Abscess"]),
        ("- Glioma\n- Abscess.", ["Glioma", "Abscess"]),
        ("Glioblastoma", ["Glioblastoma"]),
        ("1. a\n2. b\n3. c\n4. d\n5. e\n6. f", ["a", "b", "c", "d", "e"]),
        ("", []),
        ("It could be many things.\nAsk a doctor.", []),
    ],
)
def test_diagnoses_are_read_from_answers(text, expected):
    assert diagnoses_in(text) == expected


def test_bleu_equals_torchmetrics():
    score = pytest.importorskip("torchmetrics.functional.text").bleu_score
    rng = np.random.default_rng(0)
    words = ["a", "the", "mass", "lesion", "left", "right", "lobe", "with", "edema", "bright", "dark"]
    pairs = [(" ".join(rng.choice(words, rng.integers(5, 14))), " ".join(rng.choice(words, 12))) for _ in range(30)]
    pairs += [(b + " indeed", b) for _, b in pairs[:5]]
    counts = np.sum([bleu_counts(*pair) for pair in pairs], axis=0)
    assert bleu(counts) == pytest.approx(float(score([a for a, _ in pairs], [[b] for _, b in pairs])), abs=1e-6)
    assert bleu(bleu_counts("a mass in the left lobe", "a mass in the left lobe")) == 1
    assert bleu(bleu_counts("", "a mass")) == bleu(bleu_counts("a mass", "a mass")) == 0


def test_words_are_compared_without_case_accents_and_marks():
    assert tokens("T2*-weighted Œdème (2.5 cm).")[:2] == ["t2*", "weighted"]
    assert unigram_f("A MASS.", "a mass") == 1 and unigram_f("", "a mass") == 0
    assert unigram_f("a a a", "a mass") == pytest.approx(10 / 3 * 0.5 / (0.5 + 9 / 3))


def test_terms_are_sets_and_what_is_denied_is_none():
    text = "A ring-enhancing mass, T1 hypointense. No midline shift or hydrocephalus. Oedema, but no haemorrhage."
    assert terms_in(text, FINDINGS) == {"mass", "enhancement", "ring enhancement", "hypointense", "edema"}
    assert terms_in("T2-weighted FLAIR, post-contrast", MODALITY) == {"t2", "flair", "contrast"}
    assert terms_in("massive t12 flairs", FINDINGS | MODALITY) == set()
    a, b = ["mass", "edema", "cyst"], ["cyst", "mass", "edema"]
    assert set_f1(set(a), set(b)) == 1 and set_f1({"mass"}, {"cyst"}) == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Normal brain MRI.", True),
        ("Unremarkable study without mass or infarct.", True),
        ("No significant abnormality is seen.", True),
        ("Abnormal signal in the thalami.", False),
        ("Normal ventricles. Large mass.", False),
        ("A lesion, otherwise normal.", False),
        ("This is not normal.", False),
        ("", False),
    ],
)
def test_texts_say_normal_or_not(text, expected):
    assert says_normal(text) == expected


def one(image="a", case=None, boxes=((10, 10, 30, 30),), **more):
    return Slice(case or image, image, SIZE, np.array(boxes, float).reshape(-1, 4), **more)


def test_unreadable_and_missing_answers_are_wrong_and_counted():
    slices = [one("a"), one("b"), one("c", boxes=()), one("d", boxes=())]
    good = Answer("[[10, 10, 30, 30]]")
    said = {"a": good, "b": Answer("sorry"), "c": Answer("sorry"), "d": Answer("[]")}
    numbers = Boxed(slices, said).numbers(np.ones(4))
    assert numbers["unread"] == 0.5 and numbers["any hit"] == 0.5 and numbers["false boxes"] == 0.25
    assert numbers["F1@0.5"] == pytest.approx(2 * 1 / (2 + 2))
    assert Boxed(slices, {"a": good}).numbers(np.ones(4))["unread"] == 0.75


def test_images_of_a_case_share_its_weight():
    slices = [one("a", "1"), one("b", "2"), one("c", "2"), one("d", "2")]
    said = {"a": Answer("[]")} | {name: Answer("[[10, 10, 30, 30]]") for name in "bcd"}
    numbers = Boxed(slices, said).numbers(np.ones(2))
    assert numbers["any hit"] == pytest.approx(0.5)
    assert numbers["F1@0.3"] == pytest.approx(2 * 1 / (1 + 2))


def test_answers_in_other_coordinates_are_brought_back():
    frame = {"coordinates": "0-1000", "order": "yxyx", "seen": (448, 448), "letterbox": True}
    slices = [Slice("a", "a", (100, 50), np.array([[20.0, 10, 60, 40]]))]
    said = np.round(Frame((100, 50), **frame).from_pixels(slices[0].boxes)).tolist()
    assert Boxed(slices, {"a": Answer(json.dumps(said), frame)}).numbers(np.ones(1))["AP@0.5"] == 1
    assert Boxed(slices, {"a": Answer(json.dumps(said))}).numbers(np.ones(1))["AP@0.5"] == 0


def test_captions_are_judged():
    slices = [
        one("a", caption="T2 hyperintense mass."),
        one("b", caption="Normal FLAIR.", boxes=(), diagnosis="normal"),
    ]
    same = Captioned(slices, {"a": Answer("T2 hyperintense mass."), "b": Answer("Normal FLAIR.")}).numbers(np.ones(2))
    assert same == {"BLEU-4": 0, "unigram F": 1, "term F1": 1, "modality F1": 1, "normal right": 1, "unread": 0}
    turned = Captioned(slices, {"a": Answer("Normal FLAIR."), "b": Answer("T2 mass.")}).numbers(np.ones(2))
    assert turned["normal right"] == turned["term F1"] == turned["modality F1"] == 0
    silent = Captioned(slices, {}).numbers(np.ones(2))
    assert silent["unread"] == 1 and silent["normal right"] == 0


def test_diagnoses_are_judged_by_rules_and_synonyms():
    truth = {"1": "Glioblastoma", "2": "Subdural haematoma", "3": "Abscess", "4": "Stroke"}
    said = {
        "1": Answer('["GBM", "Abscess"]'),
        "2": Answer('["Glioblastoma", "subdural hematoma (left)"]'),
        "3": Answer('["abscess "]'),
        "4": Answer("sorry, I cannot\nhelp"),
    }
    judge = Diagnosed(truth, said, {"gbm": "glioblastoma", "Stroke": "infarct"})
    numbers = judge.numbers(np.ones(4))
    assert numbers["top-1"] == 0.5 and numbers["top-5"] == 0.75 and numbers["top-1 exact"] == 0.25
    assert numbers["unread"] == 0.25 and numbers["coverage"] == 2 / 4
    assert numbers["entropy"] == pytest.approx(-(2 / 3 * np.log2(2 / 3) + 1 / 3 * np.log2(1 / 3)))
    assert numbers["true entropy"] == pytest.approx(2)
    assert ("1", "GBM", "glioblastoma") in judge.table
    weighted = judge.numbers(np.array([3.0, 0, 1, 0]))
    assert weighted["top-1"] == 1 and weighted["true entropy"] == pytest.approx(-(0.75 * np.log2(0.75) + 0.25 * -2))
    assert normalised("Tumours of the œsophagus")[:9] == "tumors of"


def test_intervals_hold_the_number_and_shrink_with_more_cases():
    widths = []
    for n in (20, 180):
        slices = [one(str(i)) for i in range(n)]
        said = {str(i): Answer("[[10, 10, 30, 30]]" if i % 3 else "[]") for i in range(n)}
        found = intervals(Boxed(slices, said), 200, 0)
        for value, low, high in found.values():
            assert low <= value <= high
        widths.append(found["any hit"][2] - found["any hit"][1])
        sd = np.sqrt(2 / 9 / n)
        assert widths[-1] == pytest.approx(2 * 1.96 * sd, rel=0.25)
    assert widths[1] < widths[0] / 2
    assert found == intervals(Boxed(slices, said), 200, 0) != intervals(Boxed(slices, said), 200, 1)


def test_strata_readers_and_top_five(tmp_path):
    heads = phantoms(12, 1)
    slices = read_cases(write_cases(tmp_path, heads, shift=1))
    table, compared = nova.judge(
        slices, {"m": {"diagnosis": {s.case: Answer("single lesion") for s in slices}}}, draws=5
    )
    assert set(table["model"]) == {"m", "reader a", "reader b"} and len(compared) == 12
    wide = table.filter(pl.col("stratum") == "all").pivot("measure", index="model", values="value")
    assert (wide["top-5"].drop_nulls() >= wide["top-1"].drop_nulls()).all()
    assert 0.5 < wide["AP@0.5"].drop_nulls().min() <= 1
    ((first, second, value),) = nova.agreement(slices)
    assert (first, second) == ("a", "b") and 0.5 < value < 1
    exact = [Slice(s.case, s.image, s.size, s.boxes, {"a": s.boxes, "b": s.boxes[::-1]}) for s in slices]
    assert nova.agreement(exact) == [("a", "b", 1.0)]
    half = [
        Slice(
            "1",
            "1",
            SIZE,
            slices[0].boxes,
            {"a": np.array([[0.0, 0, 4, 4], [20, 20, 24, 24]]), "b": np.array([[0.0, 0, 4, 4]])},
        )
    ]
    assert nova.agreement(half) == [("a", "b", 0.5)]
    sizes = {name for name in table["stratum"] if name.startswith("lesion: ")}
    assert sizes and sizes <= {"lesion: small", "lesion: medium", "lesion: large"}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_phantoms_are_scenes_with_known_boxes(protocol):
    heads = phantoms(6, 3, protocol=protocol)
    again, normal = phantoms(6, 3, protocol=protocol), phantoms(6, 3, lesions=(0, 0), protocol=protocol)
    assert (heads.images == again.images).all() and (heads.masks == phantoms(6, 3).masks).all()
    assert not normal.masks.any() and all(len(boxes) == 0 for boxes in normal.boxes)
    for mask, boxes in zip(heads.masks, heads.boxes):
        found = map_boxes(mask.astype(float), 0.5)[0]
        assert sorted(map(tuple, found)) == sorted(map(tuple, boxes)) and 1 <= len(boxes) <= 3
    assert heads.images.std() > 20 and phantoms(0).images.shape == (0, 64, 64)


def test_a_detector_takes_part_through_its_maps(tmp_path):
    heads = phantoms(10, 4)
    slices = read_cases(write_cases(tmp_path, heads))
    rng = np.random.default_rng(0)
    usual = [rng.random((64, 64)) for _ in range(20)]
    maps = [rng.random((64, 64)) + 2 * mask for mask in heads.masks]
    lines = nova.detector_answers([s.image for s in slices], maps, usual, model="oracle")
    said = {line["image"]: Answer(line["answer"]) for line in lines}
    numbers = Boxed(slices, said).numbers(np.ones(10))
    assert numbers["AP@0.5"] > 0.99 and numbers["unread"] == 0 and numbers["false boxes"] == 0
    with pytest.raises(BadInput, match="quantile"):
        nova.detector_answers([], [], usual, quantile=1.0)


def lines(slices):
    for s in slices:
        yield {"model": "good", "task": "localisation", "image": s.image, "answer": json.dumps(s.boxes.tolist())}
        yield {"model": "bad", "task": "localisation", "image": s.image, "answer": "I cannot say."}
        yield {"model": "good", "task": "captioning", "image": s.image, "answer": s.caption}
        yield {"model": "good", "task": "diagnosis", "case": s.case, "answer": ["one lesion", s.diagnosis]}


def test_the_command_judges_a_folder(tmp_path):
    from farout.cli import app

    slices = read_cases(write_cases(tmp_path / "in", phantoms(6, 2)))
    (tmp_path / "in/answers.jsonl").write_text("\n".join(json.dumps(line) for line in lines(slices)))
    (tmp_path / "in/synonyms.csv").write_text("diagnosis,synonym\nsingle lesion,one lesion\n")
    result = CliRunner().invoke(app, ["bench", "nova", str(tmp_path / "in"), "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "AP@0.3" in result.output and "readers a and b" in result.output
    table = pl.read_parquet(tmp_path / "out/nova.parquet")
    values = {(r["model"], r["measure"]): r["value"] for r in table.filter(pl.col("stratum") == "all").to_dicts()}
    assert values["good", "mAP"] == values["good", "BLEU-4"] == values["good", "top-5"] == 1
    singles = np.mean([s.diagnosis == "single lesion" for s in slices])
    assert values["good", "top-1"] == pytest.approx(singles) and values["good", "top-1 exact"] == 0
    assert values["bad", "mAP"] == 0 and values["bad", "unread"] == 1
    assert "single lesion" in pl.read_csv(tmp_path / "out/normalised.csv")["compared as"].to_list()
    page = Path(tmp_path / "out/nova.html").read_text(encoding="utf-8")
    assert "Diagnosis" in page and "mean overlap" in page
    assert CliRunner().invoke(app, ["bench", "nova"]).exit_code == 1
    assert find("nova").kind == "benchmark" and find("nova").load() is nova.main


def test_files_that_cannot_be_read_are_named(tmp_path):
    def cases(text):
        (tmp_path / "cases.csv").write_text(text)
        return tmp_path / "cases.csv"

    head = "case,image,width,height,boxes,boxes_a,sequence\n"
    (found,) = read_cases(cases(head + '1,a.png,64,48,"[[1,2,3,4]]",,T1\n'))
    assert found.size == (64, 48) and found.readers == {} and found.facts == {"sequence": "T1"}
    with pytest.raises(BadInput, match="does not lie in an image"):
        read_cases(cases(head + '1,a.png,64,48,"[[1,2,3,49]]",,\n'))
    with pytest.raises(BadInput, match="row 2, 'boxes_a'"):
        read_cases(cases(head + '1,a.png,64,48,[],"[1,2]",\n'))
    with pytest.raises(BadInput, match="twice"):
        read_cases(cases(head + "1,a.png,64,48,[],,\n2,a.png,64,48,[],,\n"))
    with pytest.raises(BadInput, match="no column"):
        read_cases(cases("case,image\n1,a.png\n"))
    with pytest.raises(BadInput, match="does not say its width"):
        read_cases(cases("case,image,boxes\n1,a.png,[]\n"))
    with pytest.raises(BadInput, match=r"no 'cases.csv'"):
        read_cases(tmp_path / "none/cases.csv")

    def answers(*said):
        (tmp_path / "answers.jsonl").write_text("\n".join(json.dumps(line) for line in said))
        return read_answers(tmp_path / "answers.jsonl")

    good = {"model": "m", "task": "localisation", "image": "a.png", "answer": [[1, 2, 3, 4]], "seen": [448, 448]}
    kept = answers(good)["m"]["localisation"]["a.png"]
    assert kept.text == "[[1, 2, 3, 4]]" and kept.on((64, 48)).seen == (448, 448)
    with pytest.raises(BadInput, match="twice"):
        answers(good, good)
    with pytest.raises(BadInput, match="line 2"):
        answers(good, {"model": "m"})
    with pytest.raises(UnknownName, match="task"):
        answers(good | {"task": "singing"})
    with pytest.raises(BadInput, match=r"'b.png', which is not listed"):
        nova.judge([found], answers(good | {"image": "b.png"}), draws=2)
    assert read_synonyms(tmp_path / "none.csv") == {}
    with pytest.raises(UnknownName, match="task"):
        nova.prompt("singing", found)
    assert "T2 and" in nova.prompt("diagnosis", one(history="T2 and", caption="x"))
