"""Causal paths: closed forms, the slow version, what repairs a model, what is refused, the page, the claim."""

from __future__ import annotations

import copy
import io
import json
import re
from base64 import b64decode
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from farout import claims  # noqa: E402
from farout.cards import find  # noqa: E402
from farout.data import DataMissing  # noqa: E402
from farout.errors import BadInput, MissingExtra, UnknownName  # noqa: E402
from farout.inside._causal_effects import Network, evaluating  # noqa: E402
from farout.inside.causal_paths import CausalPaths, faithfulness, jaccard, stability  # noqa: E402
from farout.report.causal_paths import write_page  # noqa: E402
from naive import causal_paths as naive  # noqa: E402


class Residual(nn.Module):
    """Convolutions in groups, a residual block with batch normalisation, pooling and a flattening."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.grouped = nn.Conv2d(6, 6, 3, padding=1, groups=3, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.short = nn.Conv2d(6, 8, 1, stride=2)
        self.wide = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.same = nn.Conv2d(8, 8, 3, padding=1)
        self.same_norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 4, 3)

    def forward(self, x):
        h = F.relu(self.stem(x))
        g = F.relu(self.norm(self.grouped(h)) + h, inplace=True)
        w = F.gelu(self.wide(g) + self.short(g))
        s = self.same_norm(self.same(w))
        s += w
        s = F.max_pool2d(F.relu(s), 2)
        return self.fc(s.view(s.size(0), -1))


@pytest.fixture(scope="module")
def residual():
    torch.manual_seed(3)
    model = Residual().eval()
    for norm in (model.norm, model.same_norm):
        nn.init.normal_(norm.weight, 1.0, 0.3)
        nn.init.normal_(norm.bias, 0.0, 0.3)
        norm.running_mean.normal_(0, 0.3)
        norm.running_var.uniform_(0.5, 1.5)
    return model, torch.randn(24, 2, 8, 8)


def sequential(seed=0, sizes=(5, 7, 6, 3), nonlinear=nn.ReLU):
    torch.manual_seed(seed)
    parts = []
    for a, b in pairwise(sizes):
        parts += [nn.Linear(a, b), nonlinear()]
    return nn.Sequential(*parts[:-1]).eval()


def classes(model, X):
    """Which of the model's logits is largest against its own mean: classes of like size."""
    with torch.no_grad():
        logits = model(X)
    return ((logits - logits.mean(0)) / logits.std(0)).argmax(1)


def rows(model, n=300, d=5, seed=0):
    """Drawn inputs and their classes."""
    X = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return X, classes(model, X)


def network(model, X, reference="mean", alike=1.0):
    """Of singles: no two units here are equal."""
    return Network(model, X, reference, 10, alike)


def effects(opened, X, layer, children, parent=None):
    found = opened.path_effects(X, opened.names.index(layer), children)
    return [one for one in found if parent is None or opened.names[one.path.parent] == parent]


def test_in_a_linear_network_an_effect_is_the_weight_times_the_mean_and_all_add_up():
    model, X = sequential(nonlinear=nn.Identity), torch.randn(40, 5)
    (one,) = effects(network(model, X, "zero"), X, "2", [0, 1, 2, 3, 4, 5])
    hidden = model[0](X).detach()
    expected = hidden.mean(0)[:, None] * model[2].weight.detach().T
    np.testing.assert_allclose(one.effects.mean(0), expected, rtol=1e-4, atol=1e-6)
    enters = model[2](hidden) - model[2].bias
    np.testing.assert_allclose(one.effects.sum(1), enters.detach(), rtol=1e-4, atol=1e-5)


def test_what_is_replaced_by_itself_has_no_effect_at_all(residual):
    model, X = residual
    same = X[:1].repeat(6, 1, 1, 1)  # the mean over equal inputs is each of them
    opened = network(model, same)
    for i in range(1, len(opened.layers)):
        for one in opened.path_effects(same, i, [0, 1]):
            assert (one.effects == 0).all()
    assert (opened.unit_effects(same, 1, 2, [[0], [1, 2]]) == 0).all()


def test_the_layers_of_a_residual_network_are_its_sums(residual):
    model, X = residual
    opened = network(model, X)
    assert opened.names == ["stem", "grouped", "wide", "same", "fc"]
    kinds = [
        [
            (opened.names[p.parent] if p.parent is not None else "input", p.op and p.op.name, len(p.then), p.width)
            for p in layer.paths
        ]
        for layer in opened.layers
    ]
    assert kinds == [
        [("input", "conv2d", 0, 1)],
        [("stem", "conv2d", 1, 1), ("stem", None, 0, 1)],
        [("grouped", "conv2d", 0, 1), ("grouped", "conv2d", 0, 1)],
        [("wide", "conv2d", 1, 1), ("wide", None, 0, 1)],
        [("same", "linear", 0, 4)],
    ]


def test_all_paths_at_once_are_what_one_at_a_time_gives(residual):
    model, X = residual
    with torch.no_grad():
        X = X[:6]
        opened = network(model, X)
        h = F.relu(model.stem(X))
        normed = lambda x: model.norm(model.grouped(x))  # noqa: E731
        g = F.relu(normed(h) + h)
        w = F.gelu(model.wide(g) + model.short(g))
        same = lambda x: model.same_norm(model.same(x))  # noqa: E731
        s = F.max_pool2d(F.relu(same(w) + w), 2)
        cases = [
            ("grouped", 0, normed, h, h, F.relu, range(6)),
            ("grouped", 1, lambda x: x, h, normed(h), F.relu, range(6)),
            ("wide", 0, model.wide, g, model.short(g), F.gelu, [1, 2, 7]),
            ("wide", 1, model.short, g, model.wide(g), F.gelu, [1, 2, 7]),
            ("same", 0, same, w, w, F.relu, [0, 4]),
            ("same", 1, lambda x: x, w, same(w), F.relu, [0, 4]),
        ]
        for layer, which, linear, x, rest, after, children in cases:
            one = effects(opened, X, layer, children)[which]
            for g_, units in enumerate(one.groups):
                for k, v in enumerate(children):
                    slow = naive.path_effect(linear, x, units[0], v, x.mean(0), after, rest)
                    np.testing.assert_allclose(one.effects[:, g_, k], slow, rtol=1e-4, atol=2e-6)
        (one,) = effects(opened, X, "fc", [2])
        flat = s.flatten(1)
        for u in range(8):
            cut = naive.without(flat, u, flat.mean(0), width=4)
            slow = naive.odds(model.fc(flat), 2) - naive.odds(model.fc(cut), 2)
            np.testing.assert_allclose(one.effects[:, u, 0], slow, rtol=1e-4, atol=1e-5)


def test_chunks_of_samples_change_nothing(residual, monkeypatch):
    model, X = residual
    whole = [one.effects for one in network(model, X).path_effects(X, 2, [1, 5])]
    monkeypatch.setattr("farout.inside._causal_parts.NUMBERS", 2000)
    for one, before in zip(Network(model, X, "mean", 7, 1.0).path_effects(X, 2, [1, 5]), whole):
        np.testing.assert_allclose(one.effects, before, atol=1e-6)


def test_effects_of_units_are_those_of_the_model_with_another_value(residual):
    model, X = residual
    opened = network(model, X)
    with torch.no_grad():
        h = F.relu(model.stem(X))
        g = F.relu(model.norm(model.grouped(h)) + h)

        def onwards(g):
            w = F.gelu(model.wide(g) + model.short(g))
            return model.fc(F.max_pool2d(F.relu(model.same_norm(model.same(w)) + w), 2).flatten(1))

        cut = naive.without(naive.without(g, 1, g.mean(0)), 4, g.mean(0))
        found = opened.unit_effects(X, 0, 1, [[1, 4]])[:, 0]
        np.testing.assert_allclose(found, naive.odds(onwards(g), 0) - naive.odds(onwards(cut), 0), atol=1e-5)
        with opened.ablated({1: [1]}), opened.ablated({1: [4]}):
            np.testing.assert_allclose(model(X), onwards(cut), atol=1e-5)
        with opened.ablated({1: [1, 4]}, weight=0.25):
            np.testing.assert_allclose(model(X), onwards(cut + 0.25 * (g - cut)), atol=1e-5)


def test_the_model_is_left_as_it_was(residual):
    model, X = residual
    model = copy.deepcopy(model)
    before = model(X)
    model.train()
    model.norm.eval()
    with pytest.raises(ZeroDivisionError), evaluating(model):
        1 / 0  # noqa: B018
    graph = CausalPaths().measure(model, X, classes(residual[0], X), 1)
    assert model.training and not model.norm.training and model.same_norm.training
    model.eval()
    model.same_norm.load_state_dict(residual[0].same_norm.state_dict())  # one call above was in training mode
    with graph.ablated():
        assert not torch.equal(model(X), before)
    assert torch.equal(model(X), before)
    assert not model._forward_pre_hooks


def test_the_graph_is_what_the_slow_search_keeps():
    model = sequential(4, (5, 9, 8, 3))
    X, y = rows(model)
    paths = CausalPaths(alike=1.0, share=0.9, t_critical=2.5)
    graph = paths.measure(model, X, y, 2)
    opened, of_class = network(model, X), X[y == 2]
    expected, frontier = set(), {2}
    for layer, before in (("4", "2"), ("2", "0")):
        children = sorted(frontier)
        (one,) = effects(opened, of_class, layer, children)
        pairs = naive.kept(one.effects, 0.9, 2.5, 0.05)
        expected |= {(f"{before}:{u}", f"{layer}:{children[v]}") for u, v in pairs}
        frontier = {u for u, _ in pairs}
    frame = graph.frame()
    assert set(zip(frame["source"], frame["target"])) == expected
    assert 3 < len(expected) < 9 * 8
    means = {(str(e.source), str(e.target)): e.effect for e in graph.edges}
    (one,) = effects(opened, of_class, "4", [2])
    for u in range(8):
        if (f"2:{u}", "4:2") in means:
            assert means[f"2:{u}", "4:2"] == pytest.approx(one.effects[:, u, 0].mean(), rel=1e-4)


def test_each_of_the_three_rules_can_drop_a_path():
    model = sequential(4, (5, 9, 8, 3))
    X, y = rows(model)
    all_of = dict(alike=1.0, share=1.0, t_critical=0.0, fdr=1.0)
    counts = [
        len(CausalPaths(**all_of | changed).measure(model, X, y, 2).edges)
        for changed in ({}, {"share": 0.6}, {"t_critical": 8.0}, {"fdr": 1e-9})
    ]
    assert counts[0] > max(counts[1:])


def test_noise_is_discovered_at_the_rate_that_was_asked_for():
    from farout.inside.causal_paths import _discoveries, _p_values, _standardised

    rng = np.random.default_rng(0)
    runs = [_discoveries(_p_values(_standardised(rng.normal(size=(50, 40))), 50), 0.1).any() for _ in range(300)]
    assert np.mean(runs) == pytest.approx(0.1, abs=0.05)


def test_a_unit_that_sends_nothing_is_in_no_graph_and_its_ablation_changes_nothing():
    model = sequential(1, (5, 8, 6, 3))
    with torch.no_grad():
        model[2].weight[:, 3] = 0
        model[4].weight[:, 2] = 0
        model[0].weight[3] = model[0].weight[4]  # a near-duplicate of one that does
        model[0].bias[3] = model[0].bias[4]
    X, y = rows(model)
    graph = CausalPaths(share=1.0, t_critical=0.0, fdr=1.0).measure(model, X, y, 1)
    assert ("0", 3) not in graph.paths and ("2", 2) not in graph.paths
    assert ("0", 4) in graph.paths
    with torch.no_grad(), graph.ablated([("0", 3), ("2", 2)]):
        without = model(X)
    assert torch.equal(without, model(X))


def test_a_unit_scaled_up_and_its_readers_scaled_down_leave_the_graph():
    model = sequential(2, (5, 8, 6, 3))
    X, y = rows(model)
    first = CausalPaths().measure(model, X, y, 0)
    with torch.no_grad():
        for u, a in ((1, 8.0), (4, 0.25)):
            model[0].weight[u] *= a
            model[0].bias[u] *= a
            model[2].weight[:, u] /= a
            model[2].weight[u] *= a
            model[2].bias[u] *= a
            model[4].weight[:, u] /= a
    second = CausalPaths().measure(model, X, y, 0)
    assert [(e.source, e.target) for e in first.edges] == [(e.source, e.target) for e in second.edges]
    for what in ("share", "t"):
        a, b = (np.array([getattr(e, what) for e in graph.edges]) for graph in (first, second))
        np.testing.assert_allclose(a, b, rtol=1e-3)
    assert first.paths == pytest.approx(second.paths, rel=1e-3)
    assert first.effects[first.units()[0]] == pytest.approx(second.effects[first.units()[0]], rel=1e-3)


def test_weights_of_units_are_sums_over_paths_of_products():
    model = sequential(4, (5, 9, 8, 3))
    graph = CausalPaths().measure(model, *rows(model), 2)
    share = {(e.source, e.target): e.share for e in graph.edges}
    for unit in graph.units("0"):
        routes = [share[unit, v] * share[v, graph.root] for u, v in share if u == unit]
        assert graph.paths[unit] == pytest.approx(sum(routes))
    assert list(graph.paths.values()) == sorted(graph.paths.values(), reverse=True)


def redundant():
    """Two equal detectors of class 1, either of which saturates what reads them; and a weak third."""
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2), nn.Hardtanh(0, 1), nn.Linear(2, 2)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        model[0].weight[0, 0] = model[0].weight[1, 0] = 1.0
        model[0].weight[2, 1] = 1.0
        model[2].weight[0] = torch.tensor([5.0, 5.0, 0.0])
        model[2].weight[1, 2] = 0.5
        model[4].weight[1] = torch.tensor([4.0, 1.0])
    return model


def test_units_that_stand_in_for_each_other_are_found_together():
    model = redundant()
    X = torch.rand(300, 2, generator=torch.Generator().manual_seed(0))
    y = (X[:, 0] > 0.3) * 1
    single = network(model, X, "zero", alike=1.1)
    (alone,) = effects(single, X[y == 1], "2", [0])
    assert alone.groups == [[0], [1], [2]] and (alone.effects == 0).all()  # neither is missed
    graph = CausalPaths(reference="zero").measure(model, X, y, 1)
    assert graph.twins == ((("0", 0), ("0", 1)),)
    pair = [edge for edge in graph.edges if edge.target == ("2", 0)]
    assert [(edge.source.number, edge.together) for edge in pair] == [(0, 2), (1, 2)]
    assert [edge.share for edge in pair] == pytest.approx([0.5, 0.5])
    assert sum(edge.effect for edge in pair) == pytest.approx(1.0, abs=1e-5)  # all of what the child shows


def test_necessity_and_sufficiency_of_a_layer_are_probabilities_of_the_ablated_model():
    model = sequential(4, (5, 9, 8, 3))
    X, y = rows(model)
    graph = CausalPaths().measure(model, X, y, 2)
    of_class = X[y == 2]
    for check in graph.checks:
        kept = graph.units(check.layer)
        size = graph.network.layers[graph.layers.index(check.layer)].units
        others = [(check.layer, u) for u in range(size) if (check.layer, u) not in kept]
        for units, expected in ((kept, check.without), (others, check.alone)):
            with torch.no_grad(), graph.ablated(units):
                assert float(model(of_class).softmax(1)[:, 2].mean()) == pytest.approx(expected, rel=1e-4)
    assert graph.probability == pytest.approx(float(model(of_class).detach().softmax(1)[:, 2].mean()), rel=1e-4)
    assert graph.checks[-1].without < graph.probability


def spotted(n=60, seed=0):
    """Images of noise, half of which have a bright spot: where, and whether."""
    rng = np.random.default_rng(seed)
    X, y = rng.normal(0, 0.05, (n, 1, 12, 12)), np.arange(n) % 2
    at = rng.integers(1, 11, (n, 2))
    for i in np.flatnonzero(y):
        X[i, 0, at[i, 0], at[i, 1]] = 3.0
    return torch.from_numpy(X).float(), torch.from_numpy(y), at


def spotter():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(2, 2)
    )
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        model[0].weight[0, 0, 1, 1] = 1.0
        model[0].weight[1, 0, 1, 1] = -1.0
        model[4].weight[1, 0] = 5.0
        model[4].bias[1] = -5.0
    return model.eval()


def test_the_map_points_at_what_the_filter_of_the_class_sees():
    X, y, at = spotted()
    graph = CausalPaths().measure(spotter(), X, y, 1)
    assert graph.units() == [("0", 0)]
    maps = graph.map(X[y == 1])
    assert maps.shape == (30, 12, 12) and maps.max() == 1.0 and maps.min() >= 0
    found = [np.unravel_index(one.argmax(), one.shape) for one in maps]
    assert (np.array(found) == at[y.numpy() == 1]).all()
    deletion, insertion = faithfulness(spotter(), X[y == 1], maps, 1, steps=144)
    backwards = faithfulness(spotter(), X[y == 1], -maps, 1, steps=144)
    assert deletion < 0.02 and insertion > 0.98
    assert backwards[0] > 0.9 and backwards[1] < 0.05


def test_a_unit_that_speaks_for_the_wrong_class_is_blamed_and_its_ablation_repairs():
    torch.manual_seed(0)
    X = torch.randn(400, 3)
    y = (X[:, 0] > 0) * 1
    model = sequential(sizes=(3, 4, 2))
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        for u, (column, sign) in enumerate(((0, 1), (0, -1), (1, 1), (2, 1))):
            model[0].weight[u, column] = sign
        model[2].weight[1] = torch.tensor([3.0, 0.0, 0.0, 0.0])
        model[2].weight[0] = torch.tensor([0.0, 3.0, 6.0, 0.0])  # unit 2 knows nothing of the class
        model[2].bias[0] = -6.0 * X[:, 1].clamp(min=0).mean()
    right = lambda: float((model(X).argmax(1) == y).float().mean())  # noqa: E731
    blamed = CausalPaths().blame(model, X, y)
    assert blamed[0].unit == ("0", 2) and all(one.unit != ("0", 3) for one in blamed)
    graph = CausalPaths().measure(model, X, y, 0)
    before = right()
    with graph.ablated([blamed[0].unit]):
        assert right() > before + 0.1
    assert right() == before
    with graph.ablated([blamed[0].unit], weight=1.0):
        assert right() == before
    with pytest.raises(BadInput, match="0 of 400 inputs are predicted wrongly"):
        CausalPaths().blame(model, X, model(X).argmax(1))


def test_a_unit_that_speaks_for_right_and_wrong_alike_is_not_blamed():
    model = sequential(sizes=(2, 3, 3))
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        model[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
        model[2].weight.copy_(torch.tensor([[0.0, 0.0, 1.0], [2.0, 0.0, 1.0], [0.0, 0.0, 0.0]]))
    X = torch.rand(200, 2, generator=torch.Generator().manual_seed(1)) + torch.arange(200)[:, None] % 2
    blamed = CausalPaths(reference="zero").blame(model, X, np.zeros(200))
    assert [one.unit for one in blamed] == [("0", 0)]  # unit 2 raises classes 0 and 1 by the same
    assert blamed[0].effect == pytest.approx(2 * float(X[:, 0].mean()), rel=1e-5)


def test_a_map_shows_what_is_more_than_usual():
    X, y, _ = spotted()
    model = spotter()
    with torch.no_grad():
        model[0].bias[0] = 2.0  # active everywhere, always
        model[4].bias[1] = -15.0
    graph = CausalPaths().measure(model, X, y, 1)
    assert np.median(graph.map(X[y == 1])) < 0.02


def test_what_writes_into_its_argument_is_as_what_does_not():
    def forward(m, x):
        return m.b(m.a(x).relu_())

    X = torch.randn(60, 4, generator=torch.Generator().manual_seed(2))
    model = Odd(forward)
    plain = Odd(lambda m, x: m.b(m.a(x).relu()))
    plain.load_state_dict(model.state_dict())
    deep, shallow = (nn.Sequential(nn.Linear(4, 4), one) for one in (model, plain))
    shallow[0] = deep[0]
    found = [network(one, X).path_effects(X, 1, [0, 1, 2, 3])[0].effects for one in (deep, shallow)]
    assert np.abs(found[1]).max() > 0.1
    np.testing.assert_allclose(*found, atol=1e-6)


def test_stability_is_1_where_nothing_changes_and_less_where_something_does():
    X, y, _ = spotted(200)
    model = spotter()
    calm = stability(CausalPaths(), model, X, y, 1, sigma=0.0, draws=2, others=[model])
    assert calm["noise"] == calm["noise ranks"] == calm["resampled"] == 1.0
    assert calm["trained again"] == pytest.approx(1.0)
    net = sequential(4, (5, 20, 20, 3))
    shaken = stability(CausalPaths(), net, *rows(net), 2, sigma=0.3, draws=3)
    assert 0.3 < shaken["noise"] < 1 and 0.3 < shaken["resampled"] < 1 and "trained again" not in shaken
    assert jaccard([], []) == 1.0 and jaccard([1], []) == 0.0


def test_what_a_batch_holds_changes_nothing(residual):
    model, X = residual
    y = classes(model, X)
    a, b = (CausalPaths(share=1.0, t_critical=1.0, fdr=1.0, batch_size=k).measure(model, X, y, 1) for k in (5, 100))
    assert [(e.source, e.target) for e in a.edges] == [(e.source, e.target) for e in b.edges]
    np.testing.assert_allclose([e.effect for e in a.edges], [e.effect for e in b.edges], rtol=1e-4)
    assert any(edge.skip for edge in a.edges)


class Odd(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.a, self.b, self.norm, self.f = nn.Linear(4, 4), nn.Linear(4, 4), nn.LayerNorm(4), forward

    def forward(self, x):
        return self.f(self, x)


def test_what_cannot_be_followed_is_refused_by_name():
    X, y = torch.randn(20, 4), np.arange(20) % 4

    def in_place(m, x):
        h = m.a(x)
        h.relu_()  # the result is thrown away, so that only the tensor itself knows
        return m.b(h)

    for forward, message in [
        (lambda m, x: m.b(m.norm(m.a(x))), "'layer_norm' stands between layers and mixes channels"),
        (lambda m, x: m.b(m.a(x).softmax(1)), "'softmax' stands between layers"),
        (lambda m, x: m.b(m.a(x) * m.a(x).sigmoid()), "'mul' stands between layers"),
        (lambda m, x: m.b(m.a(x).relu()).softmax(1), "the model ends in 'softmax' and returns (20, 4)"),
        (lambda m, x: (m.a(x), m.b(x)), "the model returned 'tuple'"),
        (lambda m, x: m.a(x), "no hidden layer"),
        (lambda m, x: m.b(m.a(x).relu() + torch.rand(4)), "it draws at random"),
        (in_place, "changes tensors in place"),
    ]:
        with pytest.raises(BadInput, match=re.escape(message)):
            CausalPaths().measure(Odd(forward), X, y, 0)
    model = sequential(sizes=(4, 5, 3))
    bad = X.clone()
    bad[3, 1] = torch.nan
    for problem, message in [
        ((bad, y, 0), "input 3 holds NaN"),
        ((X, y[:-1], 0), "inputs of shape (20, 4) and classes of shape (19,)"),
        ((X, y, 3), "the model has 3 classes; there is no class 3"),
        ((X, np.where(np.arange(20) == 0, 0, 1), 0), "class 0 has 1 inputs"),
    ]:
        with pytest.raises(BadInput, match=re.escape(message)):
            CausalPaths().measure(model, *problem)
    with pytest.raises(UnknownName, match="'median'"):
        CausalPaths(reference="median").measure(model, X, y, 0)
    for setting, message in (({"share": 0}, "'share' lies above 0"), ({"batch_size": 0}, "'batch_size' is at least 1")):
        with pytest.raises(BadInput, match=message):
            CausalPaths(**setting).measure(model, X, y, 0)
    graph = CausalPaths().measure(model, X, y, 0)
    with pytest.raises(UnknownName, match="no layer is called 'fc'"):
        graph.units("fc")
    with pytest.raises(BadInput, match="'0' has 5 units; there is no unit 5"), graph.ablated([("0", 5)]):
        pass
    with pytest.raises(BadInput, match="a map needs images"):
        graph.map(X)


def test_log_softmax_at_the_end_and_arrays_are_taken_as_they_are():
    model = sequential(sizes=(4, 5, 3))
    X, y = rows(model, 60, 4)
    plain = CausalPaths().measure(model, X, y, 1)
    ended = CausalPaths().measure(nn.Sequential(*model, nn.LogSoftmax(1)), X.numpy(), y.numpy(), 1)
    assert [(e.source, e.effect) for e in plain.edges] == [(e.source, e.effect) for e in ended.edges]


def test_progress_is_told():
    told = []
    model = sequential(sizes=(4, 5, 3))
    CausalPaths().measure(model, *rows(model, 60, 4), 1, progress=lambda what, done: told.append((what, done)))
    assert told[0] == ("means of units", 0.0) and told[-1] == ("done", 1.0)
    assert [done for _, done in told] == sorted(done for _, done in told)


def test_the_picture_of_a_filter_is_what_it_is_most_active_at():
    X, y, _ = spotted()
    graph = CausalPaths().measure(spotter(), X, y, 1)
    crop = graph.crops(X, graph.units())["0", 0]
    assert crop.shape == (1, 3, 3)
    assert crop[0, 1, 1] == 3.0 and np.abs(crop).sum() < 3.5


def figures(html):
    found = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', html, re.DOTALL)
    return [json.loads(text) for text in found]


def pixels(address):
    """The bytes (h, w, 3) of a PNG image, read by a library."""
    image = pytest.importorskip("PIL.Image")
    return np.asarray(image.open(io.BytesIO(b64decode(address.partition(",")[2]))))


def test_the_page_draws_the_graph_and_lays_maps_over_images(tmp_path, residual):
    model, X = residual
    y = classes(model, X)
    graph = CausalPaths(share=1.0, t_critical=1.0, fdr=1.0).measure(model, X, y, 1)
    own = X[y == 1]
    other = np.zeros((len(own), 8, 8))
    other[:, 2, 5] = 1.0
    write_page(
        graph,
        tmp_path / "page.html",
        class_name="<b>cat",
        images=own,
        maps={"peer": other},
        stability={"noise": 0.875},
    )
    html = (tmp_path / "page.html").read_text()
    assert "&lt;b&gt;cat" in html and "<b>cat" not in html and "0.875" in html
    drawing, losses = figures(html)
    lines = [trace for trace in drawing["data"] if trace["mode"] == "lines"]
    widths = [trace["line"]["width"] for trace in lines]
    into_class = [e.share for e in graph.edges if e.target == graph.root]
    assert len([trace for trace in lines if trace["y"][-1] == 0.0]) == min(len(into_class), 40)
    assert max(widths) == pytest.approx(6.7) and any(trace["line"]["dash"] == "dot" for trace in lines)
    units = drawing["data"][-2]
    assert len(units["x"]) == sum(min(10, len(graph.units(layer))) for layer in graph.layers)
    by_name = {trace["name"]: trace["x"] for trace in losses["data"]}
    assert by_name["without them"] == pytest.approx([check.without for check in graph.checks[::-1]], abs=1e-4)
    addresses = re.findall(r'<img src="([^"]+)"', html)
    shown = min(8, len(own))
    assert len(addresses) == 3 * shown
    marked = pixels(addresses[2 * shown])
    assert marked.shape == (8, 8, 3) and marked[2, 5].tolist() == [255, 122, 40]
    grey = own[0, 0].double().numpy()
    assert np.corrcoef(pixels(addresses[0])[..., 0].ravel(), grey.ravel())[0, 1] > 0.999


def test_a_page_that_cannot_be_drawn_is_refused(tmp_path):
    X, y, _ = spotted()
    graph = CausalPaths().measure(spotter(), X, y, 1)
    with pytest.raises(BadInput, match=re.escape("'peer' have shape (60, 3, 3)")):
        write_page(graph, tmp_path / "page.html", images=X, maps={"peer": np.zeros((60, 3, 3))})
    with pytest.raises(BadInput, match="images have four axes"):
        write_page(graph, tmp_path / "page.html", images=X[:, 0])
    with pytest.raises(BadInput, match="no edges"):
        write_page(replace(graph, edges=()), tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


def test_the_card_says_that_it_is_in_the_spirit_of_the_paper():
    card = find("causal_paths")
    assert (card.kind, card.room, card.load()) == ("measure", "inside", CausalPaths)
    assert card.differs.startswith("In the spirit of the paper")


def test_the_claim_runs_in_small():
    try:
        found = claims.run("causal_paths")
    except (DataMissing, MissingExtra) as error:
        pytest.skip(str(error))
    assert 0 < found.ours <= 1
    trained = found.numbers["Networks"][0]
    assert trained["conflicting"] < 0.6 < trained["clean"]  # the shortcut was learned
    every = next(row for row in found.numbers["Patch filters"] if row["method"] == "all of them")
    assert every["patch filters held"] == 1.0
