import ast
import re

import pytest
from detectron2.config import get_cfg as detectron2_get_cfg

from d2_plugins.config import get_cfg
from dev.make_config_page import PAGE, SOURCE, format_page, read_keys


def page() -> str:
    return PAGE.read_text(encoding="utf-8")


def test_page_is_what_the_sources_give() -> None:
    text = format_page(SOURCE.read_text(encoding="utf-8"), detectron2_get_cfg())
    assert text == page(), "run dev/make_config_page.py"


def test_page_has_all_keys_with_their_defaults() -> None:
    """Compared with the config itself, which the page's parser does not use."""
    stock, listed, node = detectron2_get_cfg(), {}, ""
    for line in page().partition("## Keys of detectron2")[0].splitlines():
        node = line[3:] if line.startswith("## ") else node
        if row := re.match(r"\| `(\w+)` \| `(.*?)` \| (.+?) \| .+ \|$", line):
            listed[row[1] if node == "Top level" else f"{node}.{row[1]}"] = row[2]
    ours = {key: value for key, value in leaves(get_cfg()) if key not in dict(leaves(stock))}
    assert set(listed) == set(ours)
    for key, default in listed.items():
        top, _, bottom = default.partition(" / ")
        value = float(top) / float(bottom) if bottom else ast.literal_eval(default)
        assert value == ours[key], key


def test_page_has_the_comment_of_each_key() -> None:
    keys, nodes = read_keys("# Of\n# two lines.\n_C.A = CN()\n# One.\n_C.A.X = 1\n")
    assert [(k.name, k.default, k.meaning) for k in keys] == [("A.X", "1", "One.")]
    assert nodes == {}
    with pytest.raises(ValueError, match=r"A\.Y has no comment"):
        read_keys("# One.\n_C.A.X = 1\n_C.A.Y = [\n    2,\n]\n")


def leaves(node, prefix=""):  # type: ignore[no-untyped-def]
    for name, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
