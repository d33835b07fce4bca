"""Runs what the pages show and writes what it printed: every ``console`` block of a page, in both languages.

    python docs/fill_outputs.py docs/own-data.md
    python docs/fill_outputs.py docs/own-data.md --only "train tag"

A page is run in an empty folder: first its Python up to its first console block, then each line that begins with ``$``. What a
command printed stands under it. ``<!-- show: A | B -->`` before a block keeps the paragraphs in which one of these regular
expressions is found, of its commands that print more than a dozen lines; "…" stands for what was left out. The page's Chinese twin
gets the same blocks. ``--only`` runs the blocks that hold this text, and leaves the others.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from jieyue.report import write_whole

SHORT = 12
BLOCK = re.compile(r"(?:^<!-- show: (?P<show>.*?) -->\n)?^```console\n(?P<body>.*?)^```$", re.S | re.M)
PYTHON = re.compile(r"^```python\n(.*?)^```|^<!-- before:\n(.*?)-->", re.S | re.M)


def excerpt(printed: str, show: str | None) -> str:
    """The paragraphs of ``printed`` in which a pattern of ``show`` is found, "…" in place of the others."""
    if show is None or printed.count("\n") <= SHORT:
        return printed.strip("\n")
    patterns = [re.compile(pattern.strip(), re.M) for pattern in show.split(" | ")]
    kept: list[str] = []
    for paragraph in re.split(r"\n{2,}", printed.strip("\n")):
        if any(pattern.search(paragraph) for pattern in patterns):
            kept.append(paragraph)
        elif not kept or kept[-1] != "…":
            kept.append("…")
    return "\n\n".join(kept)


def printed_by(command: str, folder: Path) -> str:
    """What a command prints, errors included, in ``folder``, with this interpreter's ``jieyue`` first on the path.

    A command that fails ends everything: pages show what works (a refusal that is shown on purpose goes through a pipe).
    """
    inherited = os.environ
    path = os.pathsep.join([str(Path(sys.executable).parent), inherited.get("PATH", "")])
    variables = {**inherited, "PATH": path, "COLUMNS": "80"}
    found = subprocess.run(
        command, shell=True, cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    if found.returncode:
        raise SystemExit(f"{command}: ended with {found.returncode}\n{found.stdout.decode('utf-8', 'replace')}")
    printed = found.stdout.decode("utf-8", "replace").replace(str(folder) + os.sep, "")
    return "\n".join(line.rstrip() for line in printed.splitlines())


def filled_block(body: str, show: str | None, folder: Path) -> str:
    """A console block with each command's output written anew."""
    out = []
    for line in body.splitlines():
        if line.startswith("$ "):
            print(line, flush=True)
            out += [line, excerpt(printed_by(line[2:], folder), show)]
    return "\n".join(filter(None, out)) + "\n"


def with_blocks(text: str, blocks: list[str]) -> str:
    """A page with its console blocks, in order, replaced."""
    remaining = iter(blocks)

    def replaced(found: re.Match[str]) -> str:
        return found[0].replace(f"```console\n{found['body']}```", f"```console\n{next(remaining)}```")

    return BLOCK.sub(replaced, text)


def fill(page: Path, only: str) -> None:
    """Runs one page's blocks that hold ``only`` and writes it, and its twin where there is one."""
    text = page.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        before = text[: text.index("```console")]
        code = "\n".join(shown or unseen for shown, unseen in PYTHON.findall(before))
        subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
        blocks = [found["body"] for found in BLOCK.finditer(text)]
        for number, found in enumerate(BLOCK.finditer(text)):
            if only not in found["body"]:
                continue
            blocks[number] = filled_block(found["body"], found["show"], folder)
            for each in (page, page.with_name(page.stem + ".zh.md")):
                if each.is_file():
                    write_whole(each, with_blocks(each.read_text(encoding="utf-8"), blocks))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    for page in given.pages:
        fill(page, given.only)


if __name__ == "__main__":
    main()
