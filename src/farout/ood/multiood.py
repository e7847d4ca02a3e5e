"""MultiOOD: Scaling Out-of-Distribution Detection for Multiple Modalities.

Hao Dong, Yue Zhao, Eleni Chatzi, Olga Fink, NeurIPS 2024 (arXiv 2405.17419).

Modalities of a familiar input say the same class, and modalities of a foreign one disagree. Agree-to-Disagree (A2D)
trains the modalities to agree on the true class and to disagree on the rest; NP-Mix mixes features of neighbouring
classes into outliers, on which the modalities shall disagree and be unsure.

The paper claims that more modalities find outliers better than one, that how much modalities disagree follows how well
outliers are found, and that both losses together improve scores of many kinds by a large margin, over five video sets.

Differences from the paper and from the official code (donghao51/MultiOOD):

- Any number of modalities from two on: distances are means over all pairs, entropies means over the modalities, as in
  the code for two and for three.
- Hellinger distance, which the paper settles on; the code's L1, L2 and Wasserstein distances are left out.
- The entropy's ``0 log 0`` is 0; the code adds 1e-9 before the logarithm.
- A class is not its own neighbour, even where two prototypes coincide; the code drops whichever comes first.
- Whoever trains says which layers learn; the code trains the heads and the last stage of each backbone by Adam at 1e-4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softmax

from farout.cards import paper
from farout.errors import BadInput, UnknownName
from farout.ood._score import Score, features_of, head_of
from farout.ood._soft import hellinger, normalized_entropy
from farout.ood.views import Views

__all__ = ["ClassQueues", "JointHead", "ModalityReAct", "MultiOOD", "disagreement", "without_label"]

# Confidences of logits
READINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "energy": lambda logits: logits.logsumexp(1),
    "msp": lambda logits: softmax(logits, dim=1).amax(1),
    "max_logit": lambda logits: logits.amax(1),
}


class JointHead(nn.Module):
    """One linear head on the features of all modalities together, and one on those of each.

    Parameters
    ----------
    widths : sequence of int
        How many features each modality has; two modalities at least.
    classes : int

    Attributes
    ----------
    linear : torch.nn.Linear
        The joint head.
    single : torch.nn.ModuleList
        The heads of the modalities.

    Raises
    ------
    BadInput
        There are fewer than two modalities or classes.

    Examples
    --------
    >>> head = JointHead((8, 5), classes=3)
    >>> joint, single = head([torch.zeros(2, 8), torch.zeros(2, 5)])
    >>> joint.shape, [logits.shape for logits in single]
    (torch.Size([2, 3]), [torch.Size([2, 3]), torch.Size([2, 3])])
    """

    def __init__(self, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        if len(widths) < 2 or min(widths) < 1 or classes < 2:
            raise BadInput(
                f"a joint head has two modalities of one feature or more and two classes or more, not widths "
                f"{tuple(widths)} and {classes} classes"
            )
        self.widths, self.classes = tuple(widths), classes
        self.linear = nn.Linear(sum(widths), classes)
        self.single = nn.ModuleList(nn.Linear(width, classes) for width in widths)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return the joint logits (n, C), and those of each modality."""
        seen = tuple(part.shape[-1] for part in features)
        if seen != self.widths:
            raise BadInput(f"the heads read modalities of widths {self.widths}, and were given {seen}")
        return self.linear(torch.cat(list(features), dim=1)), [head(part) for head, part in zip(self.single, features)]


class ClassQueues:
    """The last features of each class, first in, first out, cut off from the graph.

    Parameters
    ----------
    classes, length, width : int

    Examples
    --------
    >>> queues = ClassQueues(classes=2, length=1, width=1)
    >>> queues.push(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([0, 1, 0]))
    >>> queues.full, queues.rows_CND.flatten().tolist()
    (True, [3.0, 2.0])
    """

    def __init__(self, classes: int, length: int, width: int) -> None:
        self.rows_CND = torch.zeros(classes, length, width)
        self.counts = torch.zeros(classes, dtype=torch.long)

    @property
    def full(self) -> bool:
        """Whether every class has as many features as its queue holds."""
        return bool((self.counts == self.rows_CND.shape[1]).all())

    def push(self, features: Tensor, labels: Tensor) -> None:
        """Add features (n, d) of classes (n,); the oldest give way."""
        length = self.rows_CND.shape[1]
        self.rows_CND = self.rows_CND.to(features)
        for c in labels.unique().tolist():
            new = features.detach()[labels == c]
            self.rows_CND[c] = torch.cat([self.rows_CND[c], new])[-length:]
            self.counts[c] = min(length, int(self.counts[c]) + len(new))


@paper(
    "MultiOOD",
    title="MultiOOD: Scaling Out-of-Distribution Detection for Multiple Modalities",
    authors="Dong, Zhao, Chatzi, Fink",
    arxiv="2405.17419",
    year=2024,
    kind="training",
    extra="torch",
    claim="Training modalities to disagree on all but the true class (A2D), and on outliers mixed between neighbouring "
    "classes (NP-Mix), improves scores of many kinds by a large margin over five video sets; more modalities help.",
    differs="Any number of modalities; Hellinger distance only; a class is never its own neighbour.",
)
class MultiOOD:
    """The losses of A2D and NP-Mix, for any two or more modalities.

    With the softmax p, q of two modalities and H the Hellinger distance, in the mean over pairs of modalities::

        classes               mean of the cross-entropies of the joint head and of each modality's
        agree_to_disagree     -gamma * H(p, q), p and q without the true class
        outlier_disagreement  -gamma_1 * H(p, q)                    on outliers
        outlier_entropy       -gamma_2 * (entropy(p) + entropy(q)) / (2 log C)    on outliers

    The cross-entropy of the modalities belongs to the method: without it disagreeing is free.

    Parameters
    ----------
    head : JointHead
    agree_to_disagree : float
        Weight gamma. The paper takes 1 without NP-Mix, 0.5 with it, and 0.1 for its largest sets. At 0 there is no A2D.
    outlier_disagreement, outlier_entropy : float
        Weights gamma_1 and gamma_2. Where both are 0 there is no NP-Mix.
    queue : int
        Features kept of each class.
    neighbors : int
        Nearest prototypes k, the class's own among them; one of the others is mixed in.
    concentration : float
        Of the Beta distribution of the mixing weight, alpha.
    start_epoch : int
        The first epoch with outliers.
    seed : int
        Of the mixing.

    Raises
    ------
    BadInput
        There are two classes only, so that nothing is left to disagree on; or fewer classes than ``neighbors``.

    Examples
    --------
    >>> method = MultiOOD(JointHead((4, 4), classes=3), queue=2, start_epoch=0)
    >>> losses = method.losses([torch.randn(6, 4), torch.randn(6, 4)], torch.arange(6) % 3)
    >>> list(losses)
    ['classes', 'agree_to_disagree', 'outlier_disagreement', 'outlier_entropy']
    >>> sum(losses.values()).backward()
    """

    def __init__(
        self,
        head: JointHead,
        *,
        agree_to_disagree: float = 0.5,
        outlier_disagreement: float = 0.5,
        outlier_entropy: float = 0.5,
        queue: int = 65,
        neighbors: int = 3,
        concentration: float = 10.0,
        start_epoch: int = 10,
        seed: int = 0,
    ) -> None:
        if agree_to_disagree and head.classes < 3:
            raise BadInput("A2D leaves out the true class, so that of two classes nothing is left to disagree on")
        self.mixes = bool(outlier_disagreement or outlier_entropy)
        if self.mixes and not 2 <= neighbors <= head.classes:
            raise BadInput(
                f"'neighbors' counts the class itself and one other at least, of {head.classes} classes; it is "
                f"{neighbors}"
            )
        if queue < 1 or concentration <= 0:
            raise BadInput(f"'queue' and 'concentration' are above 0, not {queue} and {concentration}")
        self.head = head
        self.agree_to_disagree = agree_to_disagree  # gamma
        self.outlier_disagreement, self.outlier_entropy = outlier_disagreement, outlier_entropy  # gamma_1, gamma_2
        self.neighbors, self.concentration, self.start_epoch = neighbors, concentration, start_epoch  # k, alpha
        self.queues = ClassQueues(head.classes, queue, sum(head.widths))
        self._random = np.random.default_rng(seed)

    def losses(self, features: Sequence[Tensor], labels: Tensor, epoch: int = 0) -> dict[str, Tensor]:
        """Return what is to be added up and made small; every key is always there.

        Parameters
        ----------
        features : sequence of tensor (n, d_m)
            Of each modality, with gradients.
        labels : tensor (n,)
        epoch : int
            Counted from 0.

        Returns
        -------
        dict of str to Tensor ()
            Weighted already. Outliers come from features kept before, so that their losses reach the heads alone.
        """
        joint, single = self.head(features)
        zero = joint.new_zeros(())
        found = {"classes": torch.stack([cross_entropy(logits, labels) for logits in (joint, *single)]).mean()}
        found |= dict.fromkeys(("agree_to_disagree", "outlier_disagreement", "outlier_entropy"), zero)
        if self.agree_to_disagree:
            rest = [without_label(logits, labels) for logits in single]
            found["agree_to_disagree"] = -self.agree_to_disagree * disagreement(rest).mean()
        if self.mixes:
            self.queues.push(torch.cat(list(features), dim=1), labels)
            if epoch >= self.start_epoch and self.queues.full:
                parts = self.outliers().split(self.head.widths, dim=1)
                logits = [head(part) for head, part in zip(self.head.single, parts)]
                unsure = torch.stack([normalized_entropy(softmax(one, dim=1)) for one in logits])
                found["outlier_disagreement"] = -self.outlier_disagreement * disagreement(logits).mean()
                found["outlier_entropy"] = -self.outlier_entropy * unsure.mean()
        return found

    def outliers(self) -> Tensor:
        """Mix one outlier for each class with a random feature of a neighbouring class, by NP-Mix.

        Returns
        -------
        Tensor (C, d)
            ``lambda f_i + (1 - lambda) f_j`` of kept features, lambda drawn from Beta(alpha, alpha).
        """
        rows_CND = self.queues.rows_CND
        prototypes = rows_CND.mean(1)
        apart = torch.cdist(prototypes, prototypes).fill_diagonal_(torch.inf)
        nearest = apart.topk(self.neighbors - 1, largest=False).indices.cpu().numpy()
        C, n, _ = rows_CND.shape
        i, j = np.arange(C), nearest[np.arange(C), self._random.integers(self.neighbors - 1, size=C)]
        ours, theirs = self._random.integers(n, size=(2, C))
        drawn = self._random.beta(self.concentration, self.concentration, size=(C, 1))
        share = torch.from_numpy(drawn).to(rows_CND)  # lambda
        return share * rows_CND[i, ours] + (1 - share) * rows_CND[j, theirs]


def disagreement(logits: Sequence[Tensor]) -> Tensor:
    """Return how far the predictions of modalities are apart: the mean Hellinger distance over pairs of softmaxes.

    Parameters
    ----------
    logits : sequence of tensor (n, C)
        Of two modalities or more.

    Returns
    -------
    Tensor (n,)
        In [0, 1].

    Raises
    ------
    BadInput
        There is one modality only.

    Examples
    --------
    >>> disagreement([torch.tensor([[50.0, 0.0]]), torch.tensor([[50.0, 0.0]])])
    tensor([0.])
    """
    if len(logits) < 2:
        raise BadInput(f"two modalities at least can disagree; there is {len(logits)}")
    p = [softmax(one, dim=-1) for one in logits]
    return torch.stack([hellinger(a, b) for a, b in combinations(p, 2)]).mean(0)


def without_label(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the logits (n, C - 1) of all classes but the true one.

    Examples
    --------
    >>> without_label(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([1]))
    tensor([[1., 3.]])
    """
    kept = torch.ones_like(logits, dtype=torch.bool).scatter_(1, labels[:, None], False)
    return logits[kept].view(len(logits), -1)


class ModalityReAct(Score):
    """ReAct whose cut is taken for each modality by itself, since modalities have other scales.

    Parameters
    ----------
    widths : sequence of int
        Of the modalities, whose features stand side by side.
    percentile : float
        Of the activations of a modality in the data it is fitted on, where they are cut.
    by : {"energy", "msp", "max_logit"}
        What is read from the logits of the cut features.

    Examples
    --------
    >>> features = torch.tensor([[0.0, 10.0], [1.0, 30.0]])
    >>> views = Views(features, features, {}, torch.eye(2), torch.zeros(2))
    >>> ModalityReAct((1, 1), percentile=50).fit(views).cuts_
    tensor([ 0.5000, 20.0000])
    """

    needs = ("features", "head")
    learns = True

    def __init__(self, widths: Sequence[int], percentile: float = 90.0, by: str = "energy") -> None:
        self.widths = widths
        self.percentile = percentile
        self.by = by

    def fit(self, views: Views, labels: Tensor | None = None) -> Self:
        """Find the cut of each modality (d,) in familiar data."""
        if self.by not in READINGS:
            raise UnknownName("way to read logits", self.by, READINGS)
        if not 0 < self.percentile <= 100:
            raise BadInput(f"a percentile is above 0 and at most 100, not {self.percentile:g}")
        features = features_of(views)
        if features.shape[1] != sum(self.widths):
            raise BadInput(
                f"the modalities have {sum(self.widths)} features together, and the views have {features.shape[1]}"
            )
        parts = features.split(list(self.widths), dim=1)
        heights = [float(np.percentile(part.cpu().numpy(), self.percentile)) for part in parts]
        self.cuts_ = torch.cat([torch.full_like(part[0], height) for part, height in zip(parts, heights)])
        return self

    def score(self, views: Views, moved: Sequence[Views] = ()) -> Tensor:
        """Return minus the confidence that cut features give (n,)."""
        weight, bias = head_of(views)
        cut = torch.minimum(features_of(views), self._fitted("cuts_"))
        return -READINGS[self.by](cut @ weight.T + bias)
