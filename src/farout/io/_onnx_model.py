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
    """What an ONNX model is called with: ``shape`` has None where any size will do."""

    name: str
    shape: tuple[int | None, ...]
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
            import onnxruntime
        except ImportError as error:
            raise MissingExtra("opening an ONNX model", "onnx") from error
        self.path = Path(path)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
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

        What is called a mask is 1, everything else 0; sizes that the model leaves open are those of the first input.

        Raises
        ------
        BadInput
            The first input is missing.
        """
        main = self.main
        if main.name not in given:
            raise BadInput(f"'{self.path.name}' takes {[one.name for one in self.inputs]}, and got {list(given)}")
        like = np.asarray(given[main.name])
        ready = {}
        for one in self.inputs:
            if one.name in given:
                ready[one.name] = np.asarray(given[one.name]).astype(one.dtype, copy=False)
            else:
                shape = [
                    (like.shape[axis] if axis < like.ndim else 1) if size is None else size
                    for axis, size in enumerate(one.shape)
                ]
                ready[one.name] = np.full(shape, 1 if "mask" in one.name else 0, one.dtype)
        return ready

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
    return OnnxInput(given.name, tuple(size if isinstance(size, int) else None for size in given.shape), _TYPES[word])
