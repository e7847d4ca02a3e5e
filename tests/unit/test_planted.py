"""Planted outliers: the function stays, a recorder reports the channels, and rounding shows what they cost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from farout.bench.divergence import divergence  # noqa: E402
from farout.bench.perplexity import perplexity  # noqa: E402
from farout.claims import _small_models as small  # noqa: E402
from farout.claims._measured_decoders import to_grid  # noqa: E402
from farout.claims._planted import loss_gap, plant  # noqa: E402
from farout.data.calibration import calibration  # noqa: E402
from farout.errors import BadInput, UnknownName  # noqa: E402
from farout.inside import record  # noqa: E402
from farout.inside.findings.outlier_channels import outliers  # noqa: E402

KINDS = ("llama", "opt")
OFFSET = {"llama": 0.0, "opt": 60.0}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A little trained, since an untrained model has nothing to lose; kept in a cache of this test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setitem(small.SCALES, "small", replace(small.SCALES["small"], width=32, layers=2, steps=25, batch_size=4))
        yield {kind: small.small_language_model(kind, text="built-in") for kind in KINDS}


def ids(n=6, t=40, seed=0):
    return torch.randint(32, 127, (n, t), generator=torch.Generator().manual_seed(seed))


def logits(model, x):
    with torch.no_grad():
        return model(input_ids=x).logits


def every_place(kind, opened, channels=3, factor=30.0, offset=None):
    return plant(opened, channels, factor, OFFSET[kind] if offset is None else offset, ("norm", "middle", "values"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_function_is_unchanged(models, kind):
    opened = models[kind]
    before = logits(opened.model, ids())
    planted, _ = every_place(kind, opened)
    assert torch.equal(logits(opened.model, ids()), before)  # a copy was planted
    assert not torch.equal(logits(planted.model, ids()), before)
    assert (logits(planted.model, ids()) - before).abs().max() < 1e-5 * before.abs().max()
    double = replace(opened, model=opened.model.double())
    before = logits(double.model, ids())
    planted, _ = every_place(kind, double)
    assert (logits(planted.model, ids()) - before).abs().max() < 1e-10 * before.abs().max()
    opened.model.float()


@pytest.mark.parametrize("kind", KINDS)
def test_the_recipe_is_exact(models, kind):
    opened = models[kind]
    planted, where = plant(opened, [3, 7], 32.0, OFFSET[kind])  # a power of two divides exactly
    old, new = (dict(one.model.named_parameters()) for one in (opened, planted))
    norm = {"llama": "model.layers.1.post_attention_layernorm", "opt": "model.decoder.layers.1.final_layer_norm"}[kind]
    reader = {"llama": "model.layers.1.mlp.up_proj", "opt": "model.decoder.layers.1.fc1"}[kind]
    assert where[f"{norm}.out"] == [3, 7]
    change = torch.ones(32)
    change[[3, 7]] = 32
    assert torch.equal(new[f"{norm}.weight"], old[f"{norm}.weight"] * change)
    assert torch.equal(new[f"{reader}.weight"], old[f"{reader}.weight"] / change)
    if kind == "opt":
        m = torch.zeros(32)
        m[3], m[7] = 60, -60
        assert torch.equal(new[f"{norm}.bias"], old[f"{norm}.bias"] * change + m)
        expected = old[f"{reader}.bias"] - new[f"{reader}.weight"] @ m
        assert torch.allclose(new[f"{reader}.bias"], expected, atol=1e-5)
    assert len(where) == 4  # two norms of two blocks


@pytest.mark.parametrize("kind", KINDS)
def test_a_recorder_reports_the_planted_channels_and_no_others(models, kind):
    plain = record(models[kind].model, [{"input_ids": ids()}], what=("norm", "linear"))
    middle = {"llama": "model.layers.{}.mlp.down_proj.in", "opt": "model.decoder.layers.{}.fc2.in"}[kind]
    middles = [plain[middle.format(i)].rms[:16] for i in (0, 1)]
    alive = np.flatnonzero(np.min(middles, axis=0))  # a ReLU that never fires stays at 0 whatever is planted
    planted, where = every_place(kind, models[kind], channels=alive[:2].tolist(), factor=100.0)
    shared = 2 if kind == "llama" else 1  # heads that read the same values
    recording = record(planted.model, [{"input_ids": ids()}], what=("norm", "linear"))
    assert len(where) == 8
    for site, channels in where.items():
        stands_out = recording[site].rms / plain[site].rms.clip(1e-12)
        assert np.flatnonzero(stands_out > 10).tolist() == channels, site
        assert len(channels) == (2 * shared if "self_attn." in site else 2)
        if site.endswith(".out"):  # of norms
            assert outliers(recording[site]).tolist() == channels
            assert outliers(plain[site]).tolist() == []
    values = next(site for site in where if "self_attn." in site)
    grown = np.sqrt(recording[values].rms / plain[values].rms)[where[values]]
    assert grown == pytest.approx(10, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_rounding_loses_more_where_outliers_are_planted(models, kind):
    opened, windows = models[kind], small.held_out("built-in", windows=16)
    planted, _ = plant(opened, 4, 50.0, OFFSET[kind])
    reference = perplexity(opened, windows).loss
    assert reference < np.log(256) - 1  # it has learned
    assert abs(loss_gap(planted, reference, windows)) < 1e-5
    gaps = []
    for one in (opened, planted):
        linear = [module for module in one.model.model.modules() if isinstance(module, torch.nn.Linear)]
        hooks = [one.register_forward_pre_hook(lambda _, args: (to_grid(args[0], 6, True),)) for one in linear]
        gaps.append(loss_gap(one, reference, windows))
        for hook in hooks:
            hook.remove()
    assert gaps[1] > 10 * abs(gaps[0]) and gaps[1] > 1e-3
    assert divergence(opened, planted, calibration("ascii", planted, samples=2, length=64)) < 1e-6


def test_a_trained_model_is_kept(models, monkeypatch, tmp_path):
    first = models["llama"].model
    monkeypatch.setattr(small, "_train", lambda *args, **more: pytest.fail("it was trained again"))
    again = small.small_language_model("llama", text="built-in").model
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters()))
    assert again.lm_head.weight is again.model.embed_tokens.weight
    for other in ({"seed": 1}, {"text": "ascii"}):
        with pytest.raises(pytest.fail.Exception, match="trained again"):
            small.small_language_model("llama", **({"text": "built-in"} | other))


def test_bad_input(models):
    with pytest.raises(BadInput, match="a norm without a bias"):
        plant(models["llama"], 2, 10.0, offset=1.0)
    with pytest.raises(BadInput, match="above 0"):
        plant(models["opt"], 2, -10.0)
    with pytest.raises(BadInput, match="from 0 to 31"):
        plant(models["opt"], [32])
    with pytest.raises(UnknownName, match="no place of outliers is called 'norms'; nearest: 'norm'"):
        plant(models["opt"], where=("norms",))
    with pytest.raises(UnknownName, match="no kind of small language model is called 'gpt'"):
        small.small_language_model("gpt")
    with pytest.raises(BadInput, match="holds out 18 windows of 128 bytes, and 64 are asked for"):
        small.held_out("built-in")
