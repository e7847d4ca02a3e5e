"""Record a model while it runs: streaming facts about its residual stream, norms, linear maps, attention and weights.

Outliers inside a model are found in what it computes, so it has to be watched at work. :func:`record` puts hooks on the
modules that its structure shows, runs the batches, keeps sums, extremes and counts of what passes, and takes the hooks
away again, also after an error. Memory depends on the model and on the length of sequences, not on how many batches
there are. What is recorded is machinery and follows no paper; the choice of sites and statistics serves the measures
that papers on outliers define (kurtosis, ratios of channels, massive activations, attention sinks).

Sites and their names, for a module called ``M`` and a parameter called ``P``:

======== ============================================ =====================================================
kind      names                                        what
======== ============================================ =====================================================
residual  ``M.in`` ``M.out``                           what enters and leaves each of a row of like blocks
norm      ``M.in`` ``M.out``                           before and after a normalisation
linear    ``M.in``                                     what a linear map or convolution multiplies
output    ``M.out``                                    what it gives; recorded where ``what`` names it
attention ``M.q`` ``M.k`` ``M.v``                      operands of the product, heads side by side as channels
probs     ``M.probs``                                  where each head looks
weight    ``P``                                        rows are outputs, channels are inputs
gradient  ``S.grad`` of a site ``S``, ``P.grad``       with a loss
moment    ``P.exp_avg`` and whatever else it is called tensors that an optimizer keeps in the shape of ``P``
======== ============================================ =====================================================

A tensor that stands at several sites (the output of a norm is the input of three maps) is recorded once, and the other
names lead to it.

What is not seen: the inside of ``nn.MultiheadAttention`` and of kernels that are no calls to torch, products written as
``einsum``, and parameters or tensors that are not dense floating-point numbers.
"""

from __future__ import annotations

import sys
import warnings
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from farout.errors import BadInput, NothingMatched, UnknownName
from farout.inside._accumulators import AttentionStats, ChannelStats
from farout.inside._recording import STILL, Recording
from farout.inside._sites import (
    Site,
    first_tensor,
    length_of,
    mapped,
    merged_heads,
    rows_of,
    sites_of,
    tokens_of,
    weight_rows,
)
from farout.kit.training import torch_or_say

__all__ = ["KINDS", "USUAL", "Recording", "record"]

if TYPE_CHECKING:
    import torch
    from torch import nn

    Stats = ChannelStats | AttentionStats

KINDS = ("residual", "norm", "linear", "output", "attention", "probs", "weight", "gradient", "moment")
USUAL = ("residual", "norm", "linear", "attention", "probs", "weight", "gradient", "moment")


def record(
    model: nn.Module,
    batches: Iterable[Any],
    where: str | Sequence[str] = "*",
    what: Sequence[str] = USUAL,
    *,
    loss: Callable[[Any, Any], torch.Tensor] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    forward: Callable[[Any, Any], Any] | None = None,
) -> Recording:
    """Run batches through a model and keep streaming facts about its numbers.

    The model computes what it would compute unwatched, to the last bit, in the mode, precision and place it is in; a
    compiled model runs uncompiled. (Only torch's own ``nn.TransformerEncoder`` has, in evaluation mode, a fused path
    that it leaves when it is watched.) Tokens that a batch's ``attention_mask`` marks as padding are left out.

    Parameters
    ----------
    model : torch.nn.Module
    batches : iterable
        Mappings (``model(**batch)``), tuples or lists (``model(*batch)``), or tensors (``model(batch)``); each is moved
        to the model's device.
    where : str or list of str
        Patterns, as of file names, for the names of sites.
    what : list of str
        Kinds of sites, see the table above.
    loss : callable, optional
        ``loss(output, batch)``, a number: its gradients are recorded. The model's own ``.grad`` is not touched.
    optimizer : torch.optim.Optimizer, optional
        Its moments are recorded as they are.
    forward : callable, optional
        ``forward(model, batch)`` in place of the calls above, such as where a batch holds targets too.

    Returns
    -------
    Recording
        Of this process; :meth:`Recording.gathered` joins those of many.

    Raises
    ------
    BadInput
        There are no batches although something is to be seen in them, or one sample alone does not fit in memory.
    NothingMatched
        No site has a name that ``where`` matches.
    UnknownName
        ``what`` names no kind of site.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))
    >>> recording = record(model, [torch.tensor([[1.0, 1.0, 1.0, -3.0]])])
    >>> recording.aliases  # the norm's output is the input of the linear map
    {'1.in': '0.out'}
    >>> recording["1.in"].absmax.round(2)
    array([0.58, 0.58, 0.58, 1.73])
    """
    torch_or_say("recording a model")
    for kind in what:
        if kind not in KINDS:
            raise UnknownName("kind of site", kind, KINDS)
    patterns = (where,) if isinstance(where, str) else tuple(where)
    work = _Recorder(getattr(model, "_orig_mod", model), patterns, set(what), loss, forward)
    work.look_at_weights(optimizer)
    if set(what) - set(STILL):
        with work.watching():
            for batch in batches:
                work.run(batch)
    return work.finish(model.training)


class _Recorder:
    """Hooks on a model, and what they have seen."""

    def __init__(self, model: nn.Module, patterns: tuple[str, ...], what: set[str], loss: Any, forward: Any) -> None:
        self.model, self.patterns, self.what, self.loss = model, patterns, what, loss
        self.forward = forward or _call
        self.sites = sites_of(model)
        self.total = Recording()
        self.batch = Recording()  # what the running batch has added; thrown away when it does not end well
        self.unmatched: set[str] = set()
        self.path: list[str] = []  # the modules that are running
        self.known: dict[int, tuple[Any, int, str]] = {}  # tensors of this batch: reference, version, site
        self.tokens: Any = None
        self.mask: torch.Tensor | None = None
        self.hooks = ExitStack()  # on the tensors of this batch

    def wants(self, name: str, kind: str) -> bool:
        """Whether a site was asked for."""
        if kind not in self.what:
            return False
        if any(fnmatchcase(name, pattern) for pattern in self.patterns):
            return True
        self.unmatched.add(name)
        return False

    def look_at_weights(self, optimizer: Any) -> None:
        """Record parameters and what an optimizer keeps of them; tied ones once, under their first name."""
        first: dict[Any, str] = {}
        for name, weight in self.model.named_parameters(remove_duplicate=False):
            if not weight.is_floating_point() or weight.is_meta:
                continue
            key = weight.data_ptr(), tuple(weight.shape), weight.stride()
            main = first.setdefault(key, name)
            moments = optimizer.state.get(weight, {}) if optimizer is not None else {}
            like = {word: m for word, m in moments.items() if getattr(m, "shape", None) == weight.shape}
            for word, tensor in {"": weight, **like}.items():
                kind, suffix = ("moment", f".{word}") if word else ("weight", "")
                if self.wants(name + suffix, kind):
                    self.total.kinds[name + suffix] = kind
                    if main != name and main + suffix in self.total.stats:
                        self.total.aliases[name + suffix] = main + suffix
                    else:
                        self.total.stats[name + suffix] = _weight_stats(tensor)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Put the hooks on, and take them off whatever happens."""
        import torch

        from farout.inside._attention import Products

        with ExitStack() as stack:
            for name, module in self.model.named_modules():
                site = self.sites.get(name)
                hooks = [
                    module.register_forward_pre_hook(self._enters(name, site), with_kwargs=True),
                    module.register_forward_hook(self._leaves(name, site)),
                ]
                for hook in hooks:
                    stack.callback(hook.remove)
            if self.what & {"attention", "probs"}:
                stack.enter_context(Products(self._operand, self._probs))
            stance = getattr(torch.compiler, "set_stance", None)  # since torch 2.6
            if stance is not None and "torch._dynamo" in sys.modules:  # else nothing is compiled, and it loads for long
                stack.enter_context(stance("force_eager"))
            yield

    def run(self, batch: Any) -> None:
        """Run one batch; where memory does not suffice, its halves."""
        import torch

        try:
            self._run_whole(batch)
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            size = length_of(batch)
            if size < 2:
                raise BadInput(
                    "one sample alone does not fit in memory: record fewer kinds, or on shorter input"
                ) from error
            note = f"a batch of {size} did not fit in memory and was halved"
            warnings.warn(note, stacklevel=4)
            self.total.notes.append(note)
        else:
            return
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.run(mapped(batch, lambda tensor: tensor[: size // 2] if tensor.ndim else tensor))
        self.run(mapped(batch, lambda tensor: tensor[size // 2 :] if tensor.ndim else tensor))

    def _run_whole(self, batch: Any) -> None:
        """Run one batch, and add what was seen only when all of it went well."""
        import torch

        device = next((weight.device for weight in self.model.parameters()), None)
        batch = batch if device is None else mapped(batch, lambda tensor: tensor.to(device))
        self.batch, self.path, self.known = Recording(batches=1), [], {}
        self.tokens, self.mask = tokens_of(batch)
        with self.hooks, torch.set_grad_enabled(self.loss is not None):
            output = self.forward(self.model, batch)
            if self.loss is not None:
                self._gradients(self.loss(output, batch))
        self.total = self.total.merge(self.batch)

    def _gradients(self, value: torch.Tensor) -> None:
        """Run backwards; hooks on activations fire on the way, and the model's own gradients stay as they are."""
        import torch

        named = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        if not named or not value.requires_grad:
            raise BadInput("the loss has no gradient: no parameter that it depends on has requires_grad set")
        found = torch.autograd.grad(value, list(named.values()), allow_unused=True)
        for name, gradient in zip(named, found):
            if gradient is not None and self.wants(f"{name}.grad", "gradient"):
                self._add(f"{name}.grad", "gradient", _weight_stats(gradient))

    def _enters(self, name: str, site: Site | None) -> Callable[..., None]:
        """Make the hook that runs before a module."""

        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.path.append(name)
            if site is not None:
                found = first_tensor(args)
                self._see(f"{name}.in", site.kind, first_tensor(kwargs) if found is None else found, site)

        return hook

    def _leaves(self, name: str, site: Site | None) -> Callable[..., None]:
        """Make the hook that runs after a module."""

        def hook(module: nn.Module, args: Any, output: Any) -> None:
            while self.path and self.path.pop() != name:  # modules inside that failed, and whose caller went on
                pass
            if site is not None and site.kind == "linear":
                self._see(f"{name}.out", "output", first_tensor(output), Site("output", module, None, site.first))
            elif site is not None:
                self._see(f"{name}.out", site.kind, first_tensor(output), site)

        return hook

    def _operand(self, word: str, tensor: torch.Tensor) -> None:
        """Take an operand of attention."""
        self._see(self._here(word), "attention", tensor, None)

    def _probs(self, shape: tuple[int, int], make: Callable[[], Any]) -> None:
        """Take the probabilities of attention; they are only made where someone asked for them."""
        from farout.inside._attention import attention_stats

        name = self._here("probs")
        if self.wants(name, "probs"):
            keep = self.mask if self.mask is not None and tuple(self.mask.shape) == shape else None
            with _unseen():
                self._add(name, "probs", attention_stats(make(), keep))

    def _here(self, word: str) -> str:
        """Name something that happens in the module that is running."""
        return f"{self.path[-1]}.{word}" if self.path and self.path[-1] else word

    def _see(self, name: str, kind: str, x: torch.Tensor | None, site: Site | None) -> None:
        """Take a tensor at a site, unless it was taken at another one."""
        if x is None or x.ndim == 0 or x.numel() == 0 or not self.wants(name, kind):
            return
        version = 0 if x.is_inference() else x._version
        reference, seen_version, main = self.known.get(id(x), (None, 0, ""))
        if reference is not None and reference() is x and seen_version == version and self._may_share(name, main):
            self.batch.kinds[name], self.batch.aliases[name] = kind, main
            self.batch.calls[name] = self.batch.calls.get(name, 0) + 1
            return
        self.known[id(x)] = weakref.ref(x), version, name
        width, first = (site.width, site.first) if site is not None else (None, False)
        with _unseen():
            rows, period, keep = rows_of(x.detach() if site else merged_heads(x.detach()), width, first, *self._layout)
            self._add(name, kind, ChannelStats.of(rows, period, keep))
        if self.loss is not None and x.requires_grad and self.wants(f"{name}.grad", "gradient"):

            def hook(gradient: torch.Tensor) -> None:
                with _unseen():
                    flat = gradient if site else merged_heads(gradient)
                    stats = ChannelStats.of(*rows_of(flat, width, first, *self._layout))
                    self._add(f"{name}.grad", "gradient", stats)

            self.hooks.callback(x.register_hook(hook).remove)

    @property
    def _layout(self) -> tuple[Any, Any]:
        """(B, T) of the batch and its mask, for :func:`rows_of`."""
        return self.tokens, self.mask

    def _may_share(self, name: str, main: str) -> bool:
        """Whether a site has only ever carried the tensor of this other one."""
        own = name in self.total.stats or name in self.batch.stats
        before = self.total.aliases.get(name, main), self.batch.aliases.get(name, main)
        return not own and before == (main, main)

    def _add(self, name: str, kind: str, stats: Stats) -> None:
        """Add facts to the running batch."""
        before = self.batch.stats.get(name)
        self.batch.stats[name] = stats if before is None else before.merge(stats)
        self.batch.kinds[name] = kind
        self.batch.calls[name] = self.batch.calls.get(name, 0) + 1

    def finish(self, training: bool) -> Recording:
        """Say what a reader should know, and give shared modules all of their names."""
        done = self.total
        if not done.kinds and self.unmatched:
            raise NothingMatched("site", "', '".join(self.patterns), self.unmatched)
        if not done.batches and self.what - set(STILL):
            done.notes.append("there were no batches: only weights and moments are recorded")
        passed = done.batches and self.what & {"residual", "norm", "linear", "output"}
        for name, site in self.sites.items() if passed else ():
            kinds = {"in": site.kind, "out": "output" if site.kind == "linear" else site.kind}
            asked = [f"{name}.{end}" for end, kind in kinds.items() if self.wants(f"{name}.{end}", kind)]
            if asked and not any(done.calls.get(end) for end in asked):
                done.notes.append(f"'{name}' is never called")
        for name, calls in done.calls.items():
            if calls > done.batches and name.endswith((".in", ".probs")):
                done.notes.append(f"'{name}' is passed {calls / done.batches:.3g} times a batch; its facts join them")
        if passed and not any(site.kind == "linear" for site in self.sites.values()):
            done.notes.append("the model has no linear map and no convolution")
        if training and done.batches:
            done.notes.append("the model was in training mode: dropout and batch statistics are in the facts")
        names = defaultdict(list)
        for name, module in self.model.named_modules(remove_duplicate=False):
            names[id(module)].append(name)
        for main, *others in names.values():
            for other in others:
                for end in [end for end in list(done.kinds) if end in (f"{main}.in", f"{main}.out")]:
                    alias = other + end[len(main) :]
                    done.kinds[alias], done.aliases[alias] = done.kinds[end], done.aliases.get(end, end)
        for alias, main in list(done.aliases.items()):
            if f"{main}.grad" in done.stats and f"{alias}.grad" not in done.stats:
                done.kinds[f"{alias}.grad"], done.aliases[f"{alias}.grad"] = "gradient", f"{main}.grad"
        done.notes = list(dict.fromkeys(done.notes))
        return done


def _call(model: Any, batch: Any) -> Any:
    """Hand a batch to a model in the way its type suggests."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, list | tuple) else model(batch)


def _weight_stats(weight: torch.Tensor) -> ChannelStats:
    """Facts about a parameter, or what has its shape: positions are outputs."""
    rows = weight_rows(weight.detach())
    return ChannelStats.of(rows, len(rows))


@contextmanager
def _unseen() -> Iterator[None]:
    """Compute on the side: without gradients, autocast or other watchers."""
    import torch

    with torch.no_grad(), torch._C.DisableTorchFunction(), ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def _out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; torch's allocator on the CPU has no class of its own for it."""
    words = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in words or "can't allocate memory" in words
