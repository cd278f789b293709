"""Files that other programs read: hosted CI, pre-commit, citation, issue forms."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import d2_plugins
from tests.support.helpers import REPO
from tests.support.project import DEV, PACKAGE, PYTHONS, pins

TEMPLATES = sorted((REPO / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
FORMS = [path for path in TEMPLATES if path.stem != "config"]


def read(path: str | Path) -> dict[Any, Any]:
    content = yaml.safe_load((REPO / path).read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def test_hosted_ci_runs_make_test_on_every_python() -> None:
    workflow = read(".github/workflows/test.yml")
    assert set(workflow[True]) >= {"push", "pull_request"}  # YAML 1.1 reads "on" as true
    (job,) = workflow["jobs"].values()
    assert job["strategy"]["matrix"]["python"] == PYTHONS
    (command,) = [step["run"] for step in job["steps"] if "run" in step]
    assert command.split()[:2] == ["make", "test"]
    cached = [step["with"]["cache-dependency-path"] for step in job["steps"] if "with" in step]
    assert [path for pattern in cached for path in REPO.glob(pattern)]


def test_pre_commit_runs_the_locked_ruff_and_the_wording_check() -> None:
    ruff, local = read(".pre-commit-config.yaml")["repos"]
    assert ruff["rev"] == f"v{pins('3.11', DEV)['ruff']}"
    assert [hook["id"] for hook in ruff["hooks"]] == ["ruff-check", "ruff-format"]
    (words,) = local["hooks"]
    assert words["entry"] in (REPO / "Makefile").read_text().replace("$(PY)", "python")


def test_citation_is_of_this_version_and_names_the_papers() -> None:
    citation = read("CITATION.cff")
    assert citation["version"] == d2_plugins.__version__ == PACKAGE["version"]
    assert citation["license"] == PACKAGE["license"]
    papers = {ref["url"] for ref in citation["references"] if ref["type"] == "conference-paper"}
    numbers = {url.rpartition("/")[2] for url in papers}
    pages = "".join(path.read_text(encoding="utf-8") for path in (REPO / "docs").glob("*.md"))
    assert numbers <= set(re.findall(r"\d{4}\.\d{5}", pages))
    for page in ("cascade_rpn", "double_head", "inverted_attention"):
        (link,) = re.findall(r"\((https://arxiv\.org/abs/[\d.]+)\)", _head(page))
        assert link in papers


def _head(page: str) -> str:
    return (REPO / "docs" / f"{page}.md").read_text(encoding="utf-8")[:2000]


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_issue_forms_have_fields(path: Path) -> None:
    form = read(path)
    assert {"name", "description", "body"} <= set(form)
    ids = [field["id"] for field in form["body"] if field["type"] != "markdown"]
    assert ids
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("path", [*FORMS, REPO / "SECURITY.md"], ids=lambda path: path.name)
def test_files_that_are_named_exist(path: Path) -> None:
    names = re.findall(r"[\w/]+\.md\b|configs/\w+", path.read_text(encoding="utf-8"))
    assert [name for name in names if not (REPO / name).exists()] == []
