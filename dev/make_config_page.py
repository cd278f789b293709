#!/usr/bin/env python
"""Write docs/config_keys.md from the comments of config.py and the rules of config_schema.py.

    dev/make_config_page.py

Run it after a change of either file.
"""

import argparse
import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.config import get_cfg as detectron2_get_cfg

from d2_plugins.config import config_values
from d2_plugins.config_schema import RULES
from d2_plugins.files import atomic_open

__all__ = ["Key", "format_page", "read_keys"]

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "d2_plugins" / "config.py"
PAGE = ROOT / "docs" / "config_keys.md"

_HEADER = """# Config keys

Set a key in a YAML file, as `KEY VALUE` at the end of a command, or in Python:

```bash
d2-plugins train --config-file Demo/faster_rcnn.yaml --num-gpus 0 \\
    SOLVER.MAX_ITER 100 SOLVER.STEPS "(80,)"
```

A misspelt key, or a value that is not allowed, is an error before anything is built, with the
closest name or the allowed values. This page is written by `dev/make_config_page.py` from
`d2_plugins/config.py` and `d2_plugins/config_schema.py`; edit those and not this page.
"""
_DETECTRON2 = """## Keys of detectron2

These keys keep detectron2's meaning and defaults; `detectron2/config/defaults.py` describes them.
Their values are checked. Keys that are not listed must have the type of their default.
"""
_TOP_LEVEL = "Top level"
_RULE = re.compile(r"# -{20,}")
_COMMENT = re.compile(r"# ?(.*)")
_KEY = re.compile(r"_C\.([\w.]+) = (.*)", re.S)
_TYPES = {bool: "True or False", str: "text", list: "a list", tuple: "a list", dict: "keys"}


@dataclass(frozen=True)
class Key:
    """A config key of this package.

    Attributes:
        name: full name of the key.
        default: its default value, as Python source.
        meaning: its comment.
    """

    name: str
    default: str
    meaning: str

    @property
    def node(self) -> str:
        """The name without its last part."""
        return self.name.rpartition(".")[0]


def read_keys(source: str) -> tuple[list[Key], dict[str, str]]:
    """Return the keys of config.py in their order, and the introduction of each node that has one.

    Args:
        source: text of config.py.

    Raises:
        ValueError: a key has no comment.
    """
    keys: list[Key] = []
    introductions: dict[str, str] = {}
    introduction = comment = ""
    for line in _statements(source):
        if _RULE.match(line):
            introduction, comment = comment, ""
        elif found := _COMMENT.match(line):
            comment = f"{comment} {found[1]}".strip()
        elif not (found := _KEY.match(line)):
            comment = ""
        elif found[2] == "CN()":
            if introduction:
                introductions[found[1]] = introduction
            introduction = comment = ""
        elif not comment:
            raise ValueError(f"{found[1]} has no comment in config.py")
        else:
            keys.append(Key(found[1], found[2], comment))
            comment = ""
    return keys, introductions


def _statements(source: str) -> Iterator[str]:
    """Yield the comments line by line, and each statement with all of its lines."""
    ends = {node.lineno: node.end_lineno for node in ast.parse(source).body}
    lines, number = source.splitlines(), 1
    while number <= len(lines):
        last = ends.get(number) or number
        yield "\n".join(lines[number - 1 : last])
        number = last + 1


def format_page(source: str, defaults: CfgNode) -> str:
    """Return the page in Markdown: a table for each node, ours first.

    Args:
        source: text of config.py.
        defaults: detectron2's default config.
    """
    keys, introductions = read_keys(source)
    lines = [_HEADER]
    for node in dict.fromkeys(key.node for key in keys):
        lines += [f"## {node or _TOP_LEVEL}", ""]
        if node in introductions:
            lines += [_text(introductions[node]), ""]
        lines += ["| key | default | allowed | meaning |", "|---|---|---|---|"]
        for key in (key for key in keys if key.node == node):
            name = key.name.rpartition(".")[2]
            allowed = _text(_allowed(key.name, ast.literal_eval(_constant(key.default))))
            lines.append(f"| `{name}` | `{key.default}` | {allowed} | {_text(key.meaning)} |")
        lines.append("")
    return "\n".join([*lines, _DETECTRON2, *_detectron2_table(keys, defaults), ""])


def _detectron2_table(keys: list[Key], defaults: CfgNode) -> list[str]:
    ours, theirs = {key.name for key in keys}, dict(config_values(defaults))
    lines = ["| key | default | allowed |", "|---|---|---|"]
    for name in RULES:
        if name not in ours:
            lines.append(f"| `{name}` | `{theirs[name]!r}` | {_text(_allowed(name))} |")
    return lines


def _allowed(name: str, default: object = None) -> str:
    """Return the allowed values of a key; its limits of a billion guard against slips only."""
    text = RULES[name].allowed if name in RULES else _TYPES.get(type(default), "a number")
    text = re.sub(r", at most 1e\+09", "", text)
    return re.sub(r" to (1e\+09|1000000000)\b", " upwards", text)


def _constant(default: str) -> str:
    """Return the source of a default without its arithmetic, which literal_eval refuses."""
    return re.sub(r"(\d+) / \d+", r"\1.0", default)


def _text(text: str) -> str:
    """Return plain text as Markdown: keys in code type, other characters as they are."""
    text = re.sub(r"([*|<])", r"\\\1", text)
    return re.sub(r"\b[A-Z][A-Z0-9]*(?:[._]\\?[A-Z*]+)+", _as_code, text)


def _as_code(match: re.Match[str]) -> str:
    return f"`{match[0]}`".replace("\\", "")


def main() -> int:
    """Write the page."""
    argparse.ArgumentParser(description="Write docs/config_keys.md.").parse_args()
    text = format_page(SOURCE.read_text(encoding="utf-8"), detectron2_get_cfg())
    with atomic_open(PAGE) as file:
        file.write(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
