"""AutoOD: Automated Outlier Detection via Curiosity-guided Search and Self-imitation Learning.

Yuening Li, Zhengzhang Chen, Daochen Zha, Kaixiong Zhou, Haifeng Jin, Haifeng Chen, Xia Hu, 2020 (arXiv 2006.11321).

An LSTM writes autoencoders, token by token, together with the definition of what is far out: reconstruction error,
distance to a centre, distance to the nearest of several centres, or the energy of a mixture. Children train for a few
steps on shared weights; the reward is how well a child tells outliers in a validation part. To that comes what the
child taught a Bayesian network about the space (curiosity), and the controller imitates those of its past children that
did better than expected. The best child is trained anew from scratch.

The paper claims that the networks found beat detectors made by hand, and that the search beats random search and plain
policy gradients.

Differences from the paper. Neither its full text nor code could be had: what the abstract does not say is a design in
its spirit, and the constants are ours.

- The space is that of tables: layers of 3 to 128 units in place of convolutions and pooling, and no SSIM. Instance
  normalisation is over the units of a row.
- The reward of the paper needs labelled outliers; ``reward="labels"`` is that. ``reward="made"``, the default, is ours:
  validation rows against three kinds of made outliers (columns shuffled, values scattered over the range, rows
  pushed five times as far from the mean), so that the search needs no labels. It is then blind to other kinds.
- The children of a batch train side by side, each on its own copy of its definition's shared weights, which become
  their mean. So they can run on many processes with the same result.
- A state is the set of choices made and, in the end, the reward. A child's curiosity is the mean over its choices.
  Values start from the moving average of rewards.
- Mixtures have diagonal covariances, for embeddings have up to 128 units. Cluster targets are those of the batch.
- Columns that never vary are kept from the network; leaving one adds the squared step to the score.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from farout.cards import paper
from farout.errors import BadInput, UnknownName
from farout.io.state import read_state, write_state
from farout.kit.training import device_named, torch_or_say
from farout.table._autood_space import Configuration, Space
from farout.table._autood_trial import Trial, labelled_trial, made_trial
from farout.table._common import MatrixDetector

if TYPE_CHECKING:
    from rich.progress import Progress

REWARDS = ("made", "labels")
LEAST_TRIALS, TRIALS = 10, 100
ROWS_A_TRIAL = 20  # a table of few rows cannot tell many children apart


@paper(
    "AutoOD",
    title="AutoOD: Automated Outlier Detection via Curiosity-guided Search and Self-imitation Learning",
    authors="Li, Chen, Zha, Zhou, Jin, Chen, Hu",
    year=2020,
    arxiv="2006.11321",
    claim="Networks found by curiosity-guided search with self-imitation beat detectors made by hand, random search "
    "and policy gradients.",
    differs="A design in the paper's spirit: neither full text nor code could be had. The space is that of tables. "
    "Labelled outliers reward the search with reward='labels'; the default, made outliers, is ours. Children of a "
    "batch train side by side on copies of the shared weights. Mixtures are diagonal.",
    takes=("numeric", "missing", "category", "date"),
    extra="torch",
)
class AutoOD(MatrixDetector):
    """Search an autoencoder and a definition of far out, then fit it.

    With ``reward="labels"`` the search is supervised, and must not be compared with unsupervised detectors without
    saying so. Cost: ``trials`` times a short training, and ``epochs`` passes over the rows for the winner.

    Parameters
    ----------
    trials : int, optional
        Children to train; None is one for every 20 rows that they learn from, from 10 to 100.
    minutes : float, optional
        Stop searching after the batch of 10 children in which they are over.
    search : {"curiosity", "reinforce", "random"}
        The whole method, a plain policy gradient, or even draws.
    reward : {"made", "labels"}
        What children are judged by: outliers made from the rows, or those that ``y`` of ``fit`` names.
    epochs : int
        At most so many passes over the rows for the winner; training stops early.
    n_jobs : int, optional
        Processes (joblib's; an active backend such as Dask's is used); the result does not depend on it.
    random_state : int, RandomState or None
    device : str
        ``"auto"`` is the first GPU where there is one; networks as small as these are slower there than on a core.
    checkpoint : path, optional
        Where the search is written after each batch. A search that finds its own state there goes on from it, with the
        result of one that was never interrupted.
    verbose : bool
        Whether a progress bar is shown on stderr.

    Attributes
    ----------
    configuration_ : Configuration or None
        The winner; None where no column varies.
    reward_ : float
        The winner's reward: an AUROC on the validation part, and too good for being the best of many.
    children_ : list of (Configuration, float)
        All children and their rewards, in order.
    weights_ : dict of str to array
        Of the winner.
    varies_ : bool array (columns,)
        The columns of the matrix that the network reads.
    fixed_ : float64 array
        The values of the other columns.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(200, 1)) * [1.0, 2.0, -1.0]
    >>> found = AutoOD(trials=10, epochs=5, random_state=0).fit(X)
    >>> usual, odd = found.outlier_score([[0.0, 0.0, 0.0], [3.0, -6.0, 3.0]])
    >>> len(found.children_), bool(odd > usual)
    (10, True)
    """

    _categories = "one_hot"

    def __init__(
        self,
        trials: int | None = None,
        minutes: float | None = None,
        search: str = "curiosity",
        reward: str = "made",
        epochs: int = 50,
        n_jobs: int | None = None,
        random_state: Any = None,
        device: str = "cpu",
        checkpoint: str | Path | None = None,
        verbose: bool = False,
    ) -> None:
        self.trials = trials
        self.minutes = minutes
        self.search = search
        self.reward = reward
        self.epochs = epochs
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.device = device
        self.checkpoint = checkpoint
        self.verbose = verbose

    def fit_score(self, X: Any, y: Any = None) -> np.ndarray:
        """Search and fit, and return the scores of all rows.

        Parameters
        ----------
        X : array or data frame (n, d)
        y : array (n,), optional
            With ``reward="labels"``: 1 for outliers, 0 for the others. Outliers reward children, and nothing is trained
            on them. With ``reward="made"`` it is ignored.

        Returns
        -------
        float64 array (n,)

        Raises
        ------
        BadInput
            ``y`` is missing, of another length, holds other values than 0 and 1, or only one of them; or the checkpoint
            is that of another search.
        """
        torch_or_say("'AutoOD'")
        self._check_parameters()
        matrix = self._matrix(X, reset=True)
        scores = self._learn(matrix, self._labels(y, len(matrix)))
        self._set_offset(scores)
        return scores

    def _learn(self, matrix: np.ndarray, outlier: np.ndarray | None = None) -> np.ndarray:
        from sklearn.utils import check_random_state

        from farout.table._autood_children import grow_up, one_thread

        usual = matrix if outlier is None else matrix[~outlier]
        self.varies_ = np.ptp(usual, axis=0) > 0
        self.fixed_ = usual[0, ~self.varies_]
        self.configuration_: Configuration | None = None
        self.children_: list[tuple[Configuration, float]] = []
        self.weights_: dict[str, np.ndarray] = {}
        self.reward_ = np.nan
        if not self.varies_.any():
            return self._score(matrix)
        of = self._fingerprint(matrix, outlier)
        begun = self._begun(of)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        if begun and self.random_state is None:
            seed = begun["seed"]
        if begun and seed != begun["seed"]:
            raise BadInput(f"'{self.checkpoint}' is a search with another random_state; give another path")
        rng = np.random.default_rng(seed)
        usual = usual[:, self.varies_]
        if outlier is None:
            owner = self.encoder_.owner[self.varies_]
            numbers = np.array([self.encoder_.levels[feature] is None for feature in owner])
            trial = made_trial(usual, owner, numbers, rng)
        else:
            trial = labelled_trial(usual, matrix[outlier][:, self.varies_], rng)
        with one_thread():
            self.children_ = self._searched(trial, of, seed, begun)
            self.configuration_, self.reward_ = max(self.children_, key=lambda child: child[1])
            self.weights_ = grow_up(self.configuration_, usual, self.epochs, seed, self.device)
        return self._score(matrix)

    def _score(self, matrix: np.ndarray) -> np.ndarray:
        left = ((matrix[:, ~self.varies_] - self.fixed_) ** 2).sum(axis=1)
        if self.configuration_ is None:
            return left
        torch_or_say("'AutoOD'")
        from farout.table._autood_children import one_thread, outlier_scores

        with one_thread():
            return left + outlier_scores(self.configuration_, self.weights_, matrix[:, self.varies_], self.device)

    def _searched(
        self, trial: Trial, of: str, seed: int, begun: dict[str, Any] | None
    ) -> list[tuple[Configuration, float]]:
        """Raise batches of children until trials or minutes are over, and return all of them."""
        from joblib import Parallel, delayed

        from farout.table._autood_children import averaged, raise_child, shared_weights
        from farout.table._autood_controller import BATCH, Search

        space = Space()
        search = Search(space, self.search, seed)
        weights = {word: shared_weights(word, space, trial.rows.shape[1], seed) for word in space.definitions}
        if begun:
            search.restore(begun["search"])
            weights = begun["weights"]
        trials = self.trials or int(np.clip(len(trial.rows) // ROWS_A_TRIAL, LEAST_TRIALS, TRIALS))
        ends = time.monotonic() + 60 * (np.inf if self.minutes is None else self.minutes)
        with _bar(self.verbose) as bar:
            task = bar.add_task("children", total=trials, completed=len(search.tried))
            while len(search.tried) < trials and (not search.tried or time.monotonic() < ends):
                strings = search.propose(min(BATCH, trials - len(search.tried)))
                children = [space.decode(tokens) for tokens in strings]
                first = seed + len(search.tried)
                raised = Parallel(n_jobs=self.n_jobs)(
                    delayed(raise_child)(child, weights[child.definition], trial, first + i, self.device)
                    for i, child in enumerate(children)
                )
                for word in space.definitions:
                    blocks = [grown for child, (_, grown) in zip(children, raised) if child.definition == word]
                    weights[word] = averaged(weights[word], blocks)
                search.tell(strings, [reward for reward, _ in raised])
                if self.checkpoint is not None:
                    state = {"seed": seed, "of": of, "search": search.state(), "weights": weights}
                    write_state(self.checkpoint, {"autood": state})
                bar.update(task, completed=len(search.tried), description=f"children, best {search.best()[1]:.3f}")
        return [(space.decode(tokens), reward) for tokens, reward in search.tried]

    def _fingerprint(self, matrix: np.ndarray, outlier: np.ndarray | None) -> str:
        """Return a hash of all that the course of a search depends on, but for its seed."""
        of = hashlib.sha256(repr((self.search, self.reward, matrix.shape)).encode())
        for array in (matrix, outlier):
            of.update(b"" if array is None else array.tobytes())
        return of.hexdigest()

    def _begun(self, of: str) -> dict[str, Any] | None:
        """Read the state of this very search, if it was begun before."""
        if self.checkpoint is None or not Path(self.checkpoint).exists():
            return None
        tree = read_state(self.checkpoint)
        state = tree.get("autood") if isinstance(tree, dict) else None
        if state is None:
            raise BadInput(f"'{self.checkpoint}' holds no search of AutoOD; give another path")
        if state["of"] != of:
            raise BadInput(
                f"'{self.checkpoint}' is the search of other data, or by another reward or strategy; give another path"
            )
        return state

    def _check_parameters(self) -> None:
        from farout.table._autood_controller import STRATEGIES

        if self.search not in STRATEGIES:
            raise UnknownName("search", str(self.search), STRATEGIES)
        if self.reward not in REWARDS:
            raise UnknownName("reward", str(self.reward), REWARDS)
        for name in ("trials", "epochs", "minutes"):
            value = getattr(self, name)
            least = 0 if name == "minutes" else 1
            if value is not None and value < least:
                raise BadInput(f"{name} is at least {least}, not {value}")
        device_named(self.device)

    def _labels(self, y: Any, n: int) -> np.ndarray | None:
        """Return which rows are labelled outliers, (n,); None where made outliers are the reward."""
        if self.reward == "made":
            if y is not None and set(np.unique(np.asarray(y)).tolist()) == {0, 1}:
                warnings.warn("AutoOD ignores y; AutoOD(reward='labels') searches by it", stacklevel=4)
            return None
        if y is None:
            raise BadInput("reward='labels' needs y, 1 for outliers and 0 for other rows; give it, or reward='made'")
        labels = np.asarray(y)
        if labels.shape != (n,):
            raise BadInput(f"y must hold a label for each of the {n} rows; its shape is {labels.shape}")
        other = [value for value in np.unique(labels).tolist() if value not in (0, 1)]
        if other:
            raise BadInput(f"y must hold 1 for outliers and 0 for other rows, and nothing else; it holds '{other[0]}'")
        if len(np.unique(labels)) == 1:
            raise BadInput(f"y must hold both outliers (1) and other rows (0); all {n} labels are {labels[0]}")
        return labels == 1


@contextmanager
def _bar(shown: bool) -> Iterator[Progress]:
    """Show a progress bar with the time left on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as bar:
        yield bar
