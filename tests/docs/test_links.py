"""Links within the documentation lead to pages, headings and files that exist."""

from pathlib import Path

import pytest

from tests.docs.markdown import PAGES, anchors, links
from tests.support.helpers import REPO


def problem(page: Path, target: str) -> str | None:
    """Return what is wrong with a link within the checkout; None for a good or external link."""
    if "://" in target or target.startswith("mailto:"):
        return None
    name, _, anchor = target.partition("#")
    path = (page.parent / name).resolve() if name else page
    if not path.is_relative_to(REPO) or not path.exists():
        return "no such file"
    if anchor and path.suffix == ".md" and anchor not in anchors(path):
        return f"no such heading; there are {', '.join(sorted(anchors(path)))}"
    return None


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md", "SECURITY.md"])
def test_links_lead_somewhere(page: str) -> None:
    path = REPO / page
    found = [(line, target, problem(path, target)) for line, target in links(path)]
    assert not [f"{page}:{line}: {t}: {wrong}" for line, t, wrong in found if wrong]


def test_every_page_is_linked() -> None:
    """Every page can be reached from the README."""
    reached, front = set(), [REPO / "README.md"]
    while front:
        page = front.pop()
        reached.add(page)
        targets = {(page.parent / t.partition("#")[0]).resolve() for _, t in links(page)}
        front += [t for t in targets if t.suffix == ".md" and t.exists() and t not in reached]
    assert not {REPO / page for page in PAGES} - reached


def test_broken_links_are_found(tmp_path: Path) -> None:
    page = REPO / "docs" / "training.md"
    assert problem(page, "nowhere.md") == "no such file"
    assert problem(page, "../../outside.md") == "no such file"
    assert "no such heading" in str(problem(page, "datasets.md#nowhere"))
    assert problem(page, "datasets.md#your-own-data") is None
    text = tmp_path / "page.md"
    text.write_text("# A `b` c, d\n\n# A b c d\n\n| x |\n|---|\n| [e](f.md) ![g](h.png) |\n")
    assert anchors(text) == {"a-b-c-d", "a-b-c-d-1"}
    assert links(text) == [(7, "f.md"), (7, "h.png")]
