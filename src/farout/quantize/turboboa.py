"""TurboBoA: Faster and Exact Attention-aware Quantization without Backpropagation.

Junhan Kim, Yeo Jeong Park, Seungwoo Son, Chungman Lee, Ho-young Kim, Joonyoung Kim, Yongkweon Jeon, ICLR 2026 (arXiv
2602.04929). Its base is BoA, "Attention-aware Post-training Quantization without Backpropagation" (arXiv 2406.13474),
which is ``TurboBoA(rows=1, alpha=0.0, adaptive=False, refine=0)``.

GPTQ takes the outputs of a map as independent. In an attention they are not: what counts are scores, in which errors of
a head's queries are weighed by its keys. BoA's Hessians ``H_out (x) H_in`` say so, and errors of an output are made up
for by the others. It goes row by row; TurboBoA takes blocks of rows at once, corrects for the errors of layers that are
quantized already, searches the steps of rows when their turn comes, and improves steps at the end.

The paper claims to be more than three times faster than BoA, and more accurate.

========================== ====================================== ==================================================
map                        ``H_in``                               ``H_out``, of each head
========================== ====================================== ==================================================
queries                    ``X'X``                                ``K'K`` as the product sees keys, turned back by
                                                                  each position's rotary embedding, in the mean
keys                       ``X'X``                                the same of the queries that share the key
values                     ``(A X)' A X`` of each head            none
all others                 ``X'X``                                none
========================== ====================================== ==================================================

Differences from the paper and the official code (SamsungLabs/TurboBoA, which was not used):

- Queries, keys and values are found by experiment, and rotary embeddings are undone through the running product
  (:mod:`farout.quantize._attention_hessians`), so that no model needs code of its own.
- Inputs are taken by falling Hessian, rows as they stand. The paper's numbers are the best of the four combinations.
- What errors of earlier layers do to values is mixed over tokens as the values are.
- ``adaptive=False`` leaves steps as they were searched before; in the code it is said to change nothing.
- Of a norm of queries (q-norm) the Jacobian at the calibration tokens counts; the code knows no such models.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import ClassVar

import torch

from farout.cards import paper
from farout.errors import BadInput
from farout.quantize._attention_hessians import HeadHessian, attention_hessians
from farout.quantize._attention_watch import attention_maps
from farout.quantize._blocks import Block
from farout.quantize.grid import Grid, Steps
from farout.quantize.recipe import Recipe, round_inputs, round_weights
from farout.quantize.round._common import Rounded
from farout.quantize.round.boa import boa
from farout.quantize.scheme import Scheme

__all__ = ["TurboBoA"]


@paper(
    "TurboBoA",
    title="TurboBoA: Faster and Exact Attention-aware Quantization without Backpropagation",
    authors="Kim, Park, Son, Lee, Kim, Kim, Jeon",
    arxiv="2602.04929",
    year=2026,
    kind="recipe",
    extra="llm",
    claim="More than three times faster than BoA, which takes rows of a head one by one, and more accurate.",
    differs="Queries, keys and values are found by experiment, and rotary embeddings undone through the running "
    "product. Inputs are taken by falling Hessian, rows as they stand; the paper shows the best of four orders.",
)
@dataclass(frozen=True)
class TurboBoA(Recipe):
    """Round queries and keys so that scores of attention change little, and all maps so that outputs do.

    Parameters
    ----------
    rows : int
        Rows of a head that are rounded at once; 1 in BoA.
    alpha : float
        How much of the errors of earlier layers is corrected for; 0 for none, as in BoA.
    adaptive : bool
        Whether the steps of rows are searched when their turn comes, and not before.
    refine : int
        Passes of improving steps at the end; none with groups.
    attention : bool
        Whether errors of queries and keys are weighed by heads. Without, and with ``values=False``, this is GPTQ with
        the steps and corrections above.
    values : bool
        Whether the inputs of values count as each head mixes them, which takes a Hessian of inputs for each head.
    order_columns, order_rows : bool
        Whether inputs, or rows of a head, with a large Hessian come first.
    search : {"hessian", "mse", "minmax"}
        What steps are searched to minimise.
    damping : float
        Share of the mean of a Hessian's diagonal that is added to it.

    Examples
    --------
    >>> from farout.quantize.recipe import recipe_of
    >>> base = recipe_of({"recipe": "turboboa", "rows": 1, "alpha": 0.0, "adaptive": False, "refine": 0})
    >>> base.rows, base.attention  # BoA
    (1, True)
    """

    both: ClassVar[bool] = True

    rows: int = 16  # N
    alpha: float = 0.25
    adaptive: bool = True
    refine: int = 1
    attention: bool = True
    values: bool = True
    order_columns: bool = True
    order_rows: bool = False
    search: str = "hessian"
    damping: float = 0.01

    def check(self, scheme: Scheme) -> None:
        """Refuse weights whose outputs share steps along an input."""
        if scheme.weights.per == "input":
            raise BadInput(
                "'TurboBoA' rounds outputs in turn, which cannot share steps of an input; choose another scheme"
            )

    def block(self, block: Block, scheme: Scheme) -> None:
        """Quantize a block, the maps of a feed at a time, each on inputs that come from rounded maps."""
        twin = _twin(block) if self.alpha else None
        heads = self._heads(block, twin)
        for feed in block.feeds:
            hessians, crosses = _moments(block, feed.maps, twin)

            def solve(name: str, weight: torch.Tensor, grid: Grid) -> Rounded:
                return self._rounded(weight, hessians[name], crosses.get(name), heads.get(name, {}), grid)  # noqa: B023

            round_weights(block, feed.maps, scheme.weights, solve)
            round_inputs(block, feed.maps, scheme.inputs)

    def _heads(self, block: Block, twin: Block | None) -> dict[str, dict[str, HeadHessian]]:
        """Find Hessians of heads by map, for queries ("q"), keys and values, while all maps are in full precision."""
        if not self.attention and not self.values:
            return {}
        maps = {name: block.module.get_submodule(name) for name in block.maps}

        def run(at: int) -> torch.Tensor:
            return block.calls.run(block.name, block.module, at, block.states[at])

        which = attention_maps(run, 0, maps)
        if not which:
            warnings.warn(
                f"no attention was seen in '{block.name}': outputs of its maps are weighed alike", stacklevel=6
            )
            return {}
        found = attention_hessians(
            run,
            range(len(block.states)),
            query=maps[which["q"]],
            key=maps[which["k"]],
            value=maps[which["v"]] if self.values else None,
            keep=block.calls.keep,
            full=None if twin is None else lambda at: _read(twin, which["v"], at).view(*block.states[at].shape[:2], -1),
        )
        wanted = ("q", "k") if self.attention else ()
        heads: dict[str, dict[str, HeadHessian]] = {}
        for word in (*wanted, *(("v",) if self.values else ())):
            heads.setdefault(which[word], {})[word] = found[word]
        return heads

    def _rounded(
        self,
        weight: torch.Tensor,
        hessian: torch.Tensor,
        cross: torch.Tensor | None,
        heads: dict[str, HeadHessian],
        grid: Grid,
    ) -> Rounded:
        """Round a weight: the outputs of each kind of head on their own, and those that are left together."""
        fixed = grid.steps(weight) if grid.per == "tensor" or grid.kind in ("mxfp4", "nvfp4") else None
        parts: list[tuple[torch.Tensor, Rounded]] = []

        def solve(
            rows: torch.Tensor, hessian: torch.Tensor, outputs: torch.Tensor | None, cross: torch.Tensor | None
        ) -> None:
            rounded = boa(
                weight[rows],
                hessian,
                outputs,
                grid,
                rows=self.rows,
                cross=cross,
                alpha=self.alpha,
                steps=None if fixed is None else _taken(fixed, rows),
                adaptive=self.adaptive,
                refine=self.refine,
                order_columns=self.order_columns,
                order_rows=self.order_rows,
                search=self.search,
                damping=self.damping,
            )
            parts.append((rows, rounded))

        left = torch.ones(len(weight), dtype=torch.bool, device=weight.device)
        for word, one in heads.items():
            rows = one.rows.flatten()
            left[rows] = False
            if word == "v":
                solve(rows, one.hessian, None, one.cross)
            else:
                solve(rows, hessian, one.hessian, cross)
        if bool(left.any()):
            solve(left.nonzero()[:, 0], hessian, None, cross)
        back = torch.cat([rows for rows, _ in parts]).argsort()
        values = torch.cat([rounded.weight for _, rounded in parts])[back]
        if fixed is not None:
            return Rounded(values, fixed, grid)
        scale = torch.cat([rounded.steps.scale for _, rounded in parts])
        zeros = [rounded.steps.zero for _, rounded in parts if rounded.steps.zero is not None]
        return Rounded(values, _taken(Steps(scale, torch.cat(zeros) if zeros else None), back), grid)


def _taken(steps: Steps, rows: torch.Tensor) -> Steps:
    """Return the steps of some rows."""
    if len(steps.scale) == 1:
        return steps
    return Steps(steps.scale[rows], None if steps.zero is None else steps.zero[rows], steps.global_scale)


def _twin(block: Block) -> Block:
    """Return the block in full precision, on the stream of the full model."""
    assert block.plain is not None
    return Block(block.name, block.index, copy.deepcopy(block.module), block.calls, block.plain, feeds=block.feeds)


def _moments(
    block: Block, names: tuple[str, ...], twin: Block | None
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the Hessians of maps that share an input, and, with the full block, ``(2/n) sum (x_full - x) x'``."""
    hessians = block.hessians(names)
    if twin is None:
        return hessians, {}
    total, count = torch.zeros_like(hessians[names[0]]), 0
    for at, keep in enumerate(block.calls.keep):
        x, full = (_read(one, names[0], at).float() for one in (block, twin))
        x, full = (x, full) if keep is None else (x[keep], full[keep])
        total.addmm_((full - x).T, x)
        count += len(x)
    return hessians, dict.fromkeys(names, total.mul_(2 / count))


def _read(block: Block, name: str, at: int) -> torch.Tensor:
    """Return what a map reads in a batch (N, I), padding included."""
    seen: list[torch.Tensor] = []
    block.watch_batch(name, at, seen.append)
    return seen[0]
