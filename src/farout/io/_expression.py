"""A Python expression that returns a module. Evaluating it runs code, so that it only happens where a user marks it."""

from __future__ import annotations

import ast
import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from farout.errors import BadInput, MissingExtra

if TYPE_CHECKING:
    from torch import nn


def module_of(expression: str) -> nn.Module:
    """Import what an expression such as ``package.module.make(3)`` begins with, and evaluate it.

    The longest part of the leading name that can be imported is imported, also from the working folder.

    Raises
    ------
    BadInput
        It is no expression, nothing of it can be imported, it raises, or what it returns is no ``torch.nn.Module``.

    Examples
    --------
    >>> module_of("torch.nn.Linear(3, 2)")
    Linear(in_features=3, out_features=2, bias=True)
    """
    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except SyntaxError as error:
        raise BadInput(
            f"'{expression}' is no Python expression: {error.msg}; write 'package.module.make(3)'"
        ) from error
    names = _leading(tree.body)
    if not names:
        raise BadInput(f"'{expression}' begins with no module to import; write 'package.module.make(3)'")
    before = list(sys.path)
    sys.path.insert(0, os.getcwd())
    try:
        root = _imported(names)
        found = eval(compile(tree, "<model>", "eval"), {names[0]: root})
    except (BadInput, MissingExtra):
        raise
    except Exception as error:
        raise BadInput(f"'{expression}' raised {type(error).__name__}: {error}") from error
    finally:
        sys.path[:] = before
    from torch import nn

    if not isinstance(found, nn.Module):
        raise BadInput(f"'{expression}' gives a {type(found).__name__}, and not a torch.nn.Module")
    return found


def _leading(node: ast.AST) -> list[str]:
    """Return the dotted name that an expression begins with, as words."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute):
        inner = _leading(node.value)
        return [*inner, node.attr] if inner and not _calls(node.value) else inner
    if isinstance(node, ast.Call):
        return _leading(node.func)
    return _leading(node.value) if isinstance(node, ast.Subscript) else []


def _calls(node: ast.AST) -> bool:
    """Whether something is called or looked up inside."""
    return any(isinstance(part, ast.Call | ast.Subscript) for part in ast.walk(node))


def _imported(names: list[str]) -> Any:
    """Import the longest part of a dotted name; return its first module."""
    try:
        root = importlib.import_module(names[0])
    except ImportError as error:
        raise BadInput(f"cannot import '{names[0]}': {error}; is it installed, or in this folder?") from error
    for end in range(2, len(names) + 1):
        try:
            importlib.import_module(".".join(names[:end]))
        except ModuleNotFoundError:
            break
    return root
