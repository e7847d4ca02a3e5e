"""What is found in real pretrained models, against numbers computed from their own outputs with numpy."""

from __future__ import annotations

import numpy as np
import pytest

from farout.data import DataMissing
from farout.data.pretrained import pretrained
from farout.data.samples import sample_texts
from farout.inside import diagnose, record

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.slow


def opened(name):
    from farout.io.models import open_model

    try:
        return open_model(pretrained(name))
    except DataMissing as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def smol():
    """SmolLM2-135M, a recording of it, and what it says of itself on the same text."""
    model = opened("smollm2-135m")
    batches = model.batches(sample_texts()[:4], length=128, batch_size=2)
    recording = record(model.model, batches, what=("residual", "norm", "linear", "probs", "weight"))
    model.model.set_attn_implementation("eager")
    with torch.no_grad():
        outputs = [model.model(**batch, output_hidden_states=True, output_attentions=True) for batch in batches]
    return recording, diagnose(recording), outputs, model.model


def of_kind(findings, *kinds):
    return [one for one in findings if one.kind in kinds]


def test_massive_activations_of_smollm2(smol):
    recording, findings, outputs, _ = smol
    one, *others = of_kind(findings, "massive activation", "spike")
    assert not others
    assert one.evidence["channels"][:2] == [507, 247]
    assert one.evidence["positions"] == [0]
    assert one.evidence["layers"][0] == 11  # block 11, from 0: hidden_states[12]
    assert one.evidence["layers"] == list(range(11, one.evidence["layers"][-1] + 1))
    assert one.evidence["layers"][-1] >= 26
    assert one.where == "model.layers.11.out"
    hidden = np.concatenate([out.hidden_states[12].double().numpy() for out in outputs])
    peak = np.abs(hidden)
    assert np.unravel_index(peak.argmax(), peak.shape)[1:] == (0, 507)
    assert recording["model.layers.11.out"].absmax[507] == pytest.approx(peak[..., 507].max(), rel=1e-5)
    assert 20_000 < one.evidence["peaks"][0] < 30_000
    before = np.concatenate([out.hidden_states[11].double().numpy() for out in outputs])
    assert np.abs(before).max() < 1_000


def test_channels_of_smollm2_that_are_large_at_ordinary_tokens(smol):
    _, findings, outputs, _ = smol
    (one,) = of_kind(findings, "residual sink")
    assert {507, 247} <= set(one.evidence["channels"])
    layers = dict(zip(one.evidence["channels"], one.evidence["layers"]))
    assert any(first <= 3 and last >= 7 for first, last in layers[507])
    for block in (3, 7):
        ordinary = np.abs(np.concatenate([out.hidden_states[block + 1][:, 1:].numpy() for out in outputs]))
        mean = ordinary.mean((0, 1))
        assert mean[507] / np.median(mean) > 20


def test_the_weights_that_write_the_massive_activation(smol):
    _, findings, _, model = smol
    (one,) = of_kind(findings, "single weight")
    weight = np.abs(model.model.layers[11].mlp.down_proj.weight.detach().double().numpy())
    expected = max((weight.max(1) / weight.mean(1)).max(), (weight.max(0) / weight.mean(0)).max())
    found = {site: value for site, _, value in one.evidence["weights"]}
    assert found["model.layers.11.mlp.down_proj.weight"] == pytest.approx(expected, rel=1e-5)
    assert "model.layers.28.mlp.down_proj.weight" in found  # which takes it away


def test_the_life_of_the_largest_outlier_of_smollm2(smol):
    _, findings, _, model = smol
    (one,) = of_kind(findings, "life cycle")
    assert (one.evidence["channel"], one.evidence["created"]) == (507, 11)
    assert one.evidence["writers"] == [["model.layers.11.mlp.down_proj.weight", 507]]
    assert one.evidence["removed"] in (28, 29)
    assert ["model.layers.28.mlp.down_proj.weight", 507] in one.evidence["cancellers"]
    weight = model.model.layers[11].mlp.down_proj.weight.detach().abs()
    assert int(weight.amax(1).argmax()) == 507  # the largest weight of the matrix stands in this row


def test_sink_heads_of_smollm2(smol):
    recording, findings, outputs, _ = smol
    (one,) = of_kind(findings, "attention sink")
    assert one.evidence["positions"] == [0]
    assert set(range(12, 30)) <= set(one.evidence["layers"])
    probs = np.concatenate(
        [out.attentions[18].double().numpy() for out in outputs]
    )  # (sequences, heads, queries, keys)
    share = recording["model.layers.18.self_attn.probs"].share[:, 0]
    queries = recording["model.layers.18.self_attn.probs"].queries[0] / len(probs)
    if queries == probs.shape[2]:
        assert share == pytest.approx(probs[..., 0].mean((0, 2)), rel=1e-3)
    assert share.argmax() == probs[..., 0].mean((0, 2)).argmax()


def test_minilm_is_the_control():
    model = opened("minilm-l6")
    findings = diagnose(record(model.model, model.batches(sample_texts()[:4], length=128, batch_size=4)))
    assert not of_kind(findings, "massive activation", "spike", "residual sink", "beyond float16", "weight line")
    (tails,) = of_kind(findings, "heavy tail")
    assert set(tails.evidence["kurtosis"]) <= {"pooler.dense.in"} | {
        f"encoder.layer.{i}.output.dense.in" for i in range(6)
    }


def test_gemma_has_channels_at_every_token_beyond_half_precision():
    model = opened("gemma-3-270m")
    recording = record(model.model, model.batches(sample_texts()[:2], length=64, batch_size=2), what=("residual",))
    findings = diagnose(recording)
    (sink,) = of_kind(findings, "residual sink")
    assert {163, 400} <= set(sink.evidence["channels"])
    (beyond,) = of_kind(findings, "beyond float16")
    assert beyond.size * 65_504 == pytest.approx(max(recording[name].absmax.max() for name in recording.names()))
