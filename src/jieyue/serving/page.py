"""The web pages: each one file of its own as it is served, style and script inlined and allowed by their hashes alone.

``pages/NAME.html`` names what it includes (``<style>@include shared.css</style>``); nothing is ever fetched from elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files

from jieyue.report.colours import root_rules

__all__ = ["Page", "load_page"]


@dataclass(frozen=True)
class Page:
    """A page's bytes and the policy that lets exactly its own style and script run."""

    html: bytes
    policy: str


def load_page(name: str) -> Page:
    """The page of that name, ready to be sent."""
    folder = files(__package__) / "pages"

    def included(match: re.Match[str]) -> str:
        text = (folder / match[1]).read_text(encoding="utf-8")
        if match[1].startswith("vendor/"):
            return text.replace("<!--", r"\x3c!--")  # means the same in a script, and opens no comment of the page's
        return root_rules() + text if match[1].endswith(".css") else text

    text = re.sub(r"@include ([\w./-]+)", included, (folder / f"{name}.html").read_text(encoding="utf-8"))
    hashes = {
        tag: " ".join(f"'sha256-{_digest(inner)}'" for inner in re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S))
        for tag in ("style", "script")
    }
    policy = (
        f"default-src 'none'; style-src {hashes['style']}; script-src {hashes['script']}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return Page(text.encode(), policy)


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
