"""A model block by block: what its blocks are called with, and one block at a time with all that recipes ask of it.

The model is run once on the calibration batches, up to its last block, to keep what each block is called with beside
the hidden states. From then on blocks run one by one on the kept states, so memory holds the weights, one set of hidden
states (two where a recipe compares with full precision), and what happens in one block.

Shape legend: N tokens, I channels of a map's input, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from farout.errors import BadInput, NothingMatched, NotIdentity
from farout.inside._running import call
from farout.inside._sites import first_tensor, mapped, sites_of, tokens_of
from farout.quantize._linear import QuantLinear
from farout.quantize._structure import Feed, feeds_of, maps_of

__all__ = ["Block", "Calls", "blocks_of"]

_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the longest row of like blocks, by name, in order.

    Raises
    ------
    NothingMatched
        The model has no such row, or there is no linear map in it.
    """
    rows: dict[str, dict[str, nn.Module]] = {}
    for name, site in sites_of(model).items():
        if site.kind == "residual" and maps_of(site.module):
            parent, _, last = name.rpartition(".")
            rows.setdefault(parent if last.isdigit() else name, {})[name] = site.module
    if not rows:
        raise NothingMatched(
            "row of blocks with linear maps", type(model).__name__, [n for n, _ in model.named_children()]
        )
    return max(rows.values(), key=len)


class _Stop(Exception):
    """Leaves a forward pass when all that is wanted has been seen."""


@contextmanager
def _uncached(model: nn.Module) -> Iterator[None]:
    """Run without a cache of keys and values."""
    config: Any = getattr(model, "config", None)
    kept = getattr(config, "use_cache", None)
    if kept:
        config.use_cache = False
    try:
        yield
    finally:
        if kept:
            config.use_cache = kept


class Calls:
    """What the blocks of a model are called with, batch by batch.

    Attributes
    ----------
    states : list of tensor
        What enters the first block, for each batch.
    keep : list of (bool tensor (N,) or None)
        Which tokens of a batch are no padding.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Mapping[str, nn.Module],
        batches: Sequence[Any],
        forward: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        self.states: list[torch.Tensor] = []
        self.keep: list[torch.Tensor | None] = []
        self.rest: dict[str, list[tuple[tuple, dict]]] = {name: [] for name in blocks}
        self.shared: list[torch.Tensor] = []  # tensors beside the states, each kept once
        last = list(blocks)[-1]
        device = next(model.parameters()).device

        def enter(name: str) -> Callable:
            def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
                x = args[0] if args else kwargs["hidden_states"]
                if name == next(iter(blocks)):
                    self.states.append(x.detach())
                rest = {key: value for key, value in kwargs.items() if key != "hidden_states"}
                self.rest[name].append((self._held(args[1:]), self._held(rest)))
                if name == last:
                    raise _Stop

            return hook

        with ExitStack() as stack, torch.no_grad(), _uncached(model):
            for name, block in blocks.items():
                stack.callback(block.register_forward_pre_hook(enter(name), with_kwargs=True).remove)
            for batch in batches:
                batch = mapped(batch, lambda tensor: tensor.to(device))
                mask = tokens_of(batch)[1]
                self.keep.append(None if mask is None else mask.flatten())
                try:
                    (forward or call)(model, batch)
                except _Stop:
                    continue
                raise BadInput(f"'{type(model).__name__}' did not call its last block '{last}' on a batch")

    def _held(self, value: Any) -> Any:
        """Keep tensors that are equal to one kept before only once; drop caches."""
        if isinstance(value, torch.Tensor):
            for one in self.shared:
                if one is value or (one.shape == value.shape and one.dtype == value.dtype and torch.equal(one, value)):
                    return one
            self.shared.append(value.detach())
            return self.shared[-1]
        if isinstance(value, Mapping):
            return {
                key: self._held(item) for key, item in value.items() if "past_key" not in key and "cache" not in key
            }
        if isinstance(value, tuple | list):
            return type(value)(self._held(item) for item in value)
        return value

    def run(
        self, name: str, block: nn.Module, at: int, x: torch.Tensor, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """Run a block on a state, as it was called on batch ``at``; in another precision if asked."""
        args, kwargs = self.rest[name][at]
        if dtype is not None:
            x = x.to(dtype)
            args, kwargs = (
                mapped(value, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)
                for value in (args, kwargs)
            )
        out = first_tensor(block(x, *args, **kwargs))
        assert out is not None
        return out


@dataclass
class Facts:
    """What calibration saw of the channels that a map reads: each (I,), float32."""

    absmax: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    mean_abs: torch.Tensor

    def joined(self, other: Facts) -> Facts:
        """Join with those of more tokens; ``mean_abs`` still holds sums then."""
        return Facts(
            torch.maximum(self.absmax, other.absmax),
            torch.minimum(self.low, other.low),
            torch.maximum(self.high, other.high),
            self.mean_abs + other.mean_abs,
        )


class Block:
    """One block under quantization.

    Attributes
    ----------
    name, index : str, int
        The module in the model, and its place among the blocks.
    module : torch.nn.Module
    maps : list of str
        Paths, in the block, of the linear maps that run, in that order.
    feeds : list of Feed
        Which of them share an input, and where it comes from.
    states : list of tensor
        What enters the block, by batch: in the stream of the model as it has been quantized so far.
    plain : list of tensor or None
        The same in the stream of the full model, where the recipe asked for it.
    targets : list of tensor or None
        What the block in full precision makes of ``plain``.
    notes : list of str
        What a user must know, in sentences; a recipe may add to them.
    """

    def __init__(
        self,
        name: str,
        index: int,
        module: nn.Module,
        calls: Calls,
        states: list[torch.Tensor],
        plain: list[torch.Tensor] | None = None,
        feeds: list[Feed] | None = None,
        notes: list[str] | None = None,
    ) -> None:
        self.name, self.index, self.module, self.calls = name, index, module, calls
        self.states, self.plain = states, plain
        self.targets: list[torch.Tensor] | None = None
        self.notes = [] if notes is None else notes
        self.feeds = self.find_feeds() if feeds is None else feeds
        self.maps = [name for feed in self.feeds for name in feed.maps]

    def find_feeds(self) -> list[Feed]:
        """Find which maps share an input, by experiments on the first batch."""
        return feeds_of(self.module, lambda twin: self.calls.run(self.name, twin, 0, self.states[0], torch.float32))

    def feed_of(self, name: str) -> Feed:
        """Return the feed that a map reads."""
        return next(feed for feed in self.feeds if name in feed.maps)

    def own(self, name: str) -> QuantLinear:
        """Return a map as one whose numbers can be rounded, putting it into the block where it is not yet."""
        module = QuantLinear.of(self.module.get_submodule(name))
        self.module.set_submodule(name, module)
        return module

    def weight(self, name: str) -> torch.Tensor:
        """Return the weight (O, I) of a map as it stands."""
        module: Any = self.module.get_submodule(name)
        return module.weight.detach()

    def run(self, at: int, x: torch.Tensor | None = None) -> torch.Tensor:
        """Run the block as it stands on a batch, by default on its state in the quantized stream."""
        with torch.no_grad():
            return self.calls.run(self.name, self.module, at, self.states[at] if x is None else x)

    def outputs(self, states: Sequence[torch.Tensor] | None = None) -> list[torch.Tensor]:
        """Run the block as it stands on all batches."""
        return [self.run(at, x) for at, x in enumerate(self.states if states is None else states)]

    def watch(
        self,
        names: Sequence[str],
        take: Callable[[str, torch.Tensor], None],
        states: Sequence[torch.Tensor] | None = None,
    ) -> None:
        """Run all batches; ``take(name, x)`` gets what maps read (N, I), after transforms and without padding."""
        keep: torch.Tensor | None = None
        last = [name for name in self.maps if name in names][-1]
        calls = self.feed_of(last).calls
        left = 0

        def enter(name: str) -> Callable:
            def hook(module: nn.Module, args: tuple) -> None:
                nonlocal left
                x = module.enter(args[0]) if isinstance(module, QuantLinear) else args[0]
                rows = x.detach().reshape(-1, x.shape[-1])
                take(name, rows if keep is None else rows[keep])
                left -= name == last
                if not left:
                    raise _Stop  # what follows is of no use

            return hook

        with ExitStack() as stack:
            for name in names:
                stack.callback(self.module.get_submodule(name).register_forward_pre_hook(enter(name)).remove)
            for at, x in enumerate(self.states if states is None else states):
                keep, left = self.calls.keep[at], calls
                with suppress(_Stop):
                    self.run(at, x)

    def watch_batch(self, name: str, at: int, take: Callable[[torch.Tensor], None]) -> None:
        """Run one batch; ``take(x)`` gets what a map reads (N, I), padding included, after transforms."""
        module = self.module.get_submodule(name)

        def enter(module: nn.Module, args: tuple) -> None:
            x = module.enter(args[0]) if isinstance(module, QuantLinear) else args[0]
            take(x.detach().reshape(-1, x.shape[-1]))
            raise _Stop

        hook = module.register_forward_pre_hook(enter)
        try:
            with suppress(_Stop):
                self.run(at)
        finally:
            hook.remove()

    def hessians(self, names: Sequence[str], states: Sequence[torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
        """Return ``(2/n) sum x x'`` (I, I), float32, of what maps read; maps of a feed share theirs.

        Raises
        ------
        BadInput
            What a map reads holds NaN or infinite numbers.
        """
        leads: dict[str, str] = {}  # of each feed, the map that is watched
        for name in names:
            feed = self.feed_of(name)
            same = [n for n in feed.maps if n in leads.values() and not self._turned(n) and not self._turned(name)]
            leads[name] = same[0] if same else name
        sums: dict[str, torch.Tensor] = {}
        counts: dict[str, int] = {}

        def take(name: str, x: torch.Tensor) -> None:
            x = x.float()
            sums[name] = sums[name].addmm_(x.T, x) if name in sums else x.T @ x
            counts[name] = counts.get(name, 0) + len(x)

        self.watch(sorted(set(leads.values())), take, states)
        for name, total in sums.items():
            self._finite(name, total.diagonal())
            total.mul_(2 / counts[name])
        return {name: sums[lead] for name, lead in leads.items() if lead in sums}

    def _turned(self, name: str) -> bool:
        module = self.module.get_submodule(name)
        return isinstance(module, QuantLinear) and len(module.before) > 0

    def facts(self, names: Sequence[str], states: Sequence[torch.Tensor] | None = None) -> dict[str, Facts]:
        """Return extremes and means of the channels that maps read.

        The recorder would give these and much more; here a pass over the calibration data is all that may be spent.

        Raises
        ------
        BadInput
            What a map reads holds NaN or infinite numbers.
        """
        found: dict[str, Facts] = {}
        counts: dict[str, int] = {}

        def take(name: str, x: torch.Tensor) -> None:
            x = x.float()
            size, sums = x.abs(), found.get(name)
            one = Facts(size.amax(0), x.amin(0), x.amax(0), size.sum(0))
            found[name] = one if sums is None else sums.joined(one)
            counts[name] = counts.get(name, 0) + len(x)

        self.watch(names, take, states)
        for name, facts in found.items():
            self._finite(name, facts.mean_abs)
            facts.mean_abs = facts.mean_abs / counts[name]
        return found

    def _finite(self, name: str, sums: torch.Tensor) -> None:
        if not bool(torch.isfinite(sums).all()):
            raise BadInput(
                f"what '{self.name}.{name}' reads in calibration holds numbers that are not finite; look for them with "
                "farout inspect, or calibrate in float32"
            )

    @contextmanager
    def unchanged(self, what: str) -> Iterator[None]:
        """Prove that what happens inside leaves the block's output on the first batch as it was.

        Raises
        ------
        NotIdentity
            It does not.
        """
        before = self.run(0)
        yield
        prove(before, self.run(0), f"{what} in '{self.name}'")


def prove(before: torch.Tensor, after: torch.Tensor, what: str) -> None:
    """Raise NotIdentity unless two outputs are the same but for rounding in their precision."""
    apart = float((after - before).abs().max()) / max(float(before.abs().max()), 1e-30)
    limit = _TOLERANCE.get(before.dtype, 1e-2)
    if not apart <= limit:
        raise NotIdentity(
            f"{what} changed the output by {apart:.2g} of its largest number, where rounding explains {limit:g}: it is "
            "no identity on this model; leave it out, and report the model's structure"
        )
