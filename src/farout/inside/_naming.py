"""What is said of a recording when all batches have run: other names of its sites, and notes for its reader."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING

from farout.inside._recording import Recording
from farout.inside._sites import Site

if TYPE_CHECKING:
    from torch import nn


def note_calls(done: Recording, sites: dict[str, Site], what: set[str], wants: Callable[[str, str], bool]) -> None:
    """Say which modules were never called, or more than once a batch, and what the model lacks."""
    if not done.batches:
        done.notes.append("there were no batches: only weights and moments are recorded")
        return
    passed = what & {"residual", "norm", "linear", "output"}
    for name, site in sites.items() if passed else ():
        kinds = {"in": site.kind, "out": "output" if site.kind == "linear" else site.kind}
        asked = [f"{name}.{end}" for end, kind in kinds.items() if wants(f"{name}.{end}", kind)]
        if asked and not any(done.calls.get(end) for end in asked):
            done.notes.append(f"'{name}' is never called")
    for name, calls in done.calls.items():
        if calls > done.batches and name.endswith((".in", ".probs")):
            done.notes.append(f"'{name}' is passed {calls / done.batches:.3g} times a batch; its facts join them")
    if passed and not any(site.kind == "linear" for site in sites.values()):
        done.notes.append("the model has no linear map and no convolution")


def name_shared(done: Recording, model: nn.Module) -> None:
    """Give modules that stand in several places, and gradients of shared tensors, all of their names."""
    names = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        names[id(module)].append(name)
    for main, *others in names.values():
        for other in others:
            for end in [end for end in list(done.kinds) if end in (f"{main}.in", f"{main}.out")]:
                alias = other + end[len(main) :]
                done.kinds[alias], done.aliases[alias] = done.kinds[end], done.aliases.get(end, end)
    for alias, main in list(done.aliases.items()):
        if f"{main}.grad" in done.stats and f"{alias}.grad" not in done.stats:
            done.kinds[f"{alias}.grad"], done.aliases[f"{alias}.grad"] = "gradient", f"{main}.grad"
