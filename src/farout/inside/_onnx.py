"""Record an ONNX model while onnxruntime runs it: the facts that :func:`farout.inside.record` keeps of a torch model.

The tensors to look at are asked for as further outputs of the graph, in memory; the file stays as it is. They are taken
some at a time, so that memory is bounded whatever the depth of the model. Sites have the kinds and, where the exporter
kept the names of modules, the names of the torch model.

What is not seen: gradients, nodes inside branches and loops, fused attention, and products of integers. Operands of
attention are those that the graph multiplies, which an exporter may have scaled.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from farout.errors import BadInput, MissingExtra, NothingMatched, UnknownName
from farout.inside._accumulators import ChannelStats
from farout.inside._attention_stats import AttentionStats
from farout.inside._onnx_graph import Graph, Spot
from farout.inside._recording import Recording
from farout.inside._sites import merged_heads, rows_of, tokens_of, weight_rows
from farout.inside.recorder import KINDS

__all__ = ["record_onnx"]

_USUAL = ("residual", "norm", "linear", "attention", "probs", "weight")
_ROOM = 1 << 29  # bytes of tensors that are held at a time
_START = 8  # tensors that are taken before it is known how large they are
# Inputs that are weights, where not all are: others are statistics of batches, or scales.
_LEARNT = {"BatchNormalization": 3, "QuantizeLinear": 1, "DequantizeLinear": 1}
_LIMIT = 2**31  # bytes of a model that can be handed over in memory


def record_onnx(
    path: str | Path, batches: Iterable[Any], where: str | Sequence[str] = "*", what: Sequence[str] = _USUAL
) -> Recording:
    """Run batches through an ONNX model and keep streaming facts about its numbers.

    Parameters
    ----------
    path : str or Path
    batches : iterable
        Mappings from the names of inputs to arrays or tensors, or bare arrays for the first input; what
        :meth:`farout.io.models.OpenModel.batches` returns. States and masks that are missing are made. Tokens that an
        ``attention_mask`` marks as padding are left out.
    where : str or list of str
        Patterns, as of file names, for the names of sites.
    what : list of str
        Kinds of sites, as in :func:`farout.inside.record`; gradients and moments do not occur.

    Returns
    -------
    Recording

    Raises
    ------
    BadInput
        The file cannot be loaded, or a batch does not fit the model.
    MissingExtra
        onnx, onnxruntime or torch is not installed.
    NothingMatched
        No site has a name that ``where`` matches.
    UnknownName
        ``what`` names no kind of site.

    Examples
    --------
    >>> import onnx, tempfile
    >>> weights = [onnx.helper.make_tensor("W", 1, (2, 2), [1.0, 0.0, 0.0, 4.0])]
    >>> rows = onnx.helper.make_tensor_value_info("x", 1, ("n", 2))
    >>> out = onnx.helper.make_tensor_value_info("y", 1, ("n", 2))
    >>> maps = [onnx.helper.make_node("MatMul", ["x", "W"], ["y"], name="/head/MatMul")]
    >>> graph = onnx.helper.make_graph(maps, "graph", [rows], [out], weights)
    >>> opset = [onnx.helper.make_opsetid("", 17)]
    >>> path = tempfile.mkdtemp() + "/model.onnx"
    >>> onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    >>> record_onnx(path, [np.array([[1.0, -8.0], [2.0, 3.0]])])["head.in"].absmax
    array([2., 8.])
    """
    try:
        import onnx
        import onnx.inliner
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingExtra("recording an ONNX model", "onnx,torch") from error
    from farout.io._onnx_model import OnnxModel

    for kind in what:
        if kind not in KINDS:
            raise UnknownName("kind of site", kind, KINDS)
    plain = OnnxModel(Path(path))  # says what is wrong with a file, and how it is called
    model = onnx.inliner.inline_local_functions(onnx.load(path))
    if model.ByteSize() >= _LIMIT:
        raise BadInput(f"'{Path(path).name}' holds {model.ByteSize() / 2**30:.1f} GB; up to 2 GB can be recorded")
    graph = Graph(model.graph)
    patterns = (where,) if isinstance(where, str) else tuple(where)
    total, unmatched = Recording(), []
    places: dict[str, list[Spot]] = defaultdict(list)
    for spot in graph.spots():
        if spot.kind not in what:
            continue
        if any(fnmatchcase(spot.site, pattern) for pattern in patterns):
            places[spot.tensor].append(spot)
        else:
            unmatched.append(spot.site)
    if "weight" in what:
        unmatched += _add_weights(total, graph, patterns)
    if not places and not total.kinds and unmatched:
        raise NothingMatched("site", "', '".join(patterns), unmatched)
    feeds = [_arrays(plain, batch) for batch in batches]
    total.batches = len(feeds)
    if places and feeds:
        _run(total, model, places, feeds)
    hidden = sum(node.op_type in ("If", "Loop", "Scan") for node in graph.nodes)
    if hidden:
        total.notes.append(f"{hidden} branches or loops of the graph are not looked into")
    if not feeds:
        total.notes.append("there were no batches: only weights are recorded")
    if not graph.maps:
        total.notes.append("the model has no linear map and no convolution")
    return total


def _arrays(model: Any, batch: Any) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return a batch by names of inputs, the main one first where it brings none; and what the model is fed with."""
    if not isinstance(batch, Mapping):
        names = [model.main.name, *(one.name for one in model.inputs if one.name != model.main.name)]
        batch = dict(zip(names, batch if isinstance(batch, list | tuple) else [batch]))
    given = {name: np.asarray(value) for name, value in batch.items()}
    return given, model.feeds(given)


def _add_weights(total: Recording, graph: Graph, patterns: tuple[str, ...]) -> list[str]:
    """Record initializers: those of linear maps as (outputs, inputs) under the map's name, others under their own."""
    found: dict[str, np.ndarray] = {}
    first: dict[str, str] = {}  # weights, and the name under which they are recorded
    others: dict[str, str] = {}  # further names
    for node in graph.maps:
        at, rows, _ = graph.linear[node.output[0]]
        name = f"{graph.name(node)}.weight"
        main = first.setdefault(node.input[1 - at], name)
        if main == name:
            found[name] = rows
        else:
            others[name] = main
    for name, value in graph.weights.items():
        used = any(name in taker.input[: _LEARNT.get(taker.op_type)] for taker in graph.takers[name])
        if name not in first and np.issubdtype(value.dtype, np.floating) and value.size > 1 and used:
            found[name] = value
    for node in graph.nodes:
        if node.op_type == "Identity" and node.input[0] in found:  # an exporter writes equal weights once
            others[node.output[0]] = node.input[0]
    wanted = [name for name in [*found, *others] if any(fnmatchcase(name, pattern) for pattern in patterns)]
    for name in wanted:
        main = others.get(name, name)
        if main not in total.stats:
            x = weight_rows(_tensor(found[main]))
            total.kinds[main], total.stats[main] = "weight", ChannelStats.of(x, len(x))
        if name != main:
            total.kinds[name], total.aliases[name] = "weight", main
    return [name for name in [*found, *others] if name not in wanted]


def _run(total: Recording, model: Any, places: dict[str, list[Spot]], feeds: list[Any]) -> None:
    """Take tensors group by group, each group over all batches."""
    waiting, count = list(places), _START
    while waiting:
        group, waiting = waiting[:count], waiting[count:]
        session = _session(model, group)
        made_by_it = [name for name in group if name not in feeds[0][1]]
        seen = 0
        for given, arrays in feeds:
            try:
                made = dict(zip(made_by_it, session.run(made_by_it, arrays))) if made_by_it else {}
            except Exception as error:
                raise BadInput(f"the model does not run on a batch: {' '.join(str(error).split())[:300]}") from error
            made |= {name: arrays[name] for name in group if name in arrays}
            seen = max(seen, sum(array.nbytes for array in made.values()))
            for name, array in made.items():
                _see(total, places[name], array, given)
        count = max(1, int(len(group) * _ROOM / max(seen, 1)))


def _session(model: Any, names: list[str]) -> Any:
    """Make a session of a copy of the model that returns these tensors."""
    import onnx
    import onnxruntime

    outputs = list(model.graph.output)
    known = {output.name for output in outputs}
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in known)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    finally:
        del model.graph.output[:]
        model.graph.output.extend(outputs)


def _see(total: Recording, spots: list[Spot], array: np.ndarray, batch: dict[str, np.ndarray]) -> None:
    """Add the facts about a tensor under its first site; the others lead to it."""
    import torch

    if not np.issubdtype(array.dtype, np.floating) or array.ndim == 0 or array.size == 0:
        return
    main = spots[0]
    x = _tensor(array)
    tokens, mask = tokens_of({name: torch.from_numpy(value) for name, value in batch.items()})
    stats: Any
    if main.kind == "probs":
        stats = _attention_stats(array, mask)
    else:
        if main.kind == "attention":
            x = merged_heads(x.transpose(-1, -2) if main.turned else x)
        stats = ChannelStats.of(*rows_of(x, main.width, main.first, tokens, mask))
    before = total.stats.get(main.site)
    total.stats[main.site] = stats if before is None else before.merge(stats)
    for spot in spots:
        total.kinds[spot.site] = spot.kind
        total.calls[spot.site] = total.calls.get(spot.site, 0) + 1
        if spot is not main:
            total.aliases[spot.site] = main.site


def _attention_stats(probs: np.ndarray, mask_BQ: Any) -> AttentionStats:
    """Sum probabilities (B, H, Q, K), or (B, Q, K) of one head, over sequences and the queries that count."""
    probs_BHQK = np.asarray(probs if probs.ndim == 4 else probs[:, None], np.float64)
    B, _, Q, K = probs_BHQK.shape
    keep_BQ = np.ones((B, Q), bool)
    if mask_BQ is not None and tuple(mask_BQ.shape) == (B, Q):
        keep_BQ = mask_BQ.numpy()
    probs_BHQK = np.where(keep_BQ[:, None, :, None], probs_BHQK, 0.0)
    bad = np.isnan(probs_BHQK).sum((0, 2, 3))
    clean = np.nan_to_num(probs_BHQK)
    return AttentionStats(clean.sum((0, 2)), np.full(K, keep_BQ.sum()), clean.max((0, 2, 3)), bad)


def _tensor(array: np.ndarray) -> Any:
    """Return a tensor in double precision where the array has it, else in single."""
    import torch

    return torch.from_numpy(np.array(array, np.float64 if array.dtype == np.float64 else np.float32))
