"""Drawn sets: each archetype breaks what it says, and nothing else; names tell all."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chi2, kstest

from farout.data import load, synbench
from farout.data.synbench import ARCHETYPES, PRIORS, CausalModel, Copula, DensityTree, Mixture, make
from farout.errors import UnknownName

ALL = [(prior, archetype) for prior in PRIORS for archetype in ARCHETYPES]


def parts(data):
    """Normal rows and anomalies."""
    return data.X[data.y == 0], data.X[data.y == 1]


@pytest.mark.parametrize(("prior", "archetype"), ALL)
def test_a_name_is_a_set(prior, archetype):
    name = f"synbench/{prior}-{archetype}-3"
    one, again, other = load(name), load(name.upper()), load(f"synbench/{prior}-{archetype}-4")
    assert one.name == again.name == name
    np.testing.assert_array_equal(one.X, again.X)
    assert one.X.shape != other.X.shape or not np.array_equal(one.X, other.X)
    assert np.isfinite(one.X).all()
    assert one.X.shape[1] == len(one.columns)
    n = one.n_train
    assert not one.y[: 2 * n].any() and one.y[2 * n :].all() and len(one.y) > 2 * n
    assert 400 <= n < 2_000 and 3 <= one.X.shape[1] <= 20
    assert 0.02 < one.y[n:].sum() / (n + one.y.sum()) < 0.31


@pytest.mark.parametrize("prior", PRIORS)
def test_dependency_keeps_every_margin_and_drops_what_binds_them(prior):
    normal, anomalies = parts(make(prior, "dependency", 1))
    p = [kstest(a, b).pvalue for a, b in zip(normal.T, anomalies.T)]
    assert min(p) * len(p) > 0.001
    for other in ("global", "cluster"):  # these change the margins
        normal_, broken = parts(make(prior, other, 1))
        assert min(kstest(a, b).pvalue for a, b in zip(normal_.T, broken.T)) < 1e-6
    bound, free = (np.corrcoef(rows, rowvar=False)[np.triu_indices(normal.shape[1], 1)] for rows in (normal, anomalies))
    assert np.abs(free).max() < 5 / np.sqrt(len(anomalies))
    assert np.abs(bound).max() > 0.3


@pytest.mark.parametrize("prior", PRIORS)
def test_global_anomalies_are_outside_and_not_far(prior):
    normal, anomalies = parts(make(prior, "global", 2))
    low, high = normal.min(axis=0), normal.max(axis=0)
    assert ((anomalies < low) | (anomalies > high)).any(axis=1).all()
    reach = (high - low) / 2
    assert (anomalies >= low - reach).all() and (anomalies <= high + reach).all()


@pytest.mark.parametrize("prior", PRIORS)
def test_a_cluster_is_tight_and_away(prior):
    normal, anomalies = parts(make(prior, "cluster", 5))
    away = (anomalies.mean(axis=0) - normal.mean(axis=0)) / normal.std(axis=0)
    np.testing.assert_allclose(np.abs(away), 3)
    ratio = anomalies.std(axis=0) / normal.std(axis=0)
    assert np.median(ratio) == pytest.approx(0.2, abs=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_local_anomalies_of_a_mixture_are_far_from_all_centres(seed):
    law = Mixture(6, np.random.default_rng(seed))
    df = len(law.part)
    normal, anomalies = law.normal(500), law.local(500)
    inverse = np.linalg.inv(law.turn_DD)

    def nearest(rows):
        z = (rows @ inverse)[:, law.part]
        return np.array(
            [
                min(((row - m[law.part]) ** 2 / v[law.part]).sum() for m, v in zip(law.means_KD, law.variances_KD))
                for row in z
            ]
        )

    assert nearest(normal).max() < chi2.ppf(0.75, df)
    assert nearest(anomalies).min() > chi2.ppf(0.85, df)


def test_a_causal_model_is_its_graph():
    law = CausalModel(7, np.random.default_rng(0))
    law.spread_LH[:] = 0.0  # noise without chance: exp(centre)
    nodes = law.centre_LH.shape[1]
    out, seen = [1.0] * nodes, []
    for layer, weights in enumerate(law.weights_LHH):
        summed = [
            sum(weights[i, j] * out[j] for j in range(nodes)) + np.exp(law.centre_LH[layer, i]) for i in range(nodes)
        ]
        out = [float(law.ACTIVATIONS[law.activation[layer]](np.array(value))) for value in summed]
        seen += out
    np.testing.assert_allclose(law.normal(4), np.tile([seen[i] for i in law.seen], (4, 1)))
    law.activation[:] = 3  # nothing is squashed: a louder node that is seen shows
    quiet = law.normal(1)
    assert (law.local(5_000) != quiet).any(axis=1).all()


def test_a_copula_has_its_margins_and_local_anomalies_sit_in_a_tail():
    law = Copula(8, np.random.default_rng(3))
    normal, anomalies = law.normal(4_000), law.local(400)
    uniform = np.random.default_rng(0).uniform(size=4_000)
    p = [kstest(column, quantile(uniform)).pvalue for column, quantile in zip(normal.T, law.quantiles)]
    assert min(p) * len(p) > 0.001
    low = np.array([quantile(np.array([0.1]))[0] for quantile in law.quantiles])
    high = np.array([quantile(np.array([0.9]))[0] for quantile in law.quantiles])
    in_a_tail = ((anomalies <= low) | (anomalies >= high)).any(axis=1)
    assert in_a_tail.all()
    assert ((normal <= low) | (normal >= high)).any(axis=1).mean() < 0.6
    assert np.corrcoef(normal, rowvar=False)[np.triu_indices(8, 1)].mean() > 0.4


@pytest.mark.parametrize("seed", range(3))
def test_a_density_tree_has_dense_leaves_and_local_anomalies_lie_elsewhere(seed):
    law = DensityTree(4, np.random.default_rng(seed))
    assert len(law.boxes) == 32 and 3 <= len(law.dense) <= 10
    whole = np.prod(law.boxes[:, 1].max(axis=0) - law.boxes[:, 0].min(axis=0))
    assert np.prod(law.boxes[:, 1] - law.boxes[:, 0], axis=1).sum() == pytest.approx(whole)  # no gap, no overlap

    def within(rows, leaves):
        low, high = law.boxes[leaves, 0][None], law.boxes[leaves, 1][None]
        return ((rows[:, None] >= low) & (rows[:, None] <= high)).all(axis=2).any(axis=1)

    assert within(law.normal(300), law.dense).all()
    assert not within(law.local(300), law.dense).any()


def test_unknown_names_are_refused():
    for name in ("synbench/gmm-local", "synbench/gmm-local-x", "synbench/gmm-local-1-2", "synbench/gmm-local--1"):
        with pytest.raises(UnknownName, match="data set"):
            load(name)
    with pytest.raises(UnknownName, match="prior"):
        load("synbench/gmn-local-1")
    with pytest.raises(UnknownName, match="anomaly"):
        make("gmm", "strange", 0)
    assert len(set(synbench.names(7))) == 16
