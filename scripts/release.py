"""Prepares a release: version, changelog, wheels for x86-64 and aarch64, checked; then says how to tag and publish.

    python scripts/release.py 0.1.0            checks everything, writes nothing
    python scripts/release.py 0.1.0 --write    writes version, changelog, urls; builds into dist/; runs twine check

It refuses while the project's public address (``[tool.jieyue] address`` in pyproject.toml) is empty, on uncommitted changes,
on a version that is not newer or is tagged already, and where the changelog has nothing to say. It never pushes, tags or uploads:
the last lines that it prints are the commands that do.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSION = re.compile(r'^__version__ = "([^"]+)"$', re.M)
HEADING = re.compile(r"^## (\S+) \(unreleased\)$", re.M)


class Refused(Exception):
    """Why there is no release, in one line."""


def numbers(version: str) -> tuple[int, ...]:
    """The parts of a version; ``Refused`` for anything but three whole numbers."""
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise Refused(f"version {version!r}: expected three whole numbers such as 0.1.0")
    return tuple(map(int, version.split(".")))


def checked(version: str, root: Path = ROOT) -> dict[Path, str]:
    """The files that change, with their new text; ``Refused`` where the release cannot be made."""
    pyproject = (root / "pyproject.toml").read_text(encoding="utf-8")
    address = tomllib.loads(pyproject).get("tool", {}).get("jieyue", {}).get("address", "")
    if not address:
        raise Refused("[tool.jieyue] address in pyproject.toml is empty: expected the project's public address")
    module = root / "src" / "jieyue" / "__init__.py"
    source = module.read_text(encoding="utf-8")
    found = VERSION.search(source)
    assert found is not None
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    heading = HEADING.search(changelog)
    if heading is None:
        raise Refused("CHANGELOG.md: found no section marked (unreleased), expected one that says what changed")
    body = changelog[heading.end() :].split("\n## ", 1)[0]
    if not body.strip():
        raise Refused(f"CHANGELOG.md: the section {heading[1]} is empty, expected what changed")
    if numbers(version) < numbers(found[1]):
        raise Refused(f"version {version}: found {found[1]} in the package, expected a newer one")
    today = datetime.date.today().isoformat()
    return {
        module: VERSION.sub(f'__version__ = "{version}"', source),
        root / "CHANGELOG.md": HEADING.sub(f"## {version} ({today})", changelog, count=1),
        root / "pyproject.toml": with_urls(pyproject, address),
        root / "CITATION.cff": re.sub(
            r"^version: .*$", f"version: {version}", (root / "CITATION.cff").read_text(encoding="utf-8"), flags=re.M
        ),
    }


def with_urls(pyproject: str, address: str) -> str:
    """pyproject.toml with ``[project.urls]`` made from the one address, in the place of an earlier one."""
    urls = (
        f'[project.urls]\nHomepage = "{address}"\nDocumentation = "{address}/tree/main/docs"\n'
        f'Issues = "{address}/issues"\nChangelog = "{address}/blob/main/CHANGELOG.md"\n\n'
    )
    without = re.sub(r"^\[project\.urls\]\n(?:.+\n)*\n", "", pyproject, flags=re.M)
    return without.replace("[project.optional-dependencies]\n", urls + "[project.optional-dependencies]\n", 1)


def run(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def write_whole(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("version", help="three whole numbers, such as 0.1.0")
    parser.add_argument("--write", action="store_true", help="write the files and build, instead of checking only")
    given = parser.parse_args()
    try:
        if run("git", "status", "--porcelain"):
            raise Refused("the working tree has uncommitted changes: commit or put them away first")
        if f"v{given.version}" in run("git", "tag").splitlines():
            raise Refused(f"v{given.version} is tagged already: expected a newer version")
        changed = checked(given.version)
    except Refused as refused:
        sys.exit(f"release: {refused}")
    if not given.write:
        print("would write", ", ".join(str(path.relative_to(ROOT)) for path in changed))
        return
    for path, text in changed.items():
        write_whole(path, text)
    subprocess.run(["make", "dist"], cwd=ROOT, check=True)
    subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *map(str, (ROOT / "dist").iterdir())], check=True
    )
    print(f"git commit -am 'Release {given.version}' && git tag v{given.version} && git push --tags")
    print("python -m twine upload dist/*")


if __name__ == "__main__":
    main()
