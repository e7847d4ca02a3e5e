"""Docstrings speak reStructuredText where they refer to code; the site speaks Markdown."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

_ROLE = re.compile(r":(?:class|func|meth|mod):`~?([^`]+)`")


class Plain(Extension):
    """Turn roles into code, and the double colon before an indented block into one."""

    def on_instance(self, *, obj: Object, **rest: Any) -> None:
        """Rewrite the docstring of an object."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"::$", ":", _ROLE.sub(r"`\1`", obj.docstring.value), flags=re.MULTILINE)
