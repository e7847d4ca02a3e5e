"""APRE and MSS: the error in closed form, the networks beside torch's own, the score beside a row-by-row version."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from farout.claims._capped import moved, rescored  # noqa: E402
from farout.errors import BadInput, UnknownName  # noqa: E402
from farout.table import APRE, ECOD, MSS, IForest  # noqa: E402
from farout.table._apre_net import Ranks, apre, outputs, trained  # noqa: E402
from farout.table._common import MatrixDetector  # noqa: E402
from farout.table._shift import shift  # noqa: E402
from naive import mean_shift as naive  # noqa: E402

SMALL = {"hidden": (16, 4, 16), "n_init": 2, "epochs": 15, "device": "cpu", "random_state": 0}
SETTINGS = {
    "hidden": (8, 3, 8), "heads": 2, "n_init": 3, "activation": "tanh", "epochs": 4, "batch_size": 32,
    "learning_rate": 1e-2, "patience": None, "seed": 5, "device": "cpu",
}  # fmt: skip


def made(n=120, d=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 2)) @ rng.normal(size=(2, d)) + 0.1 * rng.normal(size=(n, d))


def naive_network(weights, of_one, rows, d, activation=np.tanh):
    """Mean and log variance of one network, layer by layer."""
    layers = [layer[of_one].astype(float) for layer in weights]
    for weight, bias in zip(layers[:-2:2], layers[1:-2:2]):
        rows = activation(rows @ weight + bias)
    out = rows @ layers[-2] + layers[-1]
    return out[:, :d], np.minimum(np.maximum(out[:, d:], -6), 4)


def test_with_a_variance_of_one_it_is_the_squared_error():
    rng = np.random.default_rng(0)
    x, mean = rng.normal(size=(2, 50, 3))
    np.testing.assert_array_equal(apre(x, mean, np.zeros((50, 3))), (x - mean) ** 2)
    constant = apre(x, mean, np.full((50, 3), 0.7), beta=3.0).sum(axis=1)
    squared = ((x - mean) ** 2).sum(axis=1)
    np.testing.assert_allclose(constant, squared * np.exp(-0.7) + 3 * 3 * 0.7, rtol=1e-12)


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.5, 2.0), (3.0, 0.25)])
def test_the_best_variance_is_alpha_over_beta_times_the_squared_error(alpha, beta):
    x, mean = torch.tensor([1.7], dtype=torch.float64), torch.tensor([0.2], dtype=torch.float64)
    best = torch.log(alpha / beta * (x - mean) ** 2).requires_grad_()
    apre(x, mean, best, alpha, beta, torch).sum().backward()
    assert best.grad.item() == pytest.approx(0, abs=1e-12)
    at, left, right = (apre(x, mean, best.detach() + e, alpha, beta, torch).item() for e in (0, -0.1, 0.1))
    assert at < left and at < right
    assert at == pytest.approx(beta * (1 + np.log(alpha / beta * 1.5**2)))


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_the_networks_are_torchs_linear_layers(activation):
    rows = made()
    weights = trained(rows, **SETTINGS | {"activation": activation, "learning_rate": 0.2})
    means, log_variances = outputs(weights, rows, activation)
    for i in range(3):
        layers = []
        for weight, bias in zip(weights[::2], weights[1::2]):
            layer = torch.nn.Linear(*weight.shape[1:], dtype=torch.float64)
            layer.weight.data, layer.bias.data = torch.tensor(weight[i].T).double(), torch.tensor(bias[i, 0]).double()
            layers += [layer, torch.nn.Tanh() if activation == "tanh" else torch.nn.ReLU()]
        out = torch.nn.Sequential(*layers[:-1])(torch.from_numpy(rows)).detach().numpy()
        np.testing.assert_allclose(means[i], out[:, :4], rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(log_variances[i], out[:, 4:].clip(-6, 4), rtol=1e-12, atol=1e-13)


def test_log_variances_are_clamped_so_that_no_column_rules():
    weights = [np.zeros((1, 2, 4)), np.array([[[1.0, 2.0, -50.0, 50.0]]])]
    means, log_variances = outputs(weights, np.zeros((3, 2)), "tanh")
    np.testing.assert_array_equal(means[0], [[1, 2]] * 3)
    np.testing.assert_array_equal(log_variances[0], [[-6, 4]] * 3)


def test_each_initialisation_trains_as_it_would_alone():
    rows = made()
    start = trained(rows, **SETTINGS | {"learning_rate": 0.0})
    together = trained(rows, **SETTINGS)
    for i in range(3):
        alone = [torch.nn.Parameter(torch.tensor(layer[i])) for layer in start]
        optimizer = torch.optim.Adam(alone, lr=1e-2)
        generator = torch.Generator().manual_seed(5)
        learned = torch.from_numpy(rows.astype(np.float32))[torch.randperm(120, generator=generator)]
        order = torch.randperm(120, generator=generator)
        for epoch in range(4):
            order = order if epoch == 0 else torch.randperm(120, generator=generator)
            for batch in (learned[places] for places in order.split(32)):
                hidden = batch
                for weight, bias in zip(alone[:-2:2], alone[1:-2:2]):
                    hidden = torch.tanh(hidden @ weight + bias)
                mean, log_variance = (hidden @ alone[-2] + alone[-1]).split(4, dim=1)
                loss = ((batch - mean) ** 2 / log_variance.exp() + log_variance).sum(dim=1).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        for ours, theirs, first in zip(together, alone, start):
            np.testing.assert_allclose(ours[i], theirs.detach(), rtol=1e-3, atol=1e-5)
            assert np.abs(ours[i] - first[i]).max() > 1e-3  # the gradient reached it
    assert np.abs(start[0][0] - start[0][1]).min() > 0


def test_it_learns_how_large_noise_is_everywhere():
    rng = np.random.default_rng(0)
    cause = rng.uniform(-1, 1, 1500)
    rows = np.column_stack((cause, rng.normal(size=(1500, 4)) * np.exp(1.5 * cause)[:, None]))
    weights = trained(rows, **SETTINGS | {"hidden": (32, 2, 32), "epochs": 60, "n_init": 2})
    means, log_variances = outputs(weights, rows, "tanh")
    squared = ((rows - means) ** 2)[:, :, 1:]
    thirds = np.digitize(cause, [-1 / 3, 1 / 3])
    in_units = squared / np.exp(log_variances[:, :, 1:])
    for i in range(2):
        wrong, relative = ([of_one[thirds == t].mean() for t in range(3)] for of_one in (squared[i], in_units[i]))
        assert wrong[2] > 10 * wrong[0]
        assert max(np.abs(np.log(relative))) < np.log(1.5)  # it is 1 where the likelihood is largest


@pytest.mark.parametrize("shifted", ["input", "target"])
@pytest.mark.parametrize(("net", "alpha", "beta"), [("PAE", 0.5, 2.0), ("AE", 1.0, 1.0)])
def test_the_score_is_the_formula(shifted, net, alpha, beta):
    X, new = made(), made(20, seed=7) * 1.5
    detector = APRE(net, alpha, beta, shifts=2, n_neighbors=5, shifted=shifted, **SMALL)
    scores = detector.fit_score(X)
    z, z_new = ((rows - X.mean(axis=0)) / X.std(axis=0) for rows in (X, new))
    *before, after = naive.stages(z, 5, 2, naive.among_all)

    def errors(rows, moved, of_one):
        shown, target = (moved, rows) if shifted == "input" else (rows, moved)
        mean, log_variance = naive_network(detector.weights_, of_one, shown, 4)
        log_variance = log_variance if net == "PAE" else np.zeros_like(mean)
        return (alpha * (target - mean) ** 2 / np.exp(log_variance) + beta * log_variance).sum(axis=1)

    moved_new = np.array([naive.shift_new(row, before, 5) for row in z_new])
    expected, expected_new = np.zeros(120), np.zeros(20)
    for i in range(2):
        trained_on, asked = errors(z, after, i), errors(z_new, moved_new, i)
        expected += [((trained_on < e).sum() + 0.5) / 120 / 2 for e in trained_on]
        top = trained_on.max()
        rank = np.interp(asked, np.sort(trained_on), (np.arange(120) + 0.5) / 120)
        expected_new += (rank + np.maximum(asked - top, 0) / (top - np.median(trained_on))) / 2
    np.testing.assert_allclose(scores, expected, rtol=1e-9)
    np.testing.assert_allclose(detector.outlier_score(new), expected_new, rtol=1e-8)
    assert expected_new.max() > 1 or shifted == "target"


def test_without_a_shift_it_is_the_ordinary_error():
    X = made()
    detector = APRE("AE", shifts=0, **SMALL | {"n_init": 1})
    scores = detector.fit_score(X)
    squared = (((X - detector.reconstruct(X)) / X.std(axis=0)) ** 2).sum(axis=1)
    np.testing.assert_array_equal(scores.argsort(), squared.argsort())
    for shifted in ("input", "target"):
        np.testing.assert_array_equal(
            APRE("AE", shifts=0, shifted=shifted, **SMALL | {"n_init": 1}).fit_score(X), scores
        )


def test_reasons_sum_to_the_mean_error_of_the_networks():
    X = made()
    detector = APRE(**SMALL).fit(X)
    matrix = detector._matrix(X, reset=False)
    errors = detector._errors(matrix, detector.shift_(matrix, None))
    assert errors.shape == (2, 120)
    np.testing.assert_allclose(detector.reasons(X).sum(axis=1), errors.mean(axis=0), rtol=1e-10, atol=1e-12)


def test_rows_are_scored_in_blocks_that_change_nothing(monkeypatch):
    X = made()
    detector = APRE(**SMALL).fit(X)
    scores, reasons = detector.outlier_score(X), detector.reasons(X)
    monkeypatch.setattr("farout.table.apre._BLOCK", 17)
    np.testing.assert_allclose(detector.outlier_score(X), scores, rtol=1e-11)
    np.testing.assert_allclose(detector.reasons(X), reasons, rtol=1e-9, atol=1e-12)


def test_ranks_rise_without_end_and_rounding_does_not_move_them():
    rng = np.random.default_rng(0)
    errors = np.concatenate((rng.normal(size=200), np.full(50, 0.25) + rng.normal(size=50) * 1e-15))
    ranks = Ranks.of(errors)
    for value in (-9.0, -0.3, 0.25, errors.max()):
        counted = ((errors < value - 1e-12).sum() + (errors < value + 1e-12).sum()) / 2 / 250
        assert ranks(np.array([value])).item() == pytest.approx(max(counted, 0.5 / 250), abs=2 / 250)
    at = ranks(0.25 + np.array([-1e-14, 0.0, 1e-14]))
    assert np.ptp(at) < 1e-9
    far = ranks(errors.max() + np.array([0.0, 1e-6, 1.0, 1e6, 1e200]))
    assert (np.diff(far) > 0).all() and np.isfinite(far).all()
    assert far[2] - far[0] == pytest.approx(1 / (errors.max() - np.median(errors)))
    grid = ranks(np.linspace(-4, 5, 4001))
    assert (np.diff(grid) >= 0).all()
    assert Ranks.of(np.zeros(9))(np.array([0.0, 2.0])).tolist() == [0.5, 2.5]


def test_a_constant_column_is_kept_from_the_networks_and_still_counts():
    X = made()
    constant = np.insert(X, 2, 7.0, axis=1)
    plain, detector = APRE(**SMALL), APRE(**SMALL)
    np.testing.assert_allclose(detector.fit_score(constant), plain.fit_score(X), rtol=1e-12)
    assert detector.varies_.tolist() == [True, True, False, True, True]
    assert (detector.reconstruct(constant)[:, 2] == 7).all()
    left = constant[:3].copy()
    left[:, 2] += 3.0
    np.testing.assert_allclose(detector.reasons(left)[:, 2], 9.0, rtol=1e-12)
    assert (detector.outlier_score(left) > detector.outlier_score(constant[:3])).all()


def test_a_binary_column_does_not_rule():
    X = np.column_stack((made(300), np.arange(300) % 2))
    detector = APRE("PAE", shifts=0, hidden=(32, 8, 32), n_init=1, epochs=100, device="cpu", random_state=0).fit(X)
    X[5, :4] = 12.0
    assert detector.outlier_score(X).argmax() == 5
    assert (detector.reasons(X)[:, 4] >= -6).all()


def test_what_is_reconstructed_is_in_the_units_of_the_columns():
    X = made(400)
    detector = APRE("AE", hidden=(32, 16, 32), n_init=2, device="cpu", random_state=0)
    near = detector.fit(X).reconstruct(X)
    assert ((X - near) ** 2).mean() < 0.1 * X.var()
    np.testing.assert_allclose(detector.fit(1024 * X).reconstruct(1024 * X), 1024 * near, rtol=1e-9)


def test_a_seed_is_a_result_and_another_seed_another():
    X = made()
    first, again = (APRE(**SMALL).fit_score(X) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - APRE(**SMALL | {"random_state": 1}).fit_score(X)).max() > 0.01


def test_training_stops_when_the_loss_does():
    X = made(40)
    slow = SMALL | {"epochs": 60, "learning_rate": 0.3}
    full, stopped = APRE(patience=None, **slow).fit(X), APRE(patience=2, **slow).fit(X)
    assert np.abs(full.weights_[0] - stopped.weights_[0]).max() > 0


@pytest.mark.parametrize(
    ("parameters", "error", "match"),
    [
        ({"net": "VAE"}, UnknownName, "'VAE'"),
        ({"activation": "gelu"}, UnknownName, "'gelu'"),
        ({"shifted": "both"}, UnknownName, "'both'"),
        ({"alpha": 0.0}, BadInput, "not 0.0 and 1.0"),
        ({"beta": -1.0}, BadInput, "not 1.0 and -1.0"),
        ({"n_init": 0}, BadInput, "n_init is at least 1, not 0"),
        ({"shifts": -2}, BadInput, "at least 0, not -2"),
        ({"device": "abacus"}, BadInput, "'abacus'"),
    ],
)
def test_what_means_nothing_is_refused(parameters, error, match):
    with pytest.raises(error, match=match):
        APRE(**SMALL | parameters).fit(made(30))


class Line(MatrixDetector):
    """Reconstructs rows on the line of the first principal component."""

    _categories = "one_hot"
    standardize = False

    def _learn(self, matrix):
        self.centre_ = matrix.mean(axis=0)
        self.axis_ = np.linalg.svd(matrix - self.centre_)[2][:1]
        return self._score(matrix)

    def _score(self, matrix):
        return ((matrix - self.reconstruct(matrix)) ** 2).sum(axis=1)

    def reconstruct(self, X):
        return (X - self.centre_) @ self.axis_.T @ self.axis_ + self.centre_


@pytest.mark.parametrize("shifted", ["input", "target"])
def test_mss_around_what_reconstructs(shifted):
    X, new = made(), made(15, seed=2)
    detector = MSS(Line(), shifts=2, n_neighbors=6, shifted=shifted)
    scores = detector.fit_score(X)
    z, z_new = ((rows - X.mean(axis=0)) / X.std(axis=0) for rows in (X, new))
    *before, after = naive.stages(z, 6, 2, naive.among_all)
    moved = np.array([naive.shift_new(row, before, 6) for row in z_new])
    line = Line().fit(z)
    for found, rows, there in ((scores, z, after), (detector.outlier_score(new), z_new, moved)):
        pair = (rows, there) if shifted == "input" else (there, rows)
        np.testing.assert_allclose(found, ((pair[0] - line.reconstruct(pair[1])) ** 2).sum(axis=1), rtol=1e-9)
    np.testing.assert_allclose(MSS(Line(), shifts=0).fit_score(X), line.outlier_score(z), rtol=1e-9)


def test_mss_around_apre_is_apre_with_these_settings():
    X = made()
    around = MSS(APRE(**SMALL), shifts=1, n_neighbors=4, shifted="target")
    scores = around.fit_score(X)
    z = around._matrix(X, reset=False)
    np.testing.assert_array_equal(scores, APRE(shifts=1, n_neighbors=4, shifted="target", **SMALL).fit_score(z))
    assert MSS().fit(made(30)).detector_.net == "AE"


def test_mss_around_any_other_learns_the_shifted_rows_and_scores_the_rows():
    X = made()
    detector = MSS(ECOD(), shifts=2, n_neighbors=6)
    scores = detector.fit_score(X)
    z = (X - X.mean(axis=0)) / X.std(axis=0)
    expected = ECOD().fit(naive.stages(z, 6, 2, naive.among_all)[-1]).outlier_score(z)
    np.testing.assert_allclose(scores, expected, rtol=1e-9)
    assert np.abs(scores - ECOD().fit(z).outlier_score(z)).max() > 0.1


def test_mss_hands_its_seed_on_and_changes_no_detector_it_was_given():
    X = made()
    inside = IForest(n_estimators=5, random_state=3)
    assert MSS(inside).fit(X).detector_.random_state == 3
    assert MSS(inside, random_state=8).fit(X).detector_.random_state == 8
    assert inside.random_state == 3 and not hasattr(inside, "offset_")


def test_mean_shift_scoring_finds_an_outlier_that_is_reconstructed_well():
    X = np.vstack((made(200), 0.1 * np.ones((1, 4))))
    X[-1] = 6 * X[:200].std(axis=0) * np.sign(np.linalg.svd(X[:200])[2][0])  # far out along the line that is learned
    plain, scored = MSS(Line(), shifts=0).fit_score(X), MSS(Line()).fit_score(X)
    assert scored.argmax() == 200 and (plain > plain[200]).sum() > 0


def test_the_claims_score_once_trained_networks_as_if_each_was_trained_anew():
    X = made()
    fitted = APRE(shifts=0, **SMALL).fit(X)
    for parameters in ({}, {"shifted": "target", "alpha": 0.5, "beta": 2.0}):
        np.testing.assert_array_equal(
            rescored(fitted, X, moved(fitted, X), **parameters), APRE(**SMALL | parameters).fit_score(X)
        )


def test_shift_is_what_is_exported():
    from farout.table import mean_shift

    assert mean_shift.shift is shift
