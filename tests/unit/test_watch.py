"""Views and watches: found by structure, bit-equal logits, exported graphs that say the same."""

import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from farout.errors import BadInput, NotFitted, UnknownName  # noqa: E402
from farout.kit.gauss import SharedGaussian  # noqa: E402
from farout.ood import Viewer, Views, Watch, extract  # noqa: E402
from farout.ood._score import Step, stepped  # noqa: E402
from farout.ood.deep_knn import DeepKNN  # noqa: E402
from farout.ood.energy import Energy  # noqa: E402
from farout.ood.mahalanobis import Mahalanobis  # noqa: E402
from farout.ood.odin import ODIN  # noqa: E402
from farout.ood.views import NEEDS  # noqa: E402


class Net(nn.Module):
    """A small convolutional network with two sizes of pictures, in-place activations and a head."""

    def __init__(self, classes=4):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.layer = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU(inplace=True))
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8, classes)

    def forward(self, x):
        return self.fc(self.drop(self.layer(self.stem(x)).mean((2, 3))))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


IMAGES = torch.randn(30, 3, 8, 8, generator=torch.Generator().manual_seed(0))
ODD = IMAGES * 4 + 3


def test_views_are_what_passes(net):
    views = extract(net, IMAGES, needs=("logits", "features", "stages", "head"), batch_size=7)
    net.eval()
    with torch.no_grad():
        stem = net.stem(IMAGES)
        layer = net.layer(stem.clone())
        logits = net(IMAGES)
    assert list(views.stages) == ["stem", "layer"]
    torch.testing.assert_close(views.stages["stem"], stem.mean((2, 3)))
    torch.testing.assert_close(views.features, layer.mean((2, 3)))
    torch.testing.assert_close(views.features @ views.weight.T + views.bias, logits)
    torch.testing.assert_close(views.logits, logits)


def test_a_viewer_leaves_no_hooks_and_gives_the_very_logits(net):
    net.train()
    viewer = Viewer(net, IMAGES[:2])
    assert net.training
    net.eval()
    with torch.no_grad():
        assert torch.equal(viewer(IMAGES).logits, net(IMAGES))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    viewer.layers = ("no such",)
    with pytest.raises(KeyError):
        viewer(IMAGES)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_a_head_that_is_none_and_names_that_are_wrong(net):
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(x).mean((2, 3))

    with pytest.raises(BadInput, match="come from no linear layer"):
        Viewer(Bare(), IMAGES, needs=("features",))
    assert Watch(Bare(), "energy").fit(IMAGES).outlier_score(IMAGES).shape == (30,)
    assert Watch(Bare(), "deep_knn", features="conv").fit(torch.cat([IMAGES, ODD])).outlier_score(ODD).shape == (30,)
    with pytest.raises(UnknownName, match="stem"):
        Viewer(net, IMAGES, layers=["stm"])
    with pytest.raises(UnknownName, match="logits"):
        Viewer(net, IMAGES, needs=("logit",))
    with pytest.raises(BadInput, match="no head reads"):
        Viewer(net, IMAGES, needs=("head",), features="stem")


def test_a_head_that_is_not_linear_reads_features_all_the_same():
    from farout.ood.abet import AbetHead

    torch.manual_seed(0)
    body, head = nn.Sequential(nn.Linear(4, 8), nn.ReLU()), AbetHead(8, 3)
    model, x = nn.Sequential(body, head).eval(), torch.randn(6, 4)
    views = extract(model, x, needs=("features",))
    torch.testing.assert_close(views.features, body(x).detach())
    assert views.weight is None
    with pytest.raises(BadInput, match="come from no linear layer"):
        extract(model, x, needs=("head",))


def test_a_transformer_and_a_plain_network_have_stages():
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4
    )
    config.num_labels = 4
    torch.manual_seed(0)
    vit = transformers.ViTForImageClassification(config).eval()
    views = extract(vit, IMAGES, needs=("features", "stages", "head"))
    assert len(views.stages) == 3
    with torch.no_grad():
        out = vit(IMAGES, output_hidden_states=True)
    names = list(views.stages)
    torch.testing.assert_close(views.stages[names[0]], out.hidden_states[1].mean(1))
    torch.testing.assert_close(views.features @ views.weight.T + views.bias, out.logits)
    first = extract(vit, IMAGES, needs=("stages",), pool="first")
    torch.testing.assert_close(first.stages[names[1]], out.hidden_states[2][:, 0])

    plain = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    x = torch.randn(5, 4)
    stages = extract(plain, x, needs=("stages",)).stages
    assert list(stages) == ["1", "3"]
    torch.testing.assert_close(stages["1"], plain[:2](x).detach())


def test_a_text_classifier_is_watched():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=3
    )
    bert = transformers.BertForSequenceClassification(config).eval()
    ids = torch.randint(1, 50, (12, 6))
    batches = [{"input_ids": part, "labels": torch.zeros(len(part), dtype=torch.int64)} for part in ids.split(5)]
    watch = Watch(bert, Mahalanobis("stages", shrinkage=0.1)).fit(batches)
    assert watch.outlier_score([{"input_ids": ids}]).shape == (12,)
    with pytest.raises(BadInput, match="token ids"):
        Watch(bert, ODIN()).fit(batches)


def test_views_are_cached_by_content(net, tmp_path):
    first = extract(net, IMAGES, cache=tmp_path)
    net.forward = None  # nothing runs now
    second = extract(net, IMAGES, cache=tmp_path)
    assert torch.equal(first.features, second.features) and torch.equal(first.weight, second.weight)
    assert len(list(tmp_path.iterdir())) == 1
    del net.forward
    with torch.no_grad():
        net.fc.weight += 1
    third = extract(net, IMAGES, cache=tmp_path)
    assert not torch.equal(first.logits, third.logits)
    extract(net, IMAGES + 1, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_labels_come_from_loaders_and_must_fit(net):
    labels = torch.arange(30) % 3
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(IMAGES, labels), batch_size=8)
    from_loader = Watch(net, Mahalanobis("features")).fit(loader)
    given = Watch(net, Mahalanobis("features")).fit(IMAGES, labels)
    assert from_loader.method_.classes_.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(from_loader.outlier_score(ODD), given.outlier_score(loader_of(ODD)))
    with pytest.raises(BadInput, match="30 inputs and 4 labels"):
        Watch(net, Mahalanobis("features")).fit(IMAGES, labels[:4])


def loader_of(images):
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images), batch_size=9, collate_fn=collated)


def collated(rows):
    return torch.stack([row[0] for row in rows])


def test_strange_numbers_are_named(net):
    bad = IMAGES.clone()
    bad[17, 0, 0, 0] = torch.nan
    with pytest.raises(BadInput, match="input 17"):
        extract(net, bad)
    with pytest.raises(BadInput, match="no inputs"):
        extract(net, IMAGES[:0])
    with pytest.raises(NotFitted):
        Watch(net, "energy").outlier_score(IMAGES)
    with pytest.raises(BadInput, match="no score of a model"):
        Watch(net, "ecod").fit(IMAGES)


def test_odin_takes_the_step_of_its_paper(net):
    watch = Watch(net, ODIN(temperature=10, size=0.05), deviation=(0.5, 0.25, 2.0)).fit(IMAGES)
    net.eval()
    x = IMAGES.clone().requires_grad_(True)
    logits = net(x) / 10
    nn.functional.cross_entropy(logits, logits.argmax(1), reduction="sum").backward()
    way = torch.where(x.grad >= 0, 1.0, -1.0) / torch.tensor([0.5, 0.25, 2.0])[:, None, None]
    with torch.no_grad():
        expected = -(net(IMAGES - 0.05 * way) / 10).softmax(1).amax(1)
    np.testing.assert_allclose(watch.outlier_score(IMAGES), expected, rtol=1e-6)


def test_i_odin_moves_one_number(net):
    watch = Watch(net, ODIN(temperature=10, size=0.5, coordinates="largest")).fit(IMAGES)
    net.eval()
    x = IMAGES.clone().requires_grad_(True)
    logits = net(x) / 10
    nn.functional.cross_entropy(logits, logits.argmax(1), reduction="sum").backward()
    with torch.no_grad():
        moved = IMAGES.clone().flatten(1)
        for row, slope in zip(moved, x.grad.flatten(1)):
            place = slope.abs().argmax()
            row[place] -= 0.5 * slope[place].sign()
        expected = -(net(moved.view_as(IMAGES)) / 10).softmax(1).amax(1)
    np.testing.assert_allclose(watch.outlier_score(IMAGES), expected, rtol=1e-6)
    with pytest.raises(UnknownName, match="largest"):
        Watch(net, ODIN(coordinates="larges")).fit(IMAGES)


def test_a_step_lowers_its_objective_of_a_linear_model():
    linear = nn.Linear(5, 3)
    viewer = Viewer(linear, torch.zeros(2, 5), needs=("logits",))
    x = torch.randn(20, 5)
    step = Step(1e-3, lambda views: views.logits[:, 0])
    (after,) = stepped(viewer, x, [step])
    lowered = viewer(x).logits[:, 0] - after.logits[:, 0]
    torch.testing.assert_close(
        lowered, torch.full((20,), 1e-3 * float(linear.weight[0].detach().abs().sum())), rtol=1e-2, atol=1e-6
    )


def test_an_alarm_rings_as_often_as_it_was_calibrated(net):
    torch.manual_seed(0)
    usual = torch.randn(2000, 3, 8, 8)
    watch = Watch(net, DeepKNN(k=5)).fit(usual[:500])
    watch.calibrate(usual[500:1000], rate=0.1)
    assert watch.alarm(usual[500:1000]).sum() <= 50
    assert 0.06 < watch.alarm(usual[1000:]).mean() < 0.14
    with pytest.raises(BadInput, match="99 inputs"):
        watch.calibrate(usual[:50], rate=0.01)


def test_a_saved_watch_scores_the_same(net, tmp_path):
    for method in ("deep_knn", "energy", Mahalanobis("stages"), "relative_mahalanobis", "vim", "react"):
        watch = Watch(net, method).fit(torch.cat([IMAGES, ODD, -IMAGES]))
        watch.save(tmp_path / "w.farout")
        again = Watch.load(tmp_path / "w.farout", net)
        np.testing.assert_array_equal(again.outlier_score(ODD), watch.outlier_score(ODD))
        assert again.threshold_ == watch.threshold_
    from farout import load

    with pytest.raises(BadInput, match="holds no detector"):
        load(tmp_path / "w.farout")


@pytest.mark.parametrize(
    "method",
    [
        "msp", "max_logit", "energy", DeepKNN(k=3), "vim", "react", "ash", "scale", "grad_norm",
        "relative_mahalanobis", Mahalanobis("stages"),
    ],
)  # fmt: skip
def test_an_exported_guard_says_the_same(net, method, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    watch = Watch(net, method).fit(torch.cat([IMAGES, -IMAGES]), torch.arange(60) % 4)
    watch.export(tmp_path / "guard.onnx", IMAGES[:3])
    session = onnxruntime.InferenceSession(str(tmp_path / "guard.onnx"))
    for some in (ODD, IMAGES[:1]):  # any number of inputs
        logits, score, alarm = session.run(None, {"input": some.numpy()})
        np.testing.assert_allclose(logits, extract(net, some).logits, rtol=1e-4, atol=1e-4)
        expected = watch.outlier_score(some)
        np.testing.assert_allclose(score, expected, rtol=2e-4, atol=1e-4)
        sure = np.abs(expected - watch.threshold_) > 1e-3
        np.testing.assert_array_equal(alarm[sure], watch.alarm(some)[sure])


@pytest.mark.parametrize("ends", ["logits", "softmax"])
def test_an_onnx_classifier_is_watched_like_the_model_it_comes_from(net, ends, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from farout.io.models import open_model

    model = net if ends == "logits" else nn.Sequential(net, nn.Softmax(1))
    path = tmp_path / "net.onnx"
    axes = {"x": {0: "n"}, "y": {0: "n"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model.eval(),
            (IMAGES[:2],),
            str(path),
            dynamo=False,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes=axes,
        )
    opened = open_model(path)
    opened.takes = "features"  # the images are arrays already
    views, expected = extract(opened, IMAGES, needs=NEEDS), extract(net, IMAGES, needs=NEEDS)
    torch.testing.assert_close(views.logits, expected.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(views.features, expected.features, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(views.weight, expected.weight)
    assert len(views.stages) == len(expected.stages) == 2
    for ours, theirs in zip(views.stages.values(), expected.stages.values()):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    for method in ("energy", "vim", "mahalanobis"):
        found = Watch(opened, method).fit(torch.cat([IMAGES, -IMAGES])).outlier_score(ODD)
        np.testing.assert_allclose(
            found, Watch(net, method).fit(torch.cat([IMAGES, -IMAGES])).outlier_score(ODD), rtol=1e-2
        )
    with pytest.raises(BadInput, match="no gradients"):
        Watch(opened, ODIN()).fit(IMAGES)
    with pytest.raises(BadInput, match="ONNX graph already"):
        Watch(opened, "energy").fit(IMAGES).export(tmp_path / "guard.onnx", IMAGES)


def test_what_moves_the_input_is_not_exported(net, tmp_path):
    watch = Watch(net, ODIN()).fit(IMAGES)
    with pytest.raises(BadInput, match="gradient"):
        watch.export(tmp_path / "guard.onnx", IMAGES[:2])
    assert not list(tmp_path.iterdir())


def test_gaussian_equals_scikit_learn_and_does_not_mind_linear_maps():
    from sklearn.covariance import EmpiricalCovariance

    rng = np.random.default_rng(0)
    x = torch.tensor(rng.normal(size=(100, 6)) @ rng.normal(size=(6, 6)) + 3)
    y = torch.tensor(rng.integers(0, 3, 100))
    one = SharedGaussian.fit(x)
    np.testing.assert_allclose(one.squared_distances(x)[:, 0], EmpiricalCovariance().fit(x).mahalanobis(x), rtol=1e-8)
    turn = torch.tensor(rng.normal(size=(6, 6)))
    plain = SharedGaussian.fit(x, y).squared_distances(x)
    np.testing.assert_allclose(SharedGaussian.fit(x @ turn, y).squared_distances(x @ turn), plain, rtol=1e-6)
    dead = torch.cat([x, torch.zeros(100, 2, dtype=x.dtype)], 1)
    np.testing.assert_allclose(SharedGaussian.fit(dead, y).squared_distances(dead), plain, rtol=1e-6)
    with pytest.raises(BadInput, match="all rows of a class are equal"):
        SharedGaussian.fit(torch.ones(3, 2), torch.tensor([0, 0, 0]))


def views_of(x):
    return Views(x, x)


def test_with_unit_covariance_the_score_is_the_euclidean_distance():
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]) * 2**0.5
    found = Mahalanobis("features").fit(views_of(x), torch.zeros(4, dtype=torch.int64))
    odd = torch.tensor([[3.0, 4.0]])
    assert float(found.distances(views_of(odd))["features"]) == pytest.approx(25.0)


def test_adding_a_class_equals_refitting_where_classes_are_equally_large():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(60, 4, generator=rng) + torch.arange(3).repeat_interleave(20)[:, None]
    y = torch.arange(3).repeat_interleave(20)
    whole = Mahalanobis("features").fit(views_of(x), y)
    added = Mahalanobis("features").fit(views_of(x[:40]), y[:40]).add_class(views_of(x[40:]), 2)
    torch.testing.assert_close(added.covariance_["features"], whole.covariance_["features"])
    torch.testing.assert_close(added.distances(views_of(x))["features"], whole.distances(views_of(x))["features"])
    assert torch.equal(added.classify(views_of(x)), whole.classify(views_of(x)))
    with pytest.raises(BadInput, match="class 2 already"):
        added.add_class(views_of(x[40:]), 2)


def test_the_ensemble_weighs_and_each_layer_has_its_own_step(net):
    watch = Watch(net, Mahalanobis("stages", size=0.01)).fit(IMAGES, torch.arange(30) % 2)
    method = watch.method_
    plain = Mahalanobis("stages").fit(extract(net, IMAGES, needs=("stages",)), torch.arange(30) % 2)
    net.eval()
    viewer = Viewer(net, IMAGES, needs=("stages",))
    after = stepped(viewer, IMAGES, method.steps())
    assert len(after) == 2
    for place, name in enumerate(plain.means_):
        moved, before = (plain.distances(v)[name].amin(1) for v in (after[place], viewer(IMAGES)))
        assert (moved <= before + 1e-6).double().mean() > 0.9
    expected = sum(
        (plain.distances(after[i])[n].amin(1) - plain.centre_[n]) / plain.spread_[n] / 2
        for i, n in enumerate(plain.means_)
    )
    np.testing.assert_allclose(watch.outlier_score(IMAGES), expected.detach(), rtol=1e-5, atol=1e-6)


def test_weights_of_layers_are_learned_by_logistic_regression():
    rng = torch.Generator().manual_seed(0)
    usual, odd = torch.randn(200, 2, generator=rng), torch.randn(200, 2, generator=rng) + torch.tensor([0.0, 3.0])
    method = Mahalanobis("features").fit(views_of(torch.randn(20, 3, generator=rng)))
    method.fit_weights(usual, odd)
    assert method.weights_[1] > 5 * abs(float(method.weights_[0]))
    probability = 1 / (1 + np.exp(-(torch.cat([usual, odd]).double() @ method.weights_ + method.bias_).numpy()))
    assert probability[:200].mean() == pytest.approx(1 - probability[200:].mean(), abs=0.02)


def test_energy_by_name_and_with_parameters(net):
    by_name, by_object = Watch(net, "energy").fit(IMAGES), Watch(net, Energy(1.0)).fit(IMAGES)
    np.testing.assert_array_equal(by_name.outlier_score(ODD), by_object.outlier_score(ODD))
