"""Networks for small images and vectors, small enough to train in a test or a claim; loads torch, so import it lazily.

All have one face: ``features(x)`` is what the head reads, ``linear`` is the head (set another to change it), ``width``
says how many features there are, and the module itself is ``linear(features(x))``. They take what they are given: what
normalises images stands before them, such as :func:`farout.data.images.to_tensor`.

Shape legend: B images or rows, C channels, H and W pixels, N patches, D features.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from farout.errors import BadInput
from farout.kit.training import seeded

__all__ = ["MLP", "PatchTransformer", "ResNet18", "ResNetCIFAR", "SmallCNN", "mlp"]


class MLP(nn.Sequential):
    """Linear maps with ReLU between them; made by :func:`mlp`. The last child is called ``linear``."""

    width: int

    def features(self, x_BD: Tensor) -> Tensor:
        """Return what the last map reads (B, width)."""
        for child in list(self.children())[:-1]:
            x_BD = child(x_BD)
        return x_BD


def mlp(sizes: Sequence[int], *, seed: int | None = None) -> MLP:
    """Return a multilayer perceptron: Linear, ReLU, ..., Linear.

    Parameters
    ----------
    sizes : sequence of int
        Inputs, hidden units of each layer, outputs.
    seed : int, optional
        For the weights; without one they are drawn from torch's generator as it stands.

    Raises
    ------
    BadInput
        Fewer than two sizes.

    Examples
    --------
    >>> net = mlp([4, 8, 3], seed=0)
    >>> net(torch.zeros(5, 4)).shape, net.features(torch.zeros(5, 4)).shape, net.width
    (torch.Size([5, 3]), torch.Size([5, 8]), 8)
    """
    if len(sizes) < 2:
        raise BadInput(f"an MLP has an input and an output size at least; 'sizes' is {list(sizes)}")
    with _drawn(seed):
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        for i, (inputs, outputs) in enumerate(pairwise(sizes[:-1])):
            parts[f"linear{i + 1}"], parts[f"relu{i + 1}"] = nn.Linear(inputs, outputs), nn.ReLU()
        parts["linear"] = nn.Linear(sizes[-2], sizes[-1])
        net = MLP(parts)
    net.width = sizes[-2]
    return net


class _Net(nn.Module):
    """The one face of the networks: a subclass writes ``features`` and sets ``width`` and ``linear``."""

    width: int
    linear: nn.Module

    def features(self, x_BCHW: Tensor) -> Tensor:
        """Return what the head reads (B, width)."""
        raise NotImplementedError(f"'{type(self).__name__}' must write features")

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return logits (B, classes)."""
        return self.linear(self.features(x_BCHW))


class SmallCNN(_Net):
    """Three stages of 3x3 convolution, batch norm, ReLU and pooling; the last pools over the whole image.

    Parameters
    ----------
    classes : int
    channels : int
        Of the images.
    width : int
        Channels of the first stage; the next have twice and four times as many.
    seed : int, optional
        For the weights; without one they are drawn from torch's generator as it stands.

    Examples
    --------
    >>> net = SmallCNN(10, channels=1, width=8, seed=0)
    >>> net(torch.zeros(2, 1, 28, 28)).shape, net.width
    (torch.Size([2, 10]), 32)
    """

    def __init__(self, classes: int, channels: int = 3, width: int = 32, *, seed: int | None = None) -> None:
        super().__init__()
        self.width = 4 * width
        with _drawn(seed):
            self.layer1 = _stage(channels, width, nn.MaxPool2d(2))
            self.layer2 = _stage(width, 2 * width, nn.MaxPool2d(2))
            self.layer3 = _stage(2 * width, 4 * width, nn.AdaptiveAvgPool2d(1))
            self.linear = nn.Linear(4 * width, classes)
            _he(self)

    def features(self, x_BCHW: Tensor) -> Tensor:
        """Return the pooled channels of the last stage (B, width)."""
        return self.layer3(self.layer2(self.layer1(x_BCHW))).flatten(1)


class ResNetCIFAR(_Net):
    """The residual network that He et al. (CVPR 2016) made for CIFAR-10: three stages of (depth - 2) / 6 blocks.

    Shortcuts have no weights (option A): where a stage begins, they take every second pixel and pad channels with
    zeros. The names of its weights are those of :func:`farout.data.images.resnet20_cifar10`.

    Parameters
    ----------
    classes : int
    depth : int
        20, 32, 44, 56, 110: 6 n + 2.
    width : int
        Channels of the first stage; the next have twice and four times as many.
    channels : int
        Of the images.
    seed : int, optional
        For the weights; without one they are drawn from torch's generator as it stands.

    Raises
    ------
    BadInput
        There is no such depth.

    Examples
    --------
    >>> net = ResNetCIFAR(seed=0)
    >>> net(torch.zeros(2, 3, 32, 32)).shape, net.width, sum(weight.numel() for weight in net.parameters())
    (torch.Size([2, 10]), 64, 269722)
    """

    def __init__(
        self, classes: int = 10, depth: int = 20, width: int = 16, channels: int = 3, *, seed: int | None = None
    ) -> None:
        super().__init__()
        blocks, left = divmod(depth - 2, 6)
        if left or blocks < 1:
            raise BadInput(f"a residual network for CIFAR has 6 n + 2 layers (8, 14, 20, 32, ...), not {depth}")
        self.width = 4 * width
        with _drawn(seed):
            self.conv1, self.bn1 = _conv3x3(channels, width), nn.BatchNorm2d(width)
            self.layer1 = _blocks(width, width, blocks, 1, padded=True)
            self.layer2 = _blocks(width, 2 * width, blocks, 2, padded=True)
            self.layer3 = _blocks(2 * width, 4 * width, blocks, 2, padded=True)
            self.linear = nn.Linear(4 * width, classes)
            _he(self)

    def features(self, x_BCHW: Tensor) -> Tensor:
        """Return the mean over pixels of the last stage (B, width)."""
        x_BCHW = F.relu(self.bn1(self.conv1(x_BCHW)))
        return self.layer3(self.layer2(self.layer1(x_BCHW))).mean((2, 3))


class ResNet18(_Net):
    """ResNet-18 for images of 32 pixels: a 3x3 convolution in the place of the stem of ImageNet, and no pooling there.

    Four stages of two blocks; where a stage begins, a 1x1 convolution and batch norm are the shortcut (option B).

    Parameters
    ----------
    classes : int
    width : int
        Channels of the first stage; the last has eight times as many.
    channels : int
        Of the images.
    seed : int, optional
        For the weights; without one they are drawn from torch's generator as it stands.

    Examples
    --------
    >>> net = ResNet18(10, width=8, seed=0)
    >>> net(torch.zeros(2, 3, 32, 32)).shape, net.width
    (torch.Size([2, 10]), 64)
    """

    def __init__(self, classes: int, width: int = 64, channels: int = 3, *, seed: int | None = None) -> None:
        super().__init__()
        self.width = 8 * width
        with _drawn(seed):
            self.conv1, self.bn1 = _conv3x3(channels, width), nn.BatchNorm2d(width)
            self.layer1 = _blocks(width, width, 2, 1, padded=False)
            self.layer2 = _blocks(width, 2 * width, 2, 2, padded=False)
            self.layer3 = _blocks(2 * width, 4 * width, 2, 2, padded=False)
            self.layer4 = _blocks(4 * width, 8 * width, 2, 2, padded=False)
            self.linear = nn.Linear(8 * width, classes)
            _he(self)

    def features(self, x_BCHW: Tensor) -> Tensor:
        """Return the mean over pixels of the last stage (B, width)."""
        x_BCHW = F.relu(self.bn1(self.conv1(x_BCHW)))
        return self.layer4(self.layer3(self.layer2(self.layer1(x_BCHW)))).mean((2, 3))


class PatchTransformer(_Net):
    """A vision transformer (Dosovitskiy et al., ICLR 2021) with the mean of its patches in the place of a class token.

    Parameters
    ----------
    classes : int
    size : int
        Height and width of the images.
    patch : int
        Height and width of a patch.
    width : int
        Of the residual stream.
    depth, heads : int
    channels : int
        Of the images.
    seed : int, optional
        For the weights; without one they are drawn from torch's generator as it stands.

    Raises
    ------
    BadInput
        ``size`` is no multiple of ``patch``, or ``width`` none of ``heads``.

    Examples
    --------
    >>> net = PatchTransformer(10, width=16, depth=1, heads=2, seed=0)
    >>> net(torch.zeros(2, 3, 32, 32)).shape, net.tokens(torch.zeros(2, 3, 32, 32)).shape
    (torch.Size([2, 10]), torch.Size([2, 64, 16]))
    """

    def __init__(
        self,
        classes: int,
        size: int = 32,
        patch: int = 4,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        channels: int = 3,
        *,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        for name, whole, part in (("size", size, patch), ("width", width, heads)):
            if whole % part:
                raise BadInput(f"'{name}' of a patch transformer must be a multiple of {part}; it is {whole}")
        self.width = width
        with _drawn(seed):
            self.patches = nn.Conv2d(channels, width, patch, stride=patch)
            self.places = nn.Parameter(0.02 * torch.randn((size // patch) ** 2, width))
            self.blocks = nn.Sequential(*(_TokenBlock(width, heads) for _ in range(depth)))
            self.norm = nn.LayerNorm(width)
            self.linear = nn.Linear(width, classes)

    def tokens(self, x_BCHW: Tensor) -> Tensor:
        """Return the normalised patches (B, N, width) after the last block, row by row of the image."""
        x_BND = self.patches(x_BCHW).flatten(2).transpose(1, 2) + self.places
        return self.norm(self.blocks(x_BND))

    def features(self, x_BCHW: Tensor) -> Tensor:
        """Return the mean over patches (B, width)."""
        return self.tokens(x_BCHW).mean(1)


class _ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, added to a shortcut, ReLU after each."""

    def __init__(self, inputs: int, outputs: int, stride: int, padded: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv3x3(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = _conv3x3(outputs, outputs), nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            convolved = nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            self.shortcut = _Padded(stride, outputs - inputs) if padded else nn.Sequential(*convolved)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x_BCHW)))))
        return F.relu(y_BCHW + self.shortcut(x_BCHW))


class _Padded(nn.Module):
    """Every ``stride``-th pixel, and ``more`` channels of zeros, half of them before and half after."""

    def __init__(self, stride: int, more: int) -> None:
        super().__init__()
        self.stride, self.more = stride, more

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = x_BCHW[:, :, :: self.stride, :: self.stride]
        return F.pad(x_BCHW, (0, 0, 0, 0, self.more // 2, self.more - self.more // 2))


class _TokenBlock(nn.Module):
    """Attention among all patches and an MLP, each on the normalised stream, each added to it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x_BND: Tensor) -> Tensor:
        split = self.qkv(self.norm1(x_BND)).unflatten(-1, (3, self.heads, -1))  # (B, N, 3, heads, D of a head)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x_BND = x_BND + self.out(mixed)
        return x_BND + self.mlp(self.norm2(x_BND))


def _conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


def _stage(inputs: int, outputs: int, pool: nn.Module) -> nn.Sequential:
    return nn.Sequential(_conv3x3(inputs, outputs), nn.BatchNorm2d(outputs), nn.ReLU(), pool)


def _blocks(inputs: int, outputs: int, count: int, stride: int, padded: bool) -> nn.Sequential:
    """Blocks of one stage; the first changes size and channels."""
    widths = [inputs] + [outputs] * (count - 1)
    return nn.Sequential(*(_ResidualBlock(w, outputs, 1 if i else stride, padded) for i, w in enumerate(widths)))


def _he(net: nn.Module) -> None:
    """Draw convolutions with the spread of He et al. (ICCV 2015), by fan-out."""
    convolutions: Iterable[nn.Module] = (part for part in net.modules() if isinstance(part, nn.Conv2d))
    for part in convolutions:
        nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")  # type: ignore[arg-type]


def _drawn(seed: int | None) -> AbstractContextManager[None]:
    """Draw with a seed of one's own, or go on drawing from the caller's generator."""
    return nullcontext() if seed is None else seeded(seed)
