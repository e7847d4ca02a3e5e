"""PT-OOD: Can Pre-trained Networks Detect Familiar Out-of-Distribution Data?

Atsuyuki Miyai, Qing Yu, Go Irie, Kiyoharu Aizawa, 2023 (arXiv 2310.00847).

A frozen backbone gets a linear head for a small task, and what is out of distribution for the task may be familiar to
the backbone from its pre-training. Supervised pre-training has gathered such classes into compact groups away from the
head's boundaries; self-supervised pre-training has scattered them, and scores that read the boundary fail. Scores that
look at neighbours among the features do not.

The paper claims that scores of logits find familiar outliers much worse with self-supervised backbones than with
supervised ones, that linear separability of those outliers goes with it, and that nearest neighbours in feature space
nearly solve the task for both.

Differences from the paper, for which no code was found and of which the text was not read in full:

- How far outliers are separable is measured by the held-out accuracy of a linear probe on their labels, and by the
  share of their variance that lies within classes; the paper's own statistic may be another.
- The mean of the familiar features may be taken away before features are brought to length one, since self-supervised
  features have much in common.
- That a fitted input finds itself is a switch, and never happens silently.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from farout.cards import paper
from farout.errors import BadInput
from farout.ood._probe import linear_probe, separability, spread
from farout.ood._score import Score, features_of
from farout.ood.deep_knn import kth_distance
from farout.ood.views import Views

__all__ = ["PTOOD", "Group", "check_overlap", "familiarity_study", "info_nce"]

BLOCK = 256  # rows at a time, where distances are computed from differences


@paper(
    "PT-OOD",
    title="Can Pre-trained Networks Detect Familiar Out-of-Distribution Data?",
    authors="Miyai, Yu, Irie, Aizawa",
    arxiv="2310.00847",
    year=2023,
    kind="score",
    extra="torch",
    claim="Outliers that a backbone knows from pre-training are found much worse by scores of logits with "
    "self-supervised than with supervised backbones; nearest neighbours in feature space nearly solve it for both.",
    differs="Separability is the held-out accuracy of a linear probe; features may be centred.",
)
class PTOOD(Score):
    """Distance of a backbone's feature to the k-th nearest feature of the task, whatever the head.

    Parameters
    ----------
    k : int
    center : bool
        Whether the mean of the fitted features is taken away before they are brought to length one.
    leave_self_out : bool
        Whether what is scored is what was fitted, in the same order: no row is its own neighbour then.

    Attributes
    ----------
    mean_ : tensor (d,)
        Zero without ``center``.
    bank_ : tensor (n, d)

    Examples
    --------
    >>> views = Views(torch.zeros(3, 1), torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]))
    >>> score = PTOOD(k=1).fit(views)
    >>> score.score(views)
    tensor([0., 0., 0.])
    >>> score.set_params(leave_self_out=True).score(views)
    tensor([0.0000, 0.0000, 1.4142])
    """

    needs = ("features",)
    learns = True

    def __init__(self, k: int = 10, center: bool = False, leave_self_out: bool = False) -> None:
        self.k = k
        self.center = center
        self.leave_self_out = leave_self_out

    def fit(self, views: Views, labels: Tensor | None = None) -> Self:
        """Keep the features."""
        features = features_of(views)
        others = len(features) - int(self.leave_self_out)
        if not 1 <= self.k <= others:
            raise BadInput(f"k lies between 1 and the number of neighbours, {others}, and is {self.k}")
        self.mean_ = features.mean(0) if self.center else torch.zeros_like(features[0])
        self.bank_ = F.normalize(features - self.mean_, dim=1)
        return self

    def score(self, views: Views, moved: Sequence[Views] = ()) -> Tensor:
        """Return the distance to the k-th nearest (n,)."""
        bank = self._fitted("bank_")
        x = F.normalize(features_of(views) - self.mean_, dim=1)
        if not self.leave_self_out:
            return kth_distance(x, bank, self.k)
        if len(x) != len(bank):
            raise BadInput(
                f"with leave_self_out the fitted inputs are scored, of which there are {len(bank)}, and not {len(x)} "
                "others; set it to False for new inputs"
            )
        found = []
        for rows in torch.arange(len(x), device=x.device).split(BLOCK):
            far = torch.cdist(x[rows], bank, compute_mode="donot_use_mm_for_euclid_dist")
            far[torch.arange(len(rows), device=x.device), rows] = torch.inf
            found.append(far.kthvalue(self.k, dim=1).values)
        return torch.cat(found)


@dataclass(frozen=True)
class Group:
    """Inputs of one kind, such as the task's test set or what the backbone knows from its pre-training.

    Attributes
    ----------
    inputs : tensor (n, ...)
        As a backbone takes them.
    labels : tensor (n,)
        Places in ``classes``.
    classes : tuple of str
    """

    inputs: Tensor
    labels: Tensor
    classes: tuple[str, ...]


def familiarity_study(
    backbones: Mapping[str, Callable[[Tensor], Tensor]],
    train: Group,
    test: Group,
    outliers: Mapping[str, Group],
    scores: Mapping[str, Score],
    batch_size: int = 256,
) -> list[dict[str, Any]]:
    """Measure how well scores find outliers that backbones know and such that they do not.

    For each backbone the head is a linear probe on the frozen features of ``train``.

    Parameters
    ----------
    backbones : dict of str to callable
        Inputs (B, ...) in, features (B, d) out; of a network pre-trained with a head, what the head reads.
    train, test : Group
        Of the task.
    outliers : dict of str to Group
        Such as ``"familiar"`` (new inputs of classes that the backbone was trained on) and ``"unfamiliar"``.
    scores : dict of str to Score
    batch_size : int

    Returns
    -------
    list of dict
        A row for each backbone, group of outliers and score: AUROC; and of the backbone the accuracy of the head on
        ``test``, of the group its separability (None where a class has one input only) and the share of its variance
        within classes.

    Raises
    ------
    BadInput
        A class or an input of the task is among the outliers.

    Examples
    --------
    >>> from farout.ood.msp import MSP
    >>> rng = torch.Generator().manual_seed(0)
    >>> def group(names, place):
    ...     labels = torch.arange(40) % 2
    ...     return Group(torch.randn(40, 3, generator=rng) + 9 * torch.eye(3)[labels + place], labels, names)
    >>> task, new = group(("cat", "dog"), 0), group(("cat", "dog"), 0)
    >>> far = {"far": group(("car", "bus"), 1)}
    >>> rows = familiarity_study({"as it is": lambda x: x}, task, new, far, {"MSP": MSP()})
    >>> list(rows[0]), rows[0]["accuracy"]
    (['backbone', 'outliers', 'score', 'AUROC', 'accuracy', 'separability', 'within'], 1.0)
    """
    from sklearn.metrics import roc_auc_score

    for group in outliers.values():
        check_overlap(train.classes, group.classes, train.inputs, group.inputs)
    rows: list[dict[str, Any]] = []
    for name, backbone in backbones.items():

        def features(group: Group, backbone: Callable[[Tensor], Tensor] = backbone) -> Tensor:
            with torch.no_grad():
                return torch.cat([backbone(part).float() for part in group.inputs.split(batch_size)])

        learned, seen = features(train), features(test)
        weight, bias = linear_probe(learned, train.labels)

        def views(x: Tensor, weight: Tensor = weight, bias: Tensor = bias) -> Views:
            return Views(x @ weight.T + bias, x, {}, weight, bias)

        accuracy = float((views(seen).logits.argmax(1) == test.labels).float().mean())
        for kind, group in outliers.items():
            foreign = features(group)
            enough = int(group.labels.unique(return_counts=True)[1].min()) > 1
            facts = {
                "separability": separability(foreign, group.labels) if enough else None,
                "within": spread(foreign, group.labels),
            }
            label = np.repeat([0, 1], [len(seen), len(foreign)])
            for word, score in scores.items():
                fitted = score.fit(views(learned), train.labels)
                found = torch.cat([fitted.score(views(seen)), fitted.score(views(foreign))]).cpu().numpy()
                row: dict[str, Any] = {
                    "backbone": name,
                    "outliers": kind,
                    "score": word,
                    "AUROC": float(roc_auc_score(label, found)),
                }
                rows.append(row | {"accuracy": accuracy} | facts)
    return rows


def check_overlap(
    classes: Sequence[str], others: Sequence[str], inputs: Tensor | None = None, foreign: Tensor | None = None
) -> None:
    """Raise where a task and its outliers share a class or an input: such an outlier is none.

    Parameters
    ----------
    classes, others : sequence of str
        Compared without regard to case, and to ``_`` and ``-`` for spaces.
    inputs, foreign : tensor (n, ...), tensor (m, ...), optional
        Compared where they have the same shape.

    Raises
    ------
    BadInput

    Examples
    --------
    >>> check_overlap(["cat", "guinea pig"], ["car", "Guinea_pig"])
    Traceback (most recent call last):
        ...
    farout.errors.BadInput: 1 class of the task is among the outliers, such as 'guinea pig'; leave it out of either
    """

    def plain(names: Sequence[str]) -> list[str]:
        return [" ".join(name.lower().replace("_", " ").replace("-", " ").split()) for name in names]

    shared = sorted(set(plain(classes)) & set(plain(others)))
    if shared:
        what = "1 class of the task is" if len(shared) == 1 else f"{len(shared)} classes of the task are"
        raise BadInput(f"{what} among the outliers, such as '{shared[0]}'; leave it out of either")
    if inputs is None or foreign is None or inputs.shape[1:] != foreign.shape[1:]:
        return
    known = {row.numpy(force=True).tobytes() for row in inputs}
    twice = [place for place, row in enumerate(foreign) if row.numpy(force=True).tobytes() in known]
    if twice:
        raise BadInput(f"{len(twice)} of the outliers are inputs of the task too, the first in row {twice[0]}")


def info_nce(a_BD: Tensor, b_BD: Tensor, temperature: float = 0.5) -> Tensor:
    """Return SimCLR's loss of two views of each input: each shall find the other among all other views.

    Parameters
    ----------
    a_BD, b_BD : tensor (B, D)
        Projections; they are brought to length one.
    temperature : float

    Returns
    -------
    Tensor ()

    Examples
    --------
    >>> one = torch.eye(2)
    >>> info_nce(one, one, temperature=1.0)  # log(1 + 2 / e)
    tensor(0.5514)
    """
    z = F.normalize(torch.cat([a_BD, b_BD]).float(), dim=1)
    B = len(a_BD)
    likeness = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    return F.cross_entropy(likeness, torch.arange(2 * B, device=z.device).roll(B))
