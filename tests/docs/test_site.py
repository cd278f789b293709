"""The documentation site is built without a warning, and a browser shows it."""

import functools
import http.server
import importlib
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.markdown import PAGES
from tests.support.helpers import REPO

pytestmark = pytest.mark.slow
for package in ("mkdocs", "material", "mkdocstrings"):
    pytest.importorskip(package, reason="the packages of requirements/dev.txt are not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ROOMS = ("backbone", "proposal_generator", "roi_heads")
PACKAGES = {
    **{f"d2_plugins.modeling.{room}": room for room in ROOMS},
    **{
        f"d2_plugins.{room}": room
        for room in (
            "layers",
            "data",
            "checkpoint",
            "evaluation",
            "engine",
            "report",
            "export",
            "hub",
        )
    },
    "d2_plugins.model_zoo": "",
}


def build(repo: Path, site: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)],
        cwd=repo,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(REPO, folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_in_the_navigation(site: Path) -> None:
    home = (site / "index.html").read_text()
    for page in PAGES:
        name = Path(page).stem
        assert name == "README" or f'href="{name}/"' in home, page


def test_api_reference_has_every_exported_name(site: Path) -> None:
    for package, page in PACKAGES.items():
        text = (site / "api" / page / "index.html").read_text()
        described = set(re.findall(r'id="([\w.]+)"', text))
        module = importlib.import_module(package)
        for name in filter(lambda name: callable(getattr(module, name)), module.__all__):
            assert any(anchor.endswith(f".{name}") for anchor in described), f"{package}.{name}"
        assert not re.search(r":(func|class|meth|attr|mod):", text), package


def test_links_to_files_of_the_checkout_show_them(site: Path) -> None:
    page = site / "source" / "configs" / "csp_cascade.yaml" / "index.html"
    assert "DoubleHeadROIHeads" in page.read_text()
    assert "source/configs/csp_cascade.yaml/" in (site / "model_zoo" / "index.html").read_text()


def test_site_loads_nothing_from_other_servers(site: Path) -> None:
    source = r'<(?:script|img)[^>]+src="(\w+:)?//'
    sheet = r'<link[^>]+"stylesheet"[^>]+href="(\w+:)?//'
    loaded = re.compile(f"{source}|{sheet}")
    assert not [page for page in site.rglob("*.html") if loaded.search(page.read_text())]


def test_broken_links_fail_the_build(tmp_path: Path) -> None:
    """With the settings and hooks of the site, on two small pages."""
    config = (REPO / "mkdocs.yml").read_text()
    config = re.sub(r"  - mkdocstrings:.*?(?=\n\w)", "", config, flags=re.S)  # takes seconds
    (tmp_path / "mkdocs.yml").write_text(re.sub(r"\nnav:.*", "\n", config, flags=re.S))
    shutil.copytree(REPO / "dev", tmp_path / "dev")
    for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md"):
        (tmp_path / name).write_text("# Title\n")
    (tmp_path / "docs").mkdir()
    shutil.copy(REPO / "docs" / "site.css", tmp_path / "docs")
    (tmp_path / "docs" / "other.md").write_text("# Title\n\n## Here\n")
    page = tmp_path / "docs" / "page.md"
    page.write_text("# Title\n\n[a](other.md#here) [b](../README.md) [c](../dev/docs_site.py)\n")
    assert build(tmp_path, tmp_path / "site").returncode == 0
    page.write_text("# Title\n\n[a](other.md#nowhere) [b](nowhere.md) [c](../dev/nowhere.py)\n")
    broken = build(tmp_path, tmp_path / "site")
    assert broken.returncode != 0
    for link in ("other.md#nowhere", "'nowhere.md'", "dev/nowhere.py"):
        assert link in broken.stderr


FAILED: list[str] = []


class _Recorder(http.server.SimpleHTTPRequestHandler):
    def log_error(self, format: str, *args: object) -> None:
        FAILED.append(f"{self.path}: {format % args}")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    handler = functools.partial(_Recorder, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
def test_browser_shows_a_page(address: str, tmp_path: Path) -> None:
    """The scripts of the page run, and all files that it asks for exist."""
    options = (
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *(f"--user-data-dir={tmp_path}", "--virtual-time-budget=5000", "--dump-dom"),
    )
    assert CHROMIUM is not None
    page = subprocess.check_output(
        [CHROMIUM, *options, f"{address}/config_keys/"],
        text=True,
        stderr=subprocess.DEVNULL,
        timeout=120,
    )
    assert re.search(r'<html[^>]* class="[^"]*\bjs\b', page)  # set by the theme's script
    assert "MODEL.CASCADE_RPN" in page
    assert not FAILED
