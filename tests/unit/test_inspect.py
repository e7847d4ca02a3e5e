"""Looking inside a model: its numbers are those of plain numpy, and what is planted stands in the page and its twin."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re

import numpy as np
import polars as pl
import pytest

from farout.errors import BadInput
from farout.inside import Cost, Finding, Recording
from farout.inside._attention_stats import AttentionStats
from farout.inspecting import Inspection, inspect
from farout.inspecting._changes import finding_changes
from farout.report._inspection_costs import recipes
from farout.report._inspection_maps import binned, outlier_channels, step_of
from pages import Reader

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

WIDTH, TOKENS, PLANTED = 64, 12, 37
HOSTILE = "</script><script>alert(1)</script><b>&amp; {{ 7 * 7 }}"


class Block(nn.Module):
    """Attention by two heads and a linear map, each added to what enters."""

    def __init__(self):
        super().__init__()
        self.norm, self.q, self.k, self.v = nn.LayerNorm(WIDTH), *(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.mlp = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        q, k, v = (part(self.norm(x)).unflatten(-1, (2, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        return x + self.mlp(mixed)


class Tiny(nn.Module):
    """A language model of three blocks without a tokenizer."""

    def __init__(self, blocks=3):
        super().__init__()
        self.embed = nn.Embedding(50, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.head = nn.Linear(WIDTH, 50)

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def tiny(seed=0, planted=False):
    torch.manual_seed(seed)
    model = Tiny().eval()
    if planted:
        with torch.no_grad():
            model.blocks[1].mlp.bias[PLANTED] = 400.0
    return model


@pytest.fixture(scope="module")
def ids():
    return [torch.randint(0, 50, (3, TOKENS), generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]


@pytest.fixture(scope="module")
def found(ids):
    return inspect(tiny(), ids, name="tiny")


@pytest.fixture(scope="module")
def planted(ids):
    return inspect(tiny(planted=True), ids, name="planted")


def read(found, folder):
    found.save(folder / "page.html")
    return Reader((folder / "page.html").read_text(encoding="utf-8"))


def by_hand(model, ids):
    """Run a tiny model in numpy: the residual stream (4, B, T, C), and attention by layer (3, B, H, T, T)."""
    state = {name: weight.double().numpy() for name, weight in model.state_dict().items()}
    x = state["embed.weight"][torch.cat(ids).numpy()]
    stream, attention = [x], []
    for i in range(3):
        part = {name.removeprefix(f"blocks.{i}."): w for name, w in state.items() if name.startswith(f"blocks.{i}.")}
        h = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        h = h * part["norm.weight"] + part["norm.bias"]
        q, k, v = (h @ part[f"{c}.weight"].T + part[f"{c}.bias"] for c in "qkv")
        q, k, v = (y.reshape(*y.shape[:2], 2, -1).swapaxes(1, 2) for y in (q, k, v))
        logits = q @ k.swapaxes(2, 3) / np.sqrt(q.shape[-1])
        logits = np.where(np.tril(np.ones((TOKENS, TOKENS), bool)), logits, -np.inf)
        probs = np.exp(logits - logits.max(-1, keepdims=True))
        probs /= probs.sum(-1, keepdims=True)
        attention.append(probs)
        mixed = (probs @ v).swapaxes(1, 2).reshape(x.shape)
        x = x + mixed @ part["mlp.weight"].T + part["mlp.bias"]
        stream.append(x)
    return np.array(stream), np.array(attention)


def test_layers_are_those_of_plain_numpy(ids, planted, tmp_path):
    planted.save(tmp_path / "twin.json")
    layers = json.loads((tmp_path / "twin.json").read_text())["layers"]
    stream, _ = by_hand(tiny(planted=True), ids)
    assert [row["layer"] for row in layers] == [-1, 0, 1, 2]
    assert [row["site"] for row in layers] == ["blocks.0.in", *(f"blocks.{i}.out" for i in range(3))]
    for row, h in zip(layers, stream):
        far = np.abs(h)
        _, position, channel = np.unravel_index(far.argmax(), far.shape)
        assert (row["position"], row["channel"], row["width"]) == (position, channel, WIDTH)
        assert row["peak"] == pytest.approx(far.max(), rel=1e-5)
        assert row["first"] == pytest.approx(far[:, 0].max(), rel=1e-5)
        assert row["rest"] == pytest.approx(far[:, 1:].max(), rel=1e-5)
        assert row["rms"] == pytest.approx(np.sqrt((h**2).mean()), rel=1e-5)
        assert row["kurtosis"] == pytest.approx(((h - h.mean()) ** 4).mean() / h.var() ** 2, rel=1e-4)
        assert row["median"] == pytest.approx(np.quantile(far, 0.5, method="inverted_cdf"), rel=1 / 32)
        assert row["q999"] == pytest.approx(np.quantile(far, 0.999, method="inverted_cdf"), rel=1 / 32)


def test_sinks_are_those_of_plain_numpy(ids, found):
    _, attention = by_hand(tiny(), ids)
    share_LHK = attention.mean((1, 3))
    assert found.sinks["layer"].to_list() == [0, 1, 2]
    np.testing.assert_allclose(np.array(found.sinks["first_heads"].to_list()), share_LHK[:, :, 0], rtol=1e-5)
    np.testing.assert_allclose(found.sinks["first"], share_LHK[:, :, 0].mean(1), rtol=1e-5)
    assert found.sinks["position"].to_list() == share_LHK.mean(1).argmax(1).tolist()
    np.testing.assert_allclose(found.sinks["share"], share_LHK.mean(1).max(1), rtol=1e-5)
    sunk = [(share[:, p] > 0.3).sum() for share, p in zip(share_LHK, found.sinks["position"])]
    assert found.sinks["sink_heads"].to_list() == sunk


def test_a_sink_is_where_heads_look_together_and_later_positions_are_pooled(tmp_path):
    share_HK = np.full((2, 50), 0.001)
    share_HK[:, [0, 2, 40]] = [[0.1, 0.35, 0.3], [0.1, 0.35, 0.3]]
    share_HK[0, 1] = 0.5  # one head alone looks there
    stats = AttentionStats(share_HK * 60, np.full(50, 60), np.ones(2), np.zeros(2, int))
    found = Inspection("made", {}, Recording({"a.probs": stats}, {"a.probs": "probs"}), takes="tokens")
    row = found.sinks.row(0, named=True)
    assert (row["position"], row["sink_heads"], row["share"]) == (2, 2, pytest.approx(0.35))
    by_head, by_place = read(found, tmp_path).figures[0]["data"]
    np.testing.assert_allclose(by_head["z"], [share_HK[:, 0]])
    assert len(by_place["z"][0]) == 34  # 32 positions, the sink at 40, and the rest
    assert by_place["text"][0][-2:] == ["layer 0, position 40", "layer 0, all other positions"]
    np.testing.assert_allclose(by_place["z"][0][-2:], [0.3, 17 * 0.001], rtol=1e-4)


def test_twin_holds_the_recording_and_the_costs(found, tmp_path):
    found.save(tmp_path / "twin.json")
    twin = json.loads((tmp_path / "twin.json").read_text(), parse_constant=pytest.fail)
    for row in twin["sites"]:
        stats = found.recording[row["site"]]
        assert row["peak"] == stats.absmax.max()
        assert row["kurtosis"] == (None if np.isnan(stats.kurtosis) else stats.kurtosis)
    assert len(twin["sites"]) == found.frame().height > 20
    assert [cost["errors"] for cost in twin["costs"]] == [cost.errors for cost in found.costs]
    assert [finding["says"] for finding in twin["findings"]] == [finding.says for finding in found.findings]
    assert twin["settings"]["versions"].keys() >= {"farout", "numpy", "torch"}
    assert twin["settings"]["read"] == f"6 texts, {6 * TOKENS} tokens" and twin["facts"] == found.facts


def test_recipes_sum_up_what_costs_say(found):
    table = {(row["scheme"], row["recipe"]): row for row in found.recipes.iter_rows(named=True)}
    for scheme in ("w8a8", "w4a16", "w4a4"):
        errors = [cost.errors[scheme] for cost in found.costs]
        row = table[scheme, "plain"]
        assert (row["maps"], row["worst"]) == (len(found.costs), max(errors))
        assert row["mean"] == pytest.approx(np.mean(errors)) and row["median"] == pytest.approx(np.median(errors))
        assert row["worst_layer"] == found.costs[int(np.argmax(errors))].layer
    scales = [cost.remedies["per-token scales"]["w8a8"] for cost in found.costs]
    assert table["w8a8", "per-token scales"]["mean"] == pytest.approx(np.mean(scales))
    assert not any("tokenizer" in note for note in found.notes)  # batches need none
    assert ("w4a4", "per-token scales") not in table  # that scheme has them already
    assert len({row["maps"] for row in table.values()}) == 1


def test_a_recipe_for_some_of_the_maps_leaves_the_others_as_they_are():
    def cost(layer, plain, left):
        remedies = {"rotation": {"w8a8": left}, "smoothquant": {"w8a8": plain}}
        losses = {name: {"w8a8": 10 * by["w8a8"]} for name, by in remedies.items()}
        return Cost(layer, f"{layer}.weight", (2, 2), {"w8a8": plain}, remedies, {"w8a8": 10 * plain}, losses)

    found = Inspection("made", {}, Recording(), costs=[cost("conv", 0.2, 0.2), cost("linear", 0.1, 0.02)])
    assert [(row["recipe"], row["maps"]) for row in found.recipes.to_dicts()] == [("plain", 2), ("rotation", 2)]
    np.testing.assert_allclose(found.recipes["loss"], [3.0, 2.2])
    np.testing.assert_allclose(found.recipes["mean"], [0.15, 0.11])


def test_a_planted_channel_stands_in_the_twin_and_in_the_page(planted, tmp_path):
    said = [finding for finding in planted.findings if str(PLANTED) in finding.says and finding.size > 1]
    assert said and planted.verdict()[0] in {finding.says for finding in said}
    page = read(planted, tmp_path)
    for finding in said:
        assert finding.says in page.text and finding.remedy in page.text
    names = [note["text"] for note in page.figures[0]["layout"]["annotations"]]
    assert str(PLANTED) in names  # above the heat map
    z = np.array(page.figures[0]["data"][0]["z"], float)
    assert z[2].argmax() == PLANTED and z[2].max() == pytest.approx(np.log10(400), abs=0.01)
    assert "channel 37" in page.text  # in the table of layers


def test_nothing_planted_nothing_named(found, tmp_path):
    assert not any(str(PLANTED) in finding.says for finding in found.findings if finding.size >= 1)
    page = read(found, tmp_path)
    assert page.figures[0]["layout"]["annotations"] == []


def test_page_is_whole_and_loads_nothing(planted, tmp_path):
    page = read(planted, tmp_path)
    opened = [tag for tag, _ in page.tags]
    assert opened.count("html") == opened.count("main") == opened.count("h1") == 1
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv"))
    running = [text for attrs, text in page.scripts if attrs.get("type") != "application/json"]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in running]
    assert policy.startswith("default-src 'none'") and re.findall(r"'sha256-([^']+)'", policy) == hashes
    assert not any({"src", "href"} & set(attrs) for tag, attrs in page.tags if tag in ("script", "link", "img"))
    anchors = {attrs["id"] for tag, attrs in page.tags if tag == "section"}
    assert {attrs["href"][1:] for tag, attrs in page.tags if tag == "a"} == anchors
    assert {"what-stands-out", "what-helps", "growth-over-layers", "attention-sinks", "settings"} <= anchors


def test_bars_are_the_costs(found, tmp_path):
    figure = next(f for f in read(found, tmp_path).figures if f["data"][0]["type"] == "bar")
    bars = [trace for trace in figure["data"] if trace["type"] == "bar"]
    assert len(bars) == 3
    for bar, scheme in zip(bars, ("w8a8", "w4a16", "w4a4")):
        assert [text.split("<br>")[0] for text in bar["text"]] == [cost.layer for cost in found.costs]
        ranked = sorted(found.costs, key=lambda cost: -cost.loss[scheme])
        worst = {cost.layer for cost in ranked[: len(ranked) // 4]}
        marked = [colour == "var(--accent)" for colour in bar["marker"]["color"]]
        assert marked == [cost.layer in worst for cost in found.costs]
        np.testing.assert_allclose(bar["y"], [cost.errors[scheme] for cost in found.costs], rtol=1e-4)


def test_wide_layers_are_binned_by_their_maximum():
    rng = np.random.default_rng(0)
    rows = [np.abs(rng.normal(size=width)) for width in (5000, 3000)]
    rows[0][4321], rows[1][0] = 77.0, 55.0
    values, channels = binned(rows, step_of(5000))
    assert values.shape[1] <= 300 and np.nanmax(values[0]) == 77.0 and channels[0, np.nanargmax(values[0])] == 4321
    assert values[1, 0] == 55.0 and np.isnan(values[1, -1]) and np.isfinite(values[0]).all()
    assert outlier_channels(rows) == [4321, 0]


def test_a_model_compared_with_itself_has_not_changed(ids, found, tmp_path):
    both = found.compared(inspect(tiny(), [torch.cat(ids)], name="again"))  # the split into batches must not matter
    assert both.change().startswith("Nothing changed from 'tiny' to 'again'")
    assert {change.what for change in both.finding_changes()} <= {"same"}
    assert both.changes()["change"].max() < 0.01
    assert both.change() in read(both, tmp_path).text


def test_a_planted_change_is_named(found, planted, tmp_path):
    both = found.compared(planted)
    first = both.changes().row(0, named=True)
    assert first["site"] == "blocks.1.mlp.bias"
    bias = np.abs(tiny().blocks[1].mlp.bias.detach().numpy()).max()
    assert first["peak_ratio"] == pytest.approx(400 / bias, rel=1e-6)
    new = [change for change in both.finding_changes() if change.what == "new" and str(PLANTED) in change.says]
    assert new and new[0].size is None and new[0].other_size > 1
    assert {change.what for change in planted.compared(found).finding_changes()} >= {"gone"}
    page = read(both, tmp_path)
    assert "tiny → planted" in page.text and new[0].says in page.text and "blocks.1.mlp.bias" in page.text
    both.save(tmp_path / "twin.json")
    twin = json.loads((tmp_path / "twin.json").read_text(), parse_constant=pytest.fail)
    assert twin["compared"]["sites"][0]["site"] == "blocks.1.mlp.bias"
    assert twin["compared"]["other"]["layers"][2]["channel"] == PLANTED


def test_findings_are_paired_by_kind_scheme_and_place():
    def finding(kind, where, size, scheme=None):
        return Finding(kind, where, size, f"{kind} at {where}", {"scheme": scheme} if scheme else {})

    one = [finding("rounding cost", "a", 4.0, "w4a4"), finding("rounding cost", "a", 2.0, "w8a8")]
    one += [finding("heavy tail", "b", 5.0), finding("heavy tail", "c", 6.0), finding("spike", "d", 3.0)]
    other = [finding("rounding cost", "a", 2.0, "w8a8"), finding("rounding cost", "a", 0.5, "w4a4")]
    other += [finding("heavy tail", "c", 12.0), finding("heavy tail", "e", 5.1), finding("dead units", "f", 1.5)]
    seen = {(c.what, c.kind, c.where): (c.size, c.other_size) for c in finding_changes(one, other)}
    assert seen == {
        ("new", "dead units", "f"): (None, 1.5),
        ("gone", "rounding cost", "a"): (4.0, None),  # within its bound is no finding
        ("gone", "spike", "d"): (3.0, None),
        ("same", "rounding cost", "a"): (2.0, 2.0),
        ("grown", "heavy tail", "c"): (6.0, 12.0),
        ("same", "heavy tail", "e"): (5.0, 5.1),  # it moved
    }


def test_models_of_other_architectures_are_said_not_to_match(found, tmp_path):
    other = inspect(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)), [torch.randn(20, 8)], name="mlp")
    both = found.compared(other)
    assert "no site of the same name" in both.change() and both.changes().is_empty()
    assert both.change() in read(both, tmp_path).text


def test_compare_reads_the_same_data(ids):
    both = inspect(tiny(), ids, compare=tiny(planted=True), name="a")
    assert both.other.layers["channel"][2] == PLANTED and both.other.settings["read"] == both.settings["read"]


def test_hostile_names_and_pieces_are_text(ids, tmp_path):
    model = nn.Sequential()
    torch.manual_seed(0)
    model.add_module("embed", nn.Embedding(50, WIDTH))
    name = HOSTILE.replace(".", "")
    model.add_module(name, nn.Sequential(Block(), Block()))
    found = inspect(model, ids, name=HOSTILE)
    found = dataclasses.replace(found, tokens=[[HOSTILE] * TOKENS] * 3, notes=[HOSTILE])
    page = read(found.compared(found), tmp_path)
    running = [text for attrs, text in page.scripts if attrs.get("type") != "application/json"]
    assert len(running) == 2 and "alert" not in "".join(running)
    assert not any(tag == "b" and "alert" in str(attrs) for tag, attrs in page.tags)
    assert page.text.count("</script><script>alert(1)") > 5
    drawn = json.dumps([figure["data"] for figure in page.figures])
    assert "<script" not in drawn and "&lt;script&gt;" in drawn


def test_values_that_are_no_numbers_are_a_finding_and_null(ids, tmp_path):
    model = tiny()
    with torch.no_grad():
        model.blocks[1].mlp.weight[3] = torch.nan
    found = inspect(model, ids, name="broken")
    assert found.findings[0].kind == "not a number" and "blocks.1" in found.findings[0].where
    found.save(tmp_path / "twin.json")
    twin = json.loads((tmp_path / "twin.json").read_text(), parse_constant=pytest.fail)
    assert twin["layers"][3]["peak"] is None or np.isfinite(twin["layers"][3]["peak"])
    assert found.findings[0].says in read(found, tmp_path).text


def test_a_model_without_linear_maps(tmp_path):
    found = inspect(nn.Sequential(nn.LayerNorm(8), nn.ReLU()), [torch.randn(5, 8)], name="norm")
    assert found.costs == [] and found.recipes.is_empty() and found.stream == []
    assert any("no linear map" in note for note in found.notes)
    page = read(found, tmp_path)
    assert "no linear map and no convolution" in page.text and page.figures == []


def test_models_that_return_tuples_and_half_precision_on_the_cpu(ids):
    class Pair(Tiny):
        def forward(self, ids):
            return (super().forward(ids), None)

    torch.manual_seed(0)
    pair = inspect(Pair().eval(), ids, name="pair")
    assert pair.layers["channel"].to_list() == inspect(tiny(), ids).layers["channel"].to_list()
    half = inspect(tiny().to(torch.bfloat16), ids, name="half")
    whole = inspect(tiny(), ids, name="whole")
    np.testing.assert_allclose(half.layers["peak"], whole.layers["peak"], rtol=0.02)


def test_a_module_of_the_user_is_left_as_it_was(ids):
    model = tiny().train()
    model.blocks[1].eval()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    drawn = torch.random.get_rng_state()
    inspect(model, ids)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert model.training and model.blocks[0].norm.training and not model.blocks[1].norm.training
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_memory_that_runs_out_is_said(ids):
    class Hungry(Tiny):
        def forward(self, ids):
            if len(ids) > 2:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
            return super().forward(ids)

    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="halved"):
        found = inspect(Hungry().eval(), ids, name="hungry")
    assert "a batch of 3 did not fit in memory and was halved" in found.notes
    np.testing.assert_allclose(found.layers["peak"], inspect(tiny(), ids).layers["peak"], rtol=1e-5)


def test_images_and_a_network_of_convolutions(tmp_path):
    torch.manual_seed(0)
    stage = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(3)]
    model = nn.Sequential(nn.Conv2d(3, 8, 3), *stage, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    found = inspect(model, name="cnn", samples=3)
    assert found.takes == "pixels" and found.settings["read"] == "3 images"
    assert found.layers.height == 4 and found.sinks.is_empty()
    page = read(found, tmp_path)
    assert "Attention sinks" not in page.text and "first position" not in page.text


@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".csv", ".npy", ".npz", "images"])
def test_data_of_every_kind(ending, tmp_path):
    from farout.inspecting._samples import sample_for

    class Opened:
        name, takes = "model", {".npy": "features", ".npz": "features", "images": "pixels"}.get(ending, "tokens")

    path, texts = tmp_path / f"data{ending}", ["one two", "three", "four"]
    if ending == ".txt":
        path.write_text("one\ntwo\n\nthree\n\n\n\nfour\n")
    elif ending == ".jsonl":
        path.write_text("".join(json.dumps({"id": 1, "text": text}) + "\n" for text in texts))
    elif ending == ".csv":
        pl.DataFrame({"label": ["a", "b", "c"], "Text": texts}).write_csv(path)
    elif ending == "images":
        Image = pytest.importorskip("PIL.Image")
        path.mkdir()
        for k in range(3):
            Image.fromarray(np.full((4, 5, 3), 40 * k, np.uint8)).save(path / f"{k}.png")
    else:
        rows = np.arange(12.0).reshape(4, 3)
        np.save(path, rows) if ending == ".npy" else np.savez(path, X=rows)
    items = sample_for(Opened, path, 2).items
    if ending == "images":
        assert [item.shape for item in items] == [(4, 5, 3)] * 2 and items[1].max() == 40
    elif Opened.takes == "features":
        np.testing.assert_array_equal(items, np.arange(12.0).reshape(4, 3))
    else:
        assert items == texts[:2]


def test_data_that_cannot_be_read_are_refused(tmp_path, ids):
    linear = nn.Linear(3, 2)
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "t.csv").write_text("a,b\nx,y\n")
    (tmp_path / "bad.npy").write_bytes(b"no array")
    (tmp_path / "folder").mkdir()
    for model, data, words in [
        (linear, None, "takes features, of which farout has no sample"),
        (linear, tmp_path / "gone.npy", "no file or folder"),
        (linear, tmp_path / "bad.npy", "cannot be read as an array"),
        (linear, tmp_path / "t.csv", "the model takes features"),
        (linear, [], "not nothing"),
        (linear, [1, 2], "not int"),
        (tiny(), tmp_path / "empty.txt", "holds no text"),
        (tiny(), tmp_path / "t.csv", "no column 'text'"),
        (tiny(), tmp_path / "folder", "holds no images"),
        ("smollm", None, "nearest: 'smollm2-135m'"),
        (tmp_path / "folder", None, "config.json"),
    ]:
        with pytest.raises(BadInput, match=re.escape(words)):
            inspect(model, data)
    with pytest.raises(BadInput, match="length is at least 1, not 0"):
        inspect(tiny(), ids, length=0)


def test_what_is_said_of_costs_follows_from_the_numbers(found):
    rows = found.recipes.filter(pl.col("scheme") == "w8a8").sort("loss").to_dicts()
    plain = next(row for row in rows if row["recipe"] == "plain")
    assert found.loss_unit == "of the output's energy"  # the model gives a bare tensor, which need not be logits
    assert found.verdict()[1] == (
        "Plain rounding to 8 bits, one scale for each activation tensor (w8a8) is predicted to change the model's "
        f"output by {100 * plain['loss']:.2g} % of its energy; with {rows[0]['recipe']} {100 * rows[0]['loss']:.2g} %."
    )
    assert recipes(found)[0].body.count('class="best"') == 3  # one for each scheme


def test_losses_in_nats_are_said_in_nats_and_broken_models_are_called_broken():
    def said(plain, left):
        cost = Cost("a", "a.weight", (2, 2), {"w8a8": 0.3}, {"rotation": {"w8a8": 0.2}}, {"w8a8": plain},
                    {"rotation": {"w8a8": left}}, nats=True)  # fmt: skip
        return Inspection("made", {}, Recording(), costs=[cost], takes="tokens").verdict()[1]

    start = "Plain rounding to 8 bits, one scale for each activation tensor (w8a8) is predicted to "
    assert said(0.84, 0.012) == f"{start}cost 0.84 nats a token; with rotation 0.012 nats a token."
    assert said(9.0, 0.5) == f"{start}break the model; with rotation 0.5 nats a token."
    assert said(9.0, 4.0) == f"{start}break the model." and said(0.5, 0.6) == f"{start}cost 0.5 nats a token."


def test_an_inspection_shows_itself_in_a_few_lines(planted):
    first, *rest = repr(planted).splitlines()
    assert first == f"<inspection of 'planted': {len(planted.grave)} findings>"
    assert len(rest) == len(planted.grave) and planted.findings[0].says in rest[0]


def test_table_of_sites_in_other_formats(found, tmp_path):
    found.save(tmp_path / "sites.parquet")
    assert pl.read_parquet(tmp_path / "sites.parquet").equals(found.frame())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A transformers folder: two layers, a vocabulary of words, and a channel that is planted in the first layer."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    path = tmp_path_factory.mktemp("folder") / "tinyllama"
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=40, num_key_value_heads=2, max_position_embeddings=64, **sizes)
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[11] *= 4000.0
    model.save_pretrained(path)
    words = {word: k for k, word in enumerate(["<unk>", *"abcdefghijklmnopqrstuvwxyz"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(path)
    (path.parent / "texts.txt").write_text("\n\n".join(" ".join("hello world"[k:] * 2) for k in range(6)))
    return path


def run(*words):
    """Run the verb in this process; return what it says on both streams."""
    import contextlib
    import io

    from farout.cli import app

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        app(["inspect", *map(str, words)], standalone_mode=False)
    return out.getvalue(), err.getvalue()


def test_command_line_from_end_to_end(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out, err = run(folder, "--data", folder.parent / "texts.txt", "--samples", 3, "--batch-size", 2)
    assert "size  finding" in out and "hannel 11" in out
    assert "read 3 texts, " in err and "wrote " in err and "architecture LlamaForCausalLM" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tinyllama.farout.html", "tinyllama.farout.json"]
    twin = json.loads((tmp_path / "tinyllama.farout.json").read_text())
    assert twin["layers"][1]["channel"] == 11 and twin["layers"][1]["pieces"]
    assert twin["settings"]["command"][0] == "farout" and twin["settings"]["seconds"]["in all"] > 0
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    texts = (folder.parent / "texts.txt").read_text().split("\n\n")[:3]
    with torch.no_grad():
        states = [model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True) for text in texts]
    peak = max(float(state.hidden_states[1].abs().max()) for state in states)
    assert twin["layers"][1]["peak"] == pytest.approx(peak, rel=1e-5)


def test_command_line_writes_where_it_is_told(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = (folder, "--data", folder.parent / "texts.txt", "--samples", 2, "-q")
    out, err = run(*words, "-o", "-")
    assert json.loads(out)["name"] == "tinyllama" and err == "" and not list(tmp_path.iterdir())
    run(*words, "-o", "sites.csv")
    assert pl.read_csv("sites.csv")["site"].str.contains("layers.1").any()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sites.csv", "sites.farout.json"]
    out, _ = run(*words, "--compare", folder, "-o", "both.html")
    assert out.startswith("Nothing changed from 'tinyllama' to 'tinyllama'")
    with pytest.raises(BadInput, match="no folder"):
        run(*words, "-o", "gone/x.json")


def test_a_tokenizer_that_is_missing_and_weights_that_are(folder, tmp_path):
    import shutil

    bare = tmp_path / "bare"
    shutil.copytree(folder, bare, ignore=shutil.ignore_patterns("tokenizer*"))
    found = inspect(bare, samples=2, length=16)
    assert any("there is no tokenizer" in note for note in found.notes) and found.tokens == []
    again = inspect(bare, folder.parent / "texts.txt", samples=2, length=16, tokenizer=folder)
    assert again.tokens[0][:3] == ["h", "e", "l"]
    (bare / "model.safetensors").unlink()
    with pytest.raises(BadInput, match="weights"):
        inspect(bare, samples=2)
