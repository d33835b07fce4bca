"""An extra that an error message tells people to install must exist, and hold the package that is missing."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def promised():
    call = re.compile(r'MissingExtra\(\s*(?:"([\w.-]+)"|\w+),\s*"([\w-]+)"\s*\)')
    for path in sorted((ROOT / "src").rglob("*.py")):
        for package, extra in call.findall(path.read_text()):
            yield path.name, package, extra


def test_every_extra_that_is_named_exists_and_holds_its_package():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    found = [entry for entry in promised() if entry[0] != "errors.py"]
    assert len(found) >= 4
    for file, package, extra in found:
        assert extra in extras, f"{file} promises jieyue[{extra}], which pyproject.toml does not have"
        names = {re.split(r"[<>=;\[ ]", requirement)[0].replace("-", "_") for requirement in extras[extra]}
        assert not package or package in names, f"{file}: jieyue[{extra}] does not bring {package}"
