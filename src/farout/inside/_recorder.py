"""The hooks of :func:`farout.inside.record` and what they do with what passes."""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from farout.errors import BadInput, NothingMatched
from farout.inside._accumulators import ChannelStats
from farout.inside._attention_stats import AttentionStats
from farout.inside._naming import name_shared, note_calls
from farout.inside._recording import STILL, Recording
from farout.inside._running import board, call, out_of_memory, unseen
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

if TYPE_CHECKING:
    import torch
    from torch import nn


class Recorder:
    """Hooks on a model, and what they have seen."""

    def __init__(self, model: nn.Module, patterns: tuple[str, ...], what: set[str], loss: Any, forward: Any) -> None:
        self.model, self.patterns, self.what, self.loss = model, patterns, what, loss
        self.forward = forward or call
        self.sites = sites_of(model)
        self.total = Recording()
        self.batch = Recording()  # what the running batch has added; thrown away when it does not end well
        self.board = board()
        self.own: set[str] = set()  # names that have facts of their own
        self.wanted: dict[tuple[str, str], bool] = {}
        self.path: list[str] = []  # the modules that are running
        self.known: dict[int, tuple[Any, int, str]] = {}  # tensors of this batch: reference, version, site
        self.tokens: Any = None
        self.mask: torch.Tensor | None = None
        self.hooks = ExitStack()  # on the tensors of this batch

    def wants(self, name: str, kind: str) -> bool:
        """Whether a site was asked for."""
        if kind not in self.what:
            return False
        if (name, kind) not in self.wanted:
            self.wanted[name, kind] = any(fnmatchcase(name, pattern) for pattern in self.patterns)
        return self.wanted[name, kind]

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
                    if main != name and main + suffix in self.own:
                        self.total.kinds[name + suffix], self.total.aliases[name + suffix] = kind, main + suffix
                    else:
                        self._add_weight(name + suffix, kind, tensor)
        self.batch.calls.clear()  # weights are not passed
        self._keep()

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
            if not out_of_memory(error):
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
        if self.board is not None:
            self.board.start()
        self.tokens, self.mask = tokens_of(batch)
        with self.hooks, torch.set_grad_enabled(self.loss is not None):
            output = self.forward(self.model, batch)
            if self.loss is not None:
                self._gradients(self.loss(output, batch))
        self._keep()

    def _keep(self) -> None:
        """Let the running batch count."""
        self.total = self.total.merge(self.batch)
        if self.board is not None:
            self.board.keep()

    def _gradients(self, value: torch.Tensor) -> None:
        """Run backwards; hooks on activations fire on the way, and the model's own gradients stay as they are."""
        import torch

        named = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        if not named or not value.requires_grad:
            raise BadInput("the loss has no gradient: no parameter that it depends on has requires_grad set")
        found = torch.autograd.grad(value, list(named.values()), allow_unused=True)
        for name, gradient in zip(named, found):
            if gradient is not None and self.wants(f"{name}.grad", "gradient"):
                self._add_weight(f"{name}.grad", "gradient", gradient)

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
        from farout.inside._attention import attention_sums

        name = self._here("probs")
        if self.wants(name, "probs"):
            keep = self.mask if self.mask is not None and tuple(self.mask.shape) == shape else None
            with unseen():
                sums = attention_sums(make(), keep)
                self._met(name, "probs")
                if self.board is None or not self.board.take_probs(name, *sums):
                    self._add(name, AttentionStats.of(*sums))

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
        with unseen():
            rows, period, keep = rows_of(x.detach() if site else merged_heads(x.detach()), width, first, *self._layout)
            self._add_rows(name, kind, rows, period, keep)
        if self.loss is not None and x.requires_grad and self.wants(f"{name}.grad", "gradient"):

            def hook(gradient: torch.Tensor) -> None:
                with unseen():
                    flat = gradient if site else merged_heads(gradient)
                    self._add_rows(f"{name}.grad", "gradient", *rows_of(flat, width, first, *self._layout))

            self.hooks.callback(x.register_hook(hook).remove)

    @property
    def _layout(self) -> tuple[Any, Any]:
        """(B, T) of the batch and its mask, for :func:`rows_of`."""
        return self.tokens, self.mask

    def _may_share(self, name: str, main: str) -> bool:
        """Whether a site has only ever carried the tensor of this other one."""
        before = self.total.aliases.get(name, main), self.batch.aliases.get(name, main)
        return name not in self.own and before == (main, main)

    def _add_rows(self, name: str, kind: str, rows: torch.Tensor, period: int, keep: torch.Tensor | None) -> None:
        """Add facts about rows to the running batch."""
        self._met(name, kind)
        if self.board is None or not self.board.take(name, rows, period, keep):
            self._add(name, ChannelStats.of(rows, period, keep))

    def _add_weight(self, name: str, kind: str, weight: torch.Tensor) -> None:
        """Add facts about a parameter, or what has its shape: positions are outputs."""
        with unseen():
            rows = weight_rows(weight.detach())
            self._add_rows(name, kind, rows, len(rows), None)

    def _add(self, name: str, stats: Any) -> None:
        """Add facts that are at hand to the running batch."""
        before = self.batch.stats.get(name)
        self.batch.stats[name] = stats if before is None else before.merge(stats)

    def _met(self, name: str, kind: str) -> None:
        """Note that a site was passed."""
        self.own.add(name)
        self.batch.kinds[name] = kind
        self.batch.calls[name] = self.batch.calls.get(name, 0) + 1

    def finish(self, training: bool) -> Recording:
        """Bring home what is on a GPU, and say what a reader should know."""
        done = self.total
        if self.board is not None:
            done = done.merge(Recording(self.board.stats(), done.kinds))
            done.stats = {name: done.stats[name] for name in done.kinds if name in done.stats}
        if not done.kinds and self.wanted:
            raise NothingMatched("site", "', '".join(self.patterns), {name for name, _ in self.wanted})
        if training and done.batches:
            done.notes.append("the model was in training mode: dropout and batch statistics are in the facts")
        if self.what - set(STILL):
            note_calls(done, self.sites, self.what, self.wants)
        name_shared(done, self.model)
        done.notes = list(dict.fromkeys(done.notes))
        return done
