"""AdaDim: groups along outputs by their identities, choices against a greedy loop, an outlier in closed form."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from torch import nn  # noqa: E402

from farout.errors import BadInput, UnknownName  # noqa: E402
from farout.quantize import quantize  # noqa: E402
from farout.quantize._blocks import Block, Calls, blocks_of  # noqa: E402
from farout.quantize.adadim import AdaDim, along_outputs  # noqa: E402
from farout.quantize.grid import Grid  # noqa: E402
from farout.quantize.round.gptq import gptq  # noqa: E402
from farout.quantize.round.rtn import rtn  # noqa: E402
from farout.quantize.scheme import Scheme  # noqa: E402
from naive import quantize_awq as naive  # noqa: E402

SCHEME = "w3a16g16-clamped"
OC, IC = Grid(3, "group", 16, "clamped"), Grid(3, "input", 16, "clamped")
KINDS = ("llama", "opt")
PLACES = {  # by kind: the norm and the maps that read it, with the module by which each map is judged
    "llama": {
        "self_attn.q_proj": "self_attn", "self_attn.k_proj": "self_attn", "self_attn.v_proj": "self_attn",
        "self_attn.o_proj": "self_attn.o_proj", "mlp.gate_proj": "mlp", "mlp.up_proj": "mlp",
        "mlp.down_proj": "mlp.down_proj",
    },
    "opt": {
        "self_attn.q_proj": "self_attn", "self_attn.k_proj": "self_attn", "self_attn.v_proj": "self_attn",
        "self_attn.out_proj": "self_attn.out_proj", "fc1": "fc1", "fc2": "fc2",
    },
}  # fmt: skip


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def model_of(kind: str, layers: int = 2) -> nn.Module:
    """A model with random weights: norms make some inputs large, and some outputs of maps are."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 4}
    if kind == "llama":
        config = transformers.LlamaConfig(**sizes, intermediate_size=64, num_key_value_heads=2)
        model = transformers.LlamaForCausalLM(config)
    else:
        config = transformers.OPTConfig(**sizes, ffn_dim=64, word_embed_proj_dim=32, dropout=0.0, pad_token_id=0)
        model = transformers.OPTForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.add_(0.1 * torch.randn_like(weight))
            if weight.ndim == 1 and "norm" in name and name.endswith("weight"):
                weight[[3, 17]] *= 8
            if name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight", "fc2.weight")):
                weight[::5] *= 6
    return model.eval()


def tokens(n: int = 3, length: int = 40) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    batches = [{"input_ids": torch.randint(1, 64, (2, length), generator=generator)} for _ in range(n)]
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


def dimensions(quantized, block: str) -> dict[str, str]:
    along = set(along_outputs(quantized))
    maps = [name for name in quantized.maps if name.startswith(f"{block}.")]
    return {name.removeprefix(f"{block}."): "ic" if name in along else "oc" for name in maps}


def test_groups_along_outputs_are_groups_along_inputs_of_the_transpose():
    weight = drawn(48, 32)
    assert torch.equal(rtn(weight, IC).weight, rtn(weight.T.contiguous(), OC).weight.T)
    torch.testing.assert_close(rtn(weight, IC).weight, naive.rounded(weight, 3, 16, "outputs"), rtol=1e-12, atol=0)
    torch.testing.assert_close(rtn(weight, OC).weight, naive.rounded(weight, 3, 16), rtol=1e-12, atol=0)


def test_scaling_inputs_does_nothing_where_groups_run_along_outputs():
    weight = drawn(48, 32)
    powers = torch.exp2((4 * drawn(32, seed=1)).round())
    assert torch.equal(rtn(weight * powers, IC).weight, rtn(weight, IC).weight * powers)
    any_s = drawn(32, seed=2).abs() + 0.1
    torch.testing.assert_close(rtn(weight * any_s, IC).weight, rtn(weight, IC).weight * any_s, rtol=1e-9, atol=0)
    assert not torch.allclose(rtn(weight * powers, OC).weight, rtn(weight, OC).weight * powers)


@pytest.mark.parametrize("rule", ["clamped", "asymmetric", "full"])
def test_gptq_along_outputs_with_inputs_that_do_not_go_together_is_rounding_to_nearest(rule):
    weight, grid = drawn(48, 32), replace(IC, rule=rule)
    found, expected = gptq(weight, 3 * torch.eye(32, dtype=torch.float64), grid), rtn(weight, grid)
    assert torch.equal(found.weight, expected.weight)
    assert torch.equal(found.steps.scale, expected.steps.scale)


def test_an_outlier_costs_what_the_steps_say():
    """One input 50 times as large, its weights 50 times as small: along inputs they are all rounded to 0."""
    outputs, inputs, k, at = 512, 256, 50.0, 70
    oc, ic = Grid(4, "group", 32, "clamped"), Grid(4, "input", 32, "clamped")
    weight, size = drawn(outputs, inputs), torch.ones(inputs, dtype=torch.float64)
    plain = float(weight[:, at].square().sum())
    weight[:, at] /= k
    size[at] = k

    def error(grid):
        return float(((weight - rtn(weight, grid).weight) * size).square().sum())  # inputs that do not go together

    def uniform(grid):  # an error is uniform within a step, but for the two of each group that have set it
        steps = grid.unview(grid.steps(weight).scale.expand_as(grid.view(weight)), weight.shape)
        return (steps * size).square() / 12

    assert float(oc.steps(weight).scale.min()) / 2 > float(weight[:, at].abs().max())  # so all round to 0
    others = torch.arange(inputs) != at
    expected_oc = float(uniform(oc)[:, others].sum()) + plain
    expected_ic = float(uniform(ic).sum())
    assert error(oc) == pytest.approx(expected_oc, rel=0.06)
    assert error(ic) == pytest.approx(expected_ic, rel=0.06)
    assert error(oc) / error(ic) == pytest.approx(expected_oc / expected_ic, rel=0.03)
    lost = float((rtn(weight, oc).weight[:, at] - weight[:, at]).square().sum()) * k**2
    assert lost == pytest.approx(plain, rel=1e-12)
    kept = float((rtn(weight, ic).weight[:, at] - weight[:, at]).square().sum()) * k**2
    assert kept < 0.02 * plain


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("solver", ["rtn", "gptq"])
def test_each_map_takes_what_is_better_given_those_before_it(kind, solver):
    model, batches = model_of(kind), tokens()
    block = first_block(model, batches)
    hessians, name = block.hessians(block.maps), block.name
    twin, full, choices = copy.deepcopy(block.module), copy.deepcopy(block.module), {}
    calls = {path: [] for path in PLACES[kind].values()}
    for path in calls:
        full.get_submodule(path).register_forward_hook(
            lambda m, args, kwargs, out, path=path: calls[path].append(
                (args, kwargs, out[0] if isinstance(out, tuple) else out)
            ),
            with_kwargs=True,
        )
    with torch.no_grad():
        for at, state in enumerate(block.states):
            block.calls.run(name, full, at, state)

        def error(path):
            total = 0.0
            for (args, kwargs, expected), keep in zip(calls[path], block.calls.keep):
                out = twin.get_submodule(path)(*args, **kwargs)
                off = ((out[0] if isinstance(out, tuple) else out) - expected).reshape(-1, expected.shape[-1])
                total += float((off if keep is None else off[keep]).double().square().sum())
            return total

        weights = {}
        for path, judged in PLACES[kind].items():
            module = twin.get_submodule(path)
            plain, errors = module.weight.data, {}
            for word, along in (("oc", "inputs"), ("ic", "outputs")):
                module.weight.data = naive.rounded(plain, 3, 16, along)
                errors[word] = error(judged)
            choices[path] = "ic" if errors["ic"] < errors["oc"] else "oc"
            grid = {"oc": OC, "ic": IC}[choices[path]]
            rounded = rtn(plain, grid) if solver == "rtn" else gptq(plain, hessians[path], grid)
            module.weight.data = weights[path] = rounded.weight
    found = quantize(model, AdaDim(solver=solver), SCHEME, batches)
    assert dimensions(found, name) == choices
    assert set(choices.values()) == {"oc", "ic"}
    for path, weight in weights.items():
        torch.testing.assert_close(model.get_submodule(f"{name}.{path}").weight.data, weight, rtol=1e-4, atol=1e-5)


def test_of_two_that_are_as_good_it_takes_groups_along_inputs():
    model = model_of("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.zero_()
    found = quantize(model, "adadim", SCHEME, tokens())
    assert dimensions(found, "model.layers.0")["mlp.down_proj"] == "oc"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("solver", ["rtn", "gptq"])
def test_choosing_is_better_than_not_to(kind, solver):
    full, batches = model_of(kind), tokens(6)
    expected, off = output(full, batches[0]), {}
    for dimension in ("ada", "oc", "ic"):
        model = model_of(kind)
        found = quantize(model, AdaDim(solver=solver, dimension=dimension), SCHEME, batches)
        off[dimension] = float((output(model, batches[0]) - expected).square().mean())
        along = set(dimensions(found, "model.layers.0" if kind == "llama" else "model.decoder.layers.0").values())
        assert along == {"ada": {"oc", "ic"}, "oc": {"oc"}, "ic": {"ic"}}[dimension]
    assert off["ada"] < min(off["oc"], off["ic"])


def test_one_dimension_alone_is_the_plain_solver():
    ours, nearest, batches = model_of("opt"), model_of("opt"), tokens()
    quantize(ours, AdaDim(dimension="oc"), SCHEME, batches)
    quantize(nearest, "rtn", SCHEME, batches)
    assert torch.equal(output(ours, batches[0]), output(nearest, batches[0]))


def test_groups_that_do_not_divide_a_side_become_the_largest_that_do():
    model = model_of("llama")
    along = quantize(model, AdaDim(dimension="ic"), "w3a16g24-clamped", tokens())
    groups = {name.rpartition(".")[2]: module.grid.group for name, module in along.maps.items()}
    assert groups["k_proj"] == 16 and groups["q_proj"] == 16 and groups["up_proj"] == 16  # of 16, 32 and 64 outputs
    inner = quantize(model_of("llama"), AdaDim(dimension="oc"), "w3a16g48-clamped", tokens())
    groups = {name.rpartition(".")[2]: module.grid.group for name, module in inner.maps.items()}
    assert groups["k_proj"] == 32 and groups["down_proj"] == 32  # of 32 and 64 inputs


def test_as_many_steps_are_kept_along_outputs_as_along_inputs():
    bits = [
        quantize(model_of("llama"), AdaDim(dimension=one), SCHEME, tokens()).bits_per_weight for one in ("oc", "ic")
    ]
    assert bits[0] == bits[1] == pytest.approx(3 + (16 + 3) / 16)


def test_a_run_that_was_stopped_goes_on_with_the_same_choices(tmp_path):
    class Stopped(Exception):
        pass

    def stop(what, share):
        if what == "quantizing" and share > 0.4:
            raise Stopped

    whole, batches = model_of("llama"), tokens()
    expected = quantize(whole, "adadim", SCHEME, batches)
    with pytest.raises(Stopped):
        quantize(model_of("llama"), "adadim", SCHEME, batches, keep=tmp_path, progress=stop)
    model = model_of("llama")
    found = quantize(model, "adadim", SCHEME, batches, keep=tmp_path)
    assert along_outputs(found) == along_outputs(expected)
    assert torch.equal(output(model, batches[0]), output(whole, batches[0]))


@pytest.mark.parametrize("scheme", ["w4a8g16", "w4a16", "mxfp4a16"])
def test_what_it_cannot_do_is_said(scheme):
    with pytest.raises(BadInput, match="It can do 'w4a16g128-clamped'"):
        quantize(model_of("llama"), "adadim", scheme, tokens())
    with pytest.raises(BadInput, match="It can do"):
        AdaDim().check(Scheme(IC))


def test_unknown_words_are_refused():
    with pytest.raises(UnknownName, match="solver"):
        AdaDim(solver="rounding")
    with pytest.raises(UnknownName, match="dimension"):
        AdaDim(dimension="both")
