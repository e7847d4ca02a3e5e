"""The recorder: equal to keeping everything, blind to order and split of batches, and without a trace in the model."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from types import ModuleType

import numpy as np
import pytest

from farout.errors import BadInput, NothingMatched, UnknownName
from farout.inside import Recording, record
from farout.inside._accumulators import ChannelStats
from farout.io.state import write_state
from naive import recorder as naive

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402


class RMSNorm(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.rand(d) + 0.5), 1e-6

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon) * self.weight


class Attention(nn.Module):
    """Fused and causal, or written out."""

    def __init__(self, d, heads, fused):
        super().__init__()
        self.heads, self.fused = heads, fused
        self.q, self.k, self.v, self.o = (nn.Linear(d, d) for _ in range(4))

    def split(self, x):
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def forward(self, x):
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            y = F.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1) @ v
        return self.o(y.transpose(1, 2).flatten(2))


class LlamaBlock(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.norm1, self.attention, self.norm2 = RMSNorm(d), Attention(d, heads, True), RMSNorm(d)
        self.up, self.gate, self.down = nn.Linear(d, 3 * d), nn.Linear(d, 3 * d), nn.Linear(3 * d, d)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        h = self.norm2(x)
        return (x + self.down(F.silu(self.gate(h)) * self.up(h)),)  # a tuple, as in transformers


class Llama(nn.Module):
    def __init__(self, d=16, heads=4, layers=2, tied=True):
        super().__init__()
        self.embed = nn.Embedding(50, d)
        self.layers = nn.ModuleList(LlamaBlock(d, heads) for _ in range(layers))
        self.norm, self.head = RMSNorm(d), nn.Linear(d, 50, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, input_ids, attention_mask=None):
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x)[0]
        return {"logits": self.head(self.norm(x))}


class BertBlock(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.attention, self.norm1 = Attention(d, 2, False), nn.LayerNorm(d)
        self.up, self.down, self.norm2 = nn.Linear(d, 4 * d), nn.Linear(4 * d, d), nn.LayerNorm(d)

    def forward(self, x):
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


@dataclasses.dataclass
class Output:
    last: torch.Tensor
    pooled: torch.Tensor


class Bert(nn.Module):
    def __init__(self, d=12):
        super().__init__()
        self.embed, self.norm = nn.Embedding(50, d), nn.LayerNorm(d)
        self.layer = nn.ModuleList(BertBlock(d) for _ in range(2))

    def forward(self, input_ids):
        x = self.norm(self.embed(input_ids))
        for layer in self.layer:
            x = layer(x)
        return Output(x, x[:, 0])


class ViT(nn.Module):
    def __init__(self, d=16):
        super().__init__()
        self.patch = nn.Conv2d(3, d, 4, 4)
        self.blocks = nn.Sequential(BertBlock(d), BertBlock(d))
        self.head = nn.Linear(d, 5)

    def forward(self, x):
        return self.head(self.blocks(self.patch(x).flatten(2).transpose(1, 2)).mean(1))


class ConvBlock(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(d), nn.Conv2d(d, d, 3, padding=1)

    def forward(self, x):
        return x + self.conv(F.relu(self.norm(x)))


def words(n, length=11):
    return torch.randint(0, 50, (n, length))


def mlp():
    return nn.Sequential(nn.Linear(7, 20), nn.LayerNorm(20), nn.ReLU(), nn.Linear(20, 9), nn.ReLU(), nn.Linear(9, 2))


def conv():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(ConvBlock(8), ConvBlock(8)), nn.AdaptiveAvgPool2d(1))


# each: model, a batch of n, names of sites, and whether their channels stand behind the batch
ZOO = {
    "llama": (Llama, words, ["layers.0.norm1.out", "layers.0.down.in", "layers.1.in", "layers.1.out", "norm.in"], ()),
    "bert": (Bert, words, ["layer.0.in", "layer.0.norm1.in", "layer.1.down.in", "layer.1.out"], ()),
    "vit": (ViT, lambda n: torch.randn(n, 3, 8, 12), ["patch.in", "blocks.1.up.in", "blocks.0.out"], {"patch.in"}),
    "mlp": (mlp, lambda n: torch.randn(n, 7) + 5, ["0.in", "1.in", "1.out", "3.in", "5.in"], ()),
    "conv": (
        conv,
        lambda n: torch.randn(n, 3, 9, 7),
        ["0.in", "1.0.in", "1.1.norm.out", "1.0.conv.in", "1.1.out"],
        {"0.in", "1.0.in", "1.1.norm.out", "1.0.conv.in", "1.1.out"},
    ),
}


def made(name, seed=0):
    torch.manual_seed(seed)
    model, batch, places, behind = ZOO[name]
    return model().eval(), batch(6), places, behind


def assert_equal(stats, expected):
    """Each array to 1e-6 of what its moments are made of: sums of signed powers are measured by those of unsigned."""
    spread = np.sqrt(expected["m2"] / expected["count"])
    n = expected["count"]
    scale = {"mean": np.hypot(expected["mean"], spread), "m3": n * spread**3 + expected["m4"] ** 0.75 * n**0.25}
    for word, values in expected.items():
        got = getattr(stats, word)
        assert got.shape == values.shape, word
        assert np.all(np.abs(got - values) <= 1e-6 * scale.get(word, np.abs(values))), word


@pytest.mark.parametrize("name", ZOO)
def test_equals_keeping_everything_in_any_order_and_split(name):
    model, whole, places, behind = made(name)
    for batches in ([whole], [whole[4:], whole[:1], whole[1:4]], list(whole.split(1))):
        kept = naive.Everything(model, places)  # anew for each split: the model itself rounds by the size of a batch
        with torch.no_grad():
            for batch in batches[::-1]:
                model(batch)
        kept.close()
        recording = record(model, batches)
        for place in places:
            rows, positions = naive.laid_out(kept.kept[place], place in behind)
            positions = positions if kept.kept[place][0].ndim > 2 else positions * 0
            stats = recording[place]
            assert_equal(stats, naive.facts(rows, positions))
            assert stats.kurtosis == pytest.approx(naive.kurtosis(rows), rel=1e-6)
            for word, value in naive.row_facts(rows).items():
                # a score divides a spread of variances by their mean: where they hardly differ, the mean sets the scale
                scale = np.sqrt(np.array(rows.shape[::-1]) / 2) if word == "pattern" else 0.0
                assert np.all(np.abs(np.subtract(getattr(stats, word), value)) <= 1e-6 * np.maximum(value, scale)), word
            np.testing.assert_allclose(stats.spread, [naive.spread(column) for column in rows.T], rtol=1e-6)
            for peak, position, channel in stats.peaks():
                assert np.any(np.abs(rows[positions == position][:, channel]) == peak)
            for share in (0.1, 0.5, 0.99):
                exact = np.quantile(np.abs(rows), share, method="inverted_cdf")
                assert stats.quantile(share) == pytest.approx(exact, rel=1 / 32, abs=1e-30)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_attention_is_seen_fused_and_written_out(name):
    model, batch, *_ = made(name)
    blocks = model.layers if name == "llama" else model.layer
    attention = blocks[1].attention
    path = f"{'layers' if name == 'llama' else 'layer'}.1.attention"
    kept = naive.Everything(model, [f"{path}.q.out", f"{path}.k.out", f"{path}.v.out"])
    with torch.no_grad():
        model(batch)
    kept.close()
    recording = record(model, batch.split(2))
    q, k, v = (np.concatenate(kept.kept[f"{path}.{word}.out"]) for word in "qkv")
    for word, x in zip("qkv", (q, k, v)):
        assert_equal(recording[f"{path}.{word}"], naive.facts(*naive.laid_out([x], False)))
    heads = [attention.split(torch.from_numpy(x)).numpy() for x in (q, k)]
    mask = np.tril(np.ones((11, 11), bool)) if name == "llama" else np.ones((11, 11), bool)
    probs = naive.attention(*heads, mask)
    stats = recording[f"{path}.probs"]
    np.testing.assert_allclose(stats.mass, probs.sum((0, 2)), rtol=1e-5)
    np.testing.assert_allclose(stats.share.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(stats.high, probs.max((0, 2, 3)), rtol=1e-5)


def test_of_many_queries_some_are_taken_in_pieces():
    from farout.inside._attention import attention_sums, fused_probs
    from farout.inside._attention_stats import AttentionStats

    q, k = torch.randn(2, 4, 640, 8), torch.randn(2, 2, 900, 8)  # two heads share a key, and queries need pieces
    bias = torch.randn(640, 900)
    stats = AttentionStats.of(*attention_sums(fused_probs(q, k, bias, False, 0.1), None))
    probs = (q.double() @ k.double().repeat_interleave(2, 1).mT * 0.1 + bias).softmax(-1)[:, :, 5::10]
    np.testing.assert_allclose(stats.mass, probs.sum((0, 2)).numpy(), rtol=1e-5)
    np.testing.assert_allclose(stats.high, probs.amax((0, 2, 3)).numpy(), rtol=1e-5)
    assert stats.queries.tolist() == [128] * 900


def test_planted_outliers_are_where_they_were_planted():
    torch.manual_seed(1)
    model = Llama(layers=3, tied=False).eval()
    with torch.no_grad():
        model.layers[1].norm2.weight[5] *= 300  # a channel of the output of a norm
        model.layers[2].up.weight[7] *= 500  # a row of a weight: the channel of what enters `down`
        model.embed.weight[49] = 0
        model.embed.weight[49, 3] = 1e4  # a token
    ids = torch.randint(0, 49, (4, 10))
    ids[2, 6] = 49
    recording = record(model, [ids])
    assert recording["layers.1.norm2.out"].absmax.argmax() == 5
    assert recording["layers.0.in"].peaks(1) == [(1e4, 6, 3)]
    assert recording["layers.2.up.weight"].peaks(1)[0][1] == 7
    assert recording["layers.2.down.in"].absmax.argmax() == 7
    table = recording.table()
    row = table.filter(table["site"] == "layers.0.in").row(0, named=True)
    assert (row["peak"], row["channel"], row["position"]) == (1e4, 3, 6)
    assert record(model, [ids[:, :6]])["layers.0.in"].high.max() < 10


@pytest.mark.parametrize("name", ZOO)
def test_outputs_keep_every_bit_and_no_hook_stays(name):
    model, batch, *_ = made(name)

    def flat(output):
        return output["logits"] if isinstance(output, dict) else getattr(output, "last", output)

    seen = []
    with torch.no_grad():
        before = flat(model(batch))
    record(model, [batch], forward=lambda model, batch: seen.append(flat(model(batch))))
    assert torch.equal(before, seen[0])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_hooks_go_after_an_error_and_a_failed_batch_leaves_nothing():
    model, batch, *_ = made("mlp")
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        record(model, [batch, torch.randn(2, 8)])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.overrides._get_current_function_mode() is None


def test_out_of_memory_halves_the_batch_and_counts_nothing_twice():
    model, batch, *_ = made("mlp")

    def scarce(model, batch):
        output = model(batch)
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return output

    with pytest.warns(UserWarning, match="a batch of [63] did not fit"):
        recording = record(model, [batch], forward=scarce)
    expected = record(model, [batch])
    assert recording["0.in"].count.tolist() == [6] * 7
    np.testing.assert_allclose(recording["5.in"].m4, expected["5.in"].m4, rtol=1e-5)
    assert any("was halved" in note for note in recording.notes)

    def never(model, batch):
        raise MemoryError

    with pytest.raises(BadInput, match="one sample alone"), pytest.warns(UserWarning):
        record(model, [batch], forward=never)


def test_nan_and_infinity_are_counted_with_their_place():
    x = torch.randn(3, 5, 4)
    x[1, 2, 0], x[2, 4, 0], x[0, 2, 3] = float("nan"), float("inf"), -float("inf")
    x[:, :, 1] = float("nan")
    stats = ChannelStats.of(x.view(-1, 4), 5)
    rows, positions = naive.laid_out([x.double().numpy()], False)
    assert stats.count.tolist() == [13, 0, 15, 14]
    assert (stats.nan.tolist(), stats.infinite.tolist()) == ([1, 15, 0, 0], [1, 0, 0, 1])
    assert stats.position_bad.tolist() == [3, 3, 5, 3, 4]
    others = [0, 2, 3]
    expected = naive.facts(rows[:, others], positions)
    expected["position_bad"] += 3  # those of the channel that has no number
    words = ("count", "mean", "m2", "m3", "m4", "low", "high", "magnitude", "large", "nan", "infinite")
    assert_equal(dataclasses.replace(stats, **{word: getattr(stats, word)[others] for word in words}), expected)
    assert stats.histogram.sum() == 42
    merged = stats.merge(stats)
    assert merged.absmax[1] == 0 and np.isfinite(merged.m4).all()


def test_facts_about_tokens_leave_out_what_has_none():
    torch.manual_seed(0)
    x = torch.randn(300, 40) * 4
    x[7, 3], x[9, 1], x[11], x[13] = float("nan"), float("inf"), 5.0, 0.0
    expected = naive.row_facts(x.double().numpy())
    expected.pop("pattern")  # the variances of columns count every finite value, also those in rows that are left out
    whole = ChannelStats.of(x)
    parts = [ChannelStats.of(part) for part in x.split([1, 99, 150, 50])]
    for stats in (whole, parts[3].merge(parts[1]).merge(parts[0].merge(parts[2]))):
        for word, value in expected.items():
            assert getattr(stats, word) == pytest.approx(value, rel=1e-6), word
    nothing = ChannelStats.of(torch.zeros(3, 4))
    assert np.isnan(nothing.token_kurtosis) and np.isnan(nothing.token_ratio) and nothing.spread.tolist() == [1.0] * 4


def test_large_values_persistent_channels_and_patterns_are_told_apart():
    torch.manual_seed(0)
    x = torch.randn(400, 64)
    both = ChannelStats.of(x).pattern
    assert both == pytest.approx((1, 1), abs=0.15)
    always, once, rows = x.clone(), x.clone(), x.clone()
    always[:, 5] += 50.0
    once[3, 9] = 6.0
    rows[[2, 90], :] *= 40
    assert ChannelStats.of(always).large.tolist() == [400 * (c == 5) for c in range(64)]
    assert ChannelStats.of(once).large.tolist() == [int(c == 9) for c in range(64)]
    once[3, 9] = 5e3
    assert ChannelStats.of(always).spread[5] > 0.99
    assert ChannelStats.of(once).spread[9] == pytest.approx(1 / 400, rel=1e-3)
    assert ChannelStats.of(x).spread == pytest.approx(np.full(64, 1 / 3), abs=0.15)
    by_row, by_column = ChannelStats.of(rows).pattern
    assert by_row > 50 and by_row > 2 * by_column
    by_row, by_column = ChannelStats.of(rows.T.contiguous()).pattern
    assert by_column > 50 and by_column > 2 * by_row


def test_of_many_rows_a_sixteenth_is_counted():
    torch.manual_seed(0)
    x = torch.randn(8192, 40)
    stats = ChannelStats.of(x)
    assert stats.histogram.sum() == pytest.approx(x.numel(), rel=0.05)
    for share in (0.01, 0.5, 0.999):
        assert stats.quantile(share) == pytest.approx(np.quantile(np.abs(x.numpy()), share), rel=0.08)
    x[np.arange(8192) % 128 == 0] += 1e4  # rows in step with anything would shift all columns by them
    assert_equal(ChannelStats.of(x), naive.facts(x.double().numpy(), np.zeros(8192, int)))


@pytest.mark.parametrize("common", [0.0, 1e-15, 1e12])
def test_columns_that_a_few_rows_misrepresent_are_done_again(common):
    x = torch.full((20_000, 2), common)
    x[7] += torch.tensor([3e20, 1.0])  # one row of many, which no choice of few is likely to contain
    stats, expected = ChannelStats.of(x), naive.facts(x.double().numpy(), np.zeros(20_000, int))
    for word in ("mean", "m2", "m4", "high"):
        np.testing.assert_allclose(getattr(stats, word), expected[word], rtol=1e-6, atol=1e-300, err_msg=word)


def test_powers_neither_vanish_nor_overflow():
    for scale in (1e-15, 1e12):
        x = torch.randn(400, 3) * scale + 50 * scale
        expected = naive.facts(x.double().numpy(), np.zeros(400, int))
        assert_equal(ChannelStats.of(x), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    x = (torch.randn(300, 4) * 3 + 1).to(dtype)
    assert_equal(ChannelStats.of(x), naive.facts(x.double().numpy(), np.zeros(300, int)))


def test_half_precision_models_and_autocast():
    model, batch, *_ = made("mlp")
    assert record(model.half(), [batch.half()])["5.in"].count[0] == 6
    with torch.autocast("cpu", dtype=torch.bfloat16):
        recording = record(model.float(), [batch])
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        exact = model[:5](batch).double().numpy()
    np.testing.assert_allclose(recording["5.in"].absmax, np.abs(exact).max(0), rtol=1e-12)


def test_padding_is_left_out():
    model, ids, *_ = made("llama")
    mask = torch.ones_like(ids)
    mask[0, 7:], mask[3, 5:] = 0, 0
    stats = record(model, [{"input_ids": ids, "attention_mask": mask}])
    x = model.embed(ids).detach().double().numpy()
    kept = mask.bool().numpy()
    positions = np.broadcast_to(np.arange(11), (6, 11))[kept]
    assert_equal(stats["layers.0.in"], naive.facts(x[kept], positions))
    assert stats["layers.0.attention.q"].count[0] == mask.sum()
    assert stats["layers.0.attention.probs"].queries[0] == mask.sum()


def test_shared_tensors_and_weights_are_recorded_once_under_all_names():
    model, ids, *_ = made("llama")
    recording = record(model, [(ids,)])
    assert recording.aliases["layers.0.attention.k.in"] == "layers.0.norm1.out"
    assert recording.aliases["layers.1.in"] == "layers.0.out"
    assert recording.aliases["head.weight"] == "embed.weight"
    assert recording["head.weight"] is recording["embed.weight"]
    assert "head.weight" not in recording.stats and "head.weight" in recording
    assert_equal(
        recording["head.weight"],
        naive.facts(model.head.weight.detach().double().numpy(), np.arange(50)),
    )


def test_modules_called_twice_or_never_are_said():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.again, self.idle = nn.Linear(4, 4), nn.Linear(4, 4)
            self.also = self.again

        def forward(self, x):
            return self.again(torch.relu(self.again(x)))

    torch.manual_seed(0)
    model, x = Odd(), torch.randn(5, 4)
    recording = record(model, [x])
    rows = torch.cat([x, torch.relu(model.again(x))]).detach().double().numpy()
    assert_equal(recording["again.in"], naive.facts(rows, np.zeros(10, int)))
    assert recording["also.in"] is recording["again.in"]
    assert recording.aliases["also.weight"] == "again.weight"
    notes = " | ".join(recording.notes)
    assert "'idle' is never called" in notes
    assert "'again.in' is passed 2 times a batch" in notes
    assert "training mode" in notes
    assert record(nn.ReLU().eval(), [x]).notes == ["the model has no linear map and no convolution"]


def test_gradients_and_moments():
    torch.manual_seed(0)
    model, x = mlp(), torch.randn(8, 7)
    optimizer = torch.optim.Adam(model.parameters())
    model(x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    inner = model[:3](x).detach().requires_grad_()
    model[3:](inner).square().mean().backward()
    at_weight, at_input = model[3].weight.grad.clone(), inner.grad.clone()
    optimizer.zero_grad()
    recording = record(model, [x], loss=lambda output, batch: output.square().mean(), optimizer=optimizer)
    assert all(weight.grad is None for weight in model.parameters())
    zeros = np.zeros(8, int)
    assert_equal(recording["3.weight.grad"], naive.facts(at_weight.double().numpy(), np.arange(9)))
    assert_equal(recording["3.in.grad"], naive.facts(at_input.double().numpy(), zeros))
    frozen = nn.Linear(7, 2).requires_grad_(False)
    with pytest.raises(BadInput, match="the loss has no gradient"):
        record(frozen, [x], loss=lambda output, batch: output.sum())
    moment = optimizer.state[model[0].weight]["exp_avg_sq"].double().numpy()
    assert_equal(recording["0.weight.exp_avg_sq"], naive.facts(moment, np.arange(20)))
    assert recording.kinds["0.weight.exp_avg_sq"] == "moment"


def test_merge_equals_the_whole_and_other_weights_are_refused(tmp_path):
    model, ids, *_ = made("llama")
    whole, parts = record(model, ids.split(2)), [record(model, [part]) for part in ids.split(2)]
    merged = parts[2].merge(parts[0]).merge(parts[1])
    assert merged.batches == 3 and merged.calls == whole.calls and merged.aliases == whole.aliases
    for name, stats in whole.stats.items():
        for field in dataclasses.fields(stats):
            got, expected = getattr(merged[name], field.name), getattr(stats, field.name)
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max(initial=0))
    merged.save(tmp_path / "it.farout")
    back = Recording.load(tmp_path / "it.farout")
    assert back.notes == merged.notes and back.kinds == merged.kinds
    np.testing.assert_array_equal(back["norm.in"].m4, merged["norm.in"].m4)
    assert back.gathered() is back
    with pytest.raises(BadInput, match=r"differ in 'embed\.weight'"):
        whole.merge(record(made("llama", seed=1)[0], [ids]))
    write_state(tmp_path / "other.farout", {"a": 1})
    with pytest.raises(BadInput, match="holds a 'dict'"):
        Recording.load(tmp_path / "other.farout")


RANKS = """
import sys, torch
from torch import distributed, nn
from farout.inside import record
rank = int(sys.argv[2])
distributed.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=rank, world_size=2)
torch.manual_seed(0)
model, x = nn.Linear(3, 2), torch.arange(24.0).view(8, 3)
got = record(model, [x[4 * rank : 4 * rank + 4]]).gathered()[".in"]
print(*got.mean.tolist(), *got.m4.tolist(), got.count[0])
distributed.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_ranks_are_joined(tmp_path):
    command = [sys.executable, "-c", RANKS, str(tmp_path / "meet")]
    ranks = [subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, text=True) for rank in range(2)]
    said = [rank.communicate(timeout=100)[0].split() for rank in ranks]
    expected = naive.facts(np.arange(24.0).reshape(8, 3), np.zeros(8, int))
    for line in said:
        np.testing.assert_allclose([float(word) for word in line], [*expected["mean"], *expected["m4"], 8], rtol=1e-6)


def test_a_compiled_model_is_recorded_uncompiled():
    model, batch, *_ = made("mlp")
    recording = record(torch.compile(model), [batch])
    np.testing.assert_array_equal(recording["5.in"].high, record(model, [batch])["5.in"].high)


def test_memory_does_not_grow_with_batches():
    model = made("llama")[0]
    sizes = []
    for n in (2, 20):
        recording = record(model, (words(3) for _ in range(n)))
        fields = [getattr(s, f.name) for s in recording.stats.values() for f in dataclasses.fields(s)]
        top = sum(f.size for s in recording.stats.values() for f in [getattr(s, "top_channel", np.zeros(0))])
        sizes.append(sum(f.size for f in fields) - 2 * top)
    assert sizes[0] == sizes[1]


def test_choice_of_sites_and_wrong_names():
    model, ids, *_ = made("llama")
    only = record(model, [ids], where=["layers.1.*"], what=["residual", "output"])
    assert only.names("residual") == ["layers.1.in", "layers.1.out"]
    assert "layers.1.attention.o.out" in only.names("output")
    assert all(name.startswith("layers.1") for name in only.kinds)
    assert record(model, [], what=["weight"]).names(where="norm*") == ["norm.weight"]
    with pytest.raises(NothingMatched, match=r"no site matches 'layer\.0\.in'; nearest: 'layers\.0\.in'"):
        record(model, [ids], where="layer.0.in")
    with pytest.raises(UnknownName, match="kind of site"):
        record(model, [ids], what=["weights"])
    with pytest.raises(UnknownName, match="site of the recording"):
        only["layers.0.in"]


def test_importing_the_recorder_loads_no_torch():
    code = "import sys; from farout.inside import record; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_threads_add_up_the_same():
    torch.manual_seed(0)
    x = torch.randn(2000, 300) * torch.rand(300) + torch.randn(300)  # five pieces
    x[700, 4] = float("inf")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = ChannelStats.of(x, 500)
        torch.set_num_threads(3)
        three = ChannelStats.of(x, 500)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    for field in dataclasses.fields(one):
        a, b = getattr(one, field.name), getattr(three, field.name)
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12 * np.abs(a).max(initial=0))


def test_what_is_not_finite_is_reported_where_it_arises():
    model, ids, *_ = made("llama")
    with torch.no_grad():
        model.embed.weight[7] = 1.0
        model.layers[1].down.weight[3] = float("inf")
    ids[ids == 7] = 8
    recording = record(model, [ids])
    assert not recording["layers.1.norm1.out"].position_bad.any()
    assert (recording["layers.1.out"].nan + recording["layers.1.out"].infinite).nonzero()[0].tolist() == [3]
    assert recording["norm.out"].tokens == 0 and np.isnan(recording["norm.out"].token_kurtosis)


def test_a_dictionary_is_halved_and_the_error_of_the_cpu_is_known():
    model, ids, *_ = made("llama")

    def scarce(model, batch):
        if len(batch["input_ids"]) > 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return model(**batch)

    mask = torch.ones_like(ids)
    mask[5, 6:] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    with pytest.warns(UserWarning, match="a batch of 6 did not fit"):
        recording = record(model, [batch], forward=scarce)
    assert recording["norm.in"].count[0] == mask.sum()
    with pytest.raises(RuntimeError, match="another"):
        record(model, [batch], forward=lambda model, batch: (_ for _ in ()).throw(RuntimeError("another")))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    ("shape", "period", "dtype"),
    [
        ((600, 40), 60, torch.float32),
        ((300, 200), 300, torch.float32),
        ((90, 130), 1, torch.bfloat16),
        ((64, 300), 8, torch.float16),
    ],
)
def test_kernels_equal_the_reference(shape, period, dtype):
    pytest.importorskip("triton")
    from farout.inside._board import Board

    torch.manual_seed(0)
    board = Board()
    x = (torch.randn(shape) * 3 + torch.randn(shape[1]) * 4).to(dtype).cuda()
    y = torch.randn(shape).to(dtype).cuda()
    x[5, 7], y[3, 2], y[9, 1], x[11] = 50, float("nan"), float("inf"), 0
    keep = torch.rand(shape[0]).cuda() > 0.2
    for rows, kept, counts in ((x, None, True), (y, None, False), (y, keep, True), (x * 1e-3, None, True)):
        board.start()
        assert board.take("site", rows, period, kept)
        if counts:
            board.keep()
    got = board.stats()["site"]
    parts = [ChannelStats.of(x, period), ChannelStats.of(y, period, keep), ChannelStats.of(x * 1e-3, period)]
    expected = parts[0].merge(parts[1]).merge(parts[2])
    scale = {
        "mean": np.abs(expected.mean) + np.sqrt(expected.variance),
        "m3": np.abs(expected.m4) ** 0.75 * expected.count**0.25,
    }
    for field in dataclasses.fields(got):
        a, b = getattr(got, field.name), getattr(expected, field.name)
        assert np.all(np.abs(a - b) <= 1e-5 * scale.get(field.name, np.abs(b))), field.name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ZOO)
def test_a_gpu_gives_the_same_facts(name):
    model, batch, places, _ = made(name)
    here, there = record(model, [batch]), record(model.cuda(), [batch])
    for place in places:
        np.testing.assert_allclose(there[place].m2, here[place].m2, rtol=1e-3)


@pytest.mark.parametrize("fault", ["fails", "wrong", "none"])
def test_kernels_that_do_not_give_the_right_sums_are_not_used(fault, monkeypatch):
    from farout.inside import _running

    class Board:  # stands in for the kernels, of which there are none without a GPU
        def start(self): ...

        def keep(self): ...

        def take(self, name, rows, period, keep):
            if fault == "fails":
                raise RuntimeError("no such instruction")
            self.found = ChannelStats.of(rows, period, keep)
            if fault == "wrong":
                self.found.m4 *= 1.01
            return True

        def stats(self):
            return {"x": self.found}

    module = ModuleType("farout.inside._board")
    module.Board = Board
    monkeypatch.setitem(sys.modules, "farout.inside._board", module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    monkeypatch.setattr(_running, "find_spec", lambda name: True)
    _running._sound.cache_clear()
    try:
        if fault == "none":
            assert isinstance(_running.board(), Board)
        else:
            with pytest.warns(UserWarning, match="no such instruction" if fault == "fails" else "their m4 differ"):
                assert _running.board() is None
            assert _running.board() is None  # said once
    finally:
        _running._sound.cache_clear()
