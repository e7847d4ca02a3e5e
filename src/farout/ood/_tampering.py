"""Outliers made from images by tampering with what speaks for their class, as the gradient of its logit says."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from farout.errors import BadInput, UnknownName
from farout.ood.views import evaluating

HOW = ("gradient", "shuffle", "gaussian")
PLACES = ("salient", "random")


def saliency(model: nn.Module, x_BCHW: Tensor, y: Tensor) -> Tensor:
    """Return the gradient of each image's true logit with respect to the image, in evaluation mode.

    Neither running statistics nor gradients of weights change.

    Parameters
    ----------
    model : torch.nn.Module
    x_BCHW, y : tensors (B, channels, height, width) and (B,)

    Returns
    -------
    Tensor (B, channels, height, width)

    Examples
    --------
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    >>> gradient = saliency(net, torch.zeros(1, 3, 2, 2), torch.tensor([1]))
    >>> torch.equal(gradient.flatten(), net[1].weight[1])
    True
    """
    with evaluating(model), torch.enable_grad():
        x_BCHW = x_BCHW.detach().requires_grad_()
        true_logits = model(x_BCHW).gather(1, y[:, None])
        return torch.autograd.grad(true_logits.sum(), x_BCHW)[0]


def tamper(
    x_BCHW: Tensor,
    gradient_BCHW: Tensor,
    *,
    how: str,
    share: float,
    strength: float,
    generator: torch.Generator,
    places: str = "salient",
) -> Tensor:
    """Tamper with images where a gradient says that their class lies.

    Parameters
    ----------
    x_BCHW, gradient_BCHW : tensors of one shape
    how : {"gradient", "shuffle", "gaussian"}
        ``"gradient"`` adds ``strength * gradient`` to the numbers of an image (channels times pixels) where it is
        largest in size, ``"gaussian"`` adds ``strength`` times noise to them. ``"shuffle"`` permutes whole pixels:
        those where the sum over channels of ``exp(gradient)`` is largest, so what speaks against the class stays.
    share : float
        Of the numbers or pixels.
    strength : float
    generator : torch.Generator
    places : {"salient", "random"}
        Random places are changed by the same amounts, or permuted in the same number.

    Returns
    -------
    Tensor (B, channels, height, width)

    Examples
    --------
    >>> x, gradient = torch.zeros(1, 1, 2, 2), torch.tensor([[[[1.0, -3.0], [2.0, 0.0]]]])
    >>> tamper(x, gradient, how="gradient", share=0.5, strength=2, generator=torch.Generator())
    tensor([[[[ 0., -6.],
              [ 4.,  0.]]]])
    """
    check(how, places, share)
    if how == "shuffle":
        pixels = x_BCHW.flatten(2)
        importance = gradient_BCHW.logsumexp(1).flatten(1)  # in the order of the sum of exp, without its overflow
        where = _chosen(importance, share, places, generator)
        order = _drawn(where.shape, generator, where.device).argsort(1)
        source, target = (index[:, None].expand(-1, pixels.shape[1], -1) for index in (where.gather(1, order), where))
        return pixels.scatter(2, target, pixels.gather(2, source)).view_as(x_BCHW)
    gradient = gradient_BCHW.flatten(1)
    salient = _chosen(gradient.abs(), share, "salient", generator)
    change = gradient.gather(1, salient)
    if how == "gaussian":
        change = torch.randn(change.shape, generator=generator, device=generator.device).to(change)
    where = salient if places == "salient" else _chosen(gradient, share, places, generator)
    return x_BCHW.flatten(1).scatter_add(1, where, strength * change).view_as(x_BCHW)


def strength_for(model: nn.Module, x_BCHW: Tensor, y: Tensor, share: float = 0.1, ratio: float = 1.0) -> float:
    """Return the strength at which what is added is ``ratio`` times as long as the images, by their mean norms.

    Parameters
    ----------
    model : torch.nn.Module
        Trained without outliers.
    x_BCHW, y : tensors (B, channels, height, width) and (B,)
    share, ratio : float

    Returns
    -------
    float

    Raises
    ------
    BadInput
        The gradient is zero.

    Examples
    --------
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    >>> _ = nn.init.constant_(net[1].weight, 0.5)
    >>> strength_for(net, torch.ones(1, 1, 2, 2), torch.tensor([0]), share=1.0)
    2.0
    """
    check("gradient", "salient", share)
    gradient = saliency(model, x_BCHW, y).flatten(1)
    salient = _chosen(gradient.abs(), share, "salient", torch.Generator())
    size = float(gradient.gather(1, salient).norm(dim=1).mean())
    if size == 0:
        raise BadInput("the true logit does not depend on the images, so no strength makes a difference; train first")
    return ratio * float(x_BCHW.flatten(1).norm(dim=1).mean()) / size


def _chosen(importance: Tensor, share: float, places: str, generator: torch.Generator) -> Tensor:
    """Return the places (B, k) of a share of each row, those of largest importance or any."""
    if places == "random":
        importance = _drawn(importance.shape, generator, importance.device)
    return importance.topk(round(share * importance.shape[1]), dim=1).indices


def _drawn(shape: torch.Size, generator: torch.Generator, device: torch.device) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device).to(device)


def check(how: str, places: str, share: float) -> None:
    if how not in HOW:
        raise UnknownName("way to tamper", how, HOW)
    if places not in PLACES:
        raise UnknownName("choice of places", places, PLACES)
    if not 0 < share <= 1:
        raise BadInput(f"the share of places to tamper with lies above 0 and up to 1, but it is {share}")
