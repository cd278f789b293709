"""The few HTML elements of a report. Every text is escaped here, and nowhere else."""

import math
from base64 import b64encode
from collections.abc import Sequence
from html import escape

from .style import STYLE

__all__ = ["bars", "figure", "grid", "note", "number", "page", "section", "table", "tiles"]

# Nothing is loaded from anywhere, and nothing runs.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(title: str, subtitle: str, body: Sequence[str]) -> str:
    """A whole document around the sections ``body``."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">
<title>{escape(title)}</title>
<style>
{STYLE}</style>
</head>
<body>
<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></header>
<main>
{"".join(body)}</main>
</body>
</html>
"""


def section(title: str, *parts: str) -> str:
    """A headed part of the page; ``parts`` are HTML."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{''.join(parts)}</section>\n"


def note(text: str) -> str:
    """A line about the report itself, e.g. what is missing."""
    return f'<p class="note">{escape(text)}</p>\n'


def tiles(items: Sequence[tuple[str, str]], kind: str = "") -> str:
    """Large values, each above its name.

    Args:
        items: pairs of name and value.
        kind: "facts" for longer, smaller values.
    """
    cells = "".join(
        f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for name, value in items
    )
    return f'<div class="tiles {kind}">{cells}</div>\n'


def grid(*figures: str) -> str:
    """Figures side by side where there is room; HTML in, HTML out."""
    return f'<div class="grid">{"".join(figures)}</div>\n'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "numbers") -> str:
    """A table whose first column names the rows.

    Args:
        head: names of the columns.
        rows: the cells, as text.
        kind: "numbers" (right-aligned) or "text".
    """
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>\n"
        for first, *cells in rows
    )
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{top}</tr></thead>\n'
        f"<tbody>\n{body}</tbody></table></div>\n"
    )


def bars(items: Sequence[tuple[str, float]]) -> str:
    """Names with percentages as bars; NaN has none."""
    rows = "".join(
        f"<li><span>{escape(name)}</span><b>{number(value)}</b>"
        f'<i style="width:{0.0 if math.isnan(value) else value:.1f}%"></i></li>\n'
        for name, value in items
    )
    return f'<ul class="bars">\n{rows}</ul>\n'


def figure(images: Sequence[tuple[bytes, str, str]], caption: str) -> str:
    """Pictures side by side (one below the other on a phone) over a caption.

    Args:
        images: file content, type ("png" for curves, "jpeg" for photographs) and a text that
            stands for it.
        caption: of all.
    """
    tags = "".join(
        f'<img alt="{escape(text)}" src="data:image/{kind};base64,{b64encode(data).decode()}">'
        for data, kind, text in images
    )
    photos = ' class="photos"' if images[0][1] == "jpeg" else ""
    caption = f"<figcaption>{escape(caption)}</figcaption>"
    return f"<figure{photos}><div>{tags}</div>{caption}</figure>\n"


def number(value: float | None) -> str:
    """A percentage with one decimal; a dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:.1f}"
