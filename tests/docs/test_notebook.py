"""The cells of the notebook run, at a reduced size.

Each Python cell runs in a process of its own, so it has to import what it uses.
"""

import json
from pathlib import Path

import pytest

from tests.docs.markdown import Block
from tests.docs.page import Page
from tests.support.helpers import REPO

NOTEBOOK = REPO / "notebooks" / "own_data.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def code_blocks() -> list[Block]:
    found = []
    for number, cell in enumerate(CELLS):
        if cell["cell_type"] == "code":
            text = "".join(cell["source"])
            shell = text.startswith("%%bash\n")
            page, language = NOTEBOOK.name, "bash" if shell else "python"
            found.append(Block(page, number, language, text.removeprefix("%%bash\n")))
    return found


@pytest.mark.slow
def test_cells_run(tmp_path: Path) -> None:
    reader = Page(tmp_path)
    for block in code_blocks():
        reader.run(block)
    assert (tmp_path / "output" / "notebook" / "report.html").exists()
    assert "[('" in reader.output(), "the exported file finds nothing"


def test_notebook_is_stored_without_outputs() -> None:
    cells = [cell for cell in CELLS if cell["cell_type"] == "code"]
    assert len(cells) >= 8
    assert not [cell["id"] for cell in cells if cell["outputs"] or cell["execution_count"]]
