"""A classifier's inputs, scored from beginning to end: the same numbers as by hand, and what a user is told."""

from __future__ import annotations

import json
import re
import signal
import sys
import warnings

import numpy as np
import polars as pl
import pytest

torch = pytest.importorskip("torch")
Image = pytest.importorskip("PIL.Image")

from farout.bench import metrics  # noqa: E402
from farout.errors import BadInput, UnknownName  # noqa: E402
from farout.kit.nets import SmallCNN  # noqa: E402
from farout.ood import Watch  # noqa: E402
from farout.ood.deep_knn import DeepKNN  # noqa: E402
from farout.ood.mahalanobis import Mahalanobis  # noqa: E402
from farout.ood.odin import ODIN  # noqa: E402
from farout.scoring._given import coded  # noqa: E402
from farout.scoring._watched import matched  # noqa: E402
from farout.scoring.inputs import score_inputs  # noqa: E402
from pages import Reader  # noqa: E402

RNG = np.random.default_rng(0)
CENTRES = np.array([[4.0, 0, 0, 0], [0, 4.0, 0, 0], [0, 0, 4.0, 0]])


def drawn(n, seed):
    """Three classes of rows, and their labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=n)
    return (CENTRES[labels] + rng.normal(size=(n, 4))).astype(np.float32), labels


@pytest.fixture(scope="module")
def net():
    """The best classifier of these rows, with features that keep all of a row."""
    made = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 3))
    with torch.no_grad():
        made[0].weight.copy_(torch.eye(4))
        made[0].bias.zero_()
        made[1].weight.copy_(torch.tensor(CENTRES))
        made[1].bias.fill_(-8.0)
    return made.train()


def parts(n, seed=0, share=0.3):
    order = np.random.default_rng(seed).permutation(n)
    held = round(share * n)
    return np.sort(order[held:]), np.sort(order[:held])


def test_the_table_is_what_a_watch_gives_by_hand(net):
    train, _ = drawn(400, 1)
    new = np.concatenate([drawn(50, 2)[0], 9 * RNG.normal(size=(20, 4)).astype(np.float32)])
    found = score_inputs(new, net, "deep_knn", fit_on=train, rate=0.05, parameters={"k": 7, "batch_size": 33}, seed=3)
    learned, held = parts(400, 3)
    watch = Watch(net, DeepKNN(k=7)).fit(train[learned]).calibrate(train[held], 0.05)
    scores = watch.outlier_score(new)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-6)
    assert found.threshold == pytest.approx(watch.threshold_, rel=1e-6)
    assert (found.alarms == watch.alarm(new)).all() and 0 < found.alarms.sum() < 70
    usual = watch.outlier_score(train[held])
    np.testing.assert_allclose(found.p_values, [(1 + (usual >= s * (1 - 1e-6)).sum()) / 121 for s in scores])
    frame = found.frame()
    assert frame.columns == ["row", "name", "score", "p_value", "alarm", "predicted", "probability"]
    with torch.no_grad():
        probability, predicted = net(torch.tensor(new)).softmax(1).max(1)
    assert frame["predicted"].to_list() == [f"class {place}" for place in predicted.tolist()]
    np.testing.assert_allclose(frame["probability"], probability, rtol=1e-5)
    assert found.top(3)["row"].to_list() == np.argsort(-scores)[:3].tolist()
    assert (found.alarms == (found.p_values <= 0.05)).all()
    pairs = scores[:, None] > usual, scores[:, None] == usual
    assert found.shift == pytest.approx((pairs[0] + 0.5 * pairs[1]).mean(), abs=1e-6)
    assert net.training and found.settings["learned from"] == 280 and found.settings["held out"] == 120
    again = score_inputs(new, net, "deep_knn", fit_on=train, rate=0.05, parameters={"k": 7}, seed=4)
    assert again.threshold != found.threshold


def test_usual_inputs_ring_as_often_as_was_said(net):
    train, labels = drawn(1500, 1)
    frame = pl.DataFrame(train).with_columns(label=pl.Series(labels))
    found = score_inputs(drawn(4000, 2)[0], net, "mahalanobis", fit_on=frame, rate=0.05)
    assert 0.03 < found.alarms.mean() < 0.07  # 450 held-out inputs: a standard deviation of 0.011
    assert 0.47 < found.shift < 0.53


def test_a_score_that_learns_nothing_has_all_training_inputs_for_the_line(net):
    train, new = drawn(200, 1)[0], drawn(30, 2)[0]
    found = score_inputs(new, net, "energy", fit_on=train, rate=0.01)
    watch = Watch(net, "energy").fit(train).calibrate(train, 0.01)
    np.testing.assert_allclose(found.scores, watch.outlier_score(new), rtol=1e-6)
    assert found.threshold == pytest.approx(watch.threshold_, rel=1e-6)
    assert len(found.held.scores) == 200 and found.settings["learned from"] is None
    bare = score_inputs(new, net, "energy", rate=0.1)
    np.testing.assert_allclose(bare.scores, found.scores, rtol=1e-6)
    assert bare.alarms.sum() == 3 and not bare.calibrated and bare.shift is None and bare.threshold is None
    assert bare.p_values.min() == pytest.approx(1 / 30)


def test_a_score_that_moves_the_input(net):
    train, new = drawn(150, 1)[0], drawn(30, 2)[0]
    found = score_inputs(new, net, ODIN(size=0.3), fit_on=train, rate=0.05)
    watch = Watch(net, ODIN(size=0.3)).fit(train)
    np.testing.assert_allclose(found.scores, watch.outlier_score(new), rtol=1e-5)
    assert not np.allclose(found.scores, Watch(net, ODIN(size=0.0)).fit(train).outlier_score(new), rtol=1e-3)


def test_the_line_can_be_set_on_other_inputs(net):
    train, usual, new = (drawn(150, seed)[0] for seed in (1, 2, 3))
    found = score_inputs(new, net, "deep_knn", fit_on=train, calibrate_on=usual, rate=0.02)
    watch = Watch(net, "deep_knn").fit(train).calibrate(usual, 0.02)
    assert found.threshold == pytest.approx(watch.threshold_, rel=1e-6)
    assert found.settings["learned from"] == 150 and found.settings["line set on"] == "inputs given for it"


def test_classes_of_the_data_are_those_of_the_model_by_name_number_or_order():
    assert matched(("dog", "CAT"), ["Cat", "Dog", "Cow"], 3).tolist() == [1, 0]
    assert matched(("10", "2"), None, 11).tolist() == [10, 2]
    assert matched(("10", "2"), None, 10) is None
    assert matched(("a", "b", "c"), None, 3).tolist() == [0, 1, 2]
    assert matched(("a", "b"), ["x", "y", "z"], 3) is None
    assert coded([10.0, 9.0, 10.0], "y")[1] == ("9", "10")


def test_true_classes_are_used_where_they_fit_and_predicted_ones_else(net):
    x, y = drawn(300, 1)
    y = np.where(np.arange(300) % 10 == 0, (y + 1) % 3, y)  # a few wrong labels, to tell both apart
    new = drawn(20, 2)[0]
    learned, held = parts(300)
    given = Watch(net, Mahalanobis()).fit(x[learned], y[learned]).outlier_score(new)
    predicted = Watch(net, Mahalanobis()).fit(x[learned]).outlier_score(new)
    assert abs(given - predicted).max() > 0.01
    kinds = {"numbers": y, "words": np.array(["ant", "bee", "cow"])[y], "turned": (y + 1) % 3, "two": y % 2 == 0}
    for name, labels in kinds.items():
        frame = pl.DataFrame(x).with_columns(kind=pl.Series(labels))
        found = score_inputs(new, net, "mahalanobis", fit_on=frame, label="kind", rate=0.05)
        fits = name in ("numbers", "words")
        np.testing.assert_allclose(found.scores, given if fits else predicted, rtol=1e-5)
        assert found.settings["classes"] == ("given" if fits else "predicted")
        assert len(found.notes) == (0 if fits else 1)
        if name == "words":
            assert found.classes == ["ant", "bee", "cow"]
            with torch.no_grad():
                right = (net(torch.tensor(x[held])).argmax(1).numpy() == y[held]).mean()
            assert found.settings["accuracy on what was held out"] == pytest.approx(right)
        if name == "turned":
            assert "do not go with what the model predicts (mean recall 0." in found.notes[0]
        if name == "two":
            assert "the 2 classes" in found.notes[0] and "are not the 3 of the model" in found.notes[0]


def test_known_outliers_are_measured(net, tmp_path):
    train, usual = drawn(300, 1)[0], drawn(80, 2)[0]
    far = (2 + 2 * np.random.default_rng(5).normal(size=(40, 4))).astype(np.float32)
    found = score_inputs(usual, net, "deep_knn", fit_on=train, ood=far, rate=0.1, parameters={"k": 5})
    label, score = np.repeat([0, 1], [80, 40]), found.scores
    assert found.known.tolist() == (label == 1).tolist()
    quality = found.quality
    assert 0.5 < quality["AUROC"] < 1
    assert quality["AUROC"] == pytest.approx(metrics.auroc(label, score))
    assert quality["average precision"] == pytest.approx(metrics.average_precision(label, score))
    ours = quality["FPR at 95 % TPR, outliers positive"], quality["FPR at 95 % TPR, usual positive"]
    assert ours == pytest.approx((metrics.fpr_at_tpr(label, score), metrics.fpr_at_tpr(1 - label, -score)))
    assert ours[0] != ours[1]
    assert quality["usual that ring"] == found.alarms[:80].mean()
    assert quality["outliers that ring"] == found.alarms[80:].mean()
    assert found.frame()["known"].to_list() == ["id"] * 80 + ["ood"] * 40
    held = found.held.scores
    assert found.shift == pytest.approx(metrics.auroc(np.repeat([1, 0], [80, len(held)]), np.r_[score[:80], held]))
    rows = pl.DataFrame(np.concatenate([usual, far])).with_columns(label=pl.Series(["id"] * 80 + ["OOD"] * 40))
    same = score_inputs(rows, net, "deep_knn", fit_on=pl.DataFrame(train), rate=0.1, parameters={"k": 5})
    assert same.quality == quality and set(same.groups) == {"id", "OOD"}
    with pytest.raises(BadInput, match="outliers were given beside them"):
        score_inputs(rows, net, "deep_knn", fit_on=pl.DataFrame(train), ood=far, rate=0.1)


def test_outliers_equal_to_usual_inputs_are_told_as_chance(net, tmp_path):
    train, usual = drawn(300, 1)[0], drawn(80, 2)[0]
    found = score_inputs(usual, net, "deep_knn", fit_on=train, ood=usual, rate=0.1, parameters={"k": 5})
    assert found.quality["AUROC"] == 0.5
    found.save(tmp_path / "a.html")
    page = Reader((tmp_path / "a.html").read_text("utf-8"))
    assert "does not tell them apart: its AUROC is 0.500" in page.text
    copied = score_inputs(train[:30], net, "deep_knn", fit_on=train, rate=0.1, parameters={"k": 5})
    assert "30 of 30 rows are among the training inputs, to the last bit ('row 0', 'row 1'," in copied.notes[0]
    assert len(copied.notes) == 1


def folder(root, kinds):
    """Write small images: each kind has a colour of its own, and all have some noise."""
    for kind, (n, colour, size) in kinds.items():
        (root / kind).mkdir(parents=True)
        rng = np.random.default_rng(len(kind))
        for place in range(n):
            noise = rng.normal(0, 8, (*size, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).round().astype(np.uint8)
            Image.fromarray(pixels).save(root / kind / f"{place:02}.png")
    return root


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    side = (24, 24)
    folder(root / "train", {"cat": (30, (200, 40, 40), side), "dog": (30, (40, 40, 200), side)})
    folder(
        root / "new",
        {
            "id/cat": (10, (200, 40, 40), side),
            "id/dog": (9, (40, 40, 200), side),
            "ood/green": (8, (30, 220, 30), side),
            "ood/<b>": (4, (250, 250, 250), side),
        },
    )
    return root


def test_the_page_of_rows_names_their_strangest_values(net, tmp_path):
    names = ["a", "b", "c", "d"]
    train, new = (pl.DataFrame(drawn(n, seed)[0], schema=names) for n, seed in ((200, 1), (30, 2)))
    new[7, "c"], new[7, "a"] = 90.0, -40.0
    found = score_inputs(new, net, fit_on=train, rate=0.05, parameters={"k": 5, "layers": "0"}, name="rows")
    found.save(tmp_path / "page.html")
    text = Reader((tmp_path / "page.html").read_text("utf-8")).text
    _, held = parts(200)
    low, high = np.quantile(train["c"].to_numpy()[held], [0.05, 0.95])
    first = text[text.index("Values farthest from usual") :]
    assert f"c 90 (usual {low:.3g} to {high:.3g}); a -40 (usual" in first and first.index("row 7") < first.index(
        "c 90 "
    )
    rang = int(found.alarms.sum())
    assert (
        f"{rang} of 30 rows lie{'s' * (rang == 1)} above the alarm line. Of as many usual ones 1.5 would"
        in " ".join(text.split())
    )
    assert "As a whole the rows score" in text and "By predicted class" in text and "By label" not in text


def test_folders_of_images(images, tmp_path):
    net = SmallCNN(3, width=4, seed=0)
    how = {"fit_on": images / "train", "rate": 0.06, "parameters": {"k": 5}}
    found = score_inputs(images / "new", net, "deep_knn", **how)
    pixels = [np.asarray(Image.open(images / "new" / name)) for name in found.look.names]
    batch = torch.tensor(np.stack(pixels) / 255, dtype=torch.float32).movedim(3, 1)
    names = [(images / "train" / kind / f"{place:02}.png") for kind in ("cat", "dog") for place in range(30)]
    train = torch.tensor(np.stack([np.asarray(Image.open(name)) for name in names]) / 255).float().movedim(3, 1)
    learned, held = parts(60)
    watch = Watch(net, DeepKNN(k=5)).fit(train[learned]).calibrate(train[held], 0.06)
    np.testing.assert_allclose(found.scores, watch.outlier_score(batch), rtol=1e-4, atol=1e-6)
    assert found.threshold == pytest.approx(watch.threshold_, rel=1e-4)
    assert found.quality["outliers that ring"] == 1 and found.known.sum() == 12
    assert found.groups[0] == "id/cat" and found.groups[-1] == "ood/green" and found.name == "new"
    assert "the 2 classes of the training images ('cat', 'dog') are not the 3 of the model" in found.notes[1]
    assert "does not say how its images are scaled" in found.notes[0]
    apart = score_inputs(images / "new" / "id", net, "deep_knn", ood=images / "new" / "ood", **how)
    assert apart.quality == found.quality and sorted(apart.groups) == sorted(found.groups)
    scaled = score_inputs(
        images / "new", net, "deep_knn", fit_on=images / "train", rate=0.06,
        parameters={"k": 5, "mean": "0.5,0.4,0.3", "deviation": 0.25},
    )  # fmt: skip
    mean = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)
    watch = Watch(net, DeepKNN(k=5)).fit((train[learned] - mean) / 0.25)
    np.testing.assert_allclose(scaled.scores, watch.outlier_score((batch - mean) / 0.25), rtol=1e-4, atol=1e-6)
    assert not any("scaled" in note for note in scaled.notes)


def test_the_page_shows_what_was_found(images, tmp_path):
    found = score_inputs(
        images / "new", SmallCNN(3, width=4, seed=0), "deep_knn", fit_on=images / "train", rate=0.06,
        parameters={"k": 5},
    )  # fmt: skip
    found.save(tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text("utf-8")
    page = Reader(html)
    text = " ".join(page.text.split())
    wrong = int(found.alarms[~found.known].sum())
    assert f"{12 + wrong} of 31 images lie above the alarm line" in text
    assert f"Of 12 known outliers 12 ring (100 %), of 19 usual images {wrong} (" in text
    assert "The line was set on 18 training images that Deep kNN did not learn from" in text
    scores, curve = page.figures
    sizes = {one["name"]: one for one in scores["data"]}
    assert list(sizes) == ["training, held out: 18", "usual: 19", "outliers: 12"]
    for name in ("training, held out: 18", "usual: 19", "outliers: 12"):
        assert sum(sizes[name]["y"]) == pytest.approx(1, abs=1e-4)
    assert scores["layout"]["annotations"][0]["text"] == f"alarm line {found.threshold:.4g}"
    assert curve["data"][2]["x"] == [found.quality["usual that ring"]] and curve["data"][2]["y"] == [1]
    pictures = [attrs for tag, attrs in page.tags if tag == "img"]
    names = [attrs["alt"] for attrs in pictures]
    assert names[:21] == [found.look.names[row] for row in found.order[:21]]
    assert len(names) == 21 + 7 + 12 + 14
    low = [row for row in found.order[::-1] if found.known[row]]
    assert names[28:40] == [found.look.names[row] for row in low]
    assert "ood/<b>" in page.text and "ood/<b>" not in re.sub(r"<script.*?</script>", "", html, flags=re.S)
    assert [one["title"] for _, one in page.tags if one.get("class") == "name"] == names
    assert found.settings["method"] == "deep_knn" and "Sun, Ming" in text


def test_images_of_all_kinds_for_a_model_that_scales_and_for_one_that_does_not(tmp_path):
    root = folder(tmp_path / "train", {"a": (12, (200, 40, 40), (24, 24)), "b": (12, (60, 200, 40), (30, 40))})
    Image.fromarray(RNG.integers(0, 256, (50, 20), dtype=np.uint8)).save(root / "a" / "grey.png")
    net = SmallCNN(2, width=4, seed=0)
    with pytest.raises(BadInput, match=r"these have 3 \(24 x 24, 30 x 40, 50 x 20\).*--set size=24"):
        score_inputs(root, net, "energy", fit_on=root, rate=0.1)
    found = score_inputs(root, net, "energy", fit_on=root, rate=0.1, parameters={"size": "16,20"})
    assert len(found.scores) == 25 and np.isfinite(found.scores).all()
    (root / "b" / "03.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(BadInput, match=r"'b/03\.png' cannot be read as an image .*--skip-broken"):
        score_inputs(root, net, "energy", fit_on=root, rate=0.1, parameters={"size": 16})
    found = score_inputs(root, net, "energy", fit_on=root, rate=0.1, parameters={"size": 16}, skip_broken=True)
    assert len(found.scores) == 24 and any("1 of 25 images are broken and left out" in note for note in found.notes)


def test_what_cannot_be_is_told_in_one_sentence(net, tmp_path):
    x = drawn(200, 1)[0]
    headless = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh())
    words = pl.DataFrame(x).with_columns(city=pl.lit("Rome"))
    hole = pl.DataFrame(x).with_columns(x9=pl.Series([None, *[1.0] * 199]))
    few, frame = {"fit_on": x[:3]}, pl.DataFrame(x)
    for error, match, data, more in [
        (BadInput, "the logits of 'Sequential' come from no linear layer", x, {"model": headless}),
        (UnknownName, "no module of the model is called '00'", x, {"parameters": {"layers": "00"}, "method": "vim"}),
        (UnknownName, "no parameter of 'deep_knn' or of watching is called 'kk'", x, {"parameters": {"kk": 3}}),
        (BadInput, "'ecod' does not score a model's inputs (table, detector); methods: 'ash',", x, {"method": "ecod"}),
        (BadInput, "'deep_knn' learns from training inputs: give some", x, {"fit_on": None}),
        (BadInput, "0.01 needs 99 rows at least to set the line on, and 60 of 200 are held out", x, {"rate": None}),
        (BadInput, "a rate of 0.1 needs 9 rows at least to set the line on, and 1 of 3 are held out", x, few),
        (BadInput, "needs 9 rows at least to set the line on, and 4 were given", x, {"calibrate_on": x[:4]}),
        (BadInput, "k lies between 1 and the number of training inputs, 2, and is 50", x, few | {"rate": 0.5}),
        (BadInput, "rate is a share of the rows between 0 and 1, not 2", x, {"rate": 2.0}),
        (BadInput, "'Sequential' cannot run on these rows: mat1 and mat2", x[:, :3], {"fit_on": x[:, :3]}),
        (BadInput, "column 'city' holds String and no numbers", words, {}),
        (
            BadInput,
            "1 of 200 rows hold a number that is missing or not finite, the first is row 0, column 'x9'",
            hole,
            {},
        ),
        (UnknownName, "no column of the inputs is called 'column_3'", frame[:, :3], {"fit_on": frame}),
        (UnknownName, "no column of labels is called 'kind'", x, {"fit_on": frame, "label": "kind"}),
        (UnknownName, "no column is called 'kind'", frame, {"fit_on": frame, "leave_out": ["kind"]}),
        (BadInput, "there are no rows", x[:0], {}),
        (BadInput, "is a folder, as images lie in, and 'Sequential' takes rows of numbers", tmp_path, {}),
        (BadInput, "no packaged model of that name", x, {"model": "efficientnet"}),
        (BadInput, "takes no images, so that mean mean nothing to it", x, {"parameters": {"mean": 0.5}}),
        (BadInput, "batch_size is a whole number, 1 at least, and not 0", x, {"parameters": {"batch_size": 0}}),
    ]:
        how = {"model": net, "fit_on": x, "rate": 0.1} | more
        with pytest.raises(error, match=re.escape(match)):
            score_inputs(data, how.pop("model"), **how)


def test_features_of_a_named_module_do_without_a_head(net):
    headless = torch.nn.Sequential(*net, torch.nn.Tanh())
    train, new = drawn(100, 1)[0], drawn(20, 2)[0]
    found = score_inputs(new, headless, fit_on=train, rate=0.1, parameters={"features": "0", "k": 4})
    same = score_inputs(new, net, fit_on=train, rate=0.1, parameters={"k": 4})
    np.testing.assert_allclose(found.scores, same.scores, rtol=1e-6)


def test_texts_of_a_classifier(tmp_path):
    transformers = pytest.importorskip("transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=32, num_labels=2, id2label={0: "calm", 1: "loud"}, initializer_range=0.5,
    )  # fmt: skip
    place = tmp_path / "model"
    transformers.BertForSequenceClassification(config).save_pretrained(place)
    transformers.BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(place)
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcd"), 3 + n % 5)) for n in range(90)]
    far = [" ".join(rng.choice(list("efgh"), 6)) for _ in range(10)]
    pl.DataFrame({"body": texts, "n": range(90)}).write_csv(tmp_path / "train.csv")
    (tmp_path / "new.txt").write_text("\n".join(texts[:9] + far))
    how = {"rate": 0.1, "parameters": {"k": 3, "batch_size": 7}}
    found = score_inputs(tmp_path / "new.txt", str(place), "deep_knn", fit_on=tmp_path / "train.csv", **how)
    learned, _ = parts(90)
    from farout.io.models import open_model

    watch = Watch(open_model(place), DeepKNN(k=3)).fit([texts[row] for row in learned])
    np.testing.assert_allclose(found.scores, watch.outlier_score(texts[:9] + far), rtol=1e-3, atol=1e-5)
    assert set(found.frame()["predicted"]) <= {"calm", "loud"} and found.look.names[0] == texts[0]
    found.save(tmp_path / "page.html")
    assert far[0] in (tmp_path / "page.html").read_text("utf-8")
    with pytest.raises(BadInput, match="1 of 2 texts are empty, the first is row 1"):
        score_inputs(["a b", " "], str(place), "energy")
    bare = torch.nn.Sequential(torch.nn.EmbeddingBag(9, 4), torch.nn.Linear(4, 2))
    with pytest.raises(
        BadInput, match=r"has no tokenizer, so it cannot read texts: name one \(--set tokenizer=FOLDER\)"
    ):
        score_inputs(["a b"], bare, "energy")


@pytest.fixture
def call(monkeypatch, capfd, tmp_path):
    """Run the program in this process."""
    old = signal.getsignal(signal.SIGTERM)

    def main(*words):
        from farout.cli import main

        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["farout", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capfd.readouterr()
        return end.value.code, out, err

    yield main
    signal.signal(signal.SIGTERM, old)


CNN = "py:farout.kit.nets.SmallCNN(3, width=4, seed=0)"


def test_the_command_line_scores_images(images, call, tmp_path):
    code, out, err = call(
        "score", images / "new", "--model", CNN, "--fit-on", images / "train", "--rate", "0.06", "--set", "k=5",
        "--top", "3", "-o", "o.html", "-o", "o.parquet", "-o", "o.json",
    )  # fmt: skip
    assert code == 0, err
    same = score_inputs(
        images / "new", SmallCNN(3, width=4, seed=0), fit_on=images / "train", rate=0.06, parameters={"k": 5}
    )
    head, names, *rest = out.splitlines()
    assert head.startswith(f"Deep kNN: 31 images, {int(same.alarms.sum())} above the line (*). p-values against")
    assert names.split() == ["row", "score", "p", "why"] and len(rest) == 3
    first = int(same.order[0])
    assert (
        rest[0].split()[0] == str(first) and same.words(first) in rest[0] and "(an outlier): taken for class" in rest[0]
    )
    assert (
        "note: the 2 classes of the training images" in err and "wrote o.html, o.parquet, o.json, o.farout.json" in err
    )
    frame = pl.read_parquet(tmp_path / "o.parquet")
    np.testing.assert_allclose(frame["score"], same.scores, rtol=1e-6)
    assert json.loads((tmp_path / "o.json").read_text())[3]["name"] == frame["name"][3]
    settings = json.loads((tmp_path / "o.farout.json").read_text())
    assert settings["parameters"]["k"] == 5 and settings["quality"]["outliers that ring"] == 1
    assert settings["command"][1] == "score" and settings["watch"]["batch_size"] == 64
    code, out, err = call("score", images / "new" / "id", "--model", CNN, "-m", "energy", "-q", "-o", "-")
    assert code == 0 and err == "" and pl.read_csv(out.encode()).height == 19


def test_the_command_line_says_what_does_not_belong_together(images, call):
    new, train = images / "new", images / "train"
    for words, match in [
        ((new, "-m", "energy"), "'energy' watches the inputs of a model: say which one with --model"),
        ((new, "--ood", train), "belong to a model's inputs: say which with --model"),
        ((new, "--model", CNN), "'deep_knn' learns from training inputs: give some (fit_on, --fit-on TRAIN)"),
        ((new, "--model", CNN, "--fit-on", train, "--set", "layers=layer9", "-m", "mahalanobis", "--rate", "0.1"),
         "no module of the model is called 'layer9'; nearest: 'layer"),
        ((new, "--model", CNN, "--fit-on", train, "--kind", "a=date"), "--kind NAME=text or --kind NAME=label"),
        ((new, "--model", CNN, "--with", "a"), "--with, --engine and --scheduler have no place beside it"),
        (("a.txt", "--model", CNN, "--ood", train), "belong to the inputs of a classifier"),
    ]:  # fmt: skip
        code, out, err = call("score", *words)
        assert code == 1 and out == "" and match in err and err.count("\n") == 1, err


def test_a_real_network_tells_digits_from_photographs():
    from farout.data._find import DataMissing
    from farout.data.pretrained import pretrained
    from farout.data.samples import sample_images

    pytest.importorskip("efficientnet_lite_pytorch")
    try:
        pretrained("efficientnet-lite0")
    except DataMissing as error:
        pytest.skip(str(error))
    many = sample_images(160)
    found = score_inputs(
        many[20:24], "efficientnet-lite0", "deep_knn", fit_on=many[:20], ood=many[24:], rate=0.2, parameters={"k": 2}
    )
    assert found.quality["AUROC"] > 0.9 and found.known.sum() == 8
    assert len(found.classes) == 1000 and found.notes == []


def test_a_graph_of_onnx_scores_like_the_network_it_comes_from(net, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    train, new = drawn(200, 1)[0], drawn(40, 2)[0]
    axes = {"x": {0: "n"}, "y": {0: "n"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net.eval(), (torch.tensor(train[:2]),), str(tmp_path / "net.onnx"), dynamo=False, input_names=["x"],
            output_names=["y"], dynamic_axes=axes,
        )  # fmt: skip
    settings = {"method": "mahalanobis", "parameters": {"where": "features"}, "fit_on": train, "rate": 0.1}
    ours, theirs = score_inputs(new, str(tmp_path / "net.onnx"), **settings), score_inputs(new, net, **settings)
    np.testing.assert_allclose(ours.scores, theirs.scores, rtol=1e-4, atol=1e-4)
