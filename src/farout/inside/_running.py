"""How a recorder runs batches: calls, memory that runs out, and work on the side that leaves no trace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import Any


def call(model: Any, batch: Any) -> Any:
    """Hand a batch to a model in the way its type suggests."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, list | tuple) else model(batch)


def board() -> Any:
    """Return the sums that stay on a GPU, where there is one and Triton with it."""
    import torch

    if not torch.cuda.is_available() or find_spec("triton") is None:
        return None
    from farout.inside._board import Board

    return Board()


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
