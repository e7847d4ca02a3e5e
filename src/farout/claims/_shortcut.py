"""Small networks with a planted shortcut, for the claim of causal paths: a bright corner that goes with one class.

Images: MNIST at half its size, or scikit-learn's digits for the small budget. In training, the corner is bright in 90 %
of the images of the class and in none of the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from farout.data import find
from farout.errors import MissingExtra
from farout.kit.training import seeded, torch_or_say, train

if TYPE_CHECKING:
    import torch
    from torch import nn

MARKED = 0.9  # share of the class's training images with the corner
RELUS = ("relu1", "relu2", "relu3")  # after the convolutions, where attributions are read


@dataclass(frozen=True)
class Planted:
    """A network that was trained with the shortcut, and images to look at it with.

    Attributes
    ----------
    model : torch.nn.Sequential
    target : int
        The class.
    X, y : tensors (n, 1, h, w) and (n,)
        From the training images, with the corner as in training.
    test_X, test_y : tensors
        Test images as they are.
    side : int
        Of the corner, in pixels.
    """

    model: nn.Module
    target: int
    X: torch.Tensor
    y: torch.Tensor
    test_X: torch.Tensor
    test_y: torch.Tensor
    side: int

    def marked(self, X: torch.Tensor) -> torch.Tensor:
        """Return images with the corner."""
        return marked(X, self.side)

    @property
    def conflicting(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Test images of the other classes, with the corner."""
        others = self.test_y != self.target
        return self.marked(self.test_X[others]), self.test_y[others]


def planted(budget: str, target: int, seed: int, epochs: int = 15) -> Planted:
    """Train a network of three convolutions on images with the shortcut.

    Parameters
    ----------
    budget : {"small", "full"}
        Digits of 8x8 pixels, or MNIST at 14x14.
    target : int
        The class that the corner goes with.
    seed : int
    epochs : int
    """
    torch_or_say("the claim of 'Causal paths'")
    import torch
    from torch.nn import functional

    X, y, test_X, test_y, side = _images(budget, seed)
    rng = np.random.default_rng(seed)
    bright = torch.from_numpy((rng.random(len(y)) < MARKED) & (y.numpy() == target))
    X[bright] = marked(X[bright], side)
    with seeded(seed):
        model = _network()

    def loss(rows: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(model(X[rows]), y[rows], reduction="none")

    batch = 64 if budget == "full" else 32
    train(model, loss, torch.arange(len(X)), epochs=epochs, batch_size=batch, learning_rate=3e-3, seed=seed)
    shown = torch.from_numpy(rng.choice(len(X), min(len(X), 2000), replace=False))
    return Planted(model, target, X[shown], y[shown], test_X, test_y, side)


def marked(X: torch.Tensor, side: int) -> torch.Tensor:
    """Return images with a square of single bright and dark pixels in the upper left corner."""
    X = X.clone()
    X[..., :side, :side] = 0.0
    X[..., :side:2, :side:2] = X[..., 1:side:2, 1:side:2] = 1.0
    return X


def _images(budget: str, seed: int) -> tuple[Any, Any, Any, Any, int]:
    """Return training and test images (n, 1, h, w) from 0 to 1 with their classes, and the side of the corner."""
    import torch

    if budget == "full":
        with np.load(find("ood/mnist.npz"), allow_pickle=False) as stored:
            parts = [stored[f"{part}_{what}"] for part in ("train", "test") for what in ("images", "labels")]
        parts[::2] = [images.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)) for images in parts[::2]]
        scale, side = 255.0, 4
    else:
        from sklearn.datasets import load_digits

        digits = load_digits()
        order = np.random.default_rng(seed).permutation(len(digits.target))
        rows = order[:1200], order[1200:]
        parts = [stored[part] for part in rows for stored in (digits.images, digits.target)]
        scale, side = 16.0, 4
    images = [torch.from_numpy(part / scale).float()[:, None] for part in parts[::2]]
    classes = [torch.from_numpy(np.asarray(part)).long() for part in parts[1::2]]
    return images[0], classes[0], images[1], classes[1], side


def _network() -> nn.Module:
    """Three convolutions of 16, 32 and 64 filters, and a linear map on the mean of each of the last ones."""
    from collections import OrderedDict

    from torch import nn

    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 16, 3, padding=1),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(16, 32, 3, padding=1),
            relu2=nn.ReLU(),
            pool=nn.MaxPool2d(2),
            conv3=nn.Conv2d(32, 64, 3, padding=1),
            relu3=nn.ReLU(),
            mean=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            fc=nn.Linear(64, 10),
        )
    )


def rises(one: Planted, relu: str = RELUS[-1]) -> np.ndarray:
    """Return by how many standard deviations each filter's mean activation rises with the corner (units,)."""
    clean = one.test_X[one.test_y != one.target][:1000]
    without, with_it = (activation(one.model, relu, X).flatten(2).mean(2) for X in (clean, one.marked(clean)))
    return ((with_it - without).mean(0) / without.std(0).clamp(min=1e-6)).numpy()


def accuracy(model: nn.Module, X: torch.Tensor, y: torch.Tensor) -> float:
    """Return the share of images whose class is told."""
    import torch

    with torch.no_grad():
        told = torch.cat([model(x).argmax(1) for x in X.split(1000)])
    return float((told == y).float().mean())


def activation(model: nn.Module, name: str, X: torch.Tensor) -> torch.Tensor:
    """Return what a module gives."""
    import torch

    kept = []
    hook = model.get_submodule(name).register_forward_hook(lambda module, inputs, output: kept.append(output))
    try:
        with torch.no_grad():
            for x in X.split(1000):
                model(x)
    finally:
        hook.remove()
    return torch.cat(kept)


def attributions(model: nn.Module, X: torch.Tensor, target: int, relu: str) -> dict[str, np.ndarray]:
    """Attribute the logit of a class to the filters of a layer by three standard methods: (units,) each.

    Means over the images; places of a filter are summed.
    """
    try:
        from captum.attr import LayerConductance, LayerGradientXActivation
    except ImportError as error:
        raise MissingExtra("the claim of 'Causal paths'", "explain") from error
    layer = model.get_submodule(relu)
    X = X.detach()
    product = LayerGradientXActivation(model, layer).attribute(X, target=target).detach()
    active = activation(model, relu, X)
    gradient = product / active.where(active > 0, 1.0)  # 0 where a filter is silent, as behind its own ReLU
    conductance = LayerConductance(model, layer).attribute(X, target=target, n_steps=16, internal_batch_size=1024)
    return {
        "gradient x activation": product.flatten(2).sum(2).mean(0).numpy(),
        "Grad-CAM weights": gradient.flatten(2).mean(2).mean(0).numpy(),
        "conductance": conductance.detach().flatten(2).sum(2).mean(0).numpy(),
    }


def captum_maps(model: nn.Module, X: torch.Tensor, target: int) -> dict[str, np.ndarray]:
    """Draw saliency maps (n, h, w) of images by standard methods: larger where more important."""
    from captum.attr import InputXGradient, IntegratedGradients, LayerAttribution, LayerGradCam

    X = X.clone().requires_grad_()
    cam = LayerGradCam(model, model.get_submodule(RELUS[-1])).attribute(X, target=target, relu_attributions=True)
    cam = LayerAttribution.interpolate(cam.detach(), X.shape[2:], "bilinear")
    return {
        "Grad-CAM": cam[:, 0].numpy(),
        "gradient x input": InputXGradient(model).attribute(X, target=target).detach().abs()[:, 0].numpy(),
        "integrated gradients": IntegratedGradients(model)
        .attribute(X, target=target, n_steps=16, internal_batch_size=1024)
        .detach()
        .abs()[:, 0]
        .numpy(),
    }
