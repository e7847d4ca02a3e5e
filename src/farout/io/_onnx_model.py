"""An ONNX file, run by onnxruntime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from farout.errors import BadInput, MissingExtra

_TYPES = {
    "float": np.float32,
    "double": np.float64,
    "float16": np.float16,
    "int64": np.int64,
    "int32": np.int32,
    "int16": np.int16,
    "int8": np.int8,
    "uint8": np.uint8,
    "bool": np.bool_,
}


@dataclass(frozen=True)
class OnnxInput:
    """What an ONNX model is called with: ``shape`` has a word, or None, where any size will do."""

    name: str
    shape: tuple[int | str | None, ...]
    dtype: Any


class OnnxModel:
    """A model that is called with arrays by name and returns arrays by name.

    It is no module of torch: :func:`farout.inside.record` cannot watch it, and ``farout.inside.record_onnx`` does.

    Parameters
    ----------
    path : Path

    Attributes
    ----------
    path : Path
    inputs : list of OnnxInput
    outputs : list of str

    Raises
    ------
    MissingExtra
    BadInput
        onnxruntime cannot load the file.
    """

    def __init__(self, path: Path) -> None:
        try:
            import onnx  # noqa: F401
            import onnxruntime
        except ImportError as error:
            raise MissingExtra("opening an ONNX model", "onnx") from error
        self.path = Path(path)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised, and need not be printed as well
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise BadInput(
                f"onnxruntime cannot load '{self.path.name}': {' '.join(str(error).split())[:300]}; "
                "export it again, or fetch it again if it was cut off"
            ) from error
        self.inputs = [_input(given) for given in self.session.get_inputs()]
        self.outputs = [output.name for output in self.session.get_outputs()]

    def __call__(self, *args: Any, **feeds: Any) -> dict[str, np.ndarray]:
        """Run the model; inputs without a name are taken in order."""
        named = dict(zip((given.name for given in self.inputs), args)) | feeds
        return dict(zip(self.outputs, self.session.run(None, self.feeds(named))))

    def feeds(self, given: dict[str, Any]) -> dict[str, np.ndarray]:
        """Return arrays for all inputs in the types that the model wants; states and masks that are missing are made.

        What is called a mask is 1, everything else 0. A size that the model leaves open is that of the same name in the
        main input; one without such a name is that of the same axis in a mask, and else the first.

        Raises
        ------
        BadInput
            The main input is missing, or of another number of axes.
        """
        main = self.main
        if main.name not in given:
            raise BadInput(f"'{self.path.name}' takes {[one.name for one in self.inputs]}, and got {list(given)}")
        like = np.asarray(given[main.name])
        if like.ndim != len(main.shape):
            raise BadInput(
                f"the input '{main.name}' of '{self.path.name}' has {len(main.shape)} axes, {main.shape}, and the data "
                f"have shape {like.shape}"
            )
        sizes = {word: size for word, size in zip(main.shape, like.shape) if isinstance(word, str)}
        ready = {}
        for one in self.inputs:
            if one.name in given:
                ready[one.name] = np.asarray(given[one.name]).astype(one.dtype, copy=False)
            else:
                as_main = len(one.shape) == like.ndim  # such as a mask or types of tokens
                shape: list[Any] = [
                    size if isinstance(size, int) else sizes.get(str(size), like.shape[axis if as_main else 0])
                    for axis, size in enumerate(one.shape)
                ]
                ready[one.name] = np.full(shape, 1 if "mask" in one.name else 0, one.dtype)
        return ready

    def counts(self) -> dict[str, int | None]:
        """Return the number of weights, and of tokens that a table of them knows; None where the graph shows none."""
        import onnx

        graph = onnx.load(self.path, load_external_data=False).graph
        sizes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
        tables = [node for node in graph.node if node.op_type == "Gather" and node.input[1] == self.main.name]
        known = [sizes[node.input[0]][0] for node in tables if node.input[0] in sizes]
        weights = sum(int(np.prod(size)) for size in sizes.values())
        return {"parameters": weights, "vocabulary": known[0] if known else None}

    @property
    def main(self) -> OnnxInput:
        """The input that data go into: tokens or pixels where names say so, else the first."""
        named = [one for one in self.inputs if one.name in ("input_ids", "pixel_values")]
        return (named or self.inputs)[0]

    @property
    def takes(self) -> str:
        """``"tokens"``, ``"pixels"`` or ``"features"``, by type and shape of the main input."""
        if np.issubdtype(self.main.dtype, np.integer) and len(self.main.shape) == 2:
            return "tokens"
        return "pixels" if len(self.main.shape) == 4 and 3 in self.main.shape else "features"


def _input(given: Any) -> OnnxInput:
    """Read what onnxruntime says of an input."""
    word = given.type.removeprefix("tensor(").removesuffix(")")
    if word not in _TYPES:
        raise BadInput(f"the input '{given.name}' is of type '{given.type}', which is no tensor of numbers")
    return OnnxInput(given.name, tuple(given.shape), _TYPES[word])
