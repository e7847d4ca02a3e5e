"""Heat maps over images, written as PNG files in threads while scoring goes on; all of them or none."""

from __future__ import annotations

import os
import secrets
import shutil
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

import numpy as np

from farout.errors import BadInput
from farout.io.images import ENDINGS
from farout.report._heat import Heat, overlaid, picture

SIDE = 1024  # pixels of a heat map's longer side at most
THREADS = 8
WAITING = 32  # maps that wait to be written; more would fill the memory where the disk is slow


class MapWriter:
    """A folder of heat maps.

    Files are written into a hidden folder beside it, and moved when all of them are there; where something fails, what
    was in the folder stays as it was.

    Parameters
    ----------
    folder : Path
        Made where it is not there; files of the same names in it are replaced.
    heat : (float, float)
        Values at which colour begins, and is half strong; may be set before the first map.
    """

    def __init__(self, folder: str | Path, heat: Heat = (0.0, 1.0)) -> None:
        self.folder = Path(folder).absolute()
        if not self.folder.parent.is_dir():
            raise BadInput(f"cannot write heat maps to '{folder}': there is no folder '{self.folder.parent}'")
        if self.folder.exists() and not self.folder.is_dir():
            raise BadInput(f"cannot write heat maps to '{folder}': it is a file; name a folder")
        self.heat = heat
        self.written: dict[int, str] = {}  # place of the image to the map's path below the folder
        self._taken: set[str] = set()
        self._hidden = self.folder.with_name(f".farout-{secrets.token_hex(6)}.tmp")
        self._pool = ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1))
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> MapWriter:
        try:
            self._hidden.mkdir()
        except OSError as error:
            raise BadInput(f"cannot write heat maps to '{self.folder}': {error.strerror}") from error
        return self

    def add(self, place: int, name: str, item: Any, map_HW: np.ndarray, box: tuple[float, ...]) -> None:
        """Write one map, soon; ``box`` is in shares of the image's width and height."""
        while len(self._waiting) >= WAITING:
            self._waiting.popleft().result()
        path = self._path(name)
        self.written[place] = path
        self._waiting.append(self._pool.submit(self._one, path, item, map_HW, box))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        try:
            for future in self._waiting:
                if kind is None:
                    future.result()
                else:
                    future.cancel()
            self._pool.shutdown()
            if kind is None:
                for path in self.written.values():
                    target = self.folder / path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(self._hidden / path, target)
        except OSError as failed:
            raise BadInput(f"cannot write heat maps to '{self.folder}': {failed.strerror or failed}") from failed
        finally:
            self._pool.shutdown(cancel_futures=True)
            shutil.rmtree(self._hidden, ignore_errors=True)

    def _one(self, path: str, item: Any, map_HW: np.ndarray, box: tuple[float, ...]) -> None:
        target = self._hidden / path
        target.parent.mkdir(parents=True, exist_ok=True)
        overlaid(picture(item, SIDE), map_HW, self.heat, box).save(target, "PNG", compress_level=3)

    def _path(self, name: str) -> str:
        """Turn an image's name into a path that is taken by no other one."""
        parts = (part for part in PurePosixPath(name.replace("\\", "/")).parts if part not in ("..", "/"))
        pure = PurePosixPath(*parts)
        name = str(pure)
        stem = str(pure.with_suffix("")) if pure.suffix.lower() in ENDINGS else name
        for one in (f"{stem}.png", f"{name}.png", *(f"{name}-{k}.png" for k in range(2, 10_000))):
            if one.lower() not in self._taken:
                break
        self._taken.add(one.lower())
        return one
