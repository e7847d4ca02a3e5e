"""The tokenizer of a checkpoint: files of a folder as they are, or what transformers makes of a GGUF file."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farout.io.models import OpenModel

FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)


@dataclass(frozen=True)
class TokenizerFiles:
    """Files that are copied as they are."""

    paths: tuple[Path, ...]

    def save_pretrained(self, folder: str | Path) -> None:
        """Copy them, as a tokenizer of transformers would write itself."""
        for path in self.paths:
            shutil.copyfile(path, Path(folder) / path.name)


def tokenizer_of(opened: OpenModel, source: Any, tokenizer: Any) -> Any:
    """Return what has ``save_pretrained``: files of a folder, or a tokenizer of transformers; None where none is."""
    from farout.data.pretrained import pretrained, pretrained_names

    place = tokenizer or source
    if isinstance(place, str) and place in pretrained_names():
        place = pretrained(place)
    if not isinstance(place, str | Path):
        return None
    path = Path(place)
    if path.suffix == ".gguf":
        from transformers import AutoTokenizer

        made = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
        ours = opened.tokenizer
        if ours is not None and list(made("Far out.", add_special_tokens=False).input_ids) != list(
            ours.encode("Far out.")
        ):
            opened.notes.append("no tokenizer was written: transformers reads the one of this GGUF file wrongly")
            return None
        return made
    folder = path if path.is_dir() else path.parent
    paths = tuple(folder / name for name in FILES if (folder / name).is_file())
    return TokenizerFiles(paths) if paths else None
