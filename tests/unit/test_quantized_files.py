"""Quantized checkpoints: what transformers loads in another process computes what the quantized model computed here."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from farout.errors import BadInput, NothingMatched

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("compressed_tensors")
import compressed_tensors.quantization as ct  # noqa: E402
import transformers  # noqa: E402
from compressed_tensors.compressors import BaseCompressor  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch import nn  # noqa: E402

from farout.quantize import save  # noqa: E402
from farout.quantize._linear import QuantLinear, Rounding, Scale, Shift  # noqa: E402
from farout.quantize._packing import packed, unheld, unheld_inputs  # noqa: E402
from farout.quantize.grid import Grid, Steps  # noqa: E402
from farout.quantize.round._common import Rounded  # noqa: E402
from farout.quantize.save import save_checkpoint  # noqa: E402
from farout.quantize.scheme import Scheme  # noqa: E402

TOKENS = torch.arange(24).reshape(2, 12)
COMMON = {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
MODELS = {
    "llama": (
        transformers.LlamaForCausalLM,
        {"intermediate_size": 160, "num_key_value_heads": 2, "tie_word_embeddings": True},
    ),
    "opt": (
        transformers.OPTForCausalLM,
        {"ffn_dim": 160, "max_position_embeddings": 64, "word_embed_proj_dim": 64},
    ),
    "bert": (transformers.BertModel, {"intermediate_size": 160, "max_position_embeddings": 64}),
}
SCHEMES = (
    "w8a8",
    "w8a8-tensor",
    "w4a16g32",
    "w4a16g32-asym",
    "w3a16",
    "w4a8g32",
    "fp8",
    "fp8-tensor",
    "nvfp4",
    "mxfp4",
)
EXACT = ("w8a8", "w8a8-tensor", "w4a16g32", "w4a16g32-asym", "w3a16", "w4a8g32", "fp8", "fp8-tensor")

LOAD = """
import sys, torch, transformers
from safetensors.torch import save_file
found = {}
for line in sys.stdin.read().splitlines():
    key, kind, folder, dequantize = line.split("|")
    options = {"quantization_config": transformers.CompressedTensorsConfig(dequantize=True)} if dequantize else {}
    try:
        model = getattr(transformers, kind).from_pretrained(folder, **options).eval()
        with torch.no_grad():
            model(torch.arange(24).reshape(2, 12))  # unpacks the weights, to bfloat16 where they are FP4
            found[key] = torch.nn.Module.float(model)(torch.arange(24).reshape(2, 12))[0].clone()
    except Exception as error:
        print(key, type(error).__name__, str(error)[:300].replace(chr(10), " "), file=sys.stderr)
save_file(found, sys.argv[1])
"""


def model_of(kind, dtype=torch.float32):
    torch.manual_seed(0)
    cls, options = MODELS[kind]
    config = cls.config_class(**COMMON, **options)
    model = cls._from_config(config, dtype=dtype).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn(weight.shape).to(dtype))
    return model


def rtn(weight, grid):
    steps = grid.steps(weight.detach())
    return Rounded(grid.rounded(weight.detach().float(), steps), steps, grid)


def quantized(model, scheme, skip=("lm_head", "pooler")):
    """Put rounded maps into a model; return what is saved of them."""
    scheme = Scheme.parse(scheme) if isinstance(scheme, str) else scheme
    maps = {}
    for name, part in list(model.named_modules()):
        if type(part) is not nn.Linear or any(word in name for word in skip):
            continue
        inputs = scheme.inputs
        if type(model).__name__.startswith("OPT") and "fc" in name and inputs is not None and inputs.per == "token":
            inputs = None  # called with (tokens, inputs), where the loader takes one step for all tokens
        static = None
        if inputs is not None and not inputs.dynamic:
            static = inputs.steps_between(torch.tensor([[-3.0]]), torch.tensor([[4.0]]))
        one = QuantLinear(part)
        one.put(rtn(part.weight, scheme.weights))
        one.rounding = None if inputs is None else Rounding(inputs, static)
        model.set_submodule(name, one)
        maps[name] = (one.rounded, inputs, static)
    return maps


def outputs(model):
    with torch.no_grad():
        return nn.Module.float(model)(TOKENS)[0]  # transformers refuses it of models that it loaded quantized


def loaded(tmp_path, wanted):
    """Load folders in another process, by key: their outputs in float32, and what could not be loaded."""
    lines = "\n".join(
        f"{key}|{kind}|{folder}|{'yes' if dequantize else ''}" for key, kind, folder, dequantize in wanted
    )
    target = tmp_path / "outputs.safetensors"
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(target)],
        input=lines,
        text=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    failed = {
        line.split()[0]: line for line in done.stderr.splitlines() if line.split("/")[0] in ("llama", "opt", "bert")
    }
    return load_file(target), failed


def auto(kind):
    return "AutoModel" if kind == "bert" else "AutoModelForCausalLM"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Every model in every scheme, saved; what it computed before, and what a new process computes after loading it."""
    root = tmp_path_factory.mktemp("checkpoints")
    made, wanted = {}, []
    for kind in MODELS:
        for scheme in SCHEMES:
            key = f"{kind}/{scheme}"
            model = model_of(kind, torch.float32 if scheme in EXACT else torch.bfloat16)
            maps = quantized(model, scheme)
            saved = save_checkpoint(root / key.replace("/", "-"), model, maps, scheme=Scheme.parse(scheme))
            made[key] = SimpleNamespace(saved=saved, maps=maps, before=outputs(model), kind=kind, scheme=scheme)
            wanted.append((key, auto(kind), saved.folder, False))
            if "asym" in scheme:
                wanted.append((f"{key}/dequantized", auto(kind), saved.folder, True))
    after, failed = loaded(root, wanted)
    return SimpleNamespace(made=made, after=after, failed=failed)


def relative(x, y):
    return float((x - y).norm() / y.norm())


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", MODELS)
def test_a_new_process_loads_what_was_saved(checkpoints, kind, scheme):
    key = f"{kind}/{scheme}"
    one = checkpoints.made[key]
    assert set(one.saved.stored) == set(one.maps) and not one.saved.dequantized
    if key in checkpoints.failed and "asym" in scheme:
        # Known of compressed-tensors 0.18 to 0.20, and said
        assert all("CompressedTensorsConfig(dequantize=True)" in how for how in one.saved.stored.values())
        key = f"{key}/dequantized"
    assert key not in checkpoints.failed, checkpoints.failed[key]
    assert relative(checkpoints.after[key], one.before) < 1e-3


@pytest.mark.parametrize("scheme", SCHEMES)
def test_rounding_made_a_difference_at_all(checkpoints, scheme):
    one = checkpoints.made[f"llama/{scheme}"]
    assert relative(one.before, outputs(model_of("llama", torch.float32))) > 3e-3


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", MODELS)
def test_compressed_tensors_accepts_the_config(checkpoints, kind, scheme):
    one = checkpoints.made[f"{kind}/{scheme}"]
    config = json.loads((one.saved.folder / "config.json").read_text())["quantization_config"]
    parsed = ct.QuantizationConfig.model_validate(config)
    assert parsed.quantization_status == "compressed"
    assert transformers.CompressedTensorsConfig(**config).is_quantization_compressed
    targets = [target for group in parsed.config_groups.values() for target in group.targets]
    if kind == "opt" and Scheme.parse(scheme).inputs is not None and Scheme.parse(scheme).inputs.per == "token":
        assert set(targets) == set(one.maps)  # two groups, so each names its members
        assert len(parsed.config_groups) == 2
    else:
        assert targets == ["Linear"]
    plain = {name for name, part in model_of(kind).named_modules() if type(part) is nn.Linear} - set(one.maps)
    assert set(parsed.ignore) == plain and plain


def test_formats(checkpoints):
    said = {
        scheme: {how.split(";")[0] for how in checkpoints.made[f"llama/{scheme}"].saved.stored.values()}
        for scheme in SCHEMES
    }
    assert said == {
        "w8a8": {"int-quantized"},
        "w8a8-tensor": {"int-quantized"},
        "w4a16g32": {"pack-quantized"},
        "w4a16g32-asym": {"pack-quantized"},
        "w3a16": {"pack-quantized"},
        "w4a8g32": {"pack-quantized"},
        "fp8": {"float-quantized"},
        "fp8-tensor": {"float-quantized"},
        "nvfp4": {"nvfp4-pack-quantized"},
        "mxfp4": {"mxfp4-pack-quantized"},
    }


def test_tied_embeddings_are_stored_once(checkpoints):
    for scheme in SCHEMES:
        folder = checkpoints.made[f"llama/{scheme}"].saved.folder
        names = set(load_file(folder / "model.safetensors"))
        assert "model.embed_tokens.weight" in names and "lm_head.weight" not in names
        assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is True


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_file_is_as_large_as_the_scheme_says(tmp_path, scheme):
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM._from_config(config, dtype=torch.bfloat16).eval()
    maps = quantized(model, scheme)
    rest = sum(weight.nbytes for name, weight in model.named_parameters() if name.removesuffix(".weight") not in maps)
    saved = save_checkpoint(tmp_path / "out", model, maps)
    path = saved.folder / "model.safetensors"
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    bits = sum(one.grid.bits_per_weight(one.weight.shape) * one.weight.numel() for one, _, _ in maps.values())
    assert path.stat().st_size - header - rest == pytest.approx(bits / 8, rel=0.02)
    assert saved.bytes == sum(file.stat().st_size for file in saved.folder.iterdir())


# ---- codes

PACKABLE = [
    *(
        Grid(bits, per, group, rule)
        for bits in range(2, 9)
        for per, group in (("channel", 0), ("group", 16), ("tensor", 0))
        for rule in ("full", "narrow", "asymmetric", "clamped")
    ),
    Grid(8, kind="float"),
    Grid(8, "tensor", kind="float"),
    Grid(8, "group", 16, kind="float"),
    Grid(4, "group", 32, kind="mxfp4"),
    Grid(4, "group", 16, kind="nvfp4"),
]


@pytest.mark.parametrize("grid", PACKABLE, ids=str)
def test_the_same_codes_come_out(grid):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(24, 96, generator=generator) * torch.logspace(-2, 0, 24)[:, None]
    weight[5], weight[7:9] = 0, weight[7:9].abs()
    steps = grid.steps(weight)
    codes = grid.codes(weight, steps)
    zero = 0 if steps.zero is None else steps.zero
    for dtype, held in [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.bfloat16),
    ]:
        rounded = Rounded(grid.rounded(weight, steps).to(held), steps, grid)  # as the model, or the solver, holds it
        for inputs in (None, Grid(8, "token")):
            assert unheld(rounded, dtype) == unheld_inputs(inputs, None) == ""
            one = packed("map", rounded, inputs, None, dtype)
            scheme = ct.QuantizationScheme(targets=[], **one.scheme)
            back = BaseCompressor.get_value_from_registry(one.scheme["format"]).decompress(dict(one.tensors), scheme)
            if grid.kind == "nvfp4":
                scale = (one.tensors["weight_scale"].float() / one.tensors["weight_global_scale"])[..., None]
                assert torch.allclose(scale, steps.scale, rtol=1e-6, atol=0)
            else:
                scale = steps.scale if grid.kind == "mxfp4" else steps.scale.to(dtype).float()
            got = back["weight"].float()
            differ = got != grid.values(codes, Steps(scale, steps.zero), weight.shape).to(back["weight"].dtype).float()
            if held == torch.bfloat16 and grid.kind == "int":
                # bfloat16 does not tell all multiples of a step beyond 128 apart, so such codes may be one off
                far = grid.unview((codes - zero).abs() >= 128, weight.shape)
                assert not differ[~far].any() and far.float().mean() < 0.1
                differ = (got - grid.rounded(weight, steps)).abs() > 2**-7 * grid.rounded(weight, steps).abs()
            assert not differ.any()


@pytest.mark.parametrize(
    "grid", [Grid(8, "tensor", rule="asymmetric", dynamic=False), Grid(8, "tensor", dynamic=False)], ids=str
)
def test_static_steps_of_inputs(grid):
    static = grid.steps_between(torch.tensor([[-1.0]]), torch.tensor([[3.0]]))
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    one = packed("map", rtn(weight, Grid(8)), grid, static, torch.float32)
    args = ct.QuantizationScheme(targets=[], **one.scheme).input_activations
    x = torch.linspace(-2, 4, 64).reshape(1, 4, 16)
    zero = one.tensors.get("input_zero_point")
    assert (zero is None) == grid.symmetric
    theirs = ct.fake_quantize(x, one.tensors["input_scale"], zero, args)
    assert torch.allclose(theirs, grid.rounded(x, static), atol=1e-6)


def test_a_weight_that_left_its_grid_is_refused():
    one = rtn(torch.randn(8, 32, generator=torch.Generator().manual_seed(0)), Grid(4))
    one.weight = one.weight + 0.1 * one.steps.scale
    with pytest.raises(BadInput, match=r"256 of 256 numbers of 'some.map' are off the grid"):
        packed("some.map", one, None, None, torch.float32)


# ---- what the format cannot hold


def llama_with(change, scheme="w4a8g32"):
    model = model_of("llama")
    maps = quantized(model, scheme)
    change(model, maps)
    return model, maps


UP, DOWN = "model.layers.0.mlp.up_proj", "model.layers.1.mlp.down_proj"


def kept(model, maps):
    one, _, static = maps[UP]
    beside = torch.zeros_like(one.weight)
    beside[:, 3] = 1.5
    whole = Rounded(one.weight + beside, one.steps, one.grid, beside)
    model.get_submodule(UP).put(whole)
    model.get_submodule(UP).rounding = None
    maps[UP] = (whole, None, static)


def columns(model, maps):
    weight = model.get_submodule(UP).weight
    one = rtn(weight, Grid(4, "input", 16))
    model.get_submodule(UP).put(one)
    model.get_submodule(UP).rounding = None
    maps[UP] = (one, None, None)


class Turn(nn.Module):
    def __init__(self, width):
        super().__init__()
        matrix = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(5)))[0]
        self.register_buffer("matrix", matrix)

    def forward(self, x):
        return x @ self.matrix


def transformed(model, maps):
    generator = torch.Generator().manual_seed(5)
    for name in (UP, DOWN):
        module = model.get_submodule(name)
        width = module.in_features
        module.before.append(Scale(torch.rand(width, generator=generator) + 0.5))
        module.before.append(Turn(width))
        module.rounding = None
        maps[name] = (maps[name][0], None, None)


def far_zero(model, maps):
    weight = model.get_submodule(UP).weight.detach() + 3.0
    one = rtn(weight, Grid(4, rule="free"))
    model.get_submodule(UP).put(one)
    model.get_submodule(UP).rounding = None
    maps[UP] = (one, None, None)


@pytest.mark.parametrize(
    ("change", "names", "why"),
    [
        (kept, [UP], "numbers are kept in 16 bits"),
        (columns, [UP], "its steps go along the outputs"),
        (transformed, [UP, DOWN], r"its input is transformed \(Scale, Turn\)"),
        (far_zero, [UP], "a zero point lies beyond the codes"),
    ],
)
def test_what_the_format_cannot_hold_is_stored_plain(tmp_path, change, names, why):
    model, maps = llama_with(change, "w4a16g32")  # rounded inputs would jump where the last digit of a weight differs
    saved = save_checkpoint(tmp_path / "out", model, maps)
    assert sorted(saved.dequantized) == sorted(names)
    for name in names:
        assert re.search(why, saved.dequantized[name])
    assert set(saved.stored) == set(maps) - set(names)
    back = transformers.AutoModelForCausalLM.from_pretrained(saved.folder).eval()
    assert type(back.get_submodule(UP)) is nn.Linear and f"{UP}.weight" in load_file(saved.folder / "model.safetensors")
    assert relative(outputs(back), outputs(model)) < 1e-5


def test_a_transform_moves_into_weight_and_bias(tmp_path):
    model = model_of("opt")
    maps = quantized(model, "w4a16g32")
    name = "model.decoder.layers.0.fc1"
    model.get_submodule(name).before.append(Shift(torch.linspace(-1, 1, 64)))
    saved = save_checkpoint(tmp_path / "out", model, maps)
    assert list(saved.dequantized) == [name]
    back = transformers.AutoModelForCausalLM.from_pretrained(saved.folder).eval()
    assert relative(outputs(back), outputs(model)) < 1e-5


def test_a_transform_that_is_not_linear_is_refused(tmp_path):
    model, maps = llama_with(lambda model, maps: model.get_submodule(UP).before.append(nn.Tanh()))
    with pytest.raises(BadInput, match=f"what stands before '{UP}' is no fixed linear transform"):
        save_checkpoint(tmp_path / "out", model, maps)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([UP], {"mlp_bias"}),
        (["model.layers.1.self_attn.q_proj"], {"attention_bias"}),
        ([UP, "model.layers.1.self_attn.q_proj"], {"attention_bias", "mlp_bias"}),
    ],
)
def test_biases_that_rewrites_brought_are_told_in_the_config(tmp_path, names, said):
    def change(model, maps):
        for name in names:
            part = model.get_submodule(name)
            part.add_bias(torch.linspace(-1, 1, part.out_features))

    model, maps = llama_with(change, "w8a8")
    before = outputs(model)
    saved = save_checkpoint(tmp_path / "out", model, maps)
    assert set(saved.stored) == set(maps)
    config = json.loads((saved.folder / "config.json").read_text())
    assert {name for name in ("attention_bias", "mlp_bias") if config[name]} == said
    assert not (model.config.attention_bias or model.config.mlp_bias)
    back = transformers.AutoModelForCausalLM.from_pretrained(saved.folder).eval()
    assert relative(outputs(back), before) < 1e-3
    stored = {name for name in back.state_dict() if name.endswith("_proj.bias")}
    assert len(stored) == 2 * (3 * ("mlp_bias" in said) + 4 * ("attention_bias" in said))


def test_a_part_that_the_class_has_no_place_for_is_refused(tmp_path):
    def change(model, maps):
        model.lm_head.bias = nn.Parameter(torch.ones(model.lm_head.out_features))

    model, maps = llama_with(change)
    with pytest.raises(BadInput, match=r"'LlamaForCausalLM' has no place for 'lm_head\.bias'"):
        save_checkpoint(tmp_path / "out", model, maps)


def test_inputs_rounded_by_something_else_are_not_rounded_after_loading(tmp_path):
    class Clipped(Rounding):
        def forward(self, x):
            return super().forward(x.clamp(-1, 1))

    def change(model, maps):
        model.get_submodule(UP).rounding = Clipped(Grid(8, "token"))

    model, maps = llama_with(change, "w8a8")
    saved = save_checkpoint(tmp_path / "out", model, maps)
    assert saved.stored[UP] == "pack-quantized; inputs are not rounded: no format tells of 'Clipped'"
    assert not saved.dequantized
    back = transformers.AutoModelForCausalLM.from_pretrained(saved.folder).eval()
    model.get_submodule(UP).rounding = None
    assert relative(outputs(back), outputs(model)) < 1e-5


def test_fp4_of_a_float32_model_is_loaded_in_bfloat16(tmp_path):
    model = model_of("opt")
    maps = quantized(model, "mxfp4a16")
    saved = save_checkpoint(tmp_path / "out", model, maps)
    back = transformers.AutoModelForCausalLM.from_pretrained(saved.folder).eval()
    assert back.dtype == torch.bfloat16
    with torch.no_grad():
        back(TOKENS)  # unpacks
    assert relative(outputs(back), outputs(model.to(torch.bfloat16))) < 1e-5


def test_what_loads_otherwise_is_said():
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    inputs = Grid(8, "token", rule="narrow")
    assert "by the rule 'full' and not 'narrow'" in packed("m", rtn(weight, Grid(8)), inputs, None, torch.float32).how
    mx = rtn(weight, Grid(4, "group", 32, kind="mxfp4"))
    assert "loaded in bfloat16" in packed("m", mx, None, None, torch.float32).how
    assert "loaded" not in packed("m", mx, None, None, torch.bfloat16).how


@pytest.mark.parametrize(
    ("inputs", "why"),
    [
        (Grid(8, "input", 4), "along the tokens"),
        (Grid(8, "token", dynamic=False), "not one for the whole tensor"),
        (Grid(8, "tensor", dynamic=False), "not one for the whole tensor"),
        (Grid(4, "group", 16, kind="nvfp4"), "need a global scale from calibration"),
    ],
)
def test_inputs_without_a_place(tmp_path, inputs, why):
    assert why in unheld_inputs(inputs, None)
    model, maps = llama_with(lambda model, maps: None, "w8a16")
    saved = save_checkpoint(tmp_path / "out", model, {**maps, UP: (maps[UP][0], inputs, None)})
    assert saved.stored[UP].startswith("pack-quantized; inputs are not rounded: ") and why in saved.stored[UP]


def test_zero_points_of_inputs_beyond_the_codes():
    grid = Grid(8, "tensor", rule="free", dynamic=False)
    static = grid.steps_between(torch.tensor([[5.0]]), torch.tensor([[6.0]]))
    assert "a zero point lies beyond the codes" in unheld_inputs(grid, static)
    assert unheld_inputs(grid, grid.steps_between(torch.tensor([[-1.0]]), torch.tensor([[6.0]]))) == ""


def test_e2m1_with_steps_of_any_size_has_no_place():
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    assert "mxfp4 or nvfp4 alone" in unheld(rtn(weight, Grid(4, kind="float")), torch.float32)


def test_steps_that_sixteen_bits_do_not_hold():
    one = rtn(1e-7 * torch.randn(8, 32, generator=torch.Generator().manual_seed(0)), Grid(4))
    assert "too small or too large for float16" in unheld(one, torch.float16)
    assert unheld(one, torch.bfloat16) == ""


def test_steps_of_nvfp4_without_their_global_scale():
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    grid = Grid(4, "group", 16, kind="nvfp4")
    whole = rtn(weight, grid)
    bare = Rounded(whole.weight, Steps(whole.steps.scale), grid)
    one, other = (packed("m", rounded, None, None, torch.bfloat16).tensors for rounded in (whole, bare))
    assert all(torch.allclose(one[key].float(), other[key].float()) for key in one)
    odd = Rounded(whole.weight, Steps(whole.steps.scale * torch.linspace(1, 1.3, 8)[:, None, None]), grid)
    assert "not E4M3 over one global scale" in unheld(odd, torch.bfloat16)


# ---- embeddings, groups, shards, and what lies beside


def test_a_head_that_left_the_embeddings_is_stored_apart(tmp_path):
    model, maps = llama_with(lambda model, maps: None)
    with torch.no_grad():
        model.lm_head.weight = nn.Parameter(model.lm_head.weight * torch.linspace(0.5, 2, 64))
    saved = save_checkpoint(tmp_path / "out", model, maps)
    assert json.loads((saved.folder / "config.json").read_text())["tie_word_embeddings"] is False
    back = transformers.AutoModelForCausalLM.from_pretrained(saved.folder).eval()
    assert torch.equal(back.lm_head.weight, model.lm_head.weight)
    assert relative(outputs(back), outputs(model)) < 1e-5


def test_a_quantized_head_is_stored_apart(tmp_path):
    model = model_of("llama")
    maps = quantized(model, "w8a8", skip=())
    saved = save_checkpoint(tmp_path / "out", model, maps)
    assert "lm_head" in saved.stored
    back = transformers.AutoModelForCausalLM.from_pretrained(saved.folder).eval()
    assert relative(outputs(back), outputs(model)) < 1e-5


def test_an_equal_copy_of_the_embeddings_is_tied_again(tmp_path):
    model, maps = llama_with(lambda model, maps: None)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    saved = save_checkpoint(tmp_path / "out", model, maps)
    assert "lm_head.weight" not in load_file(saved.folder / "model.safetensors")
    assert json.loads((saved.folder / "config.json").read_text())["tie_word_embeddings"] is True


def test_each_kind_of_map_has_its_group(tmp_path):
    model = model_of("llama")
    maps = quantized(model, "w4a8g32")
    for name in list(maps):
        if "mlp" in name:
            part = model.get_submodule(name)
            part.put(rtn(part.weight, Grid(8)))
            maps[name] = (part.rounded, *maps[name][1:])
    saved = save_checkpoint(tmp_path / "out", model, maps, ["lm_head", "re:.*extra"])
    config = json.loads((saved.folder / "config.json").read_text())["quantization_config"]
    assert config["format"] == "mixed-precision" and config["ignore"] == ["lm_head", "re:.*extra"]
    assert {group["format"] for group in config["config_groups"].values()} == {"int-quantized", "pack-quantized"}
    back = transformers.AutoModelForCausalLM.from_pretrained(saved.folder).eval()
    assert relative(outputs(back), outputs(model)) < 1e-5


def test_nothing_in_few_bits_is_a_plain_checkpoint(tmp_path):
    model = model_of("llama")
    saved = save_checkpoint(tmp_path / "out", model, {})
    assert "quantization_config" not in json.loads((saved.folder / "config.json").read_text())
    back = transformers.AutoModelForCausalLM.from_pretrained(saved.folder).eval()
    assert torch.equal(outputs(back), outputs(model))


def test_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(save, "SHARD", "60KB")
    model, maps = llama_with(lambda model, maps: None)
    saved = save_checkpoint(tmp_path / "out", model, maps)
    index = json.loads((saved.folder / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    back = transformers.AutoModelForCausalLM.from_pretrained(saved.folder).eval()
    assert relative(outputs(back), outputs(model)) < 1e-5


def test_tokenizer_and_recipe_lie_beside(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"far": 0, "out": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?")
    model, maps = llama_with(lambda model, maps: None)
    recipe = {"recipe": "gptq", "damping": 0.01}
    saved = save_checkpoint(
        tmp_path / "out", model, maps, scheme=Scheme.parse("w4a8g32"), tokenizer=tokenizer, recipe=recipe
    )
    assert json.loads((saved.folder / "recipe.json").read_text()) == {**recipe, "scheme": "w4a8g32"}
    assert transformers.AutoTokenizer.from_pretrained(saved.folder)("far out")["input_ids"] == [0, 1]


def test_the_model_stays_as_it_is(tmp_path):
    model, maps = llama_with(transformed)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = model.config.to_dict()
    save_checkpoint(tmp_path / "out", model, maps)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert {**model.config.to_dict(), "architectures": None} == {**config, "architectures": None}
    assert model.lm_head.weight is model.model.embed_tokens.weight


# ---- whole or not at all


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@pytest.mark.parametrize("there", [False, True], ids=["new", "empty"])
@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "stopped"]
)
def test_a_write_that_breaks_off_leaves_nothing(tmp_path, monkeypatch, error, there):
    import transformers.modeling_utils as modeling

    (tmp_path / "other.txt").write_text("stays")
    if there:
        (tmp_path / "out").mkdir()
    wrote = []

    def half(tensors, path, **options):
        save_file(dict(list(tensors.items())[: len(tensors) // 2]), path)
        wrote.append(Path(path).stat().st_size)
        raise error

    monkeypatch.setattr(modeling, "safe_save_file", half)
    model, maps = llama_with(lambda model, maps: None)
    with pytest.raises(BadInput if isinstance(error, OSError) else KeyboardInterrupt) as caught:
        save_checkpoint(tmp_path / "out", model, maps)
    assert wrote and wrote[0] > 1000
    assert sorted(path.name for path in tmp_path.iterdir()) == (["other.txt", "out"] if there else ["other.txt"])
    assert tree(tmp_path) == {"other.txt": b"stays"}
    if isinstance(error, OSError):
        assert "No space left on device; nothing was left there" in str(caught.value)


def test_a_disk_that_takes_no_more_leaves_nothing(tmp_path):
    model, maps = llama_with(lambda model, maps: None)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        with pytest.raises(BadInput, match="cannot write"):
            save_checkpoint(tmp_path / "out", model, maps)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    model, maps = llama_with(lambda model, maps: None)
    with pytest.raises(BadInput, match="is there already and not empty"):
        save_checkpoint(tmp_path / "out", model, maps)
    assert tree(tmp_path) == {"out/notes.txt": b"mine"}


def test_names_and_models_that_are_none(tmp_path):
    model, maps = llama_with(lambda model, maps: None)
    with pytest.raises(NothingMatched, match=r"no linear map matches 'model.layers.0.mlp.up'; nearest"):
        save_checkpoint(tmp_path / "out", model, {"model.layers.0.mlp.up": maps[UP]})
    with pytest.raises(BadInput, match="a 'Sequential' is no model of transformers"):
        save_checkpoint(tmp_path / "out", nn.Sequential(nn.Linear(2, 2)), {})


def test_the_header_says_pytorch(tmp_path):
    model, maps = llama_with(lambda model, maps: None)
    saved = save_checkpoint(tmp_path / "out", model, maps)
    with safe_open(saved.folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
