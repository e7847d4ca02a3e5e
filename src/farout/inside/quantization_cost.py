"""What plain rounding of each linear map would cost, and what is left of it with each remedy.

A map ``y = x W'`` is computed again with its weights and its input rounded to the nearest step of a symmetric grid
(``round(x / s)`` with ``s = max|x| / (2^(b-1) - 1)``), and the change of ``y`` is measured:

======= ============================= =================================
scheme   weights                       input
======= ============================= =================================
w8a8     8 bits, a scale an output     8 bits, one scale for the tensor
w4a16    4 bits, a scale an output     as it is
w4a4     4 bits, a scale an output     4 bits, a scale a token
======= ============================= =================================

Remedies are tried on the same numbers, each in its simplest form, so that what they gain is measured and not believed:
a scale for each token; SmoothQuant's scales (alpha 0.5); a rotation of the input channels (Hadamard in blocks of the
largest power of two that divides them, random signs); the columns that reach 6 in 16 bits, as LLM.int8() does; the
first token in 16 bits; a scale for each 128 weights.

An error in a map matters as far as the model listens to it. ``loss`` predicts that from one backward pass: with ``d``
the change of ``y`` and ``g`` the gradient of the log-probability of outputs that are drawn from the model itself,
``sum_t (g_t d_t)^2 / 2`` estimates the Kullback-Leibler divergence between the model's outputs before and after (the
expectation of ``g g'`` is Fisher's information). Changes at different tokens count as independent, which spares many
draws; where attention averages the same error over tokens, as it does with values, the cost is underestimated, by up to
five times in SmolLM2. A model without logits is probed along random directions of its output instead, and the estimate
is the squared change over the squared output.

The map that gives the logits is left out, as recipes leave it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any

from farout.errors import BadInput
from farout.inside._rounded_map import REMEDIES, SCHEMES, RoundedMap, quantizable
from farout.inside._running import call
from farout.inside._sites import Site, first_tensor, mapped, sites_of, tokens_of
from farout.io.state import saved
from farout.kit.training import torch_or_say

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["REMEDIES", "SCHEMES", "Cost", "quantization_costs"]


@saved("quantization_cost")
@dataclass(frozen=True)
class Cost:
    """What plain rounding costs at one linear map.

    Attributes
    ----------
    layer, weight : str
        The module, and its parameter.
    shape : tuple of int
        Of the weight.
    errors : dict of str to float
        By scheme: squared change of the output over the squared output.
    remedies : dict of str to dict of str to float
        The same with a remedy, by remedy and scheme.
    loss : dict of str to float
        By scheme: predicted divergence in nats a token (or sample); for a model without logits, squared change of its
        output over the squared output. Empty where no gradient reaches the map.
    remedy_loss : dict of str to dict of str to float
        The same with a remedy, by remedy and scheme; empty where ``loss`` is.
    nats : bool
        Whether ``loss`` is in nats, and not relative to the output.
    """

    layer: str
    weight: str
    shape: tuple[int, ...]
    errors: dict[str, float]
    remedies: dict[str, dict[str, float]] = field(default_factory=dict)
    loss: dict[str, float] = field(default_factory=dict)
    remedy_loss: dict[str, dict[str, float]] = field(default_factory=dict)
    nats: bool = False

    def of(self, scheme: str, remedy: str = "") -> float:
        """Return the predicted loss of a scheme, plain or with a remedy; the error where no loss is predicted.

        Parameters
        ----------
        scheme, remedy : str
        """
        if remedy:
            return (self.remedy_loss or self.remedies)[remedy][scheme]
        return (self.loss or self.errors)[scheme]


def quantization_costs(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    tokens: int = 512,
    seed: int = 0,
    forward: Callable[[Any, Any], Any] | None = None,
    progress: Callable[[float], None] | None = None,
) -> list[Cost]:
    """Measure what plain rounding of each linear map and convolution costs.

    The model is run once forwards and once backwards on each batch; its weights and gradients are not touched.

    Parameters
    ----------
    model : torch.nn.Module
    batches : iterable
        As for :func:`farout.inside.record`; as many as hold ``tokens`` tokens (or samples) are used.
    tokens : int
        Enough for a ranking of layers; the time grows with it.
    seed : int
        For the outputs that are drawn, and the signs of rotations.
    forward : callable, optional
        ``forward(model, batch)`` in place of the usual call.
    progress : callable, optional
        Called with the share done.

    Returns
    -------
    list of Cost
        In the order in which the maps run. Maps that are never called are left out.

    Raises
    ------
    BadInput
        There are no batches.

    Examples
    --------
    >>> import torch
    >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
    <torch...
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> x = torch.randn(64, 8)
    >>> x[0, 3] = 300.0  # one value takes the range of all others
    >>> first, second = quantization_costs(model, [x])
    >>> first.layer, first.of("w8a8", "per-token scales") < 0.2 * first.of("w8a8")
    ('0', True)
    """
    torch_or_say("measuring what quantization costs")
    work = _Costs(model, seed)
    done = 0
    for batch in batches:
        if done >= tokens:
            break
        done += work.run(batch, forward or call)
        if progress is not None:
            progress(min(done / tokens, 1.0))
    if not done:
        raise BadInput("there are no batches; give at least one, such as the model's own sample")
    return work.costs()


class _Costs:
    """Sums over batches, by map."""

    def __init__(self, model: nn.Module, seed: int) -> None:
        self.model, self.seed = model, seed
        self.maps = {name: site for name, site in sites_of(model).items() if quantizable(site)}
        self.change: dict[str, dict[tuple[str, str], float]] = {}  # by map: squared change by scheme and remedy
        self.power: dict[str, float] = {}
        self.divergence: dict[str, dict[tuple[str, str], float]] = {}
        self.samples = 0
        self.nats = False
        self.scale = 0.0  # what divergences are relative to
        self.last: dict[int, str] = {}  # outputs of the running batch, by identity
        self.head: str | None = None

    def run(self, batch: Any, forward: Callable[[Any, Any], Any]) -> int:
        """Run one batch; return its number of tokens or samples."""
        import torch

        device = next((weight.device for weight in self.model.parameters()), None)
        batch = batch if device is None else mapped(batch, lambda tensor: tensor.to(device))
        _, mask = tokens_of(batch)
        wanted = [weight.requires_grad for weight in self.model.parameters()]
        try:
            for weight in self.model.parameters():
                weight.requires_grad_(False)  # gradients are wanted of what passes, not of the weights
            with ExitStack() as stack, torch.enable_grad():
                stack.callback(self._grow().remove)
                for name, site in self.maps.items():
                    hook = site.module.register_forward_hook(self._hook(name, site, mask))
                    stack.callback(hook.remove)
                self.last.clear()
                output = forward(self.model, batch)
                self.nats = _logits(output) is not None
                self.head = self.last.get(id(_logits(output)), self.head)
                target, size, scale = _probe(output, mask, self.seed + self.samples)
                if target is not None and target.requires_grad:
                    target.backward()
        finally:
            for weight, before in zip(self.model.parameters(), wanted):
                weight.requires_grad_(before)
        self.samples += size
        self.scale += scale
        return size

    def _grow(self) -> Any:
        """Let gradients start at the first map or embedding, since no weight asks for any."""
        first = next((m for m in self.model.modules() if next(m.parameters(recurse=False), None) is not None), None)
        if first is None:
            raise BadInput("the model has no parameters, so there is nothing to round")

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            found = first_tensor(output)
            if found is not None and not found.requires_grad:
                found.requires_grad_()
            return output

        return first.register_forward_hook(hook)

    def _hook(self, name: str, site: Site, mask: torch.Tensor | None) -> Callable[..., None]:
        """Make the hook that measures a map once its output's gradient is known, or at once where none will be."""

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            x, y = first_tensor(args), first_tensor(output)
            if x is None or y is None:
                return
            held = x.detach()
            self.last[id(y)] = name
            if y.requires_grad:
                y.register_hook(lambda gradient: self._measure(name, site, held, gradient.detach(), mask))
            else:
                self._measure(name, site, held, None, mask)

        return hook

    def _measure(self, name: str, site: Site, x: Any, gradient: Any, mask: torch.Tensor | None) -> None:
        """Round a map in all ways, and add up the changes of its output."""
        import torch

        if name == self.head:
            return
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            self._add(name, RoundedMap(site, x.float(), mask, self.seed), gradient)

    def _add(self, name: str, one: RoundedMap, gradient: Any) -> None:
        """Add the changes of a map's output, and what they mean along its gradient."""
        self.power[name] = self.power.get(name, 0.0) + float(one.plain.square().sum())
        sums, losses = self.change.setdefault(name, {}), self.divergence.setdefault(name, {})
        along = None if gradient is None else one.rows(gradient.float())
        for key in product(SCHEMES, ("", *REMEDIES)):
            rounded = one.rounded(*key)
            if rounded is None:
                continue
            change = rounded - one.plain
            sums[key] = sums.get(key, 0.0) + float(change.square().sum())
            if along is not None:
                losses[key] = losses.get(key, 0.0) + float((along * change).flatten(1).sum(1).square().sum())

    def costs(self) -> list[Cost]:
        """Return what was measured."""
        found = []
        for name, site in self.maps.items():
            if name not in self.power:
                continue
            error, remedies = _by_scheme(self.change[name], self.power[name] or math.inf)  # zeros cannot change
            loss, remedy_loss = _by_scheme(self.divergence[name], self.scale) if self.scale > 0 else ({}, {})
            weight: Any = site.module.weight
            path = f"{name}.weight" if name else "weight"
            found.append(Cost(name, path, tuple(weight.shape), error, remedies, loss, remedy_loss, self.nats))
        return found


def _by_scheme(sums: dict[tuple[str, str], float], over: float) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Lay sums out by scheme, and by remedy and scheme; a remedy that has no place leaves a scheme as it is."""
    if not sums:
        return {}, {}
    plain = {scheme: sums[scheme, ""] / over for scheme in SCHEMES}
    with_remedy = {r: {s: sums.get((s, r), sums[s, ""]) / over for s in SCHEMES} for r in REMEDIES}
    return plain, with_remedy


def _logits(output: Any) -> Any:
    """Return the logits of a model that names them, else None."""
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    tensor = first_tensor(found)
    return tensor if tensor is not None and tensor.ndim > 1 else None


def _probe(output: Any, mask: torch.Tensor | None, seed: int) -> tuple[Any, int, float]:
    """Return the number to run backwards from, how many tokens or samples it adds up, and what to divide by."""
    import torch

    logits = _logits(output)
    drawn = torch.Generator().manual_seed(seed)
    if logits is not None:
        rows = logits.flatten(0, -2).float()
        if mask is not None and logits.shape[:2] == mask.shape:
            rows = rows[mask.flatten().to(rows.device)]
        logs = rows.log_softmax(-1)
        picks = torch.multinomial(logs.detach().exp().cpu(), 1, generator=drawn).to(logs.device)
        return logs.gather(1, picks).sum(), len(rows), 2.0 * len(rows)
    found = first_tensor(output)
    if found is None:
        return None, 1, 0.0
    size = 1 if found.ndim < 2 else math.prod(found.shape[:-1])
    signs = (2 * torch.randint(0, 2, found.shape, generator=drawn) - 1).to(found)
    return (found * signs).sum(), size, float(found.detach().float().square().sum())
