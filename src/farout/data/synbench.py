"""Tables drawn from four priors with four kinds of anomalies, after SynBench of MacrOData and its companion's priors.

Ding, Kluettermann, Wen, Chen, Akoglu, MacrOData (arXiv 2602.09329) and OutFormer (arXiv 2602.03018), 2026. A prior
draws the law of the normal rows; an archetype says in what the anomalies break it. Everything follows from three words:
a set is the same wherever ``"synbench/gmm-local-7"`` is loaded.

These are sets in the manner of SynBench and not its 800 files, whose generator settings are not public:

- Sizes (400 to 2,000 training rows, 3 to 20 columns, 3 to 30 % anomalies) are ours, near those of OddBench.
- Local anomalies are the companion's: each prior has its own. The other three kinds are made alike for all priors.
- All columns are numbers; the companion's density trees also draw categories. A mixture is turned as a whole; the
  companion turns a part of the columns. At least one observed column of a causal anomaly is disturbed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from farout.data._dataset import Dataset
from farout.errors import UnknownName

INFLATED = 5.0  # variances of local anomalies in a mixture, and the noise of a disturbed node, times this
INSIDE, OUTSIDE = 0.75, 0.85  # normal rows lie within the first, local anomalies beyond the second chi-square quantile
EXTREME = 0.1  # local anomalies of a copula: the share of a margin at either end into which a column is pushed
TIGHT, AWAY = 0.2, 3.0  # a cluster's spread against that of normal rows, and its distance in standard deviations


class Prior(Protocol):
    """The law of the normal rows, and of local anomalies."""

    def normal(self, n: int) -> np.ndarray:
        """Draw normal rows."""

    def local(self, n: int) -> np.ndarray:
        """Draw rows that are unlikely where they stand, though within reach of the normal ones."""


class Mixture:
    """Two to five Gaussians; local anomalies are drawn wider in some columns, and lie far from every centre there."""

    def __init__(self, d: int, rng: np.random.Generator) -> None:
        from scipy.stats import chi2

        k = int(rng.integers(2, 6))
        self.rng = rng
        self.means_KD = rng.uniform(size=(k, d)) * rng.integers(-5, 6, size=(k, d))
        self.variances_KD = rng.uniform(0.05, 1, size=(k, d)) * rng.integers(1, 6, size=(k, d))
        self.part = np.sort(rng.permutation(d)[: rng.integers(1, d + 1)])
        self.near, self.far = chi2.ppf((INSIDE, OUTSIDE), df=len(self.part))
        basis = np.linalg.qr(rng.normal(size=(d, d)))[0]
        self.turn_DD = basis * rng.uniform(0.1, 1, size=d) @ basis.T

    def normal(self, n: int) -> np.ndarray:
        """Draw rows within the inner quantile of some centre."""
        return self._kept(n, 1.0, lambda distance: distance < self.near)

    def local(self, n: int) -> np.ndarray:
        """Draw rows of inflated variance beyond the outer quantile of every centre."""
        return self._kept(n, INFLATED, lambda distance: distance > self.far)

    def distance(self, x_ND: np.ndarray) -> np.ndarray:
        """Squared Mahalanobis distance of drawn rows to the nearest centre, in the chosen columns."""
        x_ND = (x_ND @ np.linalg.inv(self.turn_DD))[:, self.part]
        means, variances = self.means_KD[:, self.part], self.variances_KD[:, self.part]
        return (((x_ND[:, None] - means) ** 2) / variances).sum(axis=2).min(axis=1)

    def _kept(self, n: int, inflation: float, keep: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Draw until n rows are kept."""
        spread_KD = np.sqrt(self.variances_KD)
        spread_KD[:, self.part] *= np.sqrt(inflation)
        rows = np.empty((0, spread_KD.shape[1]))
        while len(rows) < n:
            k = self.rng.integers(len(spread_KD), size=2 * n)
            drawn = self.means_KD[k] + spread_KD[k] * self.rng.normal(size=(2 * n, rows.shape[1]))
            drawn = drawn @ self.turn_DD
            rows = np.concatenate((rows, drawn[keep(self.distance(drawn))]))
        return rows[:n]


class CausalModel:
    """A random layered graph with noise at every node; some nodes are seen. Local anomalies have loud nodes."""

    ACTIVATIONS: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
        np.tanh,
        lambda x: np.where(x > 0, x, 0.01 * x),
        lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
        lambda x: x,
    )

    def __init__(self, d: int, rng: np.random.Generator) -> None:
        layers = int(rng.integers(2, 6))
        nodes = max(3, -(-d // layers) + int(rng.integers(1, 6)))
        self.rng = rng
        self.weights_LHH = rng.normal(size=(layers, nodes, nodes)) * (rng.uniform(size=(layers, nodes, nodes)) < 0.6)
        self.centre_LH = rng.uniform(-0.5, 0.5, size=(layers, nodes))
        self.spread_LH = rng.uniform(0.05, 0.5, size=(layers, nodes))
        self.activation = rng.integers(len(self.ACTIVATIONS), size=layers)
        self.seen = rng.permutation(layers * nodes)[:d]

    def normal(self, n: int) -> np.ndarray:
        """Run the graph."""
        return self._run(np.ones((n, self.centre_LH.size)))

    def local(self, n: int) -> np.ndarray:
        """Run the graph with some nodes' noise inflated, a node that is seen among them."""
        loud = self.rng.uniform(size=(n, self.centre_LH.size)) < 0.2
        loud[np.arange(n), self.rng.choice(self.seen, n)] = True
        return self._run(np.where(loud, INFLATED, 1.0))

    def _run(self, scale_NM: np.ndarray) -> np.ndarray:
        """Pass a constant through the layers, adding log-normal noise at every node."""
        n, nodes = len(scale_NM), self.centre_LH.shape[1]
        out_NH, seen = np.ones((n, nodes)), []
        for layer, scale_NH in enumerate(np.split(scale_NM, len(self.centre_LH), axis=1)):
            log_noise = self.centre_LH[layer] + self.spread_LH[layer] * self.rng.normal(size=(n, nodes))
            out_NH = out_NH @ self.weights_LHH[layer].T + scale_NH * np.exp(log_noise)
            out_NH = self.ACTIVATIONS[self.activation[layer]](out_NH)
            seen.append(out_NH)
        return np.concatenate(seen, axis=1)[:, self.seen]


class Copula:
    """A Gaussian copula under margins of several families; local anomalies have a column or more in a tail."""

    def __init__(self, d: int, rng: np.random.Generator) -> None:
        a = rng.uniform(size=(d, d))
        covariance = a @ a.T
        scale = np.sqrt(np.diag(covariance))
        self.rng = rng
        self.root_DD = np.linalg.cholesky(covariance / np.outer(scale, scale) + 1e-6 * np.eye(d))
        self.quantiles = [_margin(rng) for _ in range(d)]

    def normal(self, n: int) -> np.ndarray:
        """Draw from the copula."""
        return self._shaped(self._uniform(n))

    def local(self, n: int) -> np.ndarray:
        """Draw from the copula and push up to a fifth of the columns to an end of their margins."""
        u_ND = self._uniform(n)
        d = u_ND.shape[1]
        pushed = self.rng.integers(1, max(1, d // 5) + 1, size=n)
        chosen = self.rng.permuted(np.broadcast_to(np.arange(d), (n, d)), axis=1) < pushed[:, None]
        end = EXTREME * self.rng.uniform(size=(n, d))
        return self._shaped(np.where(chosen, np.where(self.rng.uniform(size=(n, d)) < 0.5, end, 1 - end), u_ND))

    def _uniform(self, n: int) -> np.ndarray:
        """Draw rows whose columns are uniform each, and dependent."""
        from scipy.special import ndtr

        return ndtr(self.rng.normal(size=(n, len(self.quantiles))) @ self.root_DD.T)

    def _shaped(self, u_ND: np.ndarray) -> np.ndarray:
        """Give every column its margin."""
        u_ND = np.clip(u_ND, 1e-6, 1 - 1e-6)
        return np.column_stack([quantile(u_N) for quantile, u_N in zip(self.quantiles, u_ND.T)])


class DensityTree:
    """A box cut at random into 32 leaves: 3 to 10 of them are dense and normal, local anomalies lie in the others."""

    DEPTH = 5

    def __init__(self, d: int, rng: np.random.Generator) -> None:
        self.rng = rng
        boxes = [(rng.uniform(-20, 0, size=d), rng.uniform(1, 20, size=d))]
        for _ in range(self.DEPTH):
            boxes = [half for box in boxes for half in self._cut(*box)]
        order = rng.permutation(len(boxes))
        n_dense = int(rng.integers(3, 11))
        self.boxes = np.array(boxes)
        self.dense, self.sparse = order[:n_dense], order[n_dense:]

    def normal(self, n: int) -> np.ndarray:
        """Draw from the dense leaves, each as likely."""
        return self._within(self.rng.choice(self.dense, n))

    def local(self, n: int) -> np.ndarray:
        """Draw from the other leaves."""
        return self._within(self.rng.choice(self.sparse, n))

    def _cut(self, low: np.ndarray, high: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Cut a box at a random place of a random column."""
        j = self.rng.integers(len(low))
        below, above = high.copy(), low.copy()
        below[j] = above[j] = self.rng.uniform(low[j], high[j])
        return [(low, below), (above, high)]

    def _within(self, leaves: np.ndarray) -> np.ndarray:
        """Draw a row in each leaf."""
        return self.rng.uniform(self.boxes[leaves, 0], self.boxes[leaves, 1])


PRIORS: dict[str, Callable[[int, np.random.Generator], Prior]] = {
    "gmm": Mixture,
    "scm": CausalModel,
    "copula": Copula,
    "tree": DensityTree,
}
ARCHETYPES = ("local", "global", "dependency", "cluster")


def make(prior: str, archetype: str, seed: int) -> Dataset:
    """Draw a set.

    Parameters
    ----------
    prior : {"gmm", "scm", "copula", "tree"}
        Gaussian mixture, structural causal model, Gaussian copula or density tree.
    archetype : {"local", "global", "dependency", "cluster"}
        What is wrong with the anomalies. ``"local"``: unlikely under the prior, by its own rule. ``"global"``: uniform
        in a box twice as wide as the normal rows', outside of theirs. ``"dependency"``: every column is distributed as
        in normal rows, and independent of the others. ``"cluster"``: a small tight group, three standard deviations
        from the mean in each column.
    seed : int
        Draws sizes, prior and rows.

    Returns
    -------
    Dataset
        With a split of its own: ``n_train`` normal rows, then as many normal test rows and the anomalies.

    Raises
    ------
    UnknownName
        No prior or archetype has that name.

    Examples
    --------
    >>> data = make("gmm", "local", 7)
    >>> data.name, data.X.shape, data.n_train, int(data.y.sum())
    ('synbench/gmm-local-7', (1150, 10), 492, 166)
    """
    if prior not in PRIORS:
        raise UnknownName("prior", prior, PRIORS)
    if archetype not in ARCHETYPES:
        raise UnknownName("kind of anomaly", archetype, ARCHETYPES)
    rng = np.random.default_rng([list(PRIORS).index(prior), ARCHETYPES.index(archetype), seed])
    rows, d = (int(np.exp(rng.uniform(*np.log(ends)))) for ends in ((400, 2_000), (3, 21)))
    share = rng.uniform(0.03, 0.3)
    n = round(share / (1 - share) * rows)
    law = PRIORS[prior](d, rng)
    normal = law.normal(2 * rows)
    if archetype == "local":
        anomalies = law.local(n)
    elif archetype == "global":
        anomalies = _outside(normal, n, rng)
    elif archetype == "dependency":
        anomalies = np.column_stack([rng.permutation(column) for column in law.normal(n).T])
    else:
        anomalies = _cluster(normal, law.normal(n), rng)
    return Dataset(
        name=f"synbench/{prior}-{archetype}-{seed}",
        X=np.concatenate((normal, anomalies)),
        y=np.repeat(np.array([0, 1], np.int8), (2 * rows, n)),
        columns=tuple(f"x{j}" for j in range(d)),
        source="drawn by farout after Ding et al., MacrOData and OutFormer, 2026",
        licence="none needed",
        n_train=rows,
    )


def load(name: str) -> Dataset:
    """Draw the set that a name tells.

    Parameters
    ----------
    name : str
        Such as ``"synbench/copula-dependency-3"``.

    Returns
    -------
    Dataset

    Raises
    ------
    UnknownName
        The name is no ``synbench/<prior>-<archetype>-<seed>``.

    Examples
    --------
    >>> load("synbench/tree-cluster-0").name
    'synbench/tree-cluster-0'
    """
    words = name.lower().removeprefix("synbench/").split("-")
    if len(words) != 3 or not words[2].isdecimal():
        raise UnknownName("data set", name, names(0))
    return make(words[0], words[1], int(words[2]))


def names(seed: int) -> list[str]:
    """List the sets of a seed, one for each prior and archetype.

    Examples
    --------
    >>> names(3)[:2], len(names(3))
    (['synbench/gmm-local-3', 'synbench/gmm-global-3'], 16)
    """
    return [f"synbench/{prior}-{archetype}-{seed}" for prior in PRIORS for archetype in ARCHETYPES]


def _margin(rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
    """Draw the quantile function of a margin."""
    from scipy import stats

    family = rng.choice(["normal", "beta", "exponential", "student", "mixture"])
    if family == "normal":
        return stats.norm(rng.uniform(-1, 1), rng.uniform(1.5, 2)).ppf
    if family == "beta":
        return stats.beta(rng.uniform(1, 5), rng.uniform(1, 5)).ppf
    if family == "exponential":
        return stats.expon(scale=1 / rng.uniform(1, 2)).ppf
    if family == "student":
        return stats.t(rng.integers(3, 11)).ppf
    k = int(rng.integers(2, 4))
    weights, centres, spreads = rng.uniform(0.3, 0.7, k), rng.uniform(-3, 3, k), rng.uniform(0.5, 1.5, k)
    grid = np.linspace((centres - 6 * spreads).min(), (centres + 6 * spreads).max(), 2_000)
    below = (weights / weights.sum() * stats.norm.cdf((grid[:, None] - centres) / spreads)).sum(axis=1)
    return lambda u: np.interp(u, below, grid)


def _outside(normal: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw in a box twice as wide as that of the normal rows, until n rows lie outside of theirs."""
    low, high = normal.min(axis=0), normal.max(axis=0)
    reach = (high - low) / 2
    rows = np.empty((0, len(low)))
    while len(rows) < n:
        drawn = rng.uniform(low - reach, high + reach, size=(2 * n, len(low)))
        rows = np.concatenate((rows, drawn[((drawn < low) | (drawn > high)).any(axis=1)]))
    return rows[:n]


def _cluster(normal: np.ndarray, fresh: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shrink normal rows around a place away from the mean."""
    away = AWAY * rng.choice([-1, 1], size=normal.shape[1])
    return normal.mean(axis=0) + away * normal.std(axis=0) + TIGHT * (fresh - fresh.mean(axis=0))
