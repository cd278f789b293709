"""Code blocks, links and anchors of the Markdown pages."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.support.helpers import REPO

PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    *(f"docs/{p.name}" for p in sorted(REPO.glob("docs/*.md"))),
)


@dataclass(frozen=True)
class Block:
    """A code block of a page.

    Attributes:
        page: path of the page, relative to the checkout.
        line: line number of the opening fence.
        language: the word after the opening fence; empty if there is none.
        text: content, without the indentation of a list around it.
    """

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str, *languages: str) -> list[Block]:
    """Return the code blocks of a page, in order; all languages if none are named."""
    found = [
        Block(page, line, token.info.strip(), token.content)
        for line, token in _tokens(REPO / page)
        if token.type in ("fence", "code_block")
    ]
    return [block for block in found if block.language in languages or not languages]


def links(path: Path) -> list[tuple[int, str]]:
    """Return line number and target of each link and image."""
    return [
        (line, str(child.attrs["src" if child.type == "image" else "href"]))
        for line, token in _tokens(path)
        for child in token.children or ()
        if child.type in ("link_open", "image")
    ]


def anchors(path: Path) -> set[str]:
    """Return the anchors that GitHub makes of the headings."""
    seen: Counter[str] = Counter()
    found = set()
    for title in _headings(path):
        slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def _headings(path: Path) -> Iterator[str]:
    tokens = [token for _, token in _tokens(path)]
    for token, content in pairwise(tokens):
        if token.type == "heading_open":
            yield "".join(child.content for child in content.children or ())


@cache
def _tokens(path: Path) -> list[tuple[int, Token]]:
    """Return the block tokens, each with its line; table cells have the line of their row."""
    line, found = 1, []
    for token in MarkdownIt("commonmark").enable("table").parse(path.read_text(encoding="utf-8")):
        line = token.map[0] + 1 if token.map else line
        found.append((line, token))
    return found
