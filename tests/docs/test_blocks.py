"""Every command and every snippet of the documentation does what a reader would have it do."""

import re
from pathlib import Path

import pytest
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from d2_plugins import model_zoo
from tests.docs import markdown
from tests.docs.markdown import PAGES, Block
from tests.docs.rules import NOT_RUN, PRESUPPOSED, READERS_WEIGHTS, SLOW, SMALL
from tests.docs.sandbox import Programs, Sandbox

ALL_BLOCKS = [block for page in PAGES for block in markdown.blocks(page)]
RUN = [block for block in ALL_BLOCKS if block.language in ("bash", "python")]


def cases(blocks: list[Block]) -> list[object]:
    """Parameters named by file and line."""
    return [
        pytest.param(b, id=str(b), marks=[pytest.mark.slow] if SLOW.search(b.text) else [])
        for b in blocks
    ]


@pytest.mark.parametrize("block", cases(RUN))
def test_block_runs(block: Block, pages_folder: Path, programs: Programs) -> None:
    sandbox = Sandbox(pages_folder / Path(block.page).stem, programs.address)
    page = [each for each in RUN if each.page == block.page]
    result = sandbox.result(block, page)
    commands = "\n".join(f"  {c['status']}: {c['run']}" for c in result.commands)
    assert result.ok, f"{block} leaves with {result.status}\n{result.output}\nRun:\n{commands}"


@pytest.mark.parametrize("block", cases([b for b in ALL_BLOCKS if b.language == "yaml"]))
def test_yaml_is_a_config(block: Block) -> None:
    """Its keys exist, its values are of their types, and a model can be built with them."""
    fragment = CfgNode(yaml.safe_load(block.text))
    cfg = model_zoo.get_config("Base-RCNN-FPN.yaml")
    cfg.merge_from_other_cfg(fragment)
    cfg.merge_from_list(SMALL)
    build_model(cfg)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_says_what_it_is(page: str) -> None:
    """Else it would not be run; a console session is no script: write it as bash and text."""
    known = ("bash", "python", "yaml", "text")
    strange = [f"{b}: '{b.language}'" for b in markdown.blocks(page) if b.language not in known]
    assert not strange, f"not one of {known}"


@pytest.mark.parametrize("page", PAGES)
def test_text_holds_no_command(page: str) -> None:
    """But for one with an ellipsis, or one of another machine, which nobody can type as it is."""
    command = re.compile(r"^(\$ )?(tools/|python |\.venv/|make |pip )(?!.*\.\.\.)", re.M)
    texts = [b for b in markdown.blocks(page) if b.language == "text"]
    found = [f"{b}: {b.text}" for b in texts if command.search(b.text.replace("\\\n", " "))]
    assert not found, "mark it as bash; what cannot be run is named in NOT_RUN"


def documented() -> str:
    text = "\n".join(b.text for b in ALL_BLOCKS if b.language == "bash")
    return re.sub(r"\s*\\\n\s*", " ", text).replace("'", "")


@pytest.mark.parametrize("pattern", NOT_RUN)
def test_exceptions_are_still_documented(pattern: str) -> None:
    assert re.search(pattern, documented())


@pytest.mark.parametrize("path", [*PRESUPPOSED, *READERS_WEIGHTS])
def test_what_is_presupposed_is_still_documented(path: str) -> None:
    assert any(path in block.text for block in RUN)
