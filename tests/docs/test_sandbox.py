"""Mistakes in a page are found, and rules change what they are meant to."""

import shlex
from pathlib import Path

import pytest

from tests.docs import rules
from tests.docs.markdown import Block
from tests.docs.sandbox import Programs, Sandbox

GOOD = Block(
    "page.md", 1, "bash", "echo one > made; python -c 'print(open(\"made\").read())' | cat"
)
MISTAKES = {
    "misspelt key": ("bash", "tools/train_net.py --config-file csp_cascade.yaml SOLVER.MAX_ITR 3"),
    "unknown option": ("bash", "tools/prepare_datasets.py voc --spits 2007"),
    "unknown program": ("bash", "no-such-program"),
    "not in the table": ("bash", "pip install something-else"),
    "fails where the shell does not tell": ("bash", "tools/demo.py --config no.yaml & wait"),
    "missing name": ("python", "print(image)"),
    "missing import": ("python", "import d2_plugins\nd2_plugins.engine.report"),
}


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory, programs: Programs) -> Sandbox:
    return Sandbox(tmp_path_factory.mktemp("sandbox") / "page", programs.address)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_found(mistake: str, sandbox: Sandbox) -> None:
    block = Block("page.md", 10 + list(MISTAKES).index(mistake), *MISTAKES[mistake])
    assert not sandbox.result(block, [block]).ok


def test_blocks_of_a_page_follow_each_other_and_run_once(sandbox: Sandbox) -> None:
    append = Block("page.md", 2, "bash", "echo two >> made; cat made")
    page = [GOOD, append]
    for _ in range(2):
        result = sandbox.result(append, page)
        assert (result.ok, result.output) == (True, "one\ntwo\n")
    first = sandbox.result(GOOD, page)
    assert first.output == "one\n\n"
    assert [command["status"] for command in first.commands] == [0]


def test_training_is_made_small_and_told_so() -> None:
    command = "tools/train_net.py --config-file a.yaml --num-gpus 8 SOLVER.MAX_ITER 90000"
    words = shlex.split(rules.small(command))
    assert words[:5] == ["tools/train_net.py", "--config-file", "a.yaml", "--num-gpus", "0"]
    assert words[-len(rules.SMALL) :][::2] == rules.SMALL[::2]  # the last of a key counts
    assert words[5:9] == ["SOLVER.MAX_ITER", "90000", "MODEL.WEIGHTS", ""]
    named = rules.small(f"{command} MODEL.WEIGHTS a.pth")
    assert named.count("MODEL.WEIGHTS") == 1


def test_what_no_rule_names_is_run_as_it_stands() -> None:
    for command in ("tools/plot_runs.py output/a", "python -c 'print(1)'", "ls"):
        assert rules.small(command) == command
        assert rules.why_not_run(command) is None
    assert rules.why_not_run("make install")


def test_the_checkout_is_not_written_to(sandbox: Sandbox) -> None:
    block = Block("page.md", 3, "bash", "echo changed >> docs/training.md; cp README.md docs/x.md")
    assert sandbox.result(block, [block]).ok
    repo = Path(__file__).parents[2]
    assert not (repo / "docs" / "x.md").exists()
    assert "changed\n" not in (repo / "docs" / "training.md").read_text().splitlines(keepends=True)
