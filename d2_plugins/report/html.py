"""The page of a report: its elements, and the template that lays them out.

The elements hold plain text and numbers. ``report.html.jinja`` turns them into HTML, with jinja2's
autoescape on, so that a class name such as ``<b>`` reads as it is written.
"""

import math
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

__all__ = [
    "Bars",
    "Block",
    "Details",
    "Facts",
    "Figures",
    "Matrix",
    "Note",
    "Picture",
    "Section",
    "Table",
    "Tiles",
    "number",
    "page",
]


@dataclass(frozen=True)
class Note:
    """A paragraph, for example an explanation or what is missing.

    Attributes:
        text: the paragraph.
        is_warning: set it off from the rest of the page.
    """

    text: str
    is_warning: bool = False
    kind: str = field(default="note", init=False)


@dataclass(frozen=True)
class Tiles:
    """Large values, each above its name; pairs of name and value."""

    items: Sequence[tuple[str, str]]
    kind: str = field(default="tiles", init=False)


@dataclass(frozen=True)
class Facts:
    """Names and longer values, one pair per line."""

    items: Sequence[tuple[str, str]]
    kind: str = field(default="facts", init=False)


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows.

    Attributes:
        head: names of the columns.
        rows: cells as text.
        is_text: left-aligned text in a fixed-width font instead of right-aligned numbers.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    is_text: bool = False
    kind: str = field(default="table", init=False)


@dataclass(frozen=True)
class Bars:
    """Names with percentages as bars; NaN has no bar."""

    items: Sequence[tuple[str, float]]
    kind: str = field(default="bars", init=False)


@dataclass(frozen=True)
class Matrix:
    """A table of counts, shaded by their share of the row.

    Attributes:
        corner: what rows and columns are.
        head: names of the columns.
        rows: name and counts of each row; None for an empty cell.
    """

    corner: str
    head: Sequence[str]
    rows: Sequence[tuple[str, Sequence[int | None]]]
    kind: str = field(default="matrix", init=False)

    def shade(self, counts: Sequence[int | None], count: int | None) -> float:
        """Return the opacity of a cell, in 0..0.6."""
        return 0.6 * (count or 0) / max(1, sum(c or 0 for c in counts))


@dataclass(frozen=True)
class Picture:
    """An image that is embedded in the page and can be enlarged.

    Attributes:
        id: name within the page.
        data: content of the file.
        type: "png" or "jpeg".
        text: what the picture shows, for readers who cannot see it.
    """

    id: str
    data: bytes
    type: str
    text: str

    @property
    def source(self) -> str:
        """The picture as a ``data:`` URL."""
        return f"data:image/{self.type};base64,{b64encode(self.data).decode()}"


@dataclass(frozen=True)
class Figures:
    """Figures side by side where there is room.

    Attributes:
        items: caption and pictures of each figure.
    """

    items: Sequence[tuple[str, Sequence[Picture]]]
    kind: str = field(default="figures", init=False)


@dataclass(frozen=True)
class Details:
    """Blocks that are folded away under a summary."""

    summary: str
    blocks: "Sequence[Block]"
    kind: str = field(default="details", init=False)


Block = Note | Tiles | Facts | Table | Bars | Matrix | Figures | Details


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading."""

    title: str
    blocks: Sequence[Block]


def page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """Render a whole document, which loads nothing and runs no scripts."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("report.html.jinja")
    return template.render(title=title, subtitle=subtitle, sections=sections, number=number)


def number(value: float | None) -> str:
    """Format a percentage with one decimal; a dash for None and NaN."""
    return "–" if value is None or math.isnan(value) else f"{value:.1f}"
