"""ONNX models: recorded as their torch originals are, at every site, and opened with what the file says of them."""

from __future__ import annotations

import sys
import warnings
from dataclasses import fields

import numpy as np
import pytest

from farout.data import sample_images
from farout.errors import BadInput, MissingExtra, NothingMatched
from farout.inside import record
from farout.inside._layers import layers_of
from farout.inside._onnx import record_onnx
from farout.inside.recorder import USUAL
from farout.io.models import open_model

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from torch import nn  # noqa: E402

ALL = (*USUAL, "output")


class RMSNorm(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.rand(d) + 0.5), 1e-6

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class Attention(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(d, d, bias=bias) for bias in (True, False, True, True))

    def forward(self, x, mask):
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        probs = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + mask, -1)
        return self.o((probs @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, d, heads, norm):
        super().__init__()
        self.norm1, self.attention, self.norm2 = norm(d), Attention(d, heads), norm(d)
        self.up, self.down = nn.Linear(d, 2 * d), nn.Linear(2 * d, d)

    def forward(self, x, mask):
        x = x + self.attention(self.norm1(x), mask)
        h = self.up(self.norm2(x))
        # this kind of GELU adds a tensor and what was made of it, and is yet no residual sum
        return x + self.down(0.5 * h * (1 + torch.tanh(0.8 * (h + 0.044715 * h**3))))


class Words(nn.Module):
    def __init__(self, norm=nn.LayerNorm):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(40, 16)
        self.layers = nn.ModuleList(Block(16, 2, norm) for _ in range(3))
        self.norm, self.head = norm(16), nn.Linear(16, 40, bias=False)
        for name, weight in self.named_parameters():
            if "norm" in name:  # so that no two are equal
                weight.data += 0.1 * torch.randn_like(weight)

    def forward(self, input_ids, attention_mask):
        mask = (1.0 - attention_mask[:, None, None].float()) * -1e4
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x, mask)
        return self.head(self.norm(x))


class Residual(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c)
        self.pad, self.conv2, self.bn2 = nn.ZeroPad2d((1, 0, 1, 0)), nn.Conv2d(c, c, 2, groups=2), nn.BatchNorm2d(c)

    def forward(self, x):
        return x + self.bn2(self.conv2(self.pad(torch.relu(self.bn1(self.conv1(x))))))


class Padded(nn.Conv2d):
    """It puts zeros around its input itself, as ports from TensorFlow do."""

    def forward(self, x):
        return super().forward(nn.functional.pad(x, (0, 1, 0, 1)))


class Pictures(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.blocks = Padded(3, 8, 3, stride=2), nn.Sequential(Residual(8), Residual(8))
        self.head = nn.Linear(8, 5)
        for part in self.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.weight.data = torch.rand(8) + 0.5
                part.running_mean, part.running_var = torch.randn(8), torch.rand(8) + 0.5

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def export(model, example, path, axes, opset=17):
    """Write a model with the exporter of torch that needs no further package."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, example, str(path), dynamo=False, opset_version=opset, input_names=list(axes), dynamic_axes=axes,
            training=torch.onnx.TrainingMode.EVAL, do_constant_folding=False,
        )  # fmt: skip
    return path


def words(path, norm=nn.LayerNorm, opset=17):
    model = Words(norm).eval()
    ids = torch.arange(10).view(2, 5)
    axes = {"input_ids": {0: "batch", 1: "length"}, "attention_mask": {0: "batch", 1: "length"}}
    return model, export(model, (ids, torch.ones_like(ids)), path, axes, opset)


def batches():
    torch.manual_seed(1)
    mask = torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0], [1] * 5 + [0]])
    whole = torch.ones(2, 9, dtype=torch.long)
    return [
        {"input_ids": torch.randint(40, tuple(m.shape)), "attention_mask": m} for m in (mask, whole)
    ]  # fmt: skip


def assert_same(ours, theirs, names=None):
    """All facts of all sites agree to 1e-5 of the largest number."""
    for name in names or theirs.kinds:
        one, two = ours[name], theirs[name]
        assert ours.kinds[name] == theirs.kinds[name], name
        for field in fields(two):
            if field.name in ("histogram", "top_position", "top_channel"):
                continue  # a number at the edge of a bin, or of two equal ones
            a, b = (np.asarray(getattr(stats, field.name), float) for stats in (one, two))
            assert a.shape == b.shape, (name, field.name)
            scale = np.abs(b[np.isfinite(b)]).max(initial=1e-30)
            assert np.allclose(a, b, rtol=1e-5, atol=1e-5 * scale, equal_nan=True), (name, field.name)


@pytest.mark.parametrize("norm, opset", [(nn.LayerNorm, 17), (nn.LayerNorm, 14), (RMSNorm, 17)])
def test_a_transformer_is_recorded_as_its_original_with_norms_of_one_node_or_written_out(tmp_path, norm, opset):
    model, path = words(tmp_path / "m.onnx", norm, opset)
    before = path.read_bytes()
    ours, theirs = record_onnx(path, batches(), what=ALL), record(model, batches(), what=ALL)
    assert set(ours.kinds) == set(theirs.kinds)
    assert_same(ours, theirs)
    assert ours.calls == theirs.calls and ours.batches == 2 and not ours.notes
    assert [layer.name for layer in layers_of(ours)] == ["layers.0", "layers.1", "layers.2"]
    assert path.read_bytes() == before
    kinds = {kind: len(theirs.names(kind)) for kind in ALL}
    assert kinds["probs"] == 3 and kinds["attention"] == 9 and kinds["residual"] == 6  # so that equality says something


def test_a_convolutional_model_is_recorded_as_its_original(tmp_path):
    model = Pictures().eval()
    path = export(model, (torch.zeros(2, 3, 15, 15),), tmp_path / "m.onnx", {"x": {0: "batch"}})
    data = [torch.randn(2, 3, 15, 15), torch.randn(1, 3, 15, 15)]
    ours, theirs = record_onnx(path, data, what=ALL), record(model, data, what=ALL)
    assert set(ours.kinds) == set(theirs.kinds)
    assert_same(ours, theirs)
    assert len(theirs.names("residual")) == 4 and len(theirs.names("norm")) == 8


def test_pieces_of_a_model_and_batches_without_names_give_the_same(tmp_path, monkeypatch):
    _, path = words(tmp_path / "m.onnx")
    whole = record_onnx(path, batches())
    monkeypatch.setattr("farout.inside._onnx._START", 1)
    monkeypatch.setattr("farout.inside._onnx._ROOM", 1)
    pieces = record_onnx(path, [tuple(tensor.numpy() for tensor in batch.values()) for batch in batches()])
    assert whole.kinds == pieces.kinds and whole.calls == pieces.calls
    assert_same(pieces, whole)


def test_patterns_choose_sites_and_weights(tmp_path):
    _, path = words(tmp_path / "m.onnx")
    found = record_onnx(path, batches(), where=["layers.1.down.*", "head.weight"])
    assert set(found.kinds) == {"layers.1.down.in", "layers.1.down.weight", "layers.1.down.bias", "head.weight"}
    assert set(record_onnx(path, batches(), what=["probs"]).kinds) == {f"layers.{i}.attention.probs" for i in range(3)}
    with pytest.raises(NothingMatched, match=r"'layer.1.\*'"):
        record_onnx(path, batches(), where="layer.1.*")


def graph_file(path, nodes, weights, inputs, opset=17):
    """Write a graph by hand; node names are left out."""
    graph = helper.make_graph(
        nodes,
        "by hand",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_empty_tensor_value_info("out")],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9), path)
    return path


def test_weights_are_outputs_by_inputs_whatever_side_and_order_they_have(tmp_path):
    rng = np.random.default_rng(0)
    A, B, C = (rng.normal(size=shape).astype(np.float32) for shape in ((4, 6), (6, 5), (3, 5)))
    codes = rng.integers(-100, 100, size=(4, 3)).astype(np.int8)
    scale, zero = np.array([0.5, 1.0, 2.0], np.float32), np.array([1, 0, -3], np.int8)
    nodes = [
        helper.make_node("MatMul", ["x", "A"], ["a"]),
        helper.make_node("Gemm", ["a", "B"], ["b"]),
        helper.make_node("Gemm", ["b", "C"], ["c"], transB=1),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["D"], axis=1),
        helper.make_node("Transpose", ["D"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["c", "turned"], ["d"]),
        helper.make_node("MatMul", ["d", "A"], ["out"]),
    ]
    weights = {"A": A, "B": B, "C": C, "codes": codes, "scale": scale, "zero": zero}
    path = graph_file(tmp_path / "m.onnx", nodes, weights, {"x": (TensorProto.FLOAT, ["n", 4])})
    x = rng.normal(size=(7, 4)).astype(np.float32)
    found = record_onnx(path, [x])
    rows = {"a": A.T, "b": B.T, "c": C, "d": (codes.astype(float) - zero) * scale}
    for name, value in rows.items():
        assert np.allclose(found[f"{name}.weight"].mean, value.mean(0), atol=1e-6), name
        assert np.allclose(found[f"{name}.weight"].absmax, np.abs(value).max(0), atol=1e-6), name
    assert np.allclose(found["c.in"].absmax, np.abs(x @ A @ B).max(0), rtol=1e-5)
    assert found.aliases["out.weight"] == "a.weight"  # one weight, two maps
    assert set(found.names("weight")) == {f"{name}.weight" for name in (*rows, "out")}


def test_sums_are_the_residual_stream_also_where_nodes_have_no_names(tmp_path):
    rng = np.random.default_rng(0)
    weights = {f"W{i}": rng.normal(size=(4, 4)).astype(np.float32) for i in range(3)} | {"one": np.ones(4, np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "W0"], ["m0"]),
        helper.make_node("Add", ["x", "m0"], ["h0"]),
        helper.make_node("Add", ["h0", "one"], ["shifted"]),  # a constant
        helper.make_node("Mul", ["shifted", "shifted"], ["square"]),
        helper.make_node("Add", ["square", "shifted"], ["curve"]),  # no map in between
        helper.make_node("MatMul", ["curve", "W1"], ["m1"]),
        helper.make_node("MatMul", ["m1", "W2"], ["m2"]),
        helper.make_node("Add", ["m2", "curve"], ["out"]),
    ]
    path = graph_file(tmp_path / "m.onnx", nodes, weights, {"x": (TensorProto.FLOAT, ["n", 4])})
    x = rng.normal(size=(9, 4)).astype(np.float32)
    found = record_onnx(path, [x])
    h = x + x @ weights["W0"]
    curve = (h + 1) ** 2 + h + 1
    expected = {"0.in": x, "0.out": h, "1.in": curve, "1.out": curve @ weights["W1"] @ weights["W2"] + curve}
    assert set(found.names("residual")) == {f"residual.{name}" for name in expected}
    for name, value in expected.items():
        assert np.allclose(found[f"residual.{name}"].absmax, np.abs(value).max(0), rtol=1e-4), name
    assert [layer.name for layer in layers_of(found)] == ["residual.0", "residual.1"]


def test_branches_are_said_and_a_model_without_maps_is_recorded_as_such(tmp_path):
    def branch(name, kind):
        value = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node(kind, ["x"], [f"{name}_out"])], name, [], [value])

    nodes = [
        helper.make_node("If", ["yes"], ["out"], then_branch=branch("then", "Exp"), else_branch=branch("or", "Abs"))
    ]
    path = graph_file(tmp_path / "m.onnx", nodes, {"yes": np.array(True)}, {"x": (TensorProto.FLOAT, ["n", 2])})
    found = record_onnx(path, [np.ones((1, 2), np.float32)])
    assert not found.stats
    assert found.notes == [
        "1 branches or loops of the graph are not looked into",
        "the model has no linear map and no convolution",
    ]
    assert "there were no batches: only weights are recorded" in record_onnx(path, []).notes


def test_what_cannot_be_run_is_refused(tmp_path, monkeypatch):
    _, path = words(tmp_path / "m.onnx")
    with pytest.raises(BadInput, match="the model does not run on a batch"):
        record_onnx(path, [{"input_ids": np.full((1, 3), 99)}])
    with pytest.raises(BadInput, match=r"'input_ids' of 'm.onnx' has 2 axes.*shape \(3,\)"):
        record_onnx(path, [{"input_ids": np.zeros(3, int)}])
    with pytest.raises(BadInput, match=r"takes \['input_ids', 'attention_mask'\], and got \['ids'\]"):
        record_onnx(path, [{"ids": np.zeros((1, 3), int)}])
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(path.read_bytes()[:-50])
    for use in (lambda: record_onnx(cut, batches()), lambda: open_model(cut)):
        with pytest.raises(BadInput, match=r"onnxruntime cannot load 'cut.onnx'"):
            use()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for use in (lambda: record_onnx(path, batches()), lambda: open_model(path)):
        with pytest.raises(MissingExtra, match=r"farout\[onnx"):
            use()


def test_an_onnx_file_is_opened_and_fed(tmp_path):
    model, path = words(tmp_path / "words.onnx")
    opened = open_model(path)
    assert (opened.name, opened.takes, opened.causal, opened.facts["vocabulary"]) == ("words", "tokens", False, 40)
    assert opened.facts["parameters"] == sum(weight.numel() for weight in model.parameters())
    (batch,) = opened.batches(["a", "b"], length=6)
    with torch.no_grad():
        expected = model(**batch)
    (logits,) = opened.model(**batch).values()
    assert np.allclose(logits, expected, atol=1e-5)
    assert np.allclose(next(iter(opened.model(batch["input_ids"]).values())), expected, atol=1e-5)  # masks are made
    assert record_onnx(opened.model.path, [batch]).batches == 1


def test_sizes_that_a_file_fixes_are_kept(tmp_path):
    path = export(Pictures().eval(), (torch.zeros(2, 3, 15, 15),), tmp_path / "m.onnx", {"x": {}})
    opened = open_model(path)
    assert opened.takes == "pixels" and opened.pixels.size == (15, 15) and opened.fixed[0] == 2
    found = opened.batches(sample_images(20)[:5], batch_size=4)
    assert [tuple(x.shape) for x in found] == [(2, 3, 15, 15)] * 2
    assert float(found[0].min()) >= 0 and float(found[0].max()) <= 1
    with pytest.raises(BadInput, match="takes 2 samples at a time, and there are 1"):
        opened.batches(sample_images(20)[:1])
    assert record_onnx(path, found).batches == 2


def test_states_that_a_batch_does_not_bring_are_made_by_the_names_of_their_sizes(tmp_path):
    nodes = [
        helper.make_node("ReduceSum", ["state", "axis"], ["s"], keepdims=0),
        helper.make_node("Add", ["x", "s"], ["out"]),
    ]
    inputs = {"x": (TensorProto.FLOAT, ["batch", 3]), "state": (TensorProto.FLOAT, [2, "batch", 3])}
    path = graph_file(tmp_path / "m.onnx", nodes, {"axis": np.array([0])}, inputs)
    opened = open_model(path)
    assert opened.takes == "features"
    (batch,) = opened.batches(np.ones((4, 3)))
    assert opened.model(batch)["out"].tolist() == np.ones((4, 3)).tolist()
    assert opened.model.feeds({"x": batch})["state"].shape == (2, 4, 3)
