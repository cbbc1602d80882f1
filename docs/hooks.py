"""What the site has beside the pages in docs/: the reference, pages at the root, and files that pages link to.

The reference is made from the tree: a page for every folder and every module at the top of kldm/, with the modules of
the folder one below the other. Links are written for the repository, so that they work wherever it is read; here they
are turned to the site: a module's to the reference, another file's to a copy of it.
"""

import ast
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "kldm"
PAGES = {
    "README.md": "overview.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "weights/README.md": "weights.md",
}
"""Files outside docs/ that are pages of the site, and where."""

NO_REFERENCE = {"__init__", "__main__", "cli", "version"}
"""Modules at the top that are commands, or names from elsewhere."""

LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Appends the pages of the reference to its section of the navigation."""
    sections = {title: pages for entry in config.nav or () for title, pages in entry.items()}
    sections["Reference"] += [{name: _reference(name)} for name in _tops()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    pages = {page: (ROOT / path).read_text(encoding="utf-8") for path, page in PAGES.items()}
    pages |= {"reference/index.md": _overview()} | {_reference(name): _documented(name) for name in _tops()}
    for page, content in pages.items():
        files.append(File.generated(config, page, content=content))
    for file in list(files.documentation_pages()):
        for link, _ in LINK.findall(file.content_string):
            path = _in_repository(file.src_uri, link)
            if _is_copied(path) and path not in files.src_uris:
                files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    here = page.file.src_uri

    def on_site(match: re.Match[str]) -> str:
        path, anchor = _in_repository(here, match[1]), match[2] or ""
        if path in PAGES:
            path = PAGES[path]
        elif path.startswith("docs/"):
            path = path.removeprefix("docs/")
        elif _is_module(path):
            module = path.removesuffix(".py").replace("/", ".")
            path, nested = _reference(module.split(".")[1]), module.count(".") > 1
            anchor = f"#{module}" if nested else ""
        elif not _is_copied(path):
            return match[0]  # left for mkdocs to complain of
        return f"]({posixpath.relpath(path, posixpath.dirname(here) or '.')}{anchor}"

    return LINK.sub(on_site, markdown)


def _tops() -> list[str]:
    """The folders of the package, then its modules, by name."""
    folders = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
    return [*folders, *sorted({path.stem for path in PACKAGE.glob("*.py")} - NO_REFERENCE)]


def _reference(top: str) -> str:
    return f"reference/{top}.md"


def _documented(top: str) -> str:
    """The Markdown of a page of the reference."""
    title = f"# kldm.{top}\n\n::: kldm.{top}\n"
    if not (PACKAGE / top).is_dir():
        return title
    return title + "    options:\n      members: false\n" + "".join(_sections(top))


def _sections(folder: str) -> Iterator[str]:
    modules = [path.relative_to(ROOT).with_suffix("") for path in (PACKAGE / folder).rglob("*.py")]
    for path in sorted(modules, key=lambda path: (len(path.parts), path)):
        if path.name != "__init__":
            name = ".".join(path.parts)
            yield f"\n::: {name}\n    options:\n      show_root_heading: true\n      show_root_toc_entry: true\n"


def _overview() -> str:
    rows = [f"| [kldm.{name}]({name}.md) | {_first_line(name)} |\n" for name in _tops()]
    public = "The names that `import kldm` offers are at home in these modules; all are imported on first use."
    return f"# Reference\n\n{public}\n\n| module | what it is |\n|---|---|\n" + "".join(rows)


def _first_line(top: str) -> str:
    folder = PACKAGE / top
    source = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    docstring = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    return " ".join(docstring.split("\n\n")[0].split())


def _in_repository(page: str, link: str) -> str:
    """The path in the repository of what a page of the site links to."""
    source = {site: path for path, site in PAGES.items()}.get(page, f"docs/{page}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def _is_module(path: str) -> bool:
    parts = Path(path).with_suffix("").parts
    return path.endswith(".py") and parts[0] == "kldm" and (ROOT / path).is_file() and parts[1] in _tops()


def _is_copied(path: str) -> bool:
    return not path.startswith("docs/") and path not in PAGES and not _is_module(path) and (ROOT / path).is_file()
