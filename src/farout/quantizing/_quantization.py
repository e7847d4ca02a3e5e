"""What quantizing a model gives back."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from farout.errors import BadInput
from farout.inside import Recording
from farout.io.files import writing
from farout.quantize.recipe import QuantizedModel


@dataclass
class Quantization:
    """A quantized model, and what it has lost.

    Attributes
    ----------
    name : str
        Of the model.
    facts : dict of str to Any
        What it is: parameters, layers, width, stored format.
    quantized : QuantizedModel
    loss : (Perplexity or None, Perplexity or None)
        On the test text, before and after.
    recordings : (Recording, Recording)
        What the inputs of linear maps carry, before and after.
    saved : Saved or None
        What was written.
    notes : list of str
    settings : dict
        What would repeat the run, and timings.
    """

    name: str
    facts: dict[str, Any]
    quantized: QuantizedModel
    loss: tuple[Any, Any]
    recordings: tuple[Recording, Recording]
    saved: Any = None
    notes: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def bytes(self) -> tuple[int, int]:
        """Of the weights before, in 16 bits, and of the files after (0 where nothing was written)."""
        plain = sum(weight.numel() for weight in self.quantized.model.parameters())
        return 2 * plain, self.saved.bytes if self.saved is not None else 0

    def verdict(self) -> list[str]:
        """Say in a few sentences what was done and what it cost."""
        one, recipe = self.quantized, self.quantized.recipe["recipe"]
        said = [f"{len(one.maps)} linear maps in {one.scheme} by {recipe}: {one.bits_per_weight:.2f} bits a weight."]
        before, after = self.loss
        if before is not None and after is not None:
            said.append(
                f"Perplexity on {self.settings.get('test', 'the test text')}: {before.value:.2f} before, "
                f"{after.value:.2f} after ({after.loss - before.loss:+.4f} nats a token)."
            )
        if self.saved is not None:
            plain, packed = self.bytes
            said.append(f"{packed / 1e6:.1f} MB on disk, where 16 bits would take {plain / 1e6:.1f} MB.")
            if self.saved.dequantized:
                said.append(
                    f"{len(self.saved.dequantized)} maps are stored as plain numbers: the format cannot hold them."
                )
        return said

    def as_dict(self) -> dict[str, Any]:
        """Return all of it but the recordings as plain data."""
        before, after = self.loss
        perplexity = None
        if before is not None and after is not None:
            perplexity = {"before": before.value, "after": after.value, "tokens": before.tokens}
        saved = (
            None
            if self.saved is None
            else {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self.saved).items()}
        )
        return {
            "name": self.name,
            "verdict": self.verdict(),
            "facts": self.facts,
            "perplexity": perplexity,
            **self.quantized.as_dict(),
            "saved": saved,
            "notes": self.notes,
            "settings": self.settings,
        }

    def save(self, path: str | Path) -> None:
        """Write the page (``.html``) or the numbers (``.json``), whole or not at all."""
        path = Path(path)
        if path.suffix.lower() == ".json":
            with writing(path) as temporary:
                temporary.write_text(json.dumps(self.as_dict(), indent=2, default=str), encoding="utf-8")
        elif path.suffix.lower() in (".html", ".htm"):
            from farout.report.quantization import write_page

            write_page(self, path)
        else:
            raise BadInput(f"cannot write '{path.name}'; give an ending of html or json")
