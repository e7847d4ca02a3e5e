"""Small images by name: what the files hold, how images are stored, and the classifier that claims share."""

import io
import sys

import numpy as np
import pytest

from farout.claims import _cifar
from farout.data import DataMissing, images
from farout.data.images import (
    DEVIATION,
    MEAN,
    image_set,
    image_set_names,
    recoded,
    resized,
    resnet20_cifar10,
    to_tensor,
)
from farout.errors import BadInput, MissingExtra, UnknownName

NONE = np.zeros((0, 4, 4, 3), np.uint8)


def here(name, rows=None):
    pytest.importorskip("PIL")
    try:
        return image_set(name, rows)
    except DataMissing as error:
        pytest.skip(str(error))


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def smooth(n, size):
    """Waves of colour, which JPEG can store well."""
    at = np.arange(size) / size
    phase = np.random.default_rng(0).uniform(0, 6, (n, 3, 1, 1))
    waves = np.sin(3 * at[:, None] + phase) + np.cos(4 * at + 2 * phase)
    return (127.5 + 60 * waves).round().astype(np.uint8).transpose(0, 2, 3, 1)


@pytest.mark.parametrize(
    ("name", "n", "size", "classes"),
    [
        ("cifar10-test", 10_000, 32, 10),
        ("mnist-train", 10_000, 28, 10),
        ("mnist-test", 10_000, 28, 10),
        ("omniglot", 2_720, 28, 136),
        ("textures64", 344, 64, 43),
        ("animals-train", 3_200, 64, 20),
        ("animals-test", 1_000, 64, 20),
        ("tin-near_animal", 250, 64, 5),
        ("tin-scene", 400, 64, 8),
        ("tin-texture", 250, 64, 5),
        ("tin-object", 550, 64, 22),
        ("tin-food", 330, 64, 11),
        ("tin-invertebrate", 280, 64, 8),
    ],
)
def test_sets_hold_what_their_description_says(name, n, size, classes):
    found = here(name)
    assert found.images.shape == (n, size, size, 3) and found.images.dtype == np.uint8
    assert found.labels.shape == (n,) and found.labels.dtype == np.int64 and found.images.std() > 20
    assert set(found.labels) == set(range(len(found.classes))) and len(set(found.classes)) == len(found.classes)
    assert len(found.classes) == classes
    if not name.startswith("mnist"):
        assert len(set(np.bincount(found.labels))) == 1  # as many of each
    if name.startswith(("mnist", "omniglot")):
        assert np.array_equal(found.images[..., 0], found.images[..., 2])
        edges = found.images[:, [0, -1]].mean()
        assert edges < 0.3 * found.images.mean()  # white on black


def test_sets_of_one_file_share_no_class_and_no_image():
    groups = [name for name in image_set_names() if name.startswith("tin-")]
    found = {name: here(name) for name in groups}
    classes = [word for one in found.values() for word in one.classes]
    assert len(classes) == len(set(classes)) == 59
    assert not set(classes) & set(here("animals-test").classes)
    assert here("animals-test").classes == here("animals-train").classes
    assert sorted(np.concatenate([one.rows for one in found.values()])) == list(range(2_060))
    for name, one in found.items():
        assert one.groups == (name.removeprefix("tin-"),) * len(one.classes)


def test_training_images_are_in_the_official_order():
    found = here("cifar10-train", rows=2_000)
    first = ["frog", "truck", "truck", "deer", "automobile", "automobile", "bird", "horse", "ship", "cat"]
    assert [found.classes[label] for label in found.labels[:10]] == first
    assert found.rows[:10].tolist() == list(range(10)) and np.bincount(found.labels).tolist() == [200] * 10
    assert here("cifar10-test", rows=40).labels.tolist() == list(range(10)) * 4
    with np.load(images.find("ood/cifar10n_labels.npz")) as human:
        assert np.array_equal(human["clean"][found.rows], found.labels)


def test_omniglot_tells_the_alphabet_of_a_character():
    found = here("omniglot")
    assert len(set(found.groups)) == 5 and len(found.groups) == 136
    with np.load(images.find("ood/omniglot_small1.npz")) as file:
        named = file["alphabets"][file["alphabet"]]
        assert np.array_equal(named, np.array(found.groups)[found.labels])
        assert np.array_equal(file["images"], found.images[..., 1])
        characters = {(a, c) for a, c in zip(file["alphabet"].tolist(), file["character"].tolist())}
    assert len(characters) == 136


def test_fewer_rows_are_the_first_of_every_class_and_the_same_images():
    whole, part = here("mnist-test"), here("mnist-test", rows=25)
    assert len(part.images) == 25 and set(np.bincount(part.labels)) == {2, 3}
    assert np.array_equal(whole.images[part.rows], part.images) and (np.diff(part.rows) > 0).all()
    assert np.array_equal(whole.labels[part.rows], part.labels)
    for digit in range(10):
        of_digit = np.flatnonzero(whole.labels == digit)
        kept = part.rows[part.labels == digit]
        assert np.array_equal(kept, of_digit[: len(kept)])
    assert len(here("textures64", rows=10_000).images) == 344


def test_a_set_is_decoded_once_and_cannot_be_written_to():
    found = here("textures64", rows=12)
    assert image_set("textures64", rows=12) is found
    for array in (found.images, found.labels):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_an_image_stored_as_cifar_is_stored_changes_hardly():
    test = here("cifar10-test", rows=200).images
    again = np.abs(recoded(test).astype(int) - test)
    assert (again == 0).mean() > 0.9 and again.mean() < 0.25
    # What was never JPEG changes more, and hardly any more when it is stored a second time.
    fresh = smooth(40, 32)
    once = recoded(fresh)
    changed, second = np.abs(once.astype(int) - fresh).mean(), np.abs(recoded(once).astype(int) - once).mean()
    assert changed > 0.8 and second < 0.4 * changed


def test_it_is_stored_with_the_tables_and_the_colour_of_cifar(monkeypatch):
    here("cifar10-test", rows=1)
    from PIL import Image

    with np.load(images.find("ood/cifar10_test.npz")) as file:
        original = Image.open(io.BytesIO(images._Packed(file).jpeg(17)))
    seen, open_ = [], Image.open
    monkeypatch.setattr(Image, "open", lambda stored: seen.append(open_(stored)) or seen[-1])
    recoded(noise(2, 64, 64))
    assert len(seen) == 2
    for stored in seen:
        assert stored.quantization == original.quantization and set(stored.quantization) == {0, 1}
        assert stored.size == original.size == (32, 32)
        assert [layer[:3] for layer in stored.layer] == [layer[:3] for layer in original.layer]
        assert [layer[1:3] for layer in stored.layer] == [(2, 2), (1, 1), (1, 1)]  # 4:2:0
    assert original.quantization[0][0] == 8  # 16 at quality 50, halved at quality 75


def test_sizes_keep_flat_colour_means_and_slopes():
    pytest.importorskip("PIL")
    flat = np.full((2, 64, 64, 3), (10, 128, 250), np.uint8)
    assert np.array_equal(resized(flat, 32), flat[:, :32, :32])
    assert resized(flat, 100).shape == (2, 100, 100, 3) and (resized(flat, 100) == flat[0, 0, 0]).all()
    x = noise(3, 64, 64)
    small = resized(x, 32)
    assert small.mean() == pytest.approx(x.mean(), abs=1)
    assert small.std() < 0.75 * x.std()  # every second pixel would keep all of it: it is antialiased
    ramp = np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[:, None], 64, 1)[None, ..., None].repeat(3, 3)
    inner = resized(ramp, 32)[0, 4:-4, 8, 0].astype(float)
    assert inner == pytest.approx(2 + 8 * np.arange(4, 28), abs=1)  # halfway between two rows
    same = resized(x, 64)
    assert np.array_equal(same, x) and same is not x


def test_tensors_are_normalised_by_channel():
    torch = pytest.importorskip("torch")
    x = noise(5, 6, 7)
    found = to_tensor(x)
    assert found.shape == (5, 3, 6, 7) and found.dtype == torch.float32 and found.is_contiguous()
    for channel, (mean, deviation) in enumerate(zip(MEAN, DEVIATION)):
        expected = (x[..., channel] / 255 - mean) / deviation
        assert found[:, channel].numpy() == pytest.approx(expected, abs=1e-6)
    plain = to_tensor(x, (0, 0, 0), (1, 1, 1))
    assert np.array_equal((255 * plain).round().numpy().astype(np.uint8), x.transpose(0, 3, 1, 2))


def test_weights_of_a_resnet_have_its_names():
    try:
        weights = resnet20_cifar10()
    except DataMissing as error:
        pytest.skip(str(error))
    assert weights["conv1.weight"].shape == (16, 3, 3, 3) and weights["linear.weight"].shape == (10, 64)
    learned = [array.size for name, array in weights.items() if "running" not in name]
    assert sum(learned) == 269_722


@pytest.mark.parametrize(
    ("act", "error", "says"),
    [
        (lambda: image_set("cifar10-tests"), UnknownName, "nearest: 'cifar10-test'"),
        (lambda: image_set("textures64", rows=0), BadInput, "it is 0"),
        (lambda: resized(np.zeros((2, 4, 4, 3)), 2), BadInput, r"float64 \(2, 4, 4, 3\)"),
        (lambda: resized(NONE[..., :1], 2), BadInput, r"\(0, 4, 4, 1\)"),
        (lambda: recoded(NONE, like="cifar100"), UnknownName, "known: 'cifar10'|nearest: 'cifar10'"),
    ],
)
def test_what_cannot_be_used_is_named(act, error, says):
    with pytest.raises(error, match=says):
        act()


def test_what_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtra, match=r"scaling images needs .* pip install 'farout\[vision\]'"):
        resized(noise(1, 4, 4), 2)
    monkeypatch.setenv("FAROUT_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(DataMissing, match=r"ood/mnist\.npz"):
        image_set("mnist-test")


def test_suites_of_claims_are_of_one_size_and_coded_on_demand():
    here("tin-scene")
    coded, plain = _cifar.ood_suites(rows=10), _cifar.ood_suites(coding=False, rows=10)
    assert list(coded) == ["near", "far"] and list(coded["near"]) == ["tin-near_animal"]
    assert sorted(coded["far"]) == sorted(
        ["tin-scene", "tin-object", "tin-food", "tin-invertebrate", "textures64", "mnist-test"]
    )
    for kind, sets in coded.items():
        for name, found in sets.items():
            assert found.shape == plain[kind][name].shape == (10, 32, 32, 3)
            assert np.array_equal(plain[kind][name], resized(image_set(name, 10).images, 32))
            assert np.array_equal(found, recoded(plain[kind][name])) and not np.array_equal(found, plain[kind][name])


def test_the_classifier_of_claims_is_trained_on_and_kept(monkeypatch, tmp_path):
    torch = pytest.importorskip("torch")
    here("cifar10-train", rows=20)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(_cifar.SCALES, "small", _cifar.Scale(20, 1, batch_size=10))
    told = []
    first = _cifar.classifier(0, "small", lambda what, done: told.append(done))
    assert told == [1.0] and not first.training
    assert not np.array_equal(first.linear.weight.detach().numpy(), resnet20_cifar10()["linear.weight"])
    monkeypatch.setattr(_cifar, "_train", None)  # a second time nothing is trained
    again = _cifar.classifier(0, "small").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.state_dict().items())
    assert len(list((tmp_path / "farout" / "cifar").iterdir())) == 1
    with pytest.raises(TypeError):
        _cifar.classifier(1, "small")
    with pytest.raises(UnknownName, match="'full'"):
        _cifar.classifier(0, "fulll")


def test_scores_of_the_published_network_are_what_was_measured_before():
    """AUROC of MSP and energy, the images of foods as decoded and as CIFAR-10 is stored; 500 test images."""
    torch = pytest.importorskip("torch")
    from farout.bench.metrics import auroc
    from farout.kit.fitting import predict
    from farout.kit.nets import ResNetCIFAR
    from farout.kit.training import fill

    test, foods = here("cifar10-test", rows=500), here("tin-food")
    net = fill(ResNetCIFAR(), resnet20_cifar10())
    known = predict(net, to_tensor(test.images))
    far = [predict(net, to_tensor(shown)) for shown in (resized(foods.images, 32), recoded(foods.images))]
    label = np.repeat([0, 1], [500, len(foods.images)])
    scores = {"msp": lambda z: -z.softmax(1).amax(1), "energy": lambda z: -z.logsumexp(1)}
    for name, expected in (("msp", (0.720, 0.712)), ("energy", (0.755, 0.770))):
        found = [auroc(label, scores[name](torch.cat([known, logits]))) for logits in far]
        assert found == pytest.approx(expected, abs=0.02)
