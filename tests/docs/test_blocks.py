"""Every command and every snippet of the documentation works."""

import re
from pathlib import Path

import pytest
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from d2_plugins import model_zoo
from tests.docs import rules
from tests.docs.markdown import PAGES, Block, blocks
from tests.docs.page import Page

pytestmark = pytest.mark.slow

RUN = {page: blocks(page, "bash", "python") for page in PAGES}
YAML = [block for page in PAGES for block in blocks(page, "yaml")]


def text_of(page: str) -> str:
    return "\n".join(block.text for block in RUN[page])


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow] if rules.SLOW.search(text_of(page)) else [])
        for page in PAGES
        if RUN[page]
    ],
)
def test_blocks_of_a_page_run(page: str, tmp_path: Path) -> None:
    reader = Page(tmp_path)
    reader.prepare(text_of(page))
    for block in RUN[page]:
        reader.run(block)


@pytest.mark.parametrize("block", YAML, ids=str)
def test_yaml_is_a_config(block: Block) -> None:
    """Keys exist, values have the right types, and a model can be built."""
    cfg = model_zoo.get_config("Base-RCNN-FPN.yaml")
    cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(block.text)))
    cfg.merge_from_list(rules.SMALL)
    build_model(cfg)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_has_a_known_language(page: str) -> None:
    """Others would not be run; write a console session as a bash block and a text block."""
    known = ("bash", "python", "yaml", "text")
    unknown = [f"{b}: '{b.language}'" for b in blocks(page) if b.language not in known]
    assert not unknown, f"not one of {known}"


@pytest.mark.parametrize("page", PAGES)
def test_text_holds_no_command(page: str) -> None:
    """A command is bash; one with an ellipsis cannot be typed as it is, and may be text."""
    command = re.compile(r"^(\$ )?(d2-plugins |tools/|python |make |pip )(?!.*\.\.\.)", re.M)
    found = [b for b in blocks(page, "text") if command.search(b.text.replace("\\\n", " "))]
    assert not found, "mark it as bash; a command that cannot be run belongs in NOT_RUN"


def test_rules_are_about_documented_commands() -> None:
    documented = re.sub(r"\s*\\\n\s*", " ", "\n".join(map(text_of, PAGES))).replace("'", "")
    for pattern in rules.NOT_RUN:
        assert re.search(pattern, documented), pattern
    for path in (*rules.PRESUPPOSED, *rules.READERS_WEIGHTS):
        assert path in documented, path


MISTAKES = {
    "misspelt key": ("bash", "d2-plugins train --config-file csp_cascade.yaml SOLVER.MAX_ITR 3"),
    "unknown option of a command that is not run": ("bash", "d2-plugins prepare voc --spits 2007"),
    "unknown program": ("bash", "no-such-program"),
    "installation that no rule names": ("bash", "pip install something-else"),
    "failure in a pipe of shell commands": ("bash", "for i in 1; do cat no-such-file; done"),
    "missing name": ("python", "print(image)"),
    "missing import": ("python", "import d2_plugins\nd2_plugins.report.write_report"),
}


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(tmp_path_factory.mktemp("page"))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_found(mistake: str, reader: Page) -> None:
    with pytest.raises(AssertionError, match=r"page\.md:1 fails with"):
        reader.run(Block("page.md", 1, *MISTAKES[mistake]))


def test_commands_of_a_block_follow_each_other_in_one_folder(reader: Page) -> None:
    text = "echo one > made; echo two >> made\n"
    reader.run(Block("page.md", 1, "bash", text))
    reader.run(Block("page.md", 2, "bash", "python -c '\nprint(open(\"made\").read())'  # both"))
    assert reader.output() == "one\ntwo\n\n"
    assert (reader.folder / "made").exists()


def test_training_is_made_small() -> None:
    command = "d2-plugins train --config-file a.yaml --num-gpus 8 SOLVER.MAX_ITER 90000"
    words = rules.small(command).split()
    assert words[:6] == ["d2-plugins", "train", "--config-file", "a.yaml", "--num-gpus", "0"]
    assert words[6:10] == ["SOLVER.MAX_ITER", "90000", "MODEL.WEIGHTS", "''"]
    assert "SOLVER.MAX_ITER 2 " in " ".join(words[10:])  # the last value of a key counts
    assert rules.small(f"{command} MODEL.WEIGHTS a.pth").count("MODEL.WEIGHTS") == 1
    for other in ("d2-plugins plot-runs output/a", "python -c 'print(1)'", "ls"):
        assert rules.small(other) == other
