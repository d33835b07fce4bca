"""Formulas as MathML, which browsers draw by themselves: no script, no font. mkdocs calls both functions for every page.

A fence of kind ``math`` is a displayed formula, ``$…$`` one in the text, as on GitHub; only pages that have such a fence are searched.
"""

from __future__ import annotations

import re
from typing import Any

from latex2mathml.converter import convert

FENCE = re.compile(r"^```math\n(.*?)^```$", re.S | re.M)
CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.S | re.M)
INLINE = re.compile(r"\$([^$\n]+)\$")
PLACE = re.compile(r"<p>FORMULA(\d+)BLOCK</p>|FORMULA(\d+)INLINE")
FOUND: dict[str, list[str]] = {}


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """The page with a mark in place of each formula: what Markdown means by ``_`` and ``*`` does not touch them."""
    found = FOUND[page.file.src_uri] = []
    if not FENCE.search(markdown):
        return markdown

    def kept(display: str, mark: str) -> Any:
        def one(match: re.Match[str]) -> str:
            found.append(convert(" ".join(match[1].split()), display=display))
            return f"FORMULA{len(found) - 1}{mark}"

        return one

    text = FENCE.sub(kept("block", "BLOCK"), markdown)
    parts = CODE.split(text)
    return "".join(part if part.startswith("`") else INLINE.sub(kept("inline", "INLINE"), part) for part in parts)


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """The page with its formulas in their places."""
    found = FOUND.get(page.file.src_uri, [])

    def one(match: re.Match[str]) -> str:
        return f'<div class="formula">{found[int(match[1])]}</div>' if match[1] else found[int(match[2])]

    return PLACE.sub(one, html)
