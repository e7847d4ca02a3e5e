"""From a model to the same model in fewer bits, block by block: what recipes are, and what runs them.

A recipe is moves, then one rounding, then a grid. Its class stands in the file of its paper; its fields are the paper's
hyper-parameters, and its JSON round-trips. The engine here finds blocks and feeds, keeps the calibration data on its
way through them, hands the recipe one block at a time, measures what each map lost, and can go on where it was stopped.

Shape legend: B sequences, T tokens, N tokens of a batch, I inputs, O outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from farout.cards import find, list_cards
from farout.errors import BadInput, UnknownName
from farout.quantize._blocks import Block, Calls, blocks_of
from farout.quantize._linear import QuantLinear, Rounding
from farout.quantize._structure import Feed
from farout.quantize.grid import Grid
from farout.quantize.round._common import Rounded
from farout.quantize.scheme import Scheme

__all__ = ["QuantizedModel", "Recipe", "Work", "quantize", "recipe_of"]

FEWEST = 128  # tokens of calibration below which statistics mean nothing


class Recipe:
    """Base of all recipes: frozen dataclasses that say what to do with a block.

    A subclass writes ``block`` and, where it acts on the whole model first, ``begin``.
    """

    __paper__: ClassVar[str]
    both: ClassVar[bool] = False  # whether the stream of the full model is wanted beside the quantized one
    full: ClassVar[bool] = False  # whether blocks see inputs of the full model (no error is carried on)
    calibrated: ClassVar[bool] = True  # whether data are needed

    def check(self, scheme: Scheme) -> None:
        """Raise BadInput for a scheme that the recipe cannot do, with those that it can."""

    def begin(self, work: Work) -> Recipe | None:
        """Change the whole model before its blocks are taken one by one; may return the recipe to go on with."""
        return None

    def block(self, block: Block, scheme: Scheme) -> None:
        """Quantize a block."""
        raise NotImplementedError(f"'{type(self).__name__}' must write block")

    def as_dict(self) -> dict[str, Any]:
        """Return name and hyper-parameters as plain data."""
        return {"recipe": find(self.__paper__).slug, **asdict(self)}  # type: ignore[call-overload]


def recipe_of(what: str | Mapping[str, Any] | Recipe) -> Recipe:
    """Return a recipe by its name, from its plain data, or as it is.

    Raises
    ------
    UnknownName
        No recipe has that name, or it has no such parameter.
    """
    if isinstance(what, Recipe):
        return what
    said = {"recipe": what} if isinstance(what, str) else dict(what)
    known = {card.slug: card for card in list_cards("quantize", "recipe")}
    names = known | {card.name.lower(): card for card in known.values()}
    name = str(said.pop("recipe", ""))
    if name.lower() not in names:
        raise UnknownName("recipe", name, known)
    kind = names[name.lower()].load()
    able = [one.name for one in fields(kind)]
    for parameter in said:
        if parameter not in able:
            raise UnknownName(f"parameter of '{name}'", parameter, able)
    return kind(**said)


@dataclass
class Work:
    """A model on its way: what a recipe sees of it before its blocks are taken one by one.

    Attributes
    ----------
    model : torch.nn.Module
    blocks : dict of str to Module
    batches : list
        Calibration data, as the model is called with them.
    scheme : Scheme
    feeds : dict of str to list of Feed
        By block, as found by experiment.
    forward : callable or None
    notes : list of str
        What a user must know, in sentences.
    """

    model: nn.Module
    blocks: dict[str, nn.Module]
    batches: Sequence[Any]
    scheme: Scheme
    feeds: dict[str, list[Feed]]
    forward: Callable[[Any, Any], Any] | None = None
    notes: list[str] = field(default_factory=list)
    progress: Callable[[str, float], None] | None = None

    def block(self, name: str, calls: Calls, states: list[torch.Tensor]) -> Block:
        """Return a block for moves, on states that the caller keeps."""
        return Block(name, list(self.blocks).index(name), self.blocks[name], calls, states, feeds=self.feeds[name])


@dataclass
class QuantizedModel:
    """A quantized model and what is known about it.

    Attributes
    ----------
    model : torch.nn.Module
        The same object that was handed over, with its maps replaced.
    recipe : dict of str to Any
        The recipe's plain data.
    scheme : str
    errors : dict of str to float
        By map: squared change of its output over the squared output, on the first batch, with the error of its input.
    block_errors : dict of str to float
        The same of what leaves each block.
    notes : list of str
    """

    model: nn.Module
    recipe: dict[str, Any]
    scheme: str
    errors: dict[str, float] = field(default_factory=dict)
    block_errors: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def maps(self) -> dict[str, QuantLinear]:
        """The maps whose weights or inputs are rounded, by path."""
        return {
            name: module
            for name, module in self.model.named_modules()
            if isinstance(module, QuantLinear) and (module.grid is not None or module.rounding is not None)
        }

    @property
    def bits_per_weight(self) -> float:
        """Bits of each weight of the rounded maps, scales and zero points included."""
        bits = total = 0.0
        for module in self.maps.values():
            size = module.weight.numel()
            total += size
            bits += size * (16 if module.grid is None else module.grid.bits_per_weight(tuple(module.weight.shape)))
        return bits / total if total else math.nan

    def as_dict(self) -> dict[str, Any]:
        """Return what is known as plain data."""
        return {
            **self.recipe,
            "scheme": self.scheme,
            "bits per weight": self.bits_per_weight,
            "errors": self.errors,
            "block errors": self.block_errors,
            "notes": self.notes,
        }


def quantize(
    model: nn.Module,
    recipe: str | Mapping[str, Any] | Recipe,
    scheme: str | Scheme,
    batches: Sequence[Any] = (),
    *,
    forward: Callable[[Any, Any], Any] | None = None,
    progress: Callable[[str, float], None] | None = None,
    keep: str | Path | None = None,
) -> QuantizedModel:
    """Quantize the linear maps in a model's blocks; embeddings, norms and the head stay as they are.

    Memory beside the model: one block in float32 while its structure is looked at, and the hidden states of the
    calibration data (twice for recipes that compare with full precision).

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place: its maps become :class:`QuantLinear`. Hand over a copy to keep it.
    recipe : str, mapping or Recipe
        A name of ``farout list quantize``, the plain data of a recipe, or a recipe.
    scheme : str or Scheme
        Such as ``"w4a16g128"``; see :meth:`farout.quantize.scheme.Scheme.parse`.
    batches : list
        Calibration data: what the model is called with, on any device.
    forward : callable, optional
        ``forward(model, batch)`` in place of the usual call.
    progress : callable, optional
        Called with what is being done and the share done.
    keep : str or Path, optional
        A folder where finished blocks are kept, so that a run that was stopped goes on there. It belongs to one run:
        another model, recipe or scheme is refused.

    Returns
    -------
    QuantizedModel

    Raises
    ------
    BadInput
        The scheme is none that the recipe can do, the model is quantized already, calibration data are missing, too few
        or not finite.
    NothingMatched
        The model has no row of like blocks with linear maps.
    NotIdentity
        A rewrite did not leave the output as it was.
    """
    from farout.quantize._kept import Kept

    recipe, scheme = recipe_of(recipe), Scheme.parse(scheme) if isinstance(scheme, str) else scheme
    recipe.check(scheme)
    _check_model(model)
    blocks = blocks_of(model)
    _check_batches(batches, recipe, scheme)
    report = progress or (lambda what, share: None)
    was_training = model.training
    model.eval()
    kept = Kept(keep, model, recipe, scheme) if keep is not None else None
    work = Work(model, blocks, batches, scheme, {}, forward, progress=progress)
    try:
        with torch.no_grad():
            report("structure", 0.0)
            work.feeds = _structure(work)
            report("structure", 1.0)
            recipe = recipe.begin(work) or recipe
            calls = Calls(model, blocks, batches, forward)
            errors, block_errors = _all_blocks(work, recipe, calls, kept, report)
    finally:
        model.train(was_training)
    return QuantizedModel(model, recipe.as_dict(), str(scheme), errors, block_errors, work.notes)


def _structure(work: Work) -> dict[str, list[Feed]]:
    """Find the feeds of every block; blocks with the same parts in the same shapes are looked at once."""
    calls = Calls(work.model, work.blocks, work.batches[:1], work.forward)
    state, found, seen = calls.states[0], {}, {}
    for i, (name, module) in enumerate(work.blocks.items()):
        parts = tuple((path, type(part).__name__, tuple(getattr(getattr(part, "weight", None), "shape", ())))
                      for path, part in module.named_modules())  # fmt: skip
        if parts not in seen:
            seen[parts] = Block(name, i, module, calls, [state]).feeds
        found[name] = seen[parts]
        with torch.no_grad():
            after = calls.run(name, module, 0, state)
        if not bool(torch.isfinite(after).all()):
            raise BadInput(
                f"'{name}' gives numbers that are not finite on the calibration data; look for them with farout "
                "inspect, or work in float32 or bfloat16"
            )
        state = after
    return found


def _all_blocks(
    work: Work, recipe: Recipe, calls: Calls, kept: Any, report: Callable[[str, float], None]
) -> tuple[dict[str, float], dict[str, float]]:
    """Quantize block by block; return what maps and blocks lost on the first batch."""
    errors: dict[str, float] = {}
    block_errors: dict[str, float] = {}
    states = calls.states
    full: list[torch.Tensor] | None = list(states) if recipe.both else None
    first = walked = states[0]  # to measure by: the first batch in the full stream and in the quantized one
    for i, (name, module) in enumerate(work.blocks.items()):
        report("quantizing", i / len(work.blocks))
        block = Block(name, i, module, calls, states, full, work.feeds[name], work.notes)
        expected, first_after = _seen(block, first)
        if full is not None:
            block.targets = block.outputs(full)
        onward = block.outputs() if recipe.full else None
        if kept is None or not kept.restore(block):
            recipe.block(block, work.scheme)
            if kept is not None:
                kept.save(block)
        got, walked = _seen(block, walked)
        errors |= {f"{name}.{path}": _apart(got[path], expected[path]) for path in block.maps}
        block_errors[name] = _apart(walked, first_after)
        if not math.isfinite(block_errors[name]):
            raise BadInput(f"'{name}' gives numbers that are not finite after quantization; try more bits or samples")
        first = first_after
        for at in range(len(states)):  # in place, so that there is one set of states and no second
            states[at] = onward[at] if onward is not None else block.run(at)
        full = block.targets
    report("quantizing", 1.0)
    return errors, block_errors


def _seen(block: Block, state: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Run a block on the first batch; return what its maps and itself give."""
    found: dict[str, torch.Tensor] = {}

    def leave(name: str) -> Callable:
        return lambda module, args, out: found.setdefault(name, out.detach())

    with ExitStack() as stack:
        for name in block.maps:
            hook = leave(name)
            handle = block.module.get_submodule(name).register_forward_hook(
                lambda m, a, o, hook=hook: (hook(m, a, o), None)[1]
            )
            stack.callback(handle.remove)
        return found, block.run(0, state)


def _apart(x: torch.Tensor, y: torch.Tensor) -> float:
    """Return the squared difference over the squared size."""
    return float((x.float() - y.float()).square().sum() / y.float().square().sum().clamp(min=1e-30))


def round_weights(
    block: Block, names: Sequence[str], grid: Grid, solve: Callable[[str, torch.Tensor, Grid], Rounded]
) -> None:
    """Round the weights of maps: ``solve(name, weight, grid)``, with a group that divides each map's inputs."""
    for name in names:
        weight = block.weight(name)
        block.own(name).put(solve(name, weight, grid.fitted(weight.shape[0 if grid.per == "input" else 1])))


def round_inputs(block: Block, names: Sequence[str], grid: Grid | None) -> None:
    """Round what maps read: by steps of the tensor at hand or, where the grid is static, by those of calibration."""
    if grid is None:
        return
    facts = {} if grid.dynamic else block.facts(names)
    for name in names:
        one = facts.get(name)
        steps = None
        if one is not None:
            steps = grid.steps_between(one.low.min().reshape(1, 1), one.high.max().reshape(1, 1))
        block.own(name).rounding = Rounding(grid, steps)


def _check_model(model: nn.Module) -> None:
    """Refuse a model that is quantized already, or has no weights."""
    config: Any = getattr(getattr(model, "config", None), "quantization_config", None)
    done = [name for name, module in model.named_modules() if isinstance(module, QuantLinear)]
    if done or config:
        where = f"'{done[0]}' and {len(done) - 1} other maps are rounded" if done else "its config says how"
        raise BadInput(f"the model is quantized already: {where}; start from the model in full precision")
    if next(model.parameters(), None) is None:
        raise BadInput("the model has no weights")


def _check_batches(batches: Sequence[Any], recipe: Recipe, scheme: Scheme) -> None:
    """Refuse data that are missing or too few."""
    if not len(batches):
        raise BadInput("there are no calibration data; give batches that the model can be called with, one at least")
    from farout.inside._sites import tokens_of

    shapes = [tokens_of(batch)[0] for batch in batches]
    tokens = sum(B * T for B, T in (shape for shape in shapes if shape is not None))
    static = scheme.inputs is not None and not scheme.inputs.dynamic
    if (recipe.calibrated or static) and all(shapes) and tokens < FEWEST:
        raise BadInput(
            f"calibration data hold {tokens} tokens, and {FEWEST} are needed at least; give more or longer texts"
        )
