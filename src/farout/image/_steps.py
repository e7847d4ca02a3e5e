"""Training steps of convolutional networks, many and small: captured on a GPU, in bfloat16, and plain on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from farout.errors import BadInput

WARM = 3  # steps before a capture, in which libraries choose their ways
REPORTS = 100  # steps between two looks at the loss


def on(x: Tensor, place: torch.device) -> Tensor:
    """Bring a tensor to a device without waiting for what the device is at."""
    return x.to(place, non_blocking=True)


class Steps:
    """A training step to be called again and again; on a GPU it is captured after a few calls, and replayed.

    Replaying spares the launches of a few hundred small kernels, which at batch 1 take longer than the work. The step
    must read its inputs from tensors that stay where they are, and must not wait for the GPU.
    """

    def __init__(self, step: Callable[[], None], place: torch.device) -> None:
        self.step, self.place = step, place
        self.graph: Any = None
        self.calls = 0

    def __call__(self) -> None:
        """Take a step."""
        self.calls += 1
        if self.place.type != "cuda":
            self.step()
        elif self.graph is not None:
            self.graph.replay()
        elif self.calls <= WARM:
            side = torch.cuda.Stream(self.place)
            side.wait_stream(torch.cuda.current_stream(self.place))
            with torch.cuda.stream(side):
                self.step()
            torch.cuda.current_stream(self.place).wait_stream(side)
        else:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.step()
            self.graph.replay()  # what is captured is not run


def adam(weights: Any, learning_rate: float, weight_decay: float, place: torch.device) -> torch.optim.Adam:
    """Return an optimizer that can be captured on a GPU."""
    on_gpu = place.type == "cuda"
    return torch.optim.Adam(weights, learning_rate, weight_decay=weight_decay, fused=on_gpu or None, capturable=on_gpu)


def quick(place: torch.device) -> Any:
    """Compute in bfloat16 on a GPU, where torch thinks it safe; a captured step must not keep weights it has cast."""
    return torch.autocast(place.type, torch.bfloat16, enabled=place.type == "cuda", cache_enabled=False)


def fast_convolutions(place: torch.device) -> Any:
    """Let cuDNN try its ways of each shape; leave all as it is elsewhere."""
    cudnn = torch.backends.cudnn
    return cudnn.flags(
        enabled=cudnn.enabled,
        benchmark=place.type == "cuda" or cudnn.benchmark,
        deterministic=cudnn.deterministic,
        allow_tf32=cudnn.allow_tf32,
    )


def check_finite(losses: dict[str, float], step: int) -> None:
    """Refuse to go on from a loss that is lost."""
    lost = [name for name, value in losses.items() if not abs(value) < float("inf")]
    if lost:
        raise BadInput(f"the loss '{lost[0]}' is {losses[lost[0]]} after {step} steps; lower the learning rate")
