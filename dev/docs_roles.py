"""Griffe extension: docstrings without Sphinx roles, for the API reference."""

import re
from typing import Any

import griffe

_ROLE = re.compile(r":\w+:`[~.]*([^`<]+)`")


class WithoutRoles(griffe.Extension):
    """Replaces ``:func:`~a.b.name``` by ``name`` in code type."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change the docstring of an object that has been read."""
        if obj.docstring:
            obj.docstring.value = _ROLE.sub(_in_code_type, obj.docstring.value)


def _in_code_type(role: re.Match[str]) -> str:
    return f"`{role[1].rpartition('.')[2]}`"
