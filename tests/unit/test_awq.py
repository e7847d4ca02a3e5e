"""AWQ: scales and ranges against loops, exact rewrites, and where maps are judged, on LLaMA-, OPT- and BERT-likes."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from torch import nn  # noqa: E402

from farout.errors import BadInput  # noqa: E402
from farout.quantize import quantize  # noqa: E402
from farout.quantize._blocks import Block, Calls, blocks_of  # noqa: E402
from farout.quantize._search import Trials, enclosing  # noqa: E402
from farout.quantize.awq import AWQ, _best_ratio, _inputs, awq_scale, clipped_weight  # noqa: E402
from farout.quantize.grid import Grid  # noqa: E402
from farout.quantize.move.scale import scale  # noqa: E402
from farout.quantize.scheme import Scheme  # noqa: E402
from naive import quantize_awq as naive  # noqa: E402

SCHEME = "w3a16g16-clamped"
GRID = Scheme.parse(SCHEME).weights
KINDS = ("llama", "opt", "bert")


def model_of(kind: str, layers: int = 2) -> nn.Module:
    """A model with random weights and norms that make some channels large."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 4}
    if kind == "llama":
        config = transformers.LlamaConfig(**sizes, intermediate_size=64, num_key_value_heads=2)
        model = transformers.LlamaForCausalLM(config)
    elif kind == "opt":
        config = transformers.OPTConfig(**sizes, ffn_dim=64, word_embed_proj_dim=32, dropout=0.0, pad_token_id=0)
        model = transformers.OPTForCausalLM(config)
    else:
        model = transformers.BertModel(transformers.BertConfig(**sizes, intermediate_size=64))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.add_(0.1 * torch.randn_like(weight))
            if weight.ndim == 1 and "norm" in name.lower() and name.endswith("weight"):
                weight[[3, 17]] *= 8
    return model.eval()


def tokens(n: int = 3, length: int = 40) -> list[dict]:
    """Batches of which one has padding."""
    drawn = torch.Generator().manual_seed(0)
    batches = [{"input_ids": torch.randint(1, 64, (2, length), generator=drawn)} for _ in range(n)]
    for batch in batches:
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    batches[1]["attention_mask"][1, 30:] = 0
    return batches


def first_block(model: nn.Module, batches: list[dict]) -> Block:
    blocks = blocks_of(model)
    calls = Calls(model, blocks, batches)
    name, module = next(iter(blocks.items()))
    return Block(name, 0, module, calls, calls.states)


def output(model: nn.Module, batch: dict) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch)[0]


def scales_of(recipe: AWQ, block: Block) -> dict:
    return {feed.maps: s for feed, s in recipe._scales(block, GRID)}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (
            "llama",
            {"q_proj": "self_attn", "v_proj": "self_attn", "o_proj": "self_attn.o_proj", "gate_proj": "mlp",
             "up_proj": "mlp", "down_proj": "mlp.down_proj"},
        ),
        ("opt", {"k_proj": "self_attn", "out_proj": "self_attn.out_proj", "fc1": "fc1", "fc2": "fc2"}),
        (
            "bert",
            {"query": "attention.self", "value": "attention.self", "attention.output.dense": "attention.output.dense",
             "intermediate.dense": "intermediate.dense"},
        ),
    ],
)  # fmt: skip
def test_maps_are_judged_by_the_smallest_module_that_they_make_together(kind, expected):
    block = first_block(model_of(kind), tokens())
    where = {name: enclosing(block, feed) for feed in block.feeds for name in feed.maps}
    for end, path in expected.items():
        (name,) = [name for name in where if name.endswith(end)]
        assert where[name] == path


def test_a_fused_map_is_judged_by_the_attention_that_it_feeds():
    torch.manual_seed(0)
    config = transformers.Phi3Config(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    block = first_block(transformers.Phi3ForCausalLM(config).eval(), tokens())
    where = {name: enclosing(block, feed) for feed in block.feeds for name in feed.maps}
    assert where == {
        "self_attn.qkv_proj": "self_attn",
        "self_attn.o_proj": "self_attn.o_proj",
        "mlp.gate_up_proj": "mlp",
        "mlp.down_proj": "mlp.down_proj",
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_error_of_the_module_on_tokens_that_are_no_padding(kind):
    model, batches = model_of(kind), tokens()
    block = first_block(model, batches)
    trials = Trials(block, 10_000)
    for feed in block.feeds:
        weights = {name: block.weight(name) + 0.1 for name in feed.maps}
        outs, path = [], f"{block.name}.{enclosing(block, feed)}"
        changed = copy.deepcopy(model)
        for name, weight in weights.items():
            changed.get_submodule(f"{block.name}.{name}").weight.data = weight
        for one in (model, changed):
            found = []
            hook = one.get_submodule(path).register_forward_hook(
                lambda m, args, out, found=found: found.append(out[0] if isinstance(out, tuple) else out)
            )
            for batch in batches:
                output(one, batch)
            hook.remove()
            keep = [batch["attention_mask"].flatten().bool() for batch in batches]
            outs.append(torch.cat([out.reshape(-1, out.shape[-1])[k] for out, k in zip(found, keep)]))
        expected = float((outs[1] - outs[0]).double().square().mean())
        assert trials.loss(weights) == pytest.approx(expected, rel=1e-4)
        assert trials.loss({name: block.weight(name) for name in feed.maps}) < 1e-10


def test_the_search_takes_whole_batches_until_it_has_tokens_enough():
    block = first_block(model_of("llama"), tokens())
    assert [len(calls) for calls in Trials(block, 1)._calls.values()] == [1] * 4
    assert [len(calls) for calls in Trials(block, 81)._calls.values()] == [2] * 4
    assert [len(calls) for calls in Trials(block, 10_000)._calls.values()] == [3] * 4


class _Branches(nn.Module):
    """Two maps in a list, which is never called, then a part whose input and output are added to in place."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.branches = nn.LayerNorm(16), nn.ModuleList([nn.Linear(16, 16), nn.Linear(16, 16)])
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))

    def forward(self, x):
        h = self.norm(x)
        h = torch.tanh(self.branches[0](h) * self.branches[1](h))
        y = self.mlp(h)
        h += 1
        y += x
        return y


def test_modules_that_are_never_called_and_tensors_that_are_changed_later():
    torch.manual_seed(0)
    model = nn.Sequential(_Branches(), _Branches())
    block = first_block(model, [torch.randn(2, 64, 16)])
    trials = Trials(block, 100)
    assert trials.where == {"branches.0": "", "branches.1": "", "mlp.0": "mlp", "mlp.2": "mlp.2"}
    for name in block.maps:
        assert trials.loss({name: block.weight(name)}) == 0
        assert trials.loss({name: 1.5 * block.weight(name)}) > 1e-4
        assert torch.equal(trials.twin.get_submodule(name).weight, block.weight(name))


def test_scales_are_those_of_the_least_loss_over_the_exponents():
    batches = tokens()
    block = first_block(model_of("llama"), batches)
    found = scales_of(AWQ(), block)
    reads = {}
    block.watch(block.maps, lambda name, x: reads.setdefault(name, []).append(x))
    chosen = []
    for feed in block.feeds:
        x = torch.cat(reads[feed.maps[0]])
        if enclosing(block, feed) == "self_attn":
            module = copy.deepcopy(block.module.self_attn)

            def run(weights, module=module, feed=feed):
                for name, weight in zip(feed.maps, weights):
                    module.get_submodule(name.removeprefix("self_attn.")).weight.data = weight
                outs = []
                with torch.no_grad():
                    for at, state in enumerate(block.states):
                        kwargs = block.calls.rest[block.name][at][1]
                        out = module(block.module.input_layernorm(state), **kwargs)[0].flatten(0, 1)
                        keep = block.calls.keep[at]
                        outs.append(out if keep is None else out[keep])
                return torch.cat(outs)
        elif enclosing(block, feed) == "mlp":

            def run(weights, x=x):
                gate, up = (x @ weight.T for weight in weights)
                return (gate * torch.sigmoid(gate) * up) @ block.weight("mlp.down_proj").T
        else:

            def run(weights, x=x):
                return x @ weights[0].T

        with torch.no_grad():
            mean = feed.at_maps(feed.at_source(x.abs().mean(0), "mean"))
            losses = naive.losses([block.weight(name) for name in feed.maps], mean[None], run, 3, 16)
        ratio = losses.index(min(losses)) / 20
        chosen.append(ratio)
        if ratio == 0:
            assert feed.maps not in found
        else:
            torch.testing.assert_close(feed.at_maps(found[feed.maps]), awq_scale(mean, ratio), rtol=1e-4, atol=1e-5)
    assert len(block.feeds) == 4 and max(chosen) > 0


def test_an_input_that_is_never_used_keeps_a_scale():
    torch.testing.assert_close(awq_scale(torch.tensor([1.0, 0.0]), 0.5), torch.tensor([100.0, 0.01]))
    assert torch.equal(awq_scale(torch.tensor([3.0, 0.0]), 0.0), torch.ones(2))


def test_of_what_does_equally_well_the_least_exponent_and_the_whole_range_are_taken():
    block = first_block(model_of("llama"), tokens())
    same = SimpleNamespace(loss=lambda weights: 1.0)
    assert _best_ratio(same, block, block.feeds[0], torch.rand(32), GRID, 20) == 0
    weight = torch.tensor([[5.0, 2.2, 2.2, -2.2]])
    assert torch.equal(clipped_weight(weight, torch.zeros(3, 4), Grid(2, rule="narrow")), weight)


def test_ranges_are_judged_by_tokens_spread_over_all_that_are_looked_at():
    batches = tokens(9, 40)  # 720, of which 10 are padding
    block = first_block(model_of("llama"), batches)
    reads: list = []
    block.watch(["mlp.up_proj"], lambda name, x: reads.append(x))
    x, seen = torch.cat(reads), _inputs(block, 10_000)
    assert set(seen) == set(block.maps) - {"self_attn.q_proj", "self_attn.k_proj"}
    assert len(x) == 710 and len(seen["mlp.up_proj"]) == 512
    assert torch.equal(seen["mlp.up_proj"][[0, -1]], x[[0, -1]])
    assert torch.equal(_inputs(block, 100)["mlp.up_proj"], x[:150])  # two batches of 80, less padding


def test_ranges_are_those_of_a_loop_over_tokens():
    drawn = torch.Generator().manual_seed(1)
    weight = torch.randn(5, 24, generator=drawn, dtype=torch.float64)
    weight[:, [2, 9]] *= 3
    x = torch.randn(40, 24, generator=drawn, dtype=torch.float64) * torch.rand(24, generator=drawn).double()
    found = clipped_weight(weight, x, Grid(3, "group", 8, "clamped"))
    torch.testing.assert_close(found, naive.clipped(weight, x, 3, 8), rtol=1e-12, atol=0)
    assert 0 < int((found != weight).sum()) < weight.numel() / 2
    rows = clipped_weight(weight, x, Grid(3, rule="clamped"))
    torch.testing.assert_close(rows, naive.clipped(weight, x, 3, 24), rtol=1e-12, atol=0)


def test_a_range_that_is_not_used_is_cut_and_one_that_is_stays():
    weight = torch.tensor([[5.0, 2.2, 2.2, -2.2]])
    used, unused = torch.eye(4), torch.diag(torch.tensor([0.0, 1, 1, 1]))
    used[0, 0] = 100
    assert clipped_weight(weight, used, Grid(2, rule="narrow"))[0, 0] == 5
    assert clipped_weight(weight, unused, Grid(2, rule="narrow"))[0, 0] == pytest.approx(2.75)


@pytest.mark.parametrize("kind", KINDS)
def test_without_exponents_and_ranges_it_is_rounding_to_nearest(kind):
    ours, nearest, batches = model_of(kind), model_of(kind), tokens()
    quantize(ours, AWQ(ratios=1, clip=False), SCHEME, batches)
    quantize(nearest, "rtn", SCHEME, batches)
    assert torch.equal(output(ours, batches[0]), output(nearest, batches[0]))


@pytest.mark.parametrize("kind", KINDS)
def test_scales_leave_the_model_as_it_was(kind):
    model, batches = model_of(kind), tokens()
    before = output(model, batches[0])
    block = first_block(model, batches)
    found = AWQ()._scales(block, GRID)
    assert found
    for feed, s in found:
        assert float(s.max() * s.min()) == pytest.approx(1, rel=1e-5)
        scale(block, feed, s)
    after = output(model, batches[0])
    assert float((after - before).abs().max()) < 1e-4 * float(before.abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_scaled_and_rounded_weights_cost_each_module_no_more_than_rounded_ones(kind):
    block = first_block(model_of(kind), tokens())
    trials, gains = Trials(block, 8192), []
    found = scales_of(AWQ(), block)
    for feed in block.feeds:
        s = feed.at_maps(found[feed.maps]) if feed.maps in found else torch.ones(1)
        fitted = {name: GRID.fitted(block.weight(name).shape[1]) for name in feed.maps}
        plain = trials.loss({name: fitted[name].rounded(block.weight(name)) for name in feed.maps})
        ours = trials.loss({name: fitted[name].rounded(block.weight(name) * s) / s for name in feed.maps})
        assert ours <= plain
        gains.append(ours / plain)
    assert min(gains) < 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_the_quantized_model_is_nearer_to_the_full_one_than_rounding_to_nearest(kind):
    full, ours, scaled, nearest, batches = *(model_of(kind) for _ in range(4)), tokens(6)
    found = quantize(ours, "awq", SCHEME, batches)
    quantize(scaled, AWQ(clip=False), SCHEME, batches)
    quantize(nearest, "rtn", SCHEME, batches)
    expected = output(full, batches[0])

    def off(model):
        return float((output(model, batches[0]) - expected).square().mean())

    assert off(ours) < 0.8 * off(nearest) and off(scaled) < off(nearest)
    assert found.recipe == {"recipe": "awq", "ratios": 20, "clip": True, "tokens": 8192}
    for name, module in found.maps.items():  # what is stored is on the grid
        codes = module.grid.codes(module.weight, module.rounded.steps)
        values = module.grid.values(codes, module.rounded.steps, tuple(module.weight.shape))
        torch.testing.assert_close(values, module.weight, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_ranges_of_queries_and_keys_are_left_alone(kind):
    model, batches = model_of(kind), tokens()
    plain = copy.deepcopy(model)
    found = quantize(model, AWQ(ratios=1), SCHEME, batches)
    same = set()
    for name, module in found.maps.items():
        weight = plain.get_submodule(name).weight
        if torch.equal(module.weight, module.grid.rounded(weight)):
            same.add(name.rpartition(".")[2])
    assert same == {"llama": {"q_proj", "k_proj"}, "opt": {"q_proj", "k_proj"}, "bert": {"query", "key"}}[kind]


def test_the_next_block_sees_the_full_model():
    assert AWQ.full


@pytest.mark.parametrize("scheme", ["w4a8g16", "w8a8", "fp8", "mxfp4a16"])
def test_what_it_cannot_do_is_said(scheme):
    with pytest.raises(BadInput, match="It can do 'w4a16g128-clamped'"):
        quantize(model_of("llama"), "awq", scheme, tokens())
    with pytest.raises(BadInput, match="It can do"):
        AWQ().check(Scheme(Grid(4, "input", 16, "clamped")))
