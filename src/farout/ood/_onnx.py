"""An ONNX classifier as a torch module, so that its views are found like those of any other."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from farout.errors import BadInput

_AFTER = ("Softmax", "LogSoftmax", "Identity", "Cast")  # what may stand between the logits and the answer


class OnnxClassifier(nn.Module):
    """Run a graph with onnxruntime up to its head, and the head in torch.

    Stages are the last tensors at each size of a picture; each passes through a module under its own name. Where the
    graph ends with a softmax, the logits are what that reads. Nothing in here has gradients with respect to the input.

    Parameters
    ----------
    model : farout.io OnnxModel
        With one input.

    Attributes
    ----------
    head : torch.nn.Linear or None
        None where the logits come from no linear map with constant weights.

    Raises
    ------
    BadInput
        The graph cannot be taken apart.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        import onnx
        import onnxruntime
        from onnx import shape_inference

        self._model = model
        loaded = onnx.load(model.path)
        graph = loaded.graph
        maker = {name: node for node in graph.node for name in node.output}
        weights = _constants(graph)
        answer = graph.output[0].name
        while answer in maker and maker[answer].op_type in _AFTER:
            answer = maker[answer].input[0]
        found = _head(answer, maker, weights)
        self.head: nn.Linear | None = None
        if found is not None:
            self._reads, weight, bias = found
            self.head = nn.Linear(weight.shape[1], weight.shape[0])
            with torch.no_grad():
                self.head.weight.copy_(torch.from_numpy(weight))
                self.head.bias.copy_(torch.from_numpy(bias))
        else:
            self._reads = answer
        self._stages = _pictures(shape_inference.infer_shapes(loaded).graph)
        self.stages = nn.ModuleList(nn.Identity() for _ in self._stages)
        known = {output.name for output in graph.output}
        for name in dict.fromkeys([self._reads, *self._stages]):
            if name not in known:
                graph.output.append(onnx.ValueInfoProto(name=name))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(loaded.SerializeToString(), options)
        except Exception as error:
            raise BadInput(
                f"the graph of '{model.path.name}' cannot be taken apart ({' '.join(str(error).split())[:200]}); open "
                "the torch model that it comes from"
            ) from error

    def forward(self, *args: Tensor, **more: Tensor) -> Tensor:
        """Return logits (n, C)."""
        named = {one.name: value for one, value in zip(self._model.inputs, args)} | more
        feeds = self._model.feeds({name: value.detach().cpu().numpy() for name, value in named.items()})
        reads, *pictures = self._session.run([self._reads, *self._stages], feeds)
        for stage, picture in zip(self.stages, pictures):
            stage(torch.from_numpy(picture))
        x = torch.from_numpy(reads)
        return x if self.head is None else self.head(x)


def _constants(graph: Any) -> dict[str, np.ndarray]:
    """Return the constant tensors of a graph by name."""
    from onnx import numpy_helper

    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            found |= {
                name: numpy_helper.to_array(a.t) for name in node.output for a in node.attribute if a.name == "value"
            }
        elif node.op_type == "Identity" and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
    return found


def _head(
    answer: str, maker: dict[str, Any], weights: dict[str, np.ndarray]
) -> tuple[str, np.ndarray, np.ndarray] | None:
    """Return what the last linear map reads, its weight (C, d) and its bias (C,); None where there is none."""
    node = maker.get(answer)
    if node is None:
        return None
    bias: np.ndarray | None = None
    if node.op_type == "Add":
        parts = [name for name in node.input if name in weights]
        others = [name for name in node.input if name not in weights]
        if len(parts) != 1 or maker.get(others[0]) is None:
            return None
        bias, node = weights[parts[0]], maker[others[0]]
    if node.op_type not in ("Gemm", "MatMul") or node.input[1] not in weights:
        return None
    weight = weights[node.input[1]]
    settings = {attribute.name: attribute for attribute in node.attribute}
    if node.op_type == "Gemm":
        plain = all(settings[name].f == 1 for name in ("alpha", "beta") if name in settings)
        if not plain or ("transA" in settings and settings["transA"].i):
            return None
        if len(node.input) > 2:
            bias = weights.get(node.input[2])
            if bias is None:
                return None
    turned = node.op_type == "Gemm" and "transB" in settings and settings["transB"].i
    weight = np.array(weight if turned else weight.T, dtype=np.float32)
    if weight.ndim != 2:
        return None
    return node.input[0], weight, np.broadcast_to(0.0 if bias is None else bias, len(weight)).astype(np.float32)


def _pictures(graph: Any) -> list[str]:
    """Return the last tensor of each size of a picture, in order."""
    shapes = {}
    for value in graph.value_info:
        axes = [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        if len(axes) == 4 and all(size > 0 for size in axes[1:]) and max(axes[2:]) > 1:
            shapes[value.name] = tuple(axes[1:])
    last = {shapes[name]: name for node in graph.node for name in node.output if name in shapes}
    return list(last.values())
