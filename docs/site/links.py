"""Makes the pages' links right inside the site: mkdocs calls ``on_page_markdown`` for every page.

A link to a file of the repository outside docs (a result, the changelog) leads to the project's public address; while that is empty
(``[tool.jieyue] address`` in pyproject.toml) it becomes the file's path, as text. ``reproduction.html`` is a file of the site.
"""

from __future__ import annotations

import posixpath
import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ADDRESS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["jieyue"]["address"]
LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
FENCE = re.compile(r"(^```.*?^```)", re.S | re.M)
WIDE = "\u3000-\u303f\u3400-\u9fff\uff00-\uffef“”‘’…"  # letters and marks between which a new line is not a space
BROKEN = re.compile(rf"^((?![#|]).*[{WIDE}])\n *(?=[{WIDE}])", re.M)
HIDDEN = ("results/", "reproduction.html")
TWIN = re.compile(r"^\[(?:English|中文)\]\([^)\s]+\)(?: · |\n\n?)?", re.M)  # the site has a switch of language for that


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """The page's text with every link to the outside resolved, and lines of Chinese joined without a space."""
    linked = LINK.sub(lambda found: _resolved(found, page.file.src_uri), TWIN.sub("", markdown))
    if not page.file.src_uri.endswith(".zh.md"):
        return linked
    return "".join(part if part.startswith("```") else BROKEN.sub(r"\1", part) for part in FENCE.split(linked))


def _resolved(found: re.Match[str], page: str) -> str:
    text, target = found[1], found[2]
    if re.match(r"[a-z]+:|#", target):
        return found[0]
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target.partition("#")[0]))
    inside = path.startswith("docs/") and not path.removeprefix("docs/").startswith(HIDDEN) and not path.endswith(".py")
    if inside:  # a page of the Chinese site goes by its English name
        return f"[{text}]({target.replace('.zh.md', '.md')})"
    if ADDRESS:
        return f"[{text}]({ADDRESS}/blob/main/{path})"
    return text if text == path or text.strip("`") == path else f"{text} (`{path}`)"
