"""PALM: Learning with Mixture of Prototypes for Out-of-Distribution Detection.

Haodong Lu, Dong Gong, Shuo Wang, Jason Xue, Lina Yao, Kristen Moore, ICLR 2024 (arXiv 2402.02653).

A class is more than one cluster. On the unit sphere each class gets several prototypes, to which its samples are softly
assigned and which follow them by a moving average; embeddings are drawn to their prototypes and away from all others,
and prototypes of a class to each other. Inputs are scored by the Mahalanobis distance of the encoder's features.

The paper claims, with a ResNet-34 on CIFAR-100, mean over five sets, FPR95 (inputs of the known classes positive) 28.02
and AUROC 93.82, where CIDER has 40.85 and 89.34 and MSP 83.57 and 75.27; without labels 43.37 and 88.07.

Differences from the paper and the official code (jeff024/PALM):

- The likelihood loss takes the weighted sum of log-likelihoods, as the code does; the paper has the logarithm of the
  weighted sum, a loss that is never larger.
- Which prototypes are kept for the loss is found anew from the assignment after the update; the code keeps those of
  before, which with the slow update are nearly always the same.
- Everything after the encoder is computed in float32, assignment in log space. The code's exponentials can overflow in
  half precision, and are then computed again.
- The score leaves out that the code, having centred and scaled the features, takes the mean of the unscaled ones off
  once more; ``SSDPlus(mean_twice=True)`` does so, to compare numbers.
- Without labels every prototype is its own class, so the contrast only drives prototypes apart. The official code has
  no such variant, so its details may differ from the paper's.
- Any loop trains it. The paper: two views by SimCLR's augmentation, SGD with Nesterov momentum 0.9, learning rate 0.5,
  weight decay 1e-6, batches of 512, 500 epochs, 10 of them warm-up, then a cosine; the code keeps the epoch with the
  lowest training loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from farout.cards import paper
from farout.errors import BadInput
from farout.kit.gauss import SharedGaussian
from farout.ood._score import Score, features_of
from farout.ood.views import Views

__all__ = ["PalmHead", "SSDPlus", "log_sinkhorn"]

CONTRAST_TEMPERATURE = 0.5
SLACK = 1e-10  # added to lengths and deviations, as in the official score


@paper(
    "PALM",
    title="Learning with Mixture of Prototypes for Out-of-Distribution Detection",
    authors="Lu, Gong, Wang, Xue, Yao, Moore",
    year=2024,
    arxiv="2402.02653",
    kind="training",
    extra="torch",
    claim="ResNet-34 on CIFAR-100, mean over five sets: FPR95 28.02 and AUROC 93.82, where CIDER has 40.85 and 89.34 "
    "and MSP 83.57 and 75.27; without labels 43.37 and 88.07.",
    differs="Assignment in log space and float32; the prototypes kept are found anew after the update; the score is "
    "centred once, the code's second centring is a flag. Unlabelled variant by the card, the code has none.",
)
class PalmHead(nn.Module):
    """A projection head with a mixture of prototypes a class; in the place of a network's last linear map.

    One call of ``losses`` is one step: assign, update the prototypes, assign again, and compare. Prototype j belongs to
    class ``j mod classes``. Prototypes are a buffer, and move only in training mode.

    Parameters
    ----------
    width : int
        Features of an input.
    classes : int, optional
        None for data without labels: every prototype is then a class of its own.
    prototypes : int
        Of each class; without labels, of all.
    neighbours : int, optional
        Prototypes that a sample is assigned to, the nearest of its class, at most ``prototypes``; None for all.
    dimensions : int
        Of the sphere.
    momentum : float
        Of the prototypes. The paper's run of 49,000 steps has 0.999, where the code's default is 0.99.
    temperature : float
        Of the likelihood.
    softness : float
        Of the assignment.
    rounds : int
        Of Sinkhorn's normalisation.
    contrast : float
        Weight of the contrast among prototypes.

    Attributes
    ----------
    projection : nn.Sequential
        ``width -> width -> dimensions`` with ReLU.
    prototypes : Tensor (classes * prototypes, dimensions)
        Of length 1.

    Raises
    ------
    BadInput
        A number is out of its range, or there is only one prototype in all.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> head = PalmHead(width=8, classes=2, prototypes=3)
    >>> two_views, labels = torch.randn(12, 8), torch.arange(6).repeat(2) % 2
    >>> sorted(head.losses(two_views, labels))
    ['contrast', 'likelihood']
    >>> head.class_of_prototype.tolist()
    [0, 1, 0, 1, 0, 1]
    """

    prototypes: Tensor
    class_of_prototype: Tensor

    def __init__(
        self,
        width: int,
        classes: int | None,
        prototypes: int = 6,  # K
        neighbours: int | None = 5,  # k
        dimensions: int = 128,
        momentum: float = 0.999,  # m
        temperature: float = 0.1,  # tau
        softness: float = 0.05,  # epsilon
        rounds: int = 3,
        contrast: float = 1.0,  # lambda_pcon
    ) -> None:
        super().__init__()
        counts = {"width": width, "classes": 1 if classes is None else classes, "prototypes": prototypes}
        counts |= {"neighbours": neighbours or 1, "dimensions": dimensions, "rounds": rounds}
        for name, count in counts.items():
            if count < 1:
                raise BadInput(f"'{name}' must be at least 1, not {count}")
        if not (0 <= momentum < 1 and temperature > 0 and softness > 0 and contrast >= 0):
            raise BadInput(
                "momentum is at least 0 and below 1, temperature and softness are above 0 and contrast is not below, "
                f"but they are {momentum}, {temperature}, {softness} and {contrast}"
            )
        count = prototypes * (classes or 1)
        if count < 2:
            raise BadInput("one prototype has nothing to be told from; take more classes or more prototypes")
        self.classes = classes
        self.neighbours = min(neighbours or prototypes, prototypes)
        self.momentum, self.temperature, self.softness = momentum, temperature, softness
        self.rounds, self.contrast = rounds, contrast
        self.projection = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, dimensions))
        # as in the code: all start among positive numbers, near to each other
        self.register_buffer("prototypes", normalize(torch.rand(count, dimensions), dim=1))
        self.register_buffer("class_of_prototype", torch.arange(count) % (classes or count), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Return embeddings of length 1 (n, dimensions), in float32."""
        return normalize(self.projection(features).float(), dim=1)

    def losses(self, features: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Move the prototypes and return the losses by name, to be added.

        Parameters
        ----------
        features : Tensor (n, width)
            Of a batch: two views of each image, one after the other, in the paper.
        labels : int64 Tensor (n,), optional
            Must be given where the head has classes.

        Returns
        -------
        dict of str to Tensor
            ``"likelihood"``, and ``"contrast"`` with its weight.

        Raises
        ------
        BadInput
            Labels are missing, not wanted, not one for each row, or not among the classes.
        """
        own = self._own(labels, features)
        embeddings = self(features)
        with torch.autocast(features.device.type, enabled=False):
            moved = self._moved(embeddings, self._assigned(embeddings, self.prototypes, own))
            if self.training:
                self.prototypes.copy_(moved.detach())
            still = moved.detach()  # only the contrast has gradients through the prototypes
            logits = embeddings @ still.T / self.temperature
            fit = (self._assigned(embeddings, still, own) * logits).sum(1) - logits.logsumexp(1)
            return {"likelihood": -fit.mean(), "contrast": self.contrast * self._contrast(moved)}

    def _own(self, labels: Tensor | None, features: Tensor) -> Tensor:
        """Tell which prototypes a row may be assigned to (n, m)."""
        if (labels is None) != (self.classes is None):
            raise BadInput(
                f"the head has {self.classes} classes and needs labels"
                if labels is None
                else "the head was made for data without labels; take PalmHead(width, classes, ...) to use some"
            )
        if labels is None or self.classes is None:
            return torch.ones(len(features), len(self.prototypes), dtype=torch.bool, device=features.device)
        if labels.shape != (len(features),) or not 0 <= int(labels.min()) <= int(labels.max()) < self.classes:
            raise BadInput(
                f"{len(features)} rows need a label each, from 0 to {self.classes - 1}; they are of shape "
                f"{tuple(labels.shape)} and lie between {int(labels.min())} and {int(labels.max())}"
            )
        return labels[:, None] == self.class_of_prototype

    @torch.no_grad()
    def _assigned(self, embeddings: Tensor, prototypes: Tensor, own: Tensor) -> Tensor:
        """Return weights (n, m) of a row's nearest prototypes among its own, which sum to 1."""
        log_weights = log_sinkhorn(embeddings @ prototypes.T / self.softness, self.rounds)
        nearest, places = log_weights.masked_fill(~own, -torch.inf).topk(self.neighbours, dim=1)
        return torch.zeros_like(log_weights).scatter(1, places, nearest.softmax(1))

    def _moved(self, embeddings: Tensor, weights: Tensor) -> Tensor:
        """Return prototypes (m, dimensions) after a step towards the mean of what is assigned to them."""
        shares = weights / weights.sum(0).clamp(min=torch.finfo(weights.dtype).tiny)  # nothing assigned: stays
        return normalize(self.momentum * self.prototypes + (1 - self.momentum) * (shares.T @ embeddings), dim=1)

    def _contrast(self, prototypes: Tensor) -> Tensor:
        """Return the loss of telling a prototype's class by the other prototypes."""
        itself = torch.eye(len(prototypes), dtype=torch.bool, device=prototypes.device)
        logits = prototypes @ prototypes.T / CONTRAST_TEMPERATURE
        kin = (self.class_of_prototype[:, None] == self.class_of_prototype) & ~itself
        near = (logits * kin).sum(1) / kin.sum(1).clamp(min=1)  # a prototype without kin is only driven off
        return (logits.masked_fill(itself, -torch.inf).logsumexp(1) - near).mean()


def log_sinkhorn(scores: Tensor, rounds: int) -> Tensor:
    """Return the logarithm of an assignment of rows to columns, by Sinkhorn and Knopp.

    Columns and rows of ``exp(scores)`` are brought in turn to equal sums, rows last. In log space each sum has its
    maximum taken off, so that nothing overflows.

    Parameters
    ----------
    scores : Tensor (n, m)
        Similarities over their softness.
    rounds : int

    Returns
    -------
    Tensor (n, m)
        The exponentials of a row sum to 1, those of a column to about ``n / m``.

    Examples
    --------
    >>> log_sinkhorn(torch.tensor([[900.0, 0.0], [900.0, 1.0]]), rounds=50).exp().sum(0)  # both like the first
    tensor([1., 1.])
    """
    for _ in range(rounds):
        scores = scores - scores.logsumexp(0, keepdim=True)
        scores = scores - scores.logsumexp(1, keepdim=True)
    return scores


class SSDPlus(Score):
    """Squared Mahalanobis distance of the features' direction to one Gaussian over all training inputs.

    Features are divided by their length; directions without variance count for nothing. Take the features of the
    encoder, before the projection.

    Parameters
    ----------
    mean_twice : bool
        As the official code has it: features are centred and scaled to unit variance, and the mean of the unscaled ones
        is taken off again. Only to compare numbers.

    Attributes
    ----------
    mean_, deviation_ : float64 tensor (d,)
        Of the directions.
    centre_ : float64 tensor (d,)
        Of the scaled directions, from which the distance is taken.
    whitening_ : float64 tensor (d, r)

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> usual = torch.randn(200, 3) + torch.tensor([5.0, 0.0, 0.0])
    >>> strange = torch.tensor([[5.0, 0.0, 0.0], [-5.0, 0.0, 0.0]])
    >>> near, far = SSDPlus().fit(Views(usual, usual)).score(Views(strange, strange)).tolist()
    >>> near < 1, far > 100
    (True, True)
    """

    needs = ("features",)
    learns = True

    def __init__(self, mean_twice: bool = False) -> None:
        self.mean_twice = mean_twice

    def fit(self, views: Views, labels: Tensor | None = None) -> Self:
        """Estimate the Gaussian; labels are not looked at."""
        directions = _directions(views)
        self.mean_, self.deviation_ = directions.mean(0), directions.std(0, correction=0)
        self.centre_ = self.mean_ if self.mean_twice else torch.zeros_like(self.mean_)
        self.whitening_ = SharedGaussian.fit(directions / (self.deviation_ + SLACK)).whitening
        return self

    def score(self, views: Views, moved: Sequence[Views] = ()) -> Tensor:
        """Return the squared distance (n,)."""
        scaled = (_directions(views) - self._fitted("mean_")) / (self.deviation_ + SLACK)
        return ((scaled - self.centre_) @ self.whitening_).square().sum(1)


def _directions(views: Views) -> Tensor:
    features = features_of(views).double()
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + SLACK)
