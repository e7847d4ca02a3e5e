"""ODIN: Enhancing The Reliability of Out-of-distribution Image Detection in Neural Networks.

Shiyu Liang, Yixuan Li, R. Srikant, ICLR 2018 (arXiv 1706.02690).

A high temperature and a small step of the input towards the predicted class make the confidence of usual inputs grow by
more than that of others. The paper claims FPR95 4.3 % where MSP has 34.7 % (DenseNet on CIFAR-10, Tiny ImageNet).

Differences from the official code: it draws temperature and step size from 1,000 images of the very set that is then
tested; here they are fixed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from farout.cards import paper
from farout.errors import BadInput, UnknownName
from farout.ood._score import Score, Step
from farout.ood.views import Views

__all__ = ["ODIN", "largest_coordinate_step"]

COORDINATES = ("all", "largest")


@paper(
    "ODIN",
    title="Enhancing The Reliability of Out-of-distribution Image Detection in Neural Networks",
    authors="Liang, Li, Srikant",
    year=2018,
    arxiv="1706.02690",
    kind="score",
    extra="torch",
    claim="FPR95 4.3 % on Tiny ImageNet against CIFAR-10, where MSP has 34.7 %.",
    differs="Temperature and step size are fixed, not chosen on the set that is tested.",
)
class ODIN(Score):
    """Minus the largest probability at a high temperature, after a step of the input that makes it larger.

    Parameters
    ----------
    temperature : float
        T.
    size : float
        epsilon, where pixels go from 0 to 1.
    coordinates : {"all", "largest"}
        Which of the input's numbers are moved: all, or the one with the largest gradient (i-ODIN, of the paper ASCOOD).

    Examples
    --------
    >>> import torch
    >>> from farout.ood import Watch
    >>> net = torch.nn.Linear(2, 2)
    >>> Watch(net, ODIN()).fit(torch.zeros(1, 2)).outlier_score(torch.zeros(3, 2)).shape
    (3,)
    """

    def __init__(self, temperature: float = 1000.0, size: float = 0.0014, coordinates: str = "all") -> None:
        self.temperature = temperature
        self.size = size
        self.coordinates = coordinates

    def steps(self) -> tuple[Step, ...]:
        """Return the one step: it lowers the loss of the class that is predicted."""
        if self.coordinates not in COORDINATES:
            raise UnknownName("choice of coordinates", self.coordinates, COORDINATES)
        if self.coordinates == "largest":
            return (Step(self.size, self._loss, largest_coordinate_step),)
        return (Step(self.size, self._loss),)

    def score(self, views: Views, moved: Sequence[Views] = ()) -> Tensor:
        """Return ``-max_c softmax(f(x') / T)_c`` (n,)."""
        if not moved:
            raise BadInput("ODIN moves the input, so it needs the model and not views alone; use farout.ood.Watch")
        return -(moved[0].logits / self.temperature).softmax(1).amax(1)

    def _loss(self, views: Views) -> Tensor:
        return F.cross_entropy(views.logits / self.temperature, views.logits.argmax(1), reduction="none")


def largest_coordinate_step(gradient: Tensor) -> Tensor:
    """Return the sign of a gradient at its largest coordinate in size, and zero elsewhere: the step of i-ODIN.

    ODIN moves all coordinates of an input; the paper's i-ODIN moves one.

    Parameters
    ----------
    gradient : Tensor (B, ...)

    Returns
    -------
    Tensor (B, ...)

    Examples
    --------
    >>> largest_coordinate_step(torch.tensor([[1.0, -3.0, 2.0]]))
    tensor([[ 0., -1.,  0.]])
    """
    flat = gradient.flatten(1)
    place = flat.abs().argmax(1, keepdim=True)
    sign = torch.where(flat.gather(1, place) >= 0, 1.0, -1.0).to(flat.dtype)  # of zero it is 1, as in ODIN's code
    return torch.zeros_like(flat).scatter(1, place, sign).view_as(gradient)
