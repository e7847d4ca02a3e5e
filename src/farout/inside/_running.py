"""How a recorder runs batches: calls, memory that runs out, and work on the side that leaves no trace."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np


def call(model: Any, batch: Any) -> Any:
    """Hand a batch to a model in the way its type suggests."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, list | tuple) else model(batch)


def board() -> Any:
    """Return the sums that stay on a GPU, where there is one and Triton with it, and both give the right sums."""
    import torch

    if not torch.cuda.is_available() or find_spec("triton") is None or not _sound():
        return None
    from farout.inside._board import Board

    return Board()


_CHECKED = "count", "mean", "m2", "m3", "m4", "low", "high", "magnitude", "row_sums", "position_peak", "histogram"


def _near(found: np.ndarray, expected: np.ndarray) -> bool:
    """Whether sums agree to what float32 holds, with the largest as measure: third powers cancel."""
    return np.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(np.abs(expected).max()))


@cache
def _sound() -> bool:
    """Whether the kernels give here what torch gives: versions of Triton and kinds of GPU are many. Asked once."""
    import torch

    from farout.inside._accumulators import ChannelStats
    from farout.inside._board import Board

    rows = torch.randn(300, 200, generator=torch.Generator().manual_seed(0)) * 3 + torch.arange(200) / 50
    rows[7, 3], rows[20, 5], rows[41, 9] = torch.nan, torch.inf, 5_000.0
    expected = ChannelStats.of(rows, 30)
    try:
        tried = Board()
        tried.start()
        taken = tried.take("x", rows.cuda(), 30, None)
        tried.keep()
        found = tried.stats()["x"]
    except Exception as error:
        why = f"they failed ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    else:
        far = [name for name in _CHECKED if not _near(getattr(found, name), getattr(expected, name))]
        if taken and not far:
            return True
        why = f"their {', '.join(far) or 'sums'} differ"
    warnings.warn(f"the GPU kernels of the recorder are not used, since {why}; torch sums instead", stacklevel=4)
    return False


@contextmanager
def unseen() -> Iterator[None]:
    """Compute on the side: without gradients, autocast or other watchers."""
    import torch

    with torch.no_grad(), torch._C.DisableTorchFunction(), ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; torch's allocator on the CPU has no class of its own for it."""
    words = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in words or "can't allocate memory" in words
