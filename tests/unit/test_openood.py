"""The benchmark of scores: the numbers of the metrics, means over sets, and settings."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from farout.bench.metrics import ood_metrics  # noqa: E402
from farout.bench.openood import main, openood, summary  # noqa: E402
from farout.errors import BadInput, UnknownName  # noqa: E402
from farout.ood import Watch, extract  # noqa: E402
from farout.ood.deep_knn import DeepKNN  # noqa: E402
from farout.ood.odin import ODIN  # noqa: E402

torch.manual_seed(0)
NET = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)).eval()
DRAW = np.random.default_rng(0)
TRAIN, USUAL, UNSEEN = (DRAW.normal(size=(n, 6)).astype(np.float32) for n in (120, 60, 40))
FAR = (DRAW.normal(size=(50, 6)) * 4).astype(np.float32)
NEARER = (DRAW.normal(size=(30, 6)) * 1.5).astype(np.float32)
LABELS = NET(torch.tensor(TRAIN)).argmax(1).numpy()


def test_numbers_are_those_of_scores_and_metrics():
    settings = {"near": {"a": NEARER}, "far": {"b": FAR, "c": FAR[:20] + 1}}
    knn, odin = DeepKNN(k=3), ODIN(size=0.01)
    table = openood(NET, (TRAIN, LABELS), USUAL, settings, [knn, odin, "msp"])
    assert table.height == 9
    for score, slug in ((knn, "deep_knn:k=3"), (odin, "odin:size=0.01")):
        watch = Watch(NET, score).fit(TRAIN)
        for of in settings.values():
            for name, x in of.items():
                expected = ood_metrics(watch.outlier_score(USUAL), watch.outlier_score(x))
                row = next(r for r in table.to_dicts() if (r["method"], r["set"]) == (slug, name))
                assert {key: row[key] for key in expected} == pytest.approx(expected)
                assert (row["usual"], row["outliers"]) == (60, len(x))
    means = {row["method"]: row for row in summary(table).to_dicts()}
    own = [row for row in table.to_dicts() if row["method"] == "deep_knn:k=3" and row["setting"] == "far"]
    assert means["deep_knn:k=3"]["auroc far"] == pytest.approx(np.mean([row["auroc"] for row in own]))


def test_a_set_like_the_usual_one_is_not_told_apart():
    table = openood(NET, (TRAIN, LABELS), USUAL, {"same": {"usual": USUAL}}, ["deep_knn", "energy", "mahalanobis"])
    np.testing.assert_allclose(table["auroc"], 0.5, atol=1e-9)


def test_full_spectrum_counts_shifted_inputs_as_usual():
    plain = openood(NET, (TRAIN, LABELS), USUAL, {"far": {"b": FAR}}, [DeepKNN(k=3)])
    whole = openood(NET, (TRAIN, LABELS), USUAL, {"far": {"b": FAR}}, [DeepKNN(k=3)], shifted=FAR)
    assert whole["usual"][0] == 110
    # half a chance among the shifted, which are the very outliers
    expected = (60 * plain["auroc"][0] + 50 * 0.5) / 110
    assert whole["auroc"][0] == pytest.approx(expected)


def test_scores_that_want_unseen_inputs_get_them():
    table = openood(
        NET, (TRAIN, LABELS), USUAL, {"far": {"b": FAR}}, ["react"], unseen=(UNSEEN, np.zeros(40, np.int64))
    )
    from farout.ood.react import ReAct

    needs = ReAct.needs
    fitted = ReAct().fit(extract(NET, UNSEEN, needs=needs))
    scores = [fitted.score(extract(NET, x, needs=needs)).numpy() for x in (USUAL, FAR)]
    assert table["auroc"][0] == pytest.approx(ood_metrics(*scores)["auroc"])


def test_bad_input():
    with pytest.raises(BadInput, match="no sets"):
        openood(NET, (TRAIN, LABELS), USUAL, {"far": {}})
    with pytest.raises(BadInput, match="setting=name"):
        main(sets=["tin-scene"])
    with pytest.raises(UnknownName, match="tin-scene"):
        main(sets=["near=tin-scenery"])


def test_the_whole_benchmark_on_the_ready_network(tmp_path):
    from farout.data import DataMissing, find

    try:
        find("ood/resnet20_cifar10.npz")
    except DataMissing:
        pytest.skip("the sets of small images are not here; set FAROUT_DATA")
    pytest.importorskip("PIL")
    sets = ["near=tin-near_animal", "far=mnist-test"]
    table = main(methods=["msp", "energy", "deep_knn"], sets=sets, rows=300, out=tmp_path)
    told = json.loads((tmp_path / "openood.json").read_text())
    assert told["settings"]["recoded"] and len(told["sets"]) == table.height == 6
    found = {(row["method"], row["set"]): row["auroc"] for row in told["sets"]}
    # measured before on 4,000 images: .821, .942, .987
    assert found["energy", "tin-near_animal"] == pytest.approx(0.82, abs=0.05)
    assert found["energy", "mnist-test"] == pytest.approx(0.94, abs=0.04)
    assert found["deep_knn", "mnist-test"] == pytest.approx(0.98, abs=0.03)
    page = (tmp_path / "openood.html").read_text()
    assert "88.03" in page and "Published" in page
