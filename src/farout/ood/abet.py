"""AbeT: Out-of-Distribution Detection & Applications With Ablated Learned Temperature Energy.

Will LeVine, Benjamin Pikus, Jacob Phillips, Berk Norman, Fernando Amat Gil, Sean Hendryx, 2024 (arXiv 2401.12129).

A classifier learns a temperature for each input, by which its cosine logits are divided (as GODIN has it), and is
scored by their energy. The energy's own factor, the temperature before the logarithm, is left out: it works against
the separation that the temperature inside brings. There are no outliers, no second stage and no gradient at test time.

The paper claims, with a ResNet-20 on CIFAR-10, mean over four sets, FPR95 (inputs of the known classes positive) 12.5
and AUROC 97.8, where energy has 39.7 and 92.5 and GODIN 26.8 and 94.2; with the factor FPR95 is 17.6.

**It fails where a model makes no errors in training.** Wrong rows of the training data, near the borders of classes,
teach the temperature to be large there, and unknown inputs land near them. Once nothing is wrong any more, nothing
teaches it: on MNIST the paper sees the AUROC against textures rise to 95.5 at 88 % training accuracy, and fall to 7.9
at 98 %. Expect the same of any set that is learned by heart, and look at the training accuracy before trusting scores.

Differences from the official code (anonymousoodauthor/abet):

- Cosines are multiplied in float32 where the code takes float64, which it needs because it sums exponentials before it
  takes the logarithm; here that is one stable step, so no temperature overflows. Half precision is raised to float32.
- Feature maps take the same head as rows. The code's temperature of pixels has no bias before the batch norm, which
  would take it off again; its score of pixels is divided by the number of classes and moved by 1, which ranks alike.
- ReAct is an option of the score; the combinations with ASH and DICE are not built.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from farout.cards import paper
from farout.errors import BadInput, UnknownName
from farout.ood._score import Score, features_of
from farout.ood.views import Views

__all__ = ["AbetHead", "AbetScore", "ablated_energy"]

PARTS = ("ablated", "forefront", "temperature", "cosine")
NORM_SLACK = 1e-4  # added to norms, so that a zero feature has cosines of zero
LEAST_TEMPERATURE = 1e-12


@paper(
    "AbeT",
    title="Out-of-Distribution Detection & Applications With Ablated Learned Temperature Energy",
    authors="LeVine, Pikus, Phillips, Norman, Amat Gil, Hendryx",
    year=2024,
    arxiv="2401.12129",
    kind="training",
    extra="torch",
    claim="ResNet-20 on CIFAR-10, mean over four sets: FPR95 12.5 and AUROC 97.8, where energy has 39.7 and 92.5 and "
    "GODIN 26.8 and 94.2; with the temperature before the logarithm kept, FPR95 is 17.6.",
    differs="Cosines in float32 and a stable logsumexp, where the code takes float64; one head for rows and feature "
    "maps; ReAct as an option, no ASH and no DICE.",
)
class AbetHead(nn.Module):
    """A head in the place of a classifier's last linear map: cosines, divided by a temperature learned per input.

    With features h: ``g_c = w_c . h / (|w_c| |h|)``, ``T = sigmoid(BatchNorm(a . h + b))``, logits ``z_c = g_c / T``.
    Cross-entropy on z trains both; there is no other loss. Train with weight decay on everything (the paper: 1e-4),
    which keeps T off its ends, and score in evaluation mode, since T passes through a batch norm.

    A feature map ``(B, d, H, W)`` has cosines and a temperature at each pixel. In a detector, the features are those of
    boxes, and the background is one of the classes.

    Parameters
    ----------
    width : int
        Features of an input: what the replaced ``.linear`` reads.
    classes : int

    Attributes
    ----------
    weight : Parameter (classes, width)
    temperature : nn.Sequential
        From features to T; ``width + 1`` numbers of a linear map and two of the batch norm.

    Raises
    ------
    BadInput
        ``width`` or ``classes`` is below 1.

    Examples
    --------
    >>> head = AbetHead(width=3, classes=2).eval()
    >>> head.weight.data = torch.eye(2, 3)
    >>> cosines, temperature = head.parts(torch.tensor([[0.0, 5.0, 0.0]]))
    >>> [round(value, 3) for value in cosines[0].tolist()]
    [0.0, 1.0]
    >>> bool((head(torch.ones(4, 3)) == head.parts(torch.ones(4, 3))[0] / head.parts(torch.ones(4, 3))[1]).all())
    True
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        if min(width, classes) < 1:
            raise BadInput(f"a head needs at least one feature and one class, not {width} and {classes}")
        self.weight = nn.Parameter(torch.empty(classes, width))
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        self.temperature = nn.Sequential(nn.Linear(width, 1), nn.BatchNorm1d(1), nn.Sigmoid())

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits, cosines over temperature: ``(n, C)``, or ``(B, C, H, W)`` of a feature map."""
        cosines, temperature = self.parts(features)
        return cosines / temperature

    def parts(self, features: Tensor, height: float | None = None) -> tuple[Tensor, Tensor]:
        """Return what the logits are made of.

        Parameters
        ----------
        features : Tensor (n, d) or (B, d, ...)
        height : float, optional
            ReAct's: features are cut to it before the cosines, and stay as they are for the temperature.

        Returns
        -------
        cosines : Tensor (n, C) or (B, C, ...)
        temperature : Tensor (n, 1) or (B, 1, ...)
            Above 0 and at most 1.

        Raises
        ------
        BadInput
            The second axis of the features is not as wide as the head.
        """
        classes, width = self.weight.shape
        if features.dim() < 2 or features.shape[1] != width:
            raise BadInput(f"the head reads {width} features on axis 1; their shape is {tuple(features.shape)}")
        with torch.autocast(features.device.type, enabled=False):
            last = features.movedim(1, -1)
            rows = last.reshape(-1, width).to(torch.promote_types(features.dtype, torch.float32))
            temperature = self.temperature(rows) + LEAST_TEMPERATURE
            if height is not None:
                rows = rows.clamp(max=height)
            cosines = _unit(rows) @ _unit(self.weight).T
        shape = last.shape[:-1]
        return cosines.reshape(*shape, classes).movedim(-1, 1), temperature.reshape(*shape, 1).movedim(-1, 1)

    def losses(self, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the loss by name: the cross-entropy of the logits, whose mean is over rows or pixels.

        Parameters
        ----------
        features : Tensor (n, d) or (B, d, ...)
        labels : int64 Tensor (n,) or (B, ...)
            Rows and pixels labelled -100 are left out.
        """
        return {"cross_entropy": cross_entropy(self(features), labels)}


def _unit(rows: Tensor) -> Tensor:
    """Bring rows to length 1, or a little below."""
    return rows / (torch.linalg.vector_norm(rows, dim=1, keepdim=True) + NORM_SLACK)


def ablated_energy(logits: Tensor, background: int | None = None) -> Tensor:
    """Return ``-logsumexp_c z_c``, larger = farther out: AbeT's score of inputs, boxes or pixels from their logits.

    Parameters
    ----------
    logits : Tensor (n, C) or (B, C, ...)
        Of an :class:`AbetHead`: of inputs, of boxes of a detector, or of pixels ``(B, C, H, W)``.
    background : int, optional
        The class that is no object, and is left out of the sum: a box is near where it is near to one of the objects.
        Detectors of the R-CNN family have it last, ``-1``.

    Returns
    -------
    Tensor (n,) or (B, ...)

    Raises
    ------
    BadInput
        There is no such class, or no other.

    Examples
    --------
    >>> boxes = torch.tensor([[9.0, 0.0, 0.0], [0.0, 0.0, 9.0]])  # an object; what looks like background
    >>> [round(score, 2) for score in ablated_energy(boxes, background=-1).tolist()]
    [-9.0, -0.69]
    """
    if background is not None:
        classes = logits.shape[1]
        if classes < 2 or not -classes <= background < classes:
            raise BadInput(f"class {background} cannot be left out of logits of {classes} classes")
        objects = [place for place in range(classes) if place != background % classes]
        logits = logits[:, objects]
    return -logits.logsumexp(dim=1)


class AbetScore(Score):
    """Scores of inputs by a model with an :class:`AbetHead`; larger is farther out.

    Take the views with ``extract(model, data, needs=("logits", "features"))``. AbeT's own score needs logits alone, so
    that every tool for energy scores serves.

    Parameters
    ----------
    head : AbetHead
    part : {"ablated", "forefront", "temperature", "cosine"}
        AbeT's own score ``-logsumexp z``; the energy with its factor, ``-T logsumexp z``; or the two scores of GODIN,
        ``T`` and ``-max g``.
    react : float, optional
        The percentile, such as 90, of all features of usual inputs at which features are cut (ReAct) for the cosines,
        never for the temperature.

    Attributes
    ----------
    height_ : float or None
        Where features are cut.

    Examples
    --------
    >>> head = AbetHead(width=3, classes=2).eval()
    >>> features = torch.ones(4, 3)
    >>> views = Views(head(features), features)
    >>> AbetScore(head).fit(views).score(views).equal(ablated_energy(views.logits))
    True
    """

    needs = ("logits", "features")
    learns = True

    def __init__(self, head: AbetHead, part: str = "ablated", react: float | None = None) -> None:
        self.head = head
        self.part = part
        self.react = react

    def fit(self, views: Views, labels: Tensor | None = None) -> Self:
        """Find where ReAct cuts; without ``react`` nothing is learned.

        Raises
        ------
        BadInput
            ``react`` is no percentile.
        """
        self.height_ = None
        if self.react is not None:
            if not 0 < self.react <= 100:
                raise BadInput(f"'react' is a percentile above 0 and at most 100, not {self.react:g}")
            self.height_ = float(np.percentile(features_of(views).cpu().numpy(), self.react))
        return self

    def score(self, views: Views, moved: Sequence[Views] = ()) -> Tensor:
        """Return the score (n,).

        Raises
        ------
        UnknownName
            ``part`` is another.
        """
        if self.part not in PARTS:
            raise UnknownName("part of AbeT", self.part, PARTS)
        height = self._fitted("height_") if self.react is not None else None
        if self.part == "ablated" and height is None:
            return ablated_energy(views.logits)
        cosines, temperature = self.head.parts(features_of(views), height)
        if self.part == "temperature":
            return temperature[:, 0]
        if self.part == "cosine":
            return -cosines.amax(dim=1)
        energy = ablated_energy(cosines / temperature)
        return energy * temperature[:, 0] if self.part == "forefront" else energy
