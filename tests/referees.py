"""Libraries that judge ours, and what they need to be imported here."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from importlib.util import find_spec
from unittest.mock import MagicMock

import pytest


class _Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands in for torchvision, whose wheels fit only some builds of torch; the detectors use none of it."""

    def find_spec(self, name, path, target=None):
        return (
            importlib.machinery.ModuleSpec(name, self, is_package=True) if name.split(".")[0] == "torchvision" else None
        )

    def create_module(self, spec):
        module = MagicMock(name=spec.name)
        module.__path__, module.__spec__ = [], spec
        return module

    def exec_module(self, module):
        pass


def pytorch_ood():
    """Return the detectors of pytorch-ood, or skip; nothing that was stood in for stays importable."""
    stood_in = _Absent() if find_spec("torchvision") is None else None
    if stood_in is not None:
        sys.meta_path.append(stood_in)
    try:
        return pytest.importorskip("pytorch_ood.detector", reason="pytorch-ood is not installed")
    finally:
        if stood_in is not None:
            sys.meta_path.remove(stood_in)
            for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
                del sys.modules[name]
