"""Hooks of MkDocs: pages and files from outside docs/, the reference of the commands, and the check for docstrings.

Pages in docs/ link to files of the repository, as GitHub shows them. A Markdown file becomes a page of the site at its
own path, another file is copied there, and a link to a folder becomes text.
"""

from __future__ import annotations

import inspect
import os
import posixpath
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<=\])\((?!\w+:|#)([^)\s#]+)(#[^)\s]*)?\)")
CODE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.DOTALL | re.MULTILINE)
COMMANDS_HERE = "<!-- commands -->"
WHOLE_PAGES = ("CHANGELOG.md", "CONTRIBUTING.md")
HOME = "README.md"  # of the repository; the site has docs/index.md instead


def on_pre_build(config: Any) -> None:
    """Refuse to build where a public name has no docstring."""
    from mkdocs.exceptions import PluginError

    missing = undocumented()
    if missing:
        raise PluginError(f"these have no docstring: {', '.join(missing)}")


def on_files(files: Any, config: Any) -> Any:
    """Add the files of the repository that pages link to, and those that these link to."""
    from mkdocs.structure.files import File

    waiting = [file.src_uri for file in files if file.is_documentation_page()]
    for name in WHOLE_PAGES:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
        waiting.append(name)
    while waiting:
        page = waiting.pop()
        text = files.get_file_from_path(page).content_string
        for match in LINK.finditer(CODE.sub("", text)):
            target = in_repository(page, match[1])
            uri = site_uri(target)
            if (ROOT / target).is_file() and files.get_file_from_path(uri) is None:
                files.append(File.generated(config, uri, abs_src_path=str(ROOT / target)))
                if target.endswith(".md"):
                    waiting.append(uri)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Point links at the pages and files of the site, and fill in the reference of the commands."""
    uri = page.file.src_uri

    def link(match: re.Match[str]) -> str:
        target = in_repository(uri, match[1])
        if (ROOT / target).is_dir():
            return ""
        return f"({posixpath.relpath(site_uri(target), posixpath.dirname(uri) or '.')}{match[2] or ''})"

    parts = CODE.split(markdown)
    parts[::2] = [LINK.sub(link, part) for part in parts[::2]]
    return "".join(parts).replace(COMMANDS_HERE, command_reference() if COMMANDS_HERE in markdown else "")


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Leave out the roles of docstrings: ``:class:`X``` is ``X`` in code."""
    return re.sub(r":(?:class|func|meth|mod|attr|data):(?=<code>)", "", html)


def in_repository(page: str, target: str) -> str:
    """The path in the repository that a link on ``page``, a path in the site, leads to."""
    folder = posixpath.dirname(page if not (ROOT / "docs" / page).exists() else f"docs/{page}")
    return posixpath.normpath(posixpath.join(folder, target))


def site_uri(path: str) -> str:
    """The path in the site of a file of the repository."""
    return "index.md" if path == HOME else path.removeprefix("docs/")


def undocumented() -> list[str]:
    """Public names of cltt, and their public methods and properties, that have no docstring."""
    import cltt

    return sorted(name for name, value in _public(cltt.__all__, lambda name: getattr(cltt, name)) if not value.__doc__)


def _public(names: list[str], value_of: Callable[[str], Any]) -> Iterator[tuple[str, Any]]:
    for name in names:
        value = value_of(name)
        yield name, value
        for owner in inspect.getmro(value) if inspect.isclass(value) else ():
            for member, kind in vars(owner).items() if owner.__module__.startswith("cltt.") else ():
                if not member.startswith("_") and (callable(kind) or isinstance(kind, property)):
                    yield f"{name}.{member}", kind


def command_reference() -> str:
    """What each command prints for --help, as Markdown."""
    from cltt.__main__ import COMMANDS

    environ = {**os.environ, "COLUMNS": "88", "NO_COLOR": "1"}
    parts = []
    for name, (_, purpose) in COMMANDS.items():
        words = [sys.executable, "-m", "cltt", name, "--help"]
        done = subprocess.run(words, cwd=ROOT, env=environ, capture_output=True, text=True, check=True)
        parts.append(f"## cltt {name}\n\n{purpose[0].upper()}{purpose[1:]}.\n\n```text\n{done.stdout}```\n")
    return "\n".join(parts)
