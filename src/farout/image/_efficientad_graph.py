"""EfficientAD for deployment: fewer and larger steps that give the same numbers, and a CUDA graph of them."""

from __future__ import annotations

from copy import deepcopy
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from farout.errors import BadInput
from farout.image._detector import pixels
from farout.image._efficientad_net import CHANNELS, judged
from farout.image._steps import WARM, fast_convolutions


class Joined(nn.Module):
    """EfficientAD's network on bytes, rewritten: its outputs are the same but for rounding.

    Pixels are scaled and normalised in the weights of the first layers, which have no padding, and those of teacher
    and student are one. Biases are added where ReLU and pooling are computed; those of the last layers where the maps
    are, whose differences, means and scales are one step. On a GPU the networks run beside each other, and what waits
    for memory is a kernel, where Triton is there and numbers are float16.

    Parameters
    ----------
    net : EfficientADNet
        Of which copies are made.
    dtype : torch.dtype
    """

    first: Tensor
    first_bias: Tensor
    last_bias: Tensor
    scale: Tensor
    mean: Tensor
    deviation: Tensor

    @torch.no_grad()
    def __init__(self, net: Any, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.size, self.dtype = net.size, dtype
        first = torch.cat([network[0].weight for network in (net.teacher, net.student)]) / net.deviation
        bias = torch.cat([network[0].bias for network in (net.teacher, net.student)])
        self.register_buffer("first_bias", bias - (first * net.mean).sum((1, 2, 3)))
        # for bytes over 256, which float16 holds exactly
        first = (first * (256 / 255)).to(dtype, memory_format=torch.channels_last)
        self.register_buffer("first", first)
        self.register_buffer("first_flat", F.pad(first.flatten(1).T, (0, 0, 0, 64 - 48)).contiguous())
        self.teacher, self.student = _Rest(net.teacher, dtype), _Rest(net.student, dtype)
        self.autoencoder = _copy(net.autoencoder, dtype)
        self.autoencoder[-1].bias = None
        taught, coded = _last_bias(net.student).split(CHANNELS)
        last = torch.stack([_last_bias(net.teacher) - taught, _last_bias(net.autoencoder) - coded])
        self.register_buffer("last_bias", last)
        factor = 0.5 * 0.1 / net.spread
        self.register_buffer("scale", torch.cat([factor / CHANNELS, -(factor * net.start).sum()[None]]))
        self.register_buffer("mean", 255 * net.mean)
        self.register_buffer("deviation", 255 * net.deviation)
        self.eval().requires_grad_(False)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores (B,) and maps (B, H, W) of bytes (B, 3, H, W)."""
        if x_BCHW.is_cuda:
            outputs = self._beside(x_BCHW)
        else:
            first, second = self._first(x_BCHW)
            outputs = self.teacher(first), self.student(second), self._code(x_BCHW)
        return judged(self._map(*outputs), self.size)

    def _beside(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run the networks on streams of their own; one image fills no GPU."""
        main = torch.cuda.current_stream(x_BCHW.device)
        one, two = torch.cuda.Stream(x_BCHW.device), torch.cuda.Stream(x_BCHW.device)
        one.wait_stream(main)
        with torch.cuda.stream(one):
            code = self._code(x_BCHW)
        first, second = self._first(x_BCHW)
        two.wait_stream(main)
        with torch.cuda.stream(two):
            teacher = self.teacher(first)
        student = self.student(second)
        main.wait_stream(one)
        main.wait_stream(two)
        return teacher, student, code

    def _code(self, x_BCHW: Tensor) -> Tensor:
        """Run the autoencoder, whose padding needs pixels of mean 0."""
        normal = (x_BCHW - self.mean) / self.deviation
        return self.autoencoder(normal.to(self.dtype, memory_format=torch.channels_last))

    def _first(self, x_BCHW: Tensor) -> Any:
        """Run the first layers of teacher and student; an output each."""
        kernels = _kernels(x_BCHW, self.dtype)
        if kernels is not None:
            return kernels.first_layer(x_BCHW, self.first_flat, self.first_bias, 2)
        x_BCHW = x_BCHW.to(self.dtype, memory_format=torch.channels_last) / 256
        return _pooled(F.conv2d(x_BCHW, self.first), self.first_bias).chunk(2, 1)

    def _map(self, teacher: Tensor, student: Tensor, code: Tensor) -> Tensor:
        """Return the mean of both normalised maps (B, h, w)."""
        kernels = _kernels(teacher, self.dtype)
        if kernels is not None:
            return kernels.combined_map(teacher, student, code, self.last_bias, self.scale)
        taught, coded = student.float().split(CHANNELS, 1)
        bias_2C11 = self.last_bias[:, :, None, None]
        first = (teacher.float() - taught + bias_2C11[0]).square().sum(1)
        second = (code.float() - coded + bias_2C11[1]).square().sum(1)
        return self.scale[0] * first + self.scale[1] * second + self.scale[2]


class _Rest(nn.Module):
    """A patch description network behind its first pooling, without the bias of its last layer."""

    bias: Tensor

    def __init__(self, network: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.second, self.layers = _copy(network[3:4], dtype), _copy(network[6:], dtype)
        self.register_buffer("bias", network[3].bias.detach().clone())
        self.second[0].bias = self.layers[-1].bias = None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.layers(_pooled(self.second(x_BCHW), self.bias))


class Replay:
    """A fitted EfficientAD that takes bytes; on a GPU a captured CUDA graph in half precision.

    Call it with images, or fill ``images`` yourself, call :meth:`replay` and read ``scores`` and ``maps``, which the
    next call overwrites.

    Attributes
    ----------
    images : uint8 Tensor (batch_size, 3, size, size)
    scores : float32 Tensor (batch_size,)
    maps : float32 Tensor (batch_size, size, size)

    Examples
    --------
    >>> from farout.image._efficientad_net import EfficientADNet
    >>> replay = Replay(EfficientADNet("S", 64).eval(), 2, torch.device("cpu"))
    >>> scores, maps = replay(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    >>> scores.shape, maps.shape
    (torch.Size([1]), torch.Size([1, 64, 64]))
    """

    def __init__(self, net: Any, batch_size: int, place: torch.device) -> None:
        if batch_size < 1:
            raise BadInput(f"'batch_size' must be at least 1, not {batch_size}")
        self.images = torch.zeros(batch_size, 3, net.size, net.size, dtype=torch.uint8, device=place)
        self.graph: Any = None
        self.net: Any = net
        if place.type == "cuda":
            self.net = Joined(net, torch.float16)
            self._capture()
        self.replay()

    def __call__(self, images: Any) -> tuple[Tensor, Tensor]:
        """Score images, at most ``batch_size`` of them.

        Parameters
        ----------
        images : uint8 Tensor or array (b, 3, size, size)

        Returns
        -------
        float32 Tensors (b,) and (b, size, size)

        Raises
        ------
        BadInput
            The images have another shape or type, or a score is not finite.
        """
        images = torch.as_tensor(images)
        n = len(images) if images.ndim else 0
        most, *shape = self.images.shape
        if images.dtype != torch.uint8 or list(images.shape[1:]) != shape or not 0 < n <= most:
            raise BadInput(
                f"the graph takes 1 to {most} images of {shape} as bytes, not {images.dtype} {tuple(images.shape)}; "
                "scale them first, or take another 'batch_size'"
            )
        self.images[:n].copy_(images)
        self.replay()
        if not bool(torch.isfinite(self.scores[:n]).all()):
            raise BadInput("a score is not finite: half precision overflows; take outlier_score(X)")
        return self.scores[:n].clone(), self.maps[:n].clone()

    def replay(self) -> None:
        """Score what lies in ``images``."""
        if self.graph is not None:
            self.graph.replay()
            return
        with torch.no_grad():
            self.scores, self.maps = self.net(pixels(self.images))

    def _capture(self) -> None:
        side = torch.cuda.Stream(self.images.device)
        side.wait_stream(torch.cuda.current_stream(self.images.device))
        with torch.no_grad(), fast_convolutions(self.images.device):
            with torch.cuda.stream(side):
                for _ in range(WARM):
                    self.net(self.images)
            torch.cuda.current_stream(self.images.device).wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.scores, self.maps = self.net(self.images)
        self.graph = graph


def _pooled(x_BCHW: Tensor, bias: Tensor) -> Tensor:
    """Add a bias, and take ReLU and the mean over 2 x 2 pixels."""
    kernels = _kernels(x_BCHW, x_BCHW.dtype)
    if kernels is not None:
        return kernels.pooled(x_BCHW, bias)
    return F.avg_pool2d(F.relu(x_BCHW + bias[:, None, None].to(x_BCHW.dtype)), 2)


def _kernels(x: Tensor, dtype: torch.dtype) -> Any:
    """Return the module of kernels where they can run."""
    if not x.is_cuda or dtype != torch.float16 or torch.version.hip or find_spec("triton") is None:
        return None
    from farout.image import _efficientad_kernels

    return _efficientad_kernels


def _copy(layers: Any, dtype: torch.dtype) -> Any:
    """Copy layers in another precision; what ReLU is given is not needed again."""
    copied = deepcopy(layers).to(dtype=dtype, memory_format=torch.channels_last)
    for layer in copied:
        if isinstance(layer, nn.ReLU):
            layer.inplace = True
    return copied


def _last_bias(network: Any) -> Tensor:
    return network[-1].bias.detach()
