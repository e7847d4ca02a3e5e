"""Findings: what is planted is found where it was planted, once, and what is clean is called clean."""

from __future__ import annotations

import numpy as np
import pytest

from farout.inside import Cost, diagnose, record
from farout.inside.diagnosis import KINDS
from farout.inside.findings import _common, residual_sinks
from farout.inside.quantization_cost import REMEDIES, SCHEMES

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

T, D, LAYERS, HEADS = 40, 64, 4, 4


class Attention(nn.Module):
    """Causal; ``sink`` is added to the logits of a head and key."""

    def __init__(self):
        super().__init__()
        self.qkv, self.o, self.sink = nn.Linear(D, 3 * D), nn.Linear(D, D), None

    def forward(self, x):
        B, T, _ = x.shape
        q, k, v = (part.view(B, T, HEADS, -1).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        mask = torch.full((1, HEADS, T, T), -torch.inf).triu(1)
        if self.sink is not None:
            head, key = self.sink
            mask[:, head, key:, key] += 9.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(D), Attention(), nn.LayerNorm(D)
        self.up, self.down = nn.Linear(D, 4 * D), nn.Linear(4 * D, D)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.blocks, self.norm = (
            nn.Embedding(100, D),
            nn.ModuleList(Block() for _ in range(LAYERS)),
            nn.LayerNorm(D),
        )

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def found(net, *kinds, costs=()):
    """The findings of some kinds, or all, of a net on the same three batches."""
    batches = torch.randint(0, 100, (3, 4, T), generator=torch.Generator().manual_seed(1))
    findings = diagnose(record(net.eval(), batches), costs)
    return [one for one in findings if not kinds or one.kind in kinds]


def add(net, layer, change):
    """Change what a block gives."""
    net.blocks[layer].register_forward_hook(lambda module, args, out: change(out.clone()))


def at(position, channel, value):
    def change(x):
        x[:, position, channel] += value
        return x

    return change


def test_a_clean_model_has_no_finding():
    assert found(Net()) == []


def test_a_massive_activation_is_found_at_its_channel_position_and_layers():
    net = Net()
    add(net, 1, at(5, 17, 30_000.0))
    add(net, 3, at(5, 17, -30_000.0))
    one, *others = found(net, "massive activation", "spike", "residual sink", "outlier channel", "beyond float16")
    assert not others
    assert (one.kind, one.where) == ("massive activation", "blocks.1.out")
    assert one.evidence["channels"] == [17]
    assert one.evidence["positions"] == [5]
    assert one.evidence["layers"] == [1, 2]
    assert one.evidence["peaks"][0] == pytest.approx(30_000, rel=1e-3)
    assert one.evidence["share of tokens"] == pytest.approx(1 / T, rel=0.01)
    assert "layer 1 writes it, and from layer 3 on none is left" in one.says
    assert one.recipe == "rtn"
    assert one.gain is None


def test_the_life_of_an_outlier_names_the_rows_that_write_and_remove_it():
    net = Net()
    token = 42
    net.embed.weight.data[:, 0] = 0.0
    net.embed.weight.data[token, 0] = 30.0  # says which token it is
    for layer, size in ((1, 60_000.0), (3, -60_000.0)):
        block = net.blocks[layer]
        block.norm2 = nn.Identity()  # so that the mark is seen
        block.up.weight.data[7] = 0.0
        block.up.weight.data[7, 0], block.up.bias.data[7] = 1.0, -20.0
        block.down.weight.data[33, 7] = size / 10
    batches = torch.randint(0, 41, (3, 4, T), generator=torch.Generator().manual_seed(1))
    batches[..., 6] = token
    (one,) = [one for one in diagnose(record(net.eval(), batches)) if one.kind == "life cycle"]
    assert (one.evidence["channel"], one.evidence["created"], one.evidence["removed"]) == (33, 1, 3)
    assert ["blocks.1.down.weight", 33] in one.evidence["writers"]
    assert ["blocks.3.down.weight", 33] in one.evidence["cancellers"]


def test_what_stands_at_one_token_of_one_layer_is_a_spike_and_no_channel():
    net = Net()
    add(net, 2, at(0, 3, -30_000.0))
    add(net, 3, at(0, 3, 30_000.0))
    kinds = "massive activation", "spike", "residual sink", "outlier channel", "weight line", "attention sink"
    (one,) = found(net, *kinds)
    assert (one.kind, one.evidence["channels"], one.evidence["layers"]) == ("spike", [3], [2])
    assert "the first token in layer 2" in one.says


def test_two_separate_massive_activations_are_two_findings():
    net = Net()
    for layer, sign in ((0, 1), (1, -1), (2, 1)):
        add(net, layer, at(7, 9, sign * 40_000.0))
    massive, spike = found(net, "massive activation", "spike")
    assert (massive.kind, massive.evidence["layers"]) == ("massive activation", [2, 3])
    assert (spike.kind, spike.evidence["layers"]) == ("spike", [0])


def test_a_channel_that_is_large_at_all_tokens_is_a_sink_and_not_massive():
    net = Net()

    def change(x):
        x[..., 40] += 900.0
        return x

    add(net, 1, change)
    one, *others = found(net, "massive activation", "spike", "residual sink", "beyond float16")
    assert (one.kind, one.evidence["channels"], not others) == ("residual sink", [40], True)
    assert one.evidence["layers"] == [[(1, 3)]]
    assert one.evidence["share of tokens"][0] == pytest.approx(1, abs=0.01)


def test_a_sink_with_a_massive_token_counts_ordinary_tokens_only():
    x = torch.ones(1000, 8)
    x[0, 2] = 5_000.0  # adds 5 to the mean of its channel
    x[:, 4] = 30.0
    ratio = residual_sinks.ordinary_ratio(record(nn.Linear(8, 8), [x])[".in"])
    assert ratio[2] == pytest.approx(1, abs=0.01)
    assert ratio[4] == pytest.approx(30)


def test_an_outlier_column_is_found_in_every_layer():
    net = Net()
    for block in net.blocks:
        block.norm1.weight.data[29] = block.norm2.weight.data[29] = 40.0
    (one,) = found(net, "outlier channel")
    assert one.evidence == {"channels": [29], "layers": [[0, 1, 2, 3]]}
    assert one.size == 4  # all layers, a quarter of them asked


def test_a_column_of_one_map_is_found_there():
    net = Net()
    net.blocks[2].up.bias.data[100] = 50.0
    (one,) = found(net, "outlier channel")
    assert one.evidence == {"sites": ["blocks.2.down.in"], "channels": [[100]]}


def test_an_outlying_row_and_column_of_a_weight_are_found():
    net = Net()
    net.blocks[1].down.weight.data[21] *= 30
    net.blocks[3].up.weight.data[:, 8] *= 30
    (one,) = found(net, "weight line")
    lines = {(site, word, place): ratio for site, word, place, ratio in one.evidence["lines"]}
    assert set(lines) == {("blocks.1.down.weight", "row", 21), ("blocks.3.up.weight", "column", 8)}
    weight = net.blocks[1].down.weight.detach().double().abs().mean(1)
    assert lines["blocks.1.down.weight", "row", 21] == pytest.approx(float(weight[21] / weight.median()), rel=0.02)


def test_a_single_weight_is_found():
    net = Net()
    weight = net.blocks[0].down.weight.data
    weight[12, 200] = 500 * weight.abs().mean()
    (one,) = found(net, "single weight")
    assert [each[:2] for each in one.evidence["weights"]] == [["blocks.0.down.weight", 200]]
    row, column = weight[12].abs(), weight[:, 200].abs()
    assert one.size * 100 == pytest.approx(float(weight[12, 200] / min(row.mean(), column.mean())), rel=1e-5)


@pytest.mark.parametrize("key", [0, 6])
def test_a_sink_head_is_found(key):
    net = Net()
    net.blocks[2].attention.sink = (1, key)
    (one,) = found(net, "attention sink")
    assert one.evidence["heads"] == [["blocks.2.attention.probs", 1]]
    assert (one.evidence["positions"], one.evidence["layers"]) == ([key], [2])
    assert one.evidence["share of heads"] == 1 / (LAYERS * HEADS)


def test_even_attention_is_no_sink_however_short_the_sequence():
    net = Net()
    for length in (2, 5, 9):
        recording = record(net.eval(), [torch.randint(0, 100, (6, length))])
        assert not [one for one in diagnose(recording) if one.kind == "attention sink"]


def test_dead_and_saturated_units_are_found():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 50), nn.ReLU(), nn.Linear(50, 50), nn.Sigmoid(), nn.Linear(50, 2))
    net[0].bias.data[[4, 30]] = -100.0
    net[2].bias.data[[7]] = 100.0
    findings = {one.kind: one for one in diagnose(record(net, [torch.randn(200, 8)]))}
    assert findings["dead units"].evidence["units"] == {"2.in": [4, 30]}
    assert findings["saturated units"].evidence["units"]["4.in"] == [7]


def test_a_channel_below_zero_is_not_dead_unless_an_activation_stands_before_it():
    x = torch.randn(100, 8)
    x[:, 3] = -0.1 * torch.rand(100)
    assert not [one for one in diagnose(record(nn.Linear(8, 8), [x])) if one.kind == "dead units"]
    assert [one for one in diagnose(record(nn.Linear(8, 8), [F.gelu(x)])) if one.kind == "dead units"]


def test_patterns_of_rows_and_columns():
    torch.manual_seed(0)
    x = torch.randn(400, 100)
    rows, columns = x.clone(), x.clone()
    rows[[3, 50, 200]] *= 40
    columns[:, [5, 70]] *= 40
    kinds = {}
    for word, data in (("none", x), ("row", rows), ("column", columns)):
        kinds[word] = [one.kind for one in diagnose(record(nn.Linear(100, 100), [data])) if "pattern" in one.kind]
    assert kinds == {"none": [], "row": ["row pattern"], "column": ["column pattern"]}


def test_rows_of_one_variance_do_not_make_columns_of_noise():
    from farout.inside.findings.patterns import pattern_of

    torch.manual_seed(0)
    x = F.layer_norm(torch.randn(500, 200), (200,))  # behind a norm: the score of rows is 0, that of columns 1
    pattern, score = pattern_of(record(nn.Linear(200, 2), [x])[".in"])
    assert (pattern, score) == ("none", pytest.approx(1, abs=0.15))


def test_kernels_of_depthwise_convolutions_have_no_columns():
    torch.manual_seed(0)
    net = nn.Conv2d(64, 64, 3, groups=64)
    net.weight.data[:, :, 1, 1] *= 30  # the middle of a kernel is no input channel
    assert not [one for one in diagnose(record(net, [torch.randn(2, 64, 9, 9)])) if one.kind == "weight line"]


def test_values_that_are_no_numbers_come_first_and_where_they_began():
    net = Net()
    add(net, 1, at(4, 11, float("nan")))
    first = found(net)[0]
    assert first.kind == "not a number"
    assert (first.where, first.evidence["channel"], first.evidence["positions"]) == ("blocks.1.out", 11, [4])
    assert first.evidence["sites"]["blocks.1.out"] == 12


def test_values_beyond_half_precision():
    net = Net()
    add(net, 3, at(0, 5, 90_000.0))
    (one,) = found(net, "beyond float16")
    assert one.size == pytest.approx(90_000 / 65_504, rel=1e-3)
    assert "bfloat16" in one.remedy


def test_heavy_tails_name_the_kurtosis():
    torch.manual_seed(0)
    x = torch.randn(50, 200)
    x[:, 7] = 60.0
    (one,) = [one for one in diagnose(record(nn.Linear(200, 4), [x])) if one.kind == "heavy tail"]
    tokens = x.double().numpy()
    deviation = tokens - tokens.mean(1, keepdims=True)
    kurtosis = ((deviation**4).mean(1) / (deviation**2).mean(1) ** 2).mean()
    assert one.evidence["kurtosis"][".in"] == pytest.approx(kurtosis, rel=1e-6)


def costs_of(**left):
    """One map whose plain loss is 1 in every scheme, and what remedies leave of it (1 where not said)."""
    losses = {remedy: dict.fromkeys(SCHEMES, left.get(remedy.split()[0], 1.0)) for remedy in REMEDIES}
    plain = dict.fromkeys(SCHEMES, 1.0)
    return [Cost("blocks.1.down", "blocks.1.down.weight", (64, 256), plain, losses, plain, losses, True)]


def test_the_simplest_remedy_that_does_as_well_is_named_with_its_gain():
    among = ("smoothquant", "rotation", "outlier columns in 16 bits")
    words, recipe, gain = _common.best_remedy(costs_of(smoothquant=0.12, rotation=0.1), "w8a8", among, "rotation")
    assert (recipe, gain) == ("smoothquant", 0.12)
    assert "leave 12% of the cost at w8a8" in words
    words, recipe, gain = _common.best_remedy(costs_of(smoothquant=0.3, rotation=0.1), "w8a8", among, "rotation")
    assert (recipe, gain) == ("quarot", 0.1)
    words, recipe, gain = _common.best_remedy(costs_of(), "w8a8", among, "rotation")
    assert (recipe, gain) == ("", 1.0)
    assert "None of the remedies" in words


def test_rounding_that_costs_nothing_is_said_to_be_enough_and_stands_last():
    net = Net()
    net.blocks[1].down.weight.data[21] *= 30
    cheap = [
        Cost(
            one.layer, one.weight, one.shape, one.errors, one.remedies, dict.fromkeys(SCHEMES, 1e-4), one.remedies, True
        )
        for one in costs_of()
    ]
    findings = found(net, costs=cheap)
    assert [one.kind for one in findings][-3:] == ["rounding cost"] * 3
    assert findings[-1].remedy == "Plain rounding is enough."
    dear = found(net, "rounding cost", costs=costs_of(rotation=0.2))
    assert {one.gain for one in dear} == {0.2}
    assert "1 nats a token (perplexity times 2.72)" in dear[0].says
    assert dear[0].evidence["worst"] == [["blocks.1.down", 1.0]]


def test_costs_that_are_no_numbers_are_left_out():
    nan = dict.fromkeys(SCHEMES, float("nan"))
    lost = Cost("blocks.0.up", "blocks.0.up.weight", (256, 64), nan, dict.fromkeys(REMEDIES, nan))
    (dear, *_) = found(Net(), "rounding cost", costs=[lost, *costs_of(rotation=0.2)])
    assert dear.evidence["worst"] == [["blocks.1.down", 1.0]]
    assert not found(Net(), "rounding cost", costs=[lost])


def test_every_kind_is_in_the_order_of_kinds_and_findings_are_sorted_by_it():
    net = Net()
    add(net, 1, at(5, 17, 90_000.0))
    net.blocks[1].down.weight.data[21] *= 30
    findings = found(net, costs=costs_of())
    places = [list(KINDS).index(one.kind) for one in findings]
    assert places == sorted(places)
    assert all(np.isfinite(one.size) for one in findings)
