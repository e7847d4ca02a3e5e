"""Rotate: turn the channels that maps read, so that what one of them carries is spread over all.

``X W' = (X Q) (W Q)'`` for a ``Q`` with ``Q Q' = I``. Here ``Q = D H`` with random signs ``D`` and an orthonormal
Hadamard matrix ``H``, in blocks where no matrix has the order that is wanted. Three moves, from the dearest to the
cheapest when the model runs:

- :func:`rotate_inputs`: maps turn their input as they run;
- :func:`rotate_heads`: the map that gives values turns the channels of each head, and the map behind attention turns
  them back: nothing is left to do;
- :func:`rotate_stream`: all that writes to the residual stream turns it, and all that reads it turns it back; nothing
  is left to do. Gains of norms go into the maps that read them first, since ``norm(x Q) = norm(x) Q`` holds without
  gains only; LayerNorm becomes RMSNorm, with the mean taken away by whatever writes.

Shape legend: N tokens, C channels of the stream, I channels of a map's input, D channels of a head.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from farout.errors import NotIdentity
from farout.kit.hadamard import largest_order, random_signs, transform
from farout.quantize._blocks import Block, _Stop
from farout.quantize._linear import QuantLinear, Rotate
from farout.quantize._norms import gain_of, set_gain
from farout.quantize._structure import Feed
from farout.quantize.move._stream import Blocked, Stream, StreamNorm, find_stream, whole_output

if TYPE_CHECKING:
    from farout.quantize.recipe import Work

__all__ = ["head_size", "rotate_heads", "rotate_inputs", "rotate_stream"]

_CHUNK = 1 << 22  # numbers that are turned at a time, in float64
_EQUAL = 1e-6  # how far channels of one head may be apart that read the same


def rotate_inputs(
    block: Block, names: Sequence[str], *, order: int | None = None, across: int = 1, seed: int | None = None
) -> None:
    """Let maps turn what they read: ``x D H``.

    Parameters
    ----------
    block : Block
    names : list of str
        Maps, each with a turn of its own.
    order : int, optional
        Of the Hadamard matrix; by default the largest that divides the channels.
    across : int
        How far apart the channels of a block of that order are (see :func:`farout.kit.hadamard.transform`).
    seed : int, optional
        For random signs; without it there are none.

    Raises
    ------
    BadInput
        No matrix has that order, or it does not divide the channels.
    NotIdentity
        The block's output is not what it was.
    """
    with block.unchanged(f"rotating what '{', '.join(names)}' reads"):
        for name in names:
            module: QuantLinear = block.own(name)
            width = module.in_features
            signs = None if seed is None else random_signs(width, seed).to(module.weight)
            turn = Rotate(order or largest_order(width // across), across, signs).to(module.weight.device)
            with torch.no_grad():
                module.weight.copy_(turn(module.weight.double()).to(module.weight.dtype))
            module.before.append(turn)


def head_size(block: Block, feed: Feed) -> int | None:
    """Return how many channels of a feed's source are mixed over tokens alike, as the channels of a head are.

    Random numbers, one a token and the same in all channels, take the place of what the source gives. Channels of one
    head then read the same, and those of different heads do not. None where heads are not all of one size, where
    tokens are not mixed, or not linearly.
    """
    if feed.source is None or feed.norm or not (feed.scales and feed.alone):
        return None
    twin = copy.deepcopy(block.module).double().eval()
    read: list[torch.Tensor] = []
    drawn: list[torch.Tensor] = []

    def give(sign: int) -> Any:
        def hook(module: nn.Module, args: Any, out: torch.Tensor) -> torch.Tensor:
            r = torch.randn(out.shape[:-1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            drawn.append(r.to(out).flatten())
            return (sign * r.to(out))[..., None].expand(out.shape)

        return hook

    def take(module: nn.Module, args: tuple) -> None:
        read.append(args[0].detach().flatten(0, -2))
        raise _Stop

    for sign in (1, -1):
        with ExitStack() as stack, torch.no_grad():
            source, reader = twin.get_submodule(feed.source), twin.get_submodule(feed.maps[0])
            stack.callback(source.register_forward_hook(give(sign)).remove)
            stack.callback(reader.register_forward_pre_hook(take).remove)
            stack.enter_context(suppress(_Stop))
            block.calls.run(block.name, twin, 0, block.states[0], torch.float64)
    y, limit = read[0], _EQUAL * float(read[0].abs().max())
    unmixed = float((y - drawn[0][:, None]).abs().max()) <= limit if len(y) == len(drawn[0]) else False
    if unmixed or float((read[1] + y).abs().max()) > limit:
        return None
    edges = ((y[:, 1:] - y[:, :-1]).abs().amax(0) > limit).nonzero().flatten() + 1
    size = int(edges[0]) if len(edges) else y.shape[1]
    heads = torch.arange(y.shape[1] // size) * size
    if y.shape[1] % size or edges.tolist() != heads[1:].tolist():
        return None
    index = torch.arange(y.shape[1]) if feed.index is None else feed.index.cpu()
    starts = index[heads]
    whole = torch.equal(index, (starts[:, None] + torch.arange(size)).flatten())
    whole = whole and not bool((starts % size).any()) and block.weight(feed.source).shape[0] % size == 0
    return size if whole else None


def rotate_heads(block: Block, feed: Feed, size: int) -> None:
    """Turn the channels of each head where values are made, and back where they are read.

    Parameters
    ----------
    block : Block
    feed : Feed
        What attention gives; its source is the map of the values.
    size : int
        Channels of a head, as :func:`head_size` found them.

    Raises
    ------
    NotIdentity
        The block's output is not what it was.
    """
    with block.unchanged(f"rotating the heads that '{feed.maps[0]}' reads"), torch.no_grad():
        order = largest_order(size)
        source: Any = block.module.get_submodule(str(feed.source))
        source.weight.copy_(_turned(source.weight, 0, order))
        if source.bias is not None:
            source.bias.copy_(_turned(source.bias, 0, order))
        for name in feed.maps:
            weight: Any = block.module.get_submodule(name).weight
            weight.copy_(_turned(weight, 1, order))


def rotate_stream(work: Work, seed: int = 0) -> frozenset[str]:
    """Turn the residual stream of a model, by folding; leave a note of what was done or why it cannot be.

    Parameters
    ----------
    work : Work
    seed : int
        For random signs.

    Returns
    -------
    set of str
        The maps (paths in the model) that read the stream through norms and so are turned now; empty where the stream
        cannot be turned, and nothing was changed then.

    Raises
    ------
    NotIdentity
        The model's output is not what it was.
    """
    try:
        stream = find_stream(work)
    except Blocked as why:
        work.notes.append(
            f"the residual stream is not rotated as a whole: {why}; maps rotate what they read as they run"
        )
        return frozenset()
    before = whole_output(work)
    order = largest_order(stream.width)
    signs = random_signs(stream.width, seed).double()
    with torch.no_grad():
        _fold(work, stream, order, signs)
    _prove(before, whole_output(work))
    if order < stream.width:
        work.notes.append(
            f"{stream.width} channels are rotated in blocks of {order}: no Hadamard matrix has their order"
        )
    return frozenset(reader for norm in stream.norms for reader in norm.readers)


def _prove(before: torch.Tensor, after: torch.Tensor) -> None:
    """Raise NotIdentity unless a model's outputs are the same but for the rounding of all its layers.

    Norms of many models compute in float32 whatever the model does. In bfloat16, whose rounding differs on a turned
    stream, outputs of SmolLM2-135M change by 0.04 of the largest.
    """
    limit = {torch.bfloat16: 0.2, torch.float16: 0.05}.get(before.dtype, 1e-4)
    apart = float((after - before).abs().max()) / max(float(before.abs().max()), 1e-30)
    if not apart <= limit:
        raise NotIdentity(
            f"rotating the residual stream changed the model's output by {apart:.2g} of its largest number, where "
            f"rounding explains {limit:g}: it is no identity on this model; leave it out, and report its structure"
        )


def _fold(work: Work, stream: Stream, order: int, signs: torch.Tensor) -> None:
    """Turn all that reads and writes."""
    model, last = work.model, stream.last
    _untie(work, stream)
    for one in stream.entries:
        owner = model.get_submodule(one.owner)
        old = getattr(owner, one.parameter)
        new = _turned(old, one.axis, order, signs, last.centres)
        setattr(owner, one.parameter, nn.Parameter(new, requires_grad=old.requires_grad))  # whoever shared it keeps it
    for name in stream.writers:
        module: Any = model.get_submodule(name)
        module.weight.copy_(_turned(module.weight, 0, order, signs, last.centres))
        if module.bias is not None:
            module.bias.copy_(_turned(module.bias, 0, order, signs, last.centres))
    for norm in (*stream.norms, last):
        if norm.readers:
            _absorb(model, norm, order, signs)
    if not last.readers:
        like = next(model.parameters())
        back = Rotate(order, signs=signs.to(like), back=True).to(like.device)
        model.set_submodule(last.name, nn.Sequential(back, model.get_submodule(last.name)))
        work.notes.append(
            f"what '{last.name}' reads is rotated back before it: others than linear maps read what it gives"
        )
    if last.centres:
        work.notes.append("LayerNorms that read the stream are RMSNorms now: what writes to it has no mean any more")


def _untie(work: Work, stream: Stream) -> None:
    """Say which weights will no longer be those of the embeddings, since these turn and they do not, or otherwise."""
    model: Any = work.model
    entering = {id(getattr(model.get_submodule(one.owner), one.parameter)) for one in stream.entries}
    owners = {f"{one.owner}.{one.parameter}" for one in stream.entries}
    shared = [
        (path, parameter.numel())
        for path, parameter in model.named_parameters(remove_duplicate=False)
        if id(parameter) in entering and path not in owners
    ]
    if not shared:
        return
    for config in (model.config, getattr(model.config, "text_config", None)) if hasattr(model, "config") else ():
        if getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False  # type: ignore[union-attr]
    work.notes.append(
        f"'{shared[0][0]}' no longer is the weight of the embeddings: {sum(size for _, size in shared):,} numbers more"
    )


def _absorb(model: nn.Module, norm: StreamNorm, order: int, signs: torch.Tensor) -> None:
    """Give a norm's gain and bias to the maps that read it, and turn these."""
    module: Any = model.get_submodule(norm.name)
    gain, bias = gain_of(module), getattr(module, "bias", None)
    for name in norm.readers:
        reader: Any = model.get_submodule(name)
        weight = reader.weight
        if bias is not None:
            old = 0 if reader.bias is None else reader.bias.double()
            moved = weight.double() @ bias.double()
            reader.bias = nn.Parameter((old + moved).to(weight.dtype), requires_grad=weight.requires_grad)
        new = _turned(weight, 1, order, signs if gain is None else signs * gain.double().cpu())
        reader.weight = nn.Parameter(new, requires_grad=weight.requires_grad)
    if norm.centres:
        like = weight if gain is None else gain
        plain = nn.RMSNorm(weight.shape[1], norm.eps, device=like.device, dtype=like.dtype)
        model.set_submodule(norm.name, plain.train(module.training))
        return
    if gain is not None:
        set_gain(module, torch.ones_like(gain))
    if bias is not None:
        bias.zero_()


def _turned(
    tensor: torch.Tensor, axis: int, order: int, factors: torch.Tensor | None = None, centred: bool = False
) -> torch.Tensor:
    """Multiply an axis by factors and turn it, in float64, some rows at a time; take its mean away first if asked."""
    rows = tensor.detach().movedim(axis, -1)
    shape = rows.shape
    flat = rows.reshape(-1, shape[-1])
    out = torch.empty_like(flat)
    for start in range(0, len(flat), step := max(1, _CHUNK // shape[-1])):
        part = flat[start : start + step].double()
        part = part - part.mean(-1, keepdim=True) if centred else part
        part = part if factors is None else part * factors.to(part)
        out[start : start + step] = transform(part, order).to(out.dtype)
    return out.view(shape).movedim(-1, axis).contiguous()
