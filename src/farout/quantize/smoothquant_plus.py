"""SmoothQuant+: Accurate and Efficient 4-bit Post-Training WeightQuantization for LLM.

Jiayi Pan, Chengcan Wang, Kaifu Zheng, Yangguang Li, Zhenyu Wang, Bin Feng, 2023 (arXiv 2312.03788).

Weights lose most where they meet outliers of activations, which multiply their errors. So SmoothQuant's scales are
taken before 4-bit rounding in groups, with one strength for the whole model: that which leaves the least error at its
end, where errors of all layers have added up.

The paper claims Code Llama-34B in 4 bits on one GPU of 40 GB without loss, at 1.9 to 4.0 times the throughput of FP16
on two.

The search was never published as code (Adlik/smoothquantplus holds SmoothQuant); it follows the paper's equations as
far as they are known, and tries no smoothing as well. The error is the mean squared change of what the last block or
the model gives. A scale of columns is tried as ``Q(W diag(s)) diag(1/s)``, which computes the same as folding it; the
rows of a source that take ``1/s`` over are rounded in ranges of their own, which a factor does not change. Codes are
clamped to 4 bits, which the published code for serving (Adlik/vllm) leaves out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from farout.cards import paper
from farout.errors import BadInput
from farout.inside._running import call
from farout.inside._sites import first_tensor, mapped
from farout.quantize._blocks import Block, Calls
from farout.quantize._structure import Feed
from farout.quantize.grid import Grid
from farout.quantize.move.scale import folds, scale, scaled_weight
from farout.quantize.recipe import Recipe, Work, round_weights
from farout.quantize.round.rtn import rtn
from farout.quantize.scheme import Scheme
from farout.quantize.smoothquant import norm_fed, smoothing

__all__ = ["SmoothQuantPlus"]

NONE = -1.0  # in place of a strength: no smoothing
ERRORS = ("states", "output")
GRID = tuple(round(0.05 * i, 2) for i in range(21))


@paper(
    "SmoothQuant+",
    title="SmoothQuant+: Accurate and Efficient 4-bit Post-Training WeightQuantization for LLM",
    authors="Pan, Wang, Zheng, Li, Wang, Feng",
    arxiv="2312.03788",
    year=2023,
    kind="recipe",
    extra="llm",
    claim="Code Llama-34B in 4 bits on one GPU of 40 GB without loss, at 1.9 to 4.0 times the throughput of FP16 on "
    "two.",
    differs="The search was not published; the error is that of what the last block or the model gives. No smoothing "
    "is tried too.",
)
@dataclass(frozen=True)
class SmoothQuantPlus(Recipe):
    """Smooth with the one strength that leaves the least error at the end of the model, and round in groups.

    Parameters
    ----------
    alpha : float, optional
        The strength, in [0, 1]; -1 for no smoothing. Found by search where it is None.
    error : {"states", "output"}
        What the search compares: what the last block gives, or the model (logits; the last hidden states of an
        encoder), which keeps the full model's output on all calibration data in memory.

    Raises
    ------
    BadInput
        There is no such strength or error.

    Examples
    --------
    >>> from farout.quantize import quantize
    >>> block = lambda: torch.nn.Sequential(torch.nn.LayerNorm(16), torch.nn.Linear(16, 16))
    >>> model = torch.nn.Sequential(block(), block())
    >>> quantized = quantize(model, "smoothquant_plus", "w4a16g8", [torch.randn(4, 64, 16)])
    >>> quantized.recipe["alpha"] in (-1.0, *GRID), quantized.notes[0][:19]
    (True, 'of 22 candidates, s')
    """

    full: ClassVar[bool] = True

    alpha: float | None = None
    error: str = "states"

    def __post_init__(self) -> None:
        if self.alpha is not None and self.alpha != NONE and not 0 <= self.alpha <= 1:
            raise BadInput(f"alpha is from 0 to 1, or {NONE:g} for no smoothing, not {self.alpha}")
        if self.error not in ERRORS:
            raise BadInput(f"the error is that of 'states' or 'output', not '{self.error}'")

    def check(self, scheme: Scheme) -> None:
        """Refuse schemes that round inputs, or weights otherwise than as integers in rows or groups of rows."""
        weights = scheme.weights
        if scheme.inputs is not None or weights.kind != "int" or weights.per not in ("channel", "group"):
            raise BadInput(
                f"SmoothQuant+ rounds weights to integers in rows or groups of inputs, and no inputs; not '{scheme}'. "
                "It can do 'w4a16g128-clamped' (the paper's), 'w4a16g128', 'w4a16' and the like; its grid is always "
                "asymmetric, with zero points clamped"
            )

    def begin(self, work: Work) -> Recipe | None:
        """Search the strength."""
        if self.alpha is not None:
            return None
        calls = Calls(work.model, work.blocks, work.batches, work.forward)
        states, scales = calls.states, {}
        start = list(states)
        for name in work.blocks:
            block = work.block(name, calls, states)
            feeds = _smoothed(block)
            facts = block.facts([feed.maps[0] for feed in feeds])
            scales[name] = {feed: facts[feed.maps[0]].absmax for feed in feeds}
            states = block.outputs()
        if self.error == "output":
            states = list(_outputs(work, calls, start, self.error))
        losses = {}
        for i, alpha in enumerate((NONE, *GRID)):
            if work.progress is not None:
                work.progress("strength", i / (len(GRID) + 1))
            with _tried(work, scales, alpha, _grid(work.scheme)):
                losses[alpha] = _loss(_outputs(work, calls, start, self.error), states, calls.keep)
        if work.progress is not None:
            work.progress("strength", 1.0)
        best = min(losses, key=lambda alpha: losses[alpha])
        told = "no smoothing" if best == NONE else f"strength {best:g}"
        where = "of the last block" if self.error == "states" else "of the model"
        curve = ", ".join(f"{alpha:g}: {losses[alpha]:.4g}" for alpha in GRID)
        work.notes.append(
            f"of {len(losses)} candidates, {told} changes the output {where} least: by {losses[best]:.4g} (mean "
            f"squared), where no smoothing does by {losses[NONE]:.4g}, and strengths do by {curve}"
        )
        return replace(self, alpha=best)

    def block(self, block: Block, scheme: Scheme) -> None:
        """Quantize a block."""
        assert self.alpha is not None
        if self.alpha != NONE:
            feeds = _smoothed(block)
            facts = block.facts([feed.maps[0] for feed in feeds])
            for feed in feeds:
                weights = [block.weight(name) for name in feed.maps]
                scale(block, feed, feed.at_source(smoothing(facts[feed.maps[0]].absmax, weights, self.alpha)))
        round_weights(block, block.maps, _grid(scheme), lambda name, weight, grid: rtn(weight, grid))


def _grid(scheme: Scheme) -> Grid:
    """Return the paper's grid: asymmetric, 0 not forced in."""
    return replace(scheme.weights, rule="clamped")


def _smoothed(block: Block) -> list[Feed]:
    """Return the feeds that are smoothed: after norms, and whatever else has a source that takes the scales over."""
    after = norm_fed(block)
    return [feed for feed in block.feeds if feed in after or folds(block, feed)]


@contextmanager
def _tried(work: Work, scales: dict[str, dict[Feed, torch.Tensor]], alpha: float, grid: Grid) -> Iterator[None]:
    """Round all weights as they would be with a strength, and put them back."""
    kept = []
    try:
        for name, module in work.blocks.items():
            feeds = {path: (feed, absmax) for feed, absmax in scales[name].items() for path in feed.maps}
            weights: dict[str, Any] = {
                path: module.get_submodule(path).weight for feed in work.feeds[name] for path in feed.maps
            }
            plain = {path: weight.data for path, weight in weights.items()}
            for path, weight in weights.items():
                s = torch.ones_like(weight[0])
                if alpha != NONE and path in feeds:
                    feed, absmax = feeds[path]
                    s = smoothing(absmax, [plain[one] for one in feed.maps], alpha)
                    s = feed.at_maps(feed.at_source(s))
                kept.append((weight, weight.data))
                tried = rtn(scaled_weight(plain[path], s), grid.fitted(weight.shape[1])).weight
                weight.data = (tried / s).to(weight)
        yield
    finally:
        for weight, data in kept:
            weight.data = data


def _outputs(work: Work, calls: Calls, states: list[torch.Tensor], what: str) -> Iterator[torch.Tensor]:
    """Give what the last block or the model makes of each batch, as the weights stand."""
    for at, x in enumerate(states):
        if what == "output":
            batch = mapped(work.batches[at], lambda tensor, device=x.device: tensor.to(device))
            found = first_tensor((work.forward or call)(work.model, batch))
            assert found is not None
            yield found
        else:
            for name, module in work.blocks.items():
                x = calls.run(name, module, at, x)
            yield x


def _loss(found: Iterable[torch.Tensor], targets: list[torch.Tensor], keep: list[torch.Tensor | None]) -> float:
    """Return the mean squared change, without padding."""
    total, count = 0.0, 0
    for x, target, kept in zip(found, targets, keep, strict=True):
        change = (x.float() - target.float()).flatten(0, -2)
        change = change if kept is None or len(kept) != len(change) else change[kept]
        total, count = total + float(change.double().square().sum()), count + change.numel()
    return total / count
