"""Hooks of mkdocs: pages of the site that are made from other files of the checkout.

The Markdown files are written for repository pages, so links lead to README, configs and sources by
their paths. Here README becomes the home page, each linked file outside ``docs/`` a page that shows
it, and the links are changed to match. The API reference is one page per package.
"""

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]

# Files of the checkout that are pages of the site, other than those in docs/.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
}

# Pages of the API reference and their modules; of a package, the names that it exports. If griffe
# takes a function for the module of the same name, that module is listed too.
API = {
    "index": ("", "config", "model_zoo", "errors", "files"),
    "modeling": ("modeling",),
    "backbone": ("modeling.backbone",),
    "proposal_generator": ("modeling.proposal_generator",),
    "roi_heads": ("modeling.roi_heads",),
    "layers": ("layers", "layers.local_attention", "layers.padding"),
    "data": ("data", "data.images", "data.loader", "data.mapper"),
    "checkpoint": ("checkpoint",),
    "evaluation": ("evaluation",),
    "engine": ("engine", "engine.setup", "engine.launch", "engine.hooks", "engine.train_step"),
    "report": ("report", "report.comparison"),
    "visualization": tuple(
        f"visualization.{name}"
        for name in ("detector", "detections", "dataset", "cascade_rpn", "inverted_attention")
    ),
    "export": ("export",),
    "hub": ("hub",),
    "benchmark": tuple(
        f"benchmark.{name}"
        for name in ("adaptive_conv", "cascade_rpn", "roi_heads", "model_costs", "timing")
    ),
}

# The target of a Markdown link or image, without its anchor.
_LINK = re.compile(r"(?<=\]\()([^)\s#]+)(?=[)#])")
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".md": "markdown", ".toml": "toml"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in ``docs/``, with all files that pages link to."""
    for path, uri in PAGES.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    for name in API:
        files.append(File.generated(config, f"api/{name}.md", content=api_page(name)))
    pages = [file for file in files.documentation_pages() if not file.src_uri.startswith("api/")]
    linked = {target for page in pages for target in _linked_files(page)}
    for path in sorted(linked - set(PAGES)):
        files.append(_source_file(config, path))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Change the links of a page from paths of the checkout to paths of the site."""
    if page.file.src_uri.startswith(("api/", "source/")):
        return markdown
    return _LINK.sub(lambda link: _site_link(page.file, link[1]), markdown)


def api_page(name: str) -> str:
    """Return the Markdown of a page of the API reference."""
    modules = [f"d2_plugins.{module}".rstrip(".") for module in API[name]]
    first, *others = [f"`{module}`\n\n::: {module}\n" for module in modules]
    return "\n".join([f"# {first}", *(f"## {text}" for text in others)])


def _linked_files(page: File) -> set[str]:
    """Return the paths, from the checkout, of the files outside docs/ that a page links to."""
    targets = (_in_checkout(page, link[1]) for link in _LINK.finditer(page.content_string))
    return {t for t in targets if t and (ROOT / t).is_file() and _site_uri(t) == _source_uri(t)}


def _in_checkout(page: File, link: str) -> str:
    """Return the path, from the checkout, that a link leads to; empty for other servers."""
    if ":" in link:
        return ""
    folder = PurePosixPath(_path_of(page)).parent
    return normpath(str(folder / link))


def _path_of(page: File) -> str:
    sources = {uri: path for path, uri in PAGES.items()}
    return sources.get(page.src_uri, f"docs/{page.src_uri}")


def _site_link(page: File, link: str) -> str:
    target = _in_checkout(page, link)
    if not target or not (ROOT / target).is_file():
        return link  # mkdocs reports it if it is wrong
    return relpath(_site_uri(target), PurePosixPath(page.src_uri).parent)


def _site_uri(path: str) -> str:
    """Return the place in the site of a file of the checkout."""
    if path.startswith("docs/") and not path.endswith(".yaml"):
        return path.removeprefix("docs/")
    return PAGES.get(path) or _source_uri(path)


def _source_uri(path: str) -> str:
    """Return the place in the site of a file that is shown or downloaded as it is."""
    return f"source/{path}.md" if PurePosixPath(path).suffix in _LANGUAGES else f"source/{path}"


def _source_file(config: MkDocsConfig, path: str) -> File:
    """Return a page that shows a text file; other files can be downloaded."""
    language = _LANGUAGES.get(PurePosixPath(path).suffix)
    if language is None:
        return File.generated(config, _source_uri(path), abs_src_path=str(ROOT / path))
    text = (ROOT / path).read_text(encoding="utf-8")
    head = f"---\nsearch:\n  exclude: true\n---\n\n# {PurePosixPath(path).name}\n\n`{path}`\n"
    content = f"{head}\n````{language}\n{text}````\n"
    return File.generated(config, _source_uri(path), content=content)
