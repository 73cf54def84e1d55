"""What mkdocs asks us while it builds the site: pages of the repository outside docs/, and the navigation.

README.md and whatever else a page links to is in the site as well, below `source/`, so that every link works in the
repository and in the site. A link that leads nowhere stays as it is, and mkdocs refuses it.
"""

import json
import posixpath
import re
from pathlib import Path
from typing import Any, Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from control_plane.access.rules import RULES
from control_plane.gateway.api import Api

ROOT: Final = Path(__file__).resolve().parents[2]
DOCS: Final = "docs/"
OUTSIDE: Final = "source/"
LINK: Final = re.compile(r"(?<=\]\()([^()#\s:]+)(?=(?:#[^()\s]*)?\))")
FOLDERS: Final = {"Decisions": "adr/", "Runbook": "runbook/"}
"""Sections of the navigation that have all pages of a folder."""
TAGGED: Final = re.compile(r"^(```[a-z]+) (?:test|by-hand)$", re.MULTILINE)
"""The tag of a block says who runs it (CONTRIBUTING.md); it is no part of the language's name."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the sections that follow from what is there: whole folders, and pages that the navigation does not name."""
    pages = sorted(path.relative_to(ROOT / DOCS).as_posix() for path in (ROOT / DOCS).rglob("*.md"))
    named = set(_pages(config.nav))
    left = [page for page in pages if page not in named]
    filled = {title: [page for page in left if page.startswith(folder)] for title, folder in FOLDERS.items()}
    filled["More"] = [page for page in left if not page.startswith(tuple(FOLDERS.values()))]
    config.nav = _filled(config.nav, filled)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every file of the repository that pages link to, and what those that are pages link to."""
    waiting = [DOCS + file.src_uri for file in files if file.src_uri.endswith(".md")]
    seen = set(waiting)
    while waiting:
        page = waiting.pop()
        for link in LINK.findall((ROOT / page).read_text(encoding="utf-8")):
            path = _target(page, link)
            if path is None or path in seen or path.startswith(DOCS):
                continue
            seen.add(path)
            files.append(File.generated(config, OUTSIDE + path, abs_src_path=str(ROOT / path)))
            if path.endswith(".md"):
                waiting.append(path)
    openapi = json.dumps(Api.of_contract().document(RULES), indent=1)
    files.append(File.generated(config, "reference/openapi.json", content=openapi))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turn links between files of the repository into links between pages of the site."""
    here = page.file.src_uri
    source = here.removeprefix(OUTSIDE) if here.startswith(OUTSIDE) else DOCS + here

    def link(found: re.Match[str]) -> str:
        path = _target(source, found[1])
        if path is None:
            return found[1]
        there = path.removeprefix(DOCS) if path.startswith(DOCS) else OUTSIDE + path
        return posixpath.relpath(there, posixpath.dirname(here) or ".")

    return TAGGED.sub(r"\1", LINK.sub(link, markdown))


def _target(page: str, link: str) -> str | None:
    """Return what a link of a page leads to, from the root of the repository; None when there is no such file."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
    if path.startswith(".."):
        return None
    if (ROOT / path).is_dir():
        path += "/README.md"
    return path if (ROOT / path).is_file() else None


def _pages(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    inner = nav.values() if isinstance(nav, dict) else nav or []
    return [page for entry in inner for page in _pages(entry)]


def _filled(nav: Any, filled: dict[str, list[str]]) -> Any:
    """Return the navigation with the pages of the sections that have names to fill, and without what is empty."""
    if isinstance(nav, str):
        return nav
    if isinstance(nav, list):
        return [entry for entry in (_filled(one, filled) for one in nav) if entry]
    ((title, inner),) = nav.items()
    pages = filled[title] if title in filled else _filled(inner, filled)
    return {title: pages} if pages else None
