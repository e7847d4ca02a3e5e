"""The classic detectors by numbers: closed forms, slow versions, scikit-learn and PyOD as referees."""

from __future__ import annotations

import warnings

import numpy as np
import polars as pl
import pytest
from sklearn.covariance import EmpiricalCovariance, MinCovDet
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import LocalOutlierFactor
from sklearn.svm import OneClassSVM

import farout
from farout import data
from farout.errors import BadInput
from farout.kit.columns import ArrayFeatures, Columns
from farout.table._common import Encoder
from farout.table._trees import Trees
from farout.table.copod import COPOD
from farout.table.ecod import ECOD
from farout.table.hbos import HBOS
from farout.table.iforest import IForest, _mean_depth
from farout.table.knn import KNN
from farout.table.lof import LOF
from farout.table.mcd import MCD
from farout.table.ocsvm import OCSVM
from farout.table.pca import PCA
from naive import neighbours as naive


def normal(n, d, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def standardised(X):
    return (X - X.mean(axis=0)) / X.std(axis=0)


def correlated(n=300, d=5, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) * 10.0 ** np.arange(d)


class TestCOPOD:
    @pytest.mark.parametrize("kind", ["continuous", "tied", "symmetric", "wide"])
    def test_equals_pyod(self, kind):
        referee = pytest.importorskip("pyod.models.copod").COPOD
        rng = np.random.default_rng(0)
        X = {
            "continuous": np.exp(rng.normal(size=(400, 5))) * [1, -1, 1, -1, 1],
            "tied": rng.poisson(1.5, size=(400, 4)).astype(float),
            "symmetric": np.column_stack((np.arange(-200, 200) + 0.5, np.tile([-3.0, -1, 1, 3], 100))),
            "wide": rng.gamma(1.0, size=(60, 41)),
        }[kind]
        np.testing.assert_allclose(COPOD().fit_score(X), referee().fit(X).decision_scores_, rtol=1e-10)

    def test_the_published_rule_is_that_of_ecod(self):
        X = np.exp(normal(200, 4)) * [1, -1, 1, -1]  # skewed both ways
        np.testing.assert_array_equal(COPOD(rule="paper").fit_score(X), ECOD(rule="paper").fit_score(X))
        assert not np.allclose(COPOD().fit_score(X), ECOD(rule="per_dimension").fit_score(X))

    def test_a_category_adds_its_surprise(self):
        frame = pl.DataFrame({"k": ["a"] * 6 + ["b"] * 2})
        np.testing.assert_allclose(COPOD().fit_score(frame), -np.log([0.75] * 6 + [0.25] * 2), rtol=1e-12)

    def test_an_unknown_rule_is_refused(self):
        with pytest.raises(BadInput, match="'per_dimension' or 'paper', not 'best'"):
            COPOD(rule="best").fit(normal(9, 2))


class TestHBOS:
    def test_equals_pyod_with_its_smoothing(self):
        referee = pytest.importorskip("pyod.models.hbos").HBOS().fit(X := normal(500, 6))
        new = normal(200, 6, seed=1)
        new = new[((new > X.min(axis=0)) & (new < X.max(axis=0))).all(axis=1)]
        detector = HBOS(smoothing=0.1).fit(X)
        # PyOD counts from an absolute height, in bits
        tops = np.log([np.histogram(x, 10, density=True)[0].max() + 0.1 for x in X.T]).sum()
        for rows, theirs in ((X, referee.decision_scores_), (new, referee.decision_function(new))):
            np.testing.assert_allclose(detector.outlier_score(rows) - tops, theirs * np.log(2), atol=1e-10)

    def test_ranks_as_well_as_pyod_does(self):
        referee = pytest.importorskip("pyod.models.hbos").HBOS
        differences = []
        for name in ("breastw", "cardio", "glass", "letter", "Pima", "thyroid", "vowels", "WBC", "wine"):
            try:
                loaded = data.load(f"adbench/{name}")
            except data.DataMissing as error:
                pytest.skip(str(error))
            theirs = roc_auc_score(loaded.y, referee().fit(loaded.X).decision_scores_)
            differences.append(abs(roc_auc_score(loaded.y, HBOS(smoothing=0.1).fit_score(loaded.X)) - theirs))
        assert np.median(differences) < 0.005

    def test_static_bins_in_closed_form(self):
        x = np.array([0.0, 0.4, 1.0, 1.9, 2.0, 4.0])[:, None]  # bins [0, 1), [1, 2), [2, 3), [3, 4] of 2, 2, 1, 1 rows
        detector = HBOS(n_bins=4).fit(x)
        np.testing.assert_allclose(detector.outlier_score(x), np.log([1, 1, 1, 1, 2, 2]), atol=1e-12)
        # outside, the density of 6 / 7 of a row
        np.testing.assert_allclose(detector.outlier_score([[-0.1], [4.1], [1e9], [np.inf]]), np.log(14 / 6))
        # missing cells say what the mean row says
        np.testing.assert_allclose(detector.outlier_score([[np.nan]]), 2 / 6 * np.log(2))

    def test_an_empty_bin_counts_as_outside(self):
        detector = HBOS(n_bins=3).fit(np.array([[0.0], [0.1], [3.0]]))
        np.testing.assert_allclose(detector.outlier_score([[1.5], [9.0]]), np.log(2 * 4 / 3))
        smoothed = HBOS(n_bins=3, smoothing=0.1).fit(np.array([[0.0], [0.1], [3.0]]))
        np.testing.assert_allclose(smoothed.outlier_score([[1.5], [9.0]]), np.log((2 / 3 + 0.1) / 0.1))

    def test_dynamic_bins_hold_equally_many_rows(self):
        x = np.array([0.0, 1.0, 2.0, 4.0, 10.0, 18.0])[:, None]  # [0, 2), [2, 10), [10, 18]: 2 rows in each
        parts = np.log([1, 1, 4, 4, 4, 4])
        np.testing.assert_allclose(HBOS("dynamic", n_bins=3).fit_score(x), parts, atol=1e-12)

    def test_tied_values_share_a_dynamic_bin(self):
        x = np.array([0.0] * 7 + [1.0] * 2 + [2.0])[:, None]  # [0, 1), [1, 2), and 2 as wide as the gap before it
        parts = np.log(7 / np.array([7] * 7 + [2] * 2 + [1]))
        np.testing.assert_allclose(HBOS("dynamic", n_bins=10).fit_score(x), parts, atol=1e-12)

    def test_auto_takes_the_square_root_of_n(self):
        detector = HBOS(n_bins="auto").fit(normal(900, 1))
        assert len(detector.histograms_[0].edges) == 31

    def test_units_do_not_matter_without_smoothing(self):
        X, scale = normal(300, 3), np.array([1e3, 1e-3, 7.0])
        np.testing.assert_allclose(HBOS().fit_score(X * scale), HBOS().fit_score(X), rtol=1e-9)
        assert np.abs(HBOS(smoothing=0.1).fit_score(X * scale) - HBOS(smoothing=0.1).fit_score(X)).max() > 1

    def test_a_level_is_a_bin(self):
        frame = pl.DataFrame({"k": ["a"] * 5 + ["b"] * 2 + [None]})
        detector = HBOS().fit(frame)
        np.testing.assert_allclose(detector.outlier_score(frame[4:6]), np.log([1, 5 / 2]), atol=1e-12)
        unseen = detector.outlier_score(pl.DataFrame({"k": ["z"]}))
        np.testing.assert_allclose(unseen, np.log(5 / 7 * 8))
        np.testing.assert_allclose(detector.outlier_score(frame[7:]), 2 / 7 * np.log(5 / 2))

    @pytest.mark.parametrize("wrong", [{"bins": "equal"}, {"n_bins": 0}, {"n_bins": "many"}, {"smoothing": -1.0}])
    def test_wrong_parameters_are_refused(self, wrong):
        with pytest.raises(BadInput, match=next(iter(wrong))):
            HBOS(**wrong).fit(normal(9, 2))


class TestNeighbours:
    @pytest.mark.parametrize("d", [2, 20])  # trees, and products of matrices
    def test_knn_equals_brute_force(self, d):
        X = normal(120, d) * 3 + 50
        X[:5] = X[5]  # six copies of one row, whose third neighbour is a copy
        detector = KNN(3, standardize=False)
        scores = detector.fit_score(X)
        np.testing.assert_allclose(scores, naive.knn(X, 3), rtol=1e-12)
        assert (scores[:6] == 0).all()
        new = normal(20, d, seed=1)
        expected = [naive.neighbours(row, X, 3)[0][-1] for row in new]
        np.testing.assert_allclose(detector.outlier_score(new), expected, rtol=1e-12)
        np.testing.assert_allclose(KNN(3).fit_score(X), naive.knn(standardised(X), 3), rtol=1e-9)

    @pytest.mark.parametrize(("distance", "of"), [("largest", np.max), ("mean", np.mean), ("median", np.median)])
    def test_knn_takes_the_distance_that_is_asked_for(self, distance, of):
        X = normal(60, 3)
        detector = KNN(4, distance, standardize=False).fit(X)
        expected = [of(naive.neighbours(row, X, 4)[0]) for row in X + 0.1]
        np.testing.assert_allclose(detector.outlier_score(X + 0.1), expected, rtol=1e-12)

    def test_small_distances_survive_large_norms(self):
        X = normal(100, 20) * 1e-4 + 100
        np.testing.assert_allclose(KNN(1, standardize=False).fit(X).outlier_score(X), 0, atol=0)

    @pytest.mark.parametrize("d", [2, 20])
    def test_lof_equals_its_definitions(self, d):
        X = normal(90, d)
        X[:40] *= 5
        np.testing.assert_allclose(LOF(7, standardize=False).fit_score(X), naive.lof(X, 7), rtol=1e-8)

    def test_lof_equals_scikit_learn(self):
        X, new = correlated(), correlated(seed=1)
        Z, new_z = standardised(X), (new - X.mean(axis=0)) / X.std(axis=0)
        referee = LocalOutlierFactor(novelty=True).fit(Z)
        detector = LOF()
        np.testing.assert_allclose(detector.fit_score(X), -referee.negative_outlier_factor_, rtol=1e-9)
        np.testing.assert_allclose(detector.outlier_score(new), -referee.score_samples(new_z), rtol=1e-9)

    def test_reasons_are_squared_differences_to_the_mean_neighbour(self):
        X = np.array([[0.0, 0.0], [2.0, 0.0], [100.0, 100.0]])
        for cls in (KNN, LOF):
            detector = cls(2, standardize=False).fit(X)
            np.testing.assert_allclose(detector.reasons([[1.0, 5.0]]), [[0.0, 25.0]])

    def test_a_category_in_reasons_is_one_feature(self):
        frame = pl.DataFrame({"x": np.arange(40.0), "k": ["a", "b"] * 20})
        parts = KNN().fit(frame).reasons(pl.DataFrame({"x": [20.0], "k": ["never"]}))
        assert parts.shape == (1, 2)
        assert parts[0, 1] > parts[0, 0]

    @pytest.mark.parametrize("wrong", [{"n_neighbors": 0}, {"distance": "least"}])
    def test_wrong_parameters_are_refused(self, wrong):
        with pytest.raises(BadInput, match=next(iter(wrong))):
            KNN(**wrong).fit(normal(9, 2))


class TestPCA:
    def test_over_all_components_it_is_the_mahalanobis_distance(self):
        X, new = correlated(), correlated(seed=1)
        referee = EmpiricalCovariance().fit(X)
        detector = PCA("all", trim=0)
        np.testing.assert_allclose(detector.fit_score(X), referee.mahalanobis(X), rtol=1e-6)
        np.testing.assert_allclose(detector.outlier_score(new), referee.mahalanobis(new), rtol=1e-6)

    def test_major_and_minor_sums_by_singular_values(self):
        X = correlated()
        Z = standardised(X)
        _, singular, axes = np.linalg.svd(Z, full_matrices=False)
        variances = singular**2 / len(Z)
        squares = (Z @ axes.T) ** 2 / variances
        q = int(np.argmax(np.cumsum(variances) >= 0.5 * variances.sum())) + 1
        minor = variances < 0.2
        assert 0 < q < 5 and 0 < minor.sum() < 5 - q  # some are neither
        sums = squares[:, :q].sum(axis=1), squares[:, minor].sum(axis=1)
        np.testing.assert_allclose(PCA("major", trim=0).fit_score(X), sums[0], rtol=1e-6)
        np.testing.assert_allclose(PCA("minor", trim=0).fit_score(X), sums[1], rtol=1e-6)
        units = [np.quantile(s, np.sqrt(0.9)) for s in sums]
        expected = np.maximum(sums[0] / units[0], sums[1] / units[1])
        np.testing.assert_allclose(PCA(trim=0, false_alarms=0.1).fit_score(X), expected, rtol=1e-6)

    def test_above_one_is_the_papers_alarm(self):
        X = normal(20_000, 3) @ np.array([[1, 1, 0.0], [1, -1, 0.0], [0.3, 0.3, 1.0]]) + 0.3 * normal(20_000, 3, seed=1)
        X = np.column_stack((X, X[:, 0] + 0.05 * normal(20_000, 1, seed=2)[:, 0]))
        scores = PCA(false_alarms=0.05).fit_score(X)
        assert np.mean(scores > 1) == pytest.approx(0.05, abs=0.004)

    def test_trimming_leaves_out_the_rows_farthest_out(self):
        X = correlated(1000)
        dirty = X.copy()
        dirty[:3] += 1e4 * X.std(axis=0) * [1, -1, 1, -1, 1]
        new = correlated(seed=1)
        clean = PCA("all", trim=0).fit(X[3:]).outlier_score(new)
        trimmed = PCA("all", trim=0.003).fit(dirty).outlier_score(new)
        np.testing.assert_allclose(trimmed, clean, rtol=1e-6)
        assert np.median(PCA("all", trim=0).fit(dirty).outlier_score(new) / clean) < 0.9

    def test_leaving_the_plane_of_the_training_rows_is_far_out(self):
        X = np.column_stack((Z := normal(200, 2), Z.sum(axis=1)))
        detector = PCA().fit(X)
        assert detector.outlier_score(X).max() < 10
        assert detector.outlier_score(X[:1] + np.array([0, 0, 0.01]))[0] > 1000

    def test_no_minor_component_is_said(self):
        with pytest.raises(BadInput, match=r"variance below 0\.2"):
            PCA("minor").fit(normal(500, 2))
        with pytest.raises(BadInput, match="'some'"):
            PCA("some").fit(normal(9, 2))


class TestMCD:
    def test_equals_scikit_learn(self):
        X = correlated()
        X[:60] += 30 * X.std(axis=0)
        referee = MinCovDet(random_state=0).fit(standardised(X))
        scores = MCD(random_state=0).fit_score(X)
        np.testing.assert_allclose(scores, referee.mahalanobis(standardised(X)), rtol=1e-6)
        assert scores[:60].min() > scores[60:].max()
        assert EmpiricalCovariance().fit(X).mahalanobis(X)[:60].max() < 20  # outliers hide from the plain estimate

    def test_the_support_is_passed_on(self):
        X = normal(300, 3)
        referee = MinCovDet(support_fraction=0.9, random_state=0).fit(standardised(X))
        scores = MCD(0.9, random_state=0).fit_score(X)
        np.testing.assert_allclose(scores, referee.mahalanobis(standardised(X)), rtol=1e-6)

    def test_affine_maps_change_no_score(self):
        X = correlated()
        A = normal(5, 5, seed=3)
        scores = MCD(random_state=0).fit_score(X)
        np.testing.assert_allclose(MCD(random_state=0).fit_score(X / X.std(axis=0) @ A), scores, rtol=1e-5)

    def test_a_column_that_is_mostly_zero_makes_the_support_grow(self):
        X = normal(400, 3)
        X[:, 2] *= np.arange(400) % 5 == 0  # four fifths are 0: half of the rows, and 75 %, lie on a plane
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            detector = MCD(random_state=0).fit(X)
        scores = detector.outlier_score([[0, 0, 0.0], [0, 0, 1.0], [0, 0, 9.0]])
        assert scores[0] < scores[1] < scores[2] < 1e5
        referee = MinCovDet(support_fraction=0.9, random_state=0).fit(standardised(X))
        np.testing.assert_allclose(detector.outlier_score(X), referee.mahalanobis(standardised(X)), rtol=1e-6)

    def test_a_column_that_is_nearly_always_zero_leaves_the_plain_estimate(self):
        X = normal(400, 2)
        X[:, 1] = np.arange(400) >= 397
        np.testing.assert_allclose(MCD(random_state=0).fit_score(X), EmpiricalCovariance().fit(X).mahalanobis(X))

    def test_leaving_the_plane_of_the_training_rows_is_far_out(self):
        X = np.column_stack((Z := normal(200, 2), Z.sum(axis=1), np.full(200, 4.0)))
        detector = MCD(random_state=0).fit(X)
        assert detector.outlier_score(X).max() < 100
        off = detector.outlier_score(X[:1] + 0.01 * np.eye(4)[2:])
        assert off.min() > 10_000


class TestOCSVM:
    def test_equals_scikit_learn_without_its_threshold(self):
        X, new = correlated(), correlated(seed=1)
        Z, new_z = standardised(X), (new - X.mean(axis=0)) / X.std(axis=0)
        referee = OneClassSVM(nu=0.2).fit(Z)
        detector = OCSVM(nu=0.2)
        np.testing.assert_allclose(detector.fit_score(X), -referee.score_samples(Z), rtol=1e-9)
        expected = -referee.decision_function(new_z) - referee.offset_
        np.testing.assert_allclose(detector.outlier_score(new), expected, rtol=1e-9)

    def test_it_is_a_sum_of_kernels(self):
        X, new = normal(50, 3), normal(9, 3, seed=1)
        detector = OCSVM(gamma=0.3, standardize=False).fit(X)
        machine = detector.machine_
        squared = ((new[:, None] - machine.support_vectors_) ** 2).sum(axis=2)
        expected = -(np.exp(-0.3 * squared) @ machine.dual_coef_[0])
        np.testing.assert_allclose(detector.outlier_score(new), expected, rtol=1e-9)

    @pytest.mark.parametrize("nu", [0.05, 0.3])
    def test_nu_bounds_the_share_outside_and_that_of_support_vectors(self, nu):
        machine = OCSVM(nu=nu).fit(X := normal(1000, 2)).machine_
        outside = np.mean(machine.decision_function(standardised(X)) < -0.01)  # libsvm stops 0.001 short
        assert outside <= nu <= len(machine.support_) / 1000
        assert outside == pytest.approx(nu, abs=0.02)


class TestIForest:
    @pytest.mark.parametrize(("n", "max_samples"), [(100, 256), (3000, 256), (3000, 20)])
    def test_equals_scikit_learn(self, n, max_samples):
        X, new = correlated(n), correlated(seed=1)
        referee = IsolationForest(max_samples=min(n, max_samples), random_state=3).fit(X)
        detector = IForest(max_samples=max_samples, random_state=3)
        np.testing.assert_allclose(detector.fit_score(X), -referee.score_samples(X), rtol=1e-12)
        np.testing.assert_allclose(detector.outlier_score(new), -referee.score_samples(new), rtol=1e-12)

    def test_one_split_in_closed_form(self):
        # two rows, two values: every tree has a root and two leaves, so every depth is 1 = c(2)
        detector = IForest(random_state=0).fit([[0.0], [1.0]])
        np.testing.assert_allclose(detector.outlier_score([[0.0], [7.0]]), 0.5)
        # copies cannot be split: depth 0 + c(256), which is the mean itself
        np.testing.assert_allclose(IForest(random_state=0).fit_score(np.ones((300, 2))), 0.5)

    def test_mean_depth_is_that_of_an_unsuccessful_search(self):
        harmonic = np.cumsum(1 / np.arange(1, 1000))
        m = np.arange(3, 1001)
        exact = 2 * harmonic[m - 2] - 2 * (m - 1) / m
        assert (np.abs(_mean_depth(m) - exact) < 1.1 / (m - 1)).all()  # the paper's H(k) = log k + 0.5772 errs so
        np.testing.assert_array_equal(_mean_depth(np.array([0, 1, 2])), [0, 0, 1])

    def test_the_threshold_is_the_same_with_and_without_scores(self):
        X = normal(5000, 2)
        one, other = IForest(random_state=0).fit(X), IForest(random_state=0)
        scores = other.fit_score(X)
        assert one.offset_ == other.offset_
        assert -one.offset_ != np.quantile(scores, 0.99)  # a sample's
        assert np.mean(scores > -one.offset_) == pytest.approx(0.01, abs=0.005)

    def test_what_is_too_large_for_32_bits_is_isolated(self):
        X = normal(200, 1)
        X[7] = 1e200
        scores = IForest(random_state=0).fit_score(X)
        assert scores.argmax() == 7
        np.testing.assert_allclose(np.delete(scores, 7).min(), 0.4, atol=0.1)

    def test_a_rare_level_is_isolated(self):
        frame = pl.DataFrame({"x": normal(500, 1)[:, 0], "k": ["a"] * 300 + ["b"] * 199 + ["rare"]})
        scores = IForest(random_state=0).fit_score(frame)
        assert scores[499] > np.quantile(scores, 0.95)

    def test_damaged_trees_are_refused(self, tmp_path):
        trees = IForest(n_estimators=3, random_state=0).fit(normal(50, 2)).trees_
        names = ("starts", "left", "right", "feature", "threshold", "rows")
        arrays = {name: getattr(trees, name) for name in names}
        Trees(**arrays, width=2)
        for name, value in (("left", 10**9), ("right", -5), ("left", 0), ("feature", 2), ("feature", -1)):
            bad = {**arrays, name: arrays[name].copy()}
            bad[name][0] = value
            with pytest.raises(BadInput, match="damaged"):
                Trees(**bad, width=2)
        for name in ("starts", "threshold", "rows"):
            with pytest.raises(BadInput, match="damaged"):
                Trees(**{**arrays, name: arrays[name][:-1]}, width=2)

    def test_a_damaged_file_is_refused(self, tmp_path):
        detector = IForest(n_estimators=3, random_state=0).fit(normal(50, 2))
        detector.trees_.feature[0] = 77
        detector.save(tmp_path / "saved")
        with pytest.raises(BadInput, match="damaged"):
            farout.load(tmp_path / "saved")


class TestEncoder:
    FRAME = pl.DataFrame({"x": [1.0, 2.0, 9.0, None], "k": ["a", "a", "b", None]})

    def matrix(self, frame, *how):
        features = Columns.of(self.FRAME).features(self.FRAME)
        return Encoder.fit(features, *how).transform(Columns.of(self.FRAME).features(frame))

    def test_different_levels_are_at_distance_one(self):
        rows = pl.DataFrame({"x": [2.0] * 3, "k": ["a", "b", "never"]})
        matrix = self.matrix(rows, "one_hot", False)
        distances = np.linalg.norm(matrix[:, None] - matrix, axis=2)
        np.testing.assert_allclose(distances, 1 - np.eye(3), atol=1e-12)

    def test_missing_values_are_the_median_and_the_mean_code(self):
        matrix = self.matrix(self.FRAME, "surprise", False)
        codes = -np.log([2 / 3, 2 / 3, 1 / 3])
        np.testing.assert_allclose(matrix, np.column_stack(([1, 2, 9, 2], [*codes, codes.mean()])), rtol=1e-12)
        unseen = self.matrix(pl.DataFrame({"x": [0.0], "k": ["never"]}), "surprise", False)
        np.testing.assert_allclose(unseen, [[0, np.log(4)]])

    def test_rare_levels_share_a_column(self):
        frame = pl.DataFrame({"k": [f"level {i}" for i in range(40) for _ in range(40 - i)]})
        features = Columns.of(frame).features(frame)
        encoder = Encoder.fit(features, "one_hot", True)
        assert len(encoder.owner) == Encoder.LEVELS + 1
        last = pl.DataFrame({"k": ["level 38", "level 39", "level 0"]})
        matrix = encoder.transform(Columns.of(frame).features(last))
        assert (matrix[0] == matrix[1]).all() and (matrix[0] != matrix[2]).any()

    def test_arrays_and_frames_give_one_matrix(self):
        X = correlated()
        X[::9, 1] = np.nan
        frame = pl.DataFrame(X, schema=list("abcde"))
        for standardize in (True, False):
            encoder = Encoder.fit(ArrayFeatures(X), "surprise", standardize)
            by_column = encoder.transform(Columns.of(frame).features(frame))
            np.testing.assert_array_equal(encoder.transform(ArrayFeatures(X)), by_column)
        filled = np.where(np.isnan(X), np.nanmedian(X, axis=0), X)
        standardised_by_frame = Encoder.fit(Columns.of(frame).features(frame), "surprise", True)
        np.testing.assert_allclose(standardised_by_frame.transform(ArrayFeatures(X)), standardised(filled), rtol=1e-9)

    def test_medians_of_many_rows_come_from_drawn_ones(self):
        X = np.random.default_rng(0).exponential(size=(50_000, 1))
        fill = Encoder.fit(ArrayFeatures(X), "surprise", False).fills[0]
        share = np.mean(fill >= X)
        assert share == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(Encoder.DRAWN))
