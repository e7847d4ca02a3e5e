"""Where to look in an ONNX graph: linear maps, norms, attention and residual sums, found by how tensors are used.

An exporter names nodes after the modules that they come from (``/layers.0/attention/q/MatMul``); where it did, sites
bear the names that :func:`farout.inside.record` gives them in the torch model (``layers.0.attention.q.in``).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

CONVOLUTIONS = {"Conv", "ConvTranspose"}
_LINEAR = {"MatMul", "Gemm", *CONVOLUTIONS}
_NORMS = {
    "LayerNormalization": False,
    "RMSNormalization": False,
    "SimplifiedLayerNormalization": False,
    "BatchNormalization": True,
    "InstanceNormalization": True,
    "GroupNormalization": True,
}  # and whether channels stand behind the batch
_ARITHMETIC: dict[str, Callable[..., Any]] = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}
_ON_THE_WAY = {"Add", "Sub", "Mul", "Div", "Where", "Cast", "Identity", "Dropout"}  # from a product to its softmax
_BLOCK = re.compile(r"^(.*?\.)?\d+(?=\.|$)")  # such as encoder.layer.3


@dataclass(frozen=True)
class Spot:
    """A tensor of the graph that stands at a site.

    ``width`` and ``first`` are those of :class:`farout.inside._sites.Site`. ``turned`` says that the last two axes are
    exchanged, as those of keys are.
    """

    site: str
    kind: str
    tensor: str
    width: int | None = None
    first: bool = False
    turned: bool = False


class Graph:
    """The nodes of an ONNX graph: who makes a tensor, and who takes it.

    Parameters
    ----------
    graph : onnx.GraphProto
    """

    def __init__(self, graph: Any) -> None:
        from onnx import numpy_helper

        self.nodes = list(graph.node)
        self.weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self.maker = {name: (place, node) for place, node in enumerate(self.nodes) for name in node.output}
        self.takers: dict[str, list[Any]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self.takers[name].append(node)
        looked_at = [node for node in self.nodes if node.op_type in {*_LINEAR, *_NORMS}]
        self.linear = {node.output[0]: found for node in looked_at if (found := self._linear(node)) is not None}
        self.maps = [node for node in looked_at if node.output[0] in self.linear]
        norms = [node for node in looked_at if node.op_type in _NORMS]
        count = Counter(self._module(node) for node in [*self.maps, *norms])
        self.shared = {name for name, times in count.items() if times > 1}

    def name(self, node: Any) -> str:
        """Return the module that a node comes from, where it says so and is the only one; else the node's own name."""
        module = self._module(node)
        full = (node.name or node.output[0]).strip("/").replace("/", ".")
        return full if not module or module in self.shared else module

    def _module(self, node: Any) -> str:
        if node.name.startswith("/"):
            parts: list[str] = []
            for part in str(node.name).strip("/").split("/")[:-1]:
                if parts and part.startswith(f"{parts[-1]}."):  # the place in a row is written as /layer1/layer1.0
                    parts.pop()
                parts.append(part)
            return ".".join(parts)
        for name in node.input[1:2]:
            if name in self.weights and name.endswith(".weight"):
                return str(name).removesuffix(".weight")
        return ""

    def constant(self, name: str) -> np.ndarray | None:
        """Return a tensor that depends on no input; None where it does, or is made in a way that is not known here."""
        from onnx import numpy_helper

        if name in self.weights:
            return self.weights[name]
        if name not in self.maker:
            return None
        node = self.maker[name][1]
        options = _options(node)
        if node.op_type == "Constant":
            return numpy_helper.to_array(options["value"]) if "value" in options else None
        if node.op_type not in {"Identity", "Cast", "Transpose", "DequantizeLinear", *_ARITHMETIC}:
            return None
        found: list[Any] = [self.constant(given) for given in node.input]
        if any(value is None for value in found):
            return None
        value = found[0]
        if node.op_type in _ARITHMETIC:
            return np.asarray(_ARITHMETIC[node.op_type](*found))
        if node.op_type == "Transpose":
            return value.transpose(options.get("perm"))
        if node.op_type == "DequantizeLinear":
            shape = [1] * value.ndim
            if found[1].size > 1:
                shape[options.get("axis", 1)] = -1
            zero = found[2].astype(np.int32).reshape(shape) if len(found) > 2 else 0
            return (value.astype(np.int32) - zero) * found[1].reshape(shape)
        return value

    def spots(self) -> Iterator[Spot]:
        """Yield what there is to record; one tensor may stand at several sites."""
        yield from self._residuals()
        for node in self.nodes:
            name, first = self.name(node), _NORMS.get(node.op_type, False)
            if node.output[0] in self.linear:
                at, _, width = self.linear[node.output[0]]
                first = node.op_type in CONVOLUTIONS
                yield Spot(f"{name}.in", "linear", self._unpadded(node.input[at], name), width, first)
                yield Spot(f"{name}.out", "output", self._after(node.output[0], "Add"), None, first)
            elif node.op_type in _NORMS:
                scale = self.constant(node.input[1])
                size = None if scale is None else scale.size
                yield Spot(f"{name}.in", "norm", node.input[0], size, first)
                yield Spot(f"{name}.out", "norm", node.output[0], size, first)
            elif node.op_type == "ReduceMean":
                yield from self._written_norm(node)
            elif node.op_type == "Softmax":
                yield from self._attention(node)

    def _linear(self, node: Any) -> tuple[int, np.ndarray, int] | None:
        """Return which operand is data, the weight as (outputs, inputs), and the width of data; None for no weight."""
        if node.op_type not in _LINEAR:
            return None
        options = _options(node)
        for at in (0, 1):
            weight = self.constant(node.input[1 - at])
            if weight is None or weight.ndim < 2:
                continue
            if node.op_type in CONVOLUTIONS:
                width = weight.shape[1] * options.get("group", 1) if node.op_type == "Conv" else weight.shape[0]
                return (at, weight.reshape(len(weight), -1), width) if at == 0 else None
            if weight.ndim == 2:
                turned = options.get("transB", 0) if at == 0 else not options.get("transA", 0)
                rows = weight if turned else weight.T
                return at, rows, rows.shape[1]
        return None

    def _unpadded(self, name: str, module: str) -> str:
        """Return a tensor before a module put zeros around it itself."""
        node = self.maker.get(name, (0, None))[1]
        if node is not None and node.op_type == "Pad" and f"{self._module(node)}.".startswith(f"{module}."):
            return str(node.input[0])
        return name

    def _after(self, name: str, *kinds: str) -> str:
        """Return what becomes of a tensor in steps of these kinds, each with constants, in this order, if at all."""
        for kind in kinds:
            takers = self.takers[name]
            if len(takers) == 1 and takers[0].op_type == kind:
                others = [given for given in takers[0].input if given != name]
                if all(self.constant(given) is not None for given in others):
                    name = takers[0].output[0]
        return name

    def _written_norm(self, node: Any) -> Iterator[Spot]:
        """Find a norm that is written out: mean of squares, root, quotient, and perhaps a weight and a bias."""
        squared = self.maker.get(node.input[0], (0, None))[1]
        if squared is None or not (
            squared.op_type == "Pow" or (squared.op_type == "Mul" and squared.input[0] == squared.input[1])
        ):
            return
        centred = squared.input[0]
        root = self._after(node.output[0], "Add", "Sqrt")
        if root == node.output[0] or self.maker[root][1].op_type != "Sqrt":
            return
        root = self._after(root, "Reciprocal", "Div")
        scaled = [taker for taker in self.takers[root] if taker.op_type in ("Mul", "Div") and centred in taker.input]
        if not scaled:
            return
        before = self.maker.get(centred, (0, None))[1]
        came = before.input[0] if before is not None and before.op_type in ("Sub", "Cast") else centred
        name = self.name(node)
        yield Spot(f"{name}.in", "norm", came)
        yield Spot(f"{name}.out", "norm", self._after(scaled[0].output[0], "Cast", "Mul", "Cast", "Add"))

    def _attention(self, node: Any) -> Iterator[Spot]:
        """Find the two products around a softmax over keys."""
        scores = self._product_before(node.input[0])
        at, product = node.output[0], None
        for _ in range(4):
            for taker in self.takers[at]:
                if taker.op_type == "MatMul" and taker.input[0] == at:
                    product = taker
            onward = [taker for taker in self.takers[at] if taker.op_type in ("Where", "Cast", "Identity", "Dropout")]
            if product is not None or not onward:
                break
            at = onward[0].output[0]
        if scores is None or product is None or _options(node).get("axis", -1) not in (-1, 2, 3):
            return
        name = self._module(node) or self.name(node)
        yield Spot(f"{name}.q", "attention", scores.input[0])
        yield Spot(f"{name}.k", "attention", scores.input[1], turned=True)
        yield Spot(f"{name}.v", "attention", product.input[1])
        yield Spot(f"{name}.probs", "probs", node.output[0])

    def _product_before(self, name: str, steps: int = 8) -> Any:
        """Return the product of two tensors that depend on inputs which was scaled and masked to this tensor."""
        node = self.maker.get(name, (0, None))[1]
        if node is None or steps == 0:
            return None
        if node.op_type == "MatMul":
            return node if node.output[0] not in self.linear else None
        if node.op_type in _ON_THE_WAY:
            found = (self._product_before(given, steps - 1) for given in node.input)
            return next((product for product in found if product is not None), None)
        return None

    def _residuals(self) -> Iterator[Spot]:
        """Find sums of a tensor and of what linear maps made of it; those of a block are its residual stream."""
        adds = [node for node in self.nodes if node.op_type == "Add" and not self._is_masking(node)]
        sums = [(node, skip) for node in adds if (skip := self._skipped(node))]
        blocks: dict[str, list[tuple[Any, str]]] = defaultdict(list)
        for node, skip in sums:
            found = _BLOCK.match(self._module(node))
            blocks[found[0] if found else ""].append((node, skip))
        if "" in blocks or len(blocks) < 2:  # nothing says which sums belong together: each is a block of its own
            blocks = {f"residual.{place}": [one] for place, one in enumerate(sums)}
        first = bool(self.maps) and all(node.op_type in CONVOLUTIONS for node in self.maps[:-1])  # but for a head
        for name, inside in blocks.items():
            leaves = inside[-1][0].output[0]
            for taker in self.takers[leaves]:  # in BERT a block ends with a norm
                if taker.op_type in _NORMS and self._module(taker).startswith(f"{name}."):
                    leaves = taker.output[0]
            yield Spot(f"{name}.in", "residual", inside[0][1], first=first)
            yield Spot(f"{name}.out", "residual", leaves, first=first)

    def _is_masking(self, node: Any) -> bool:
        """Whether a sum stands between a product and its softmax; the mask is in the scores of earlier layers, too."""
        at = node.output[0]
        for _ in range(6):
            takers = self.takers[at]
            if any(taker.op_type == "Softmax" for taker in takers):
                return self._product_before(node.output[0]) is not None
            onward = [taker for taker in takers if taker.op_type in _ON_THE_WAY]
            if len(onward) != 1:
                return False
            at = onward[0].output[0]
        return False

    def _skipped(self, node: Any) -> str:
        """Return the operand of a sum from which linear maps made the other one; empty where there is none."""
        for skip, other in (node.input, reversed(node.input)):
            if self.constant(skip) is not None:
                continue
            oldest = self.maker.get(skip, (-1, None))[0]
            seen, todo, mapped, reached = set(), [other], False, False
            while todo:
                name = todo.pop()
                if name == skip:
                    reached = True
                elif name in self.maker and name not in seen and self.maker[name][0] > oldest:
                    seen.add(name)
                    mapped = mapped or name in self.linear
                    todo.extend(self.maker[name][1].input)
            if reached and mapped:
                return str(skip)
        return ""


def _options(node: Any) -> dict[str, Any]:
    """Return the attributes of a node by name."""
    from onnx import helper

    return {option.name: helper.get_attribute_value(option) for option in node.attribute}
