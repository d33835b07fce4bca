"""The release script refuses what cannot be released, and writes the project's address from its one place."""

import importlib.util
import re
import shutil
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("release", ROOT / "scripts" / "release.py")
release = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(release)
ADDRESS = "https://example.org/thrift/jieyue"


def copied(folder, address):
    for name in ("pyproject.toml", "CHANGELOG.md", "CITATION.cff", "src/jieyue/__init__.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    text = (folder / "pyproject.toml").read_text(encoding="utf-8")
    (folder / "pyproject.toml").write_text(re.sub(r'^address = ".*"$', f'address = "{address}"', text, flags=re.M))
    return folder


def test_without_an_address_there_is_no_release(tmp_path):
    with pytest.raises(release.Refused, match="address"):
        release.checked("9.0.0", copied(tmp_path, ""))


@pytest.mark.parametrize(("version", "why"), [("1.0", "three whole numbers"), ("0.0.1", "newer")])
def test_other_versions_are_refused(tmp_path, version, why):
    with pytest.raises(release.Refused, match=why):
        release.checked(version, copied(tmp_path, ADDRESS))


def test_an_empty_changelog_is_refused(tmp_path):
    folder = copied(tmp_path, ADDRESS)
    (folder / "CHANGELOG.md").write_text("# Changelog\n\n## 9.0.0 (unreleased)\n\n## 0.0.1 (2020-01-01)\n- a\n")
    with pytest.raises(release.Refused, match="empty"):
        release.checked("9.0.0", folder)


def test_a_release_changes_version_changelog_and_urls(tmp_path):
    folder = copied(tmp_path, ADDRESS)
    found = {path.name: text for path, text in release.checked("9.0.0", folder).items()}
    assert '__version__ = "9.0.0"' in found["__init__.py"]
    assert "(unreleased)" not in found["CHANGELOG.md"] and "## 9.0.0 (" in found["CHANGELOG.md"]
    assert "\nversion: 9.0.0\n" in found["CITATION.cff"]
    urls = tomllib.loads(found["pyproject.toml"])["project"]["urls"]
    assert urls["Homepage"] == ADDRESS and all(url.startswith(ADDRESS) for url in urls.values())
    assert release.with_urls(found["pyproject.toml"], ADDRESS) == found["pyproject.toml"]  # once, not twice


def test_the_project_invents_no_contact():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["authors"] == [{"name": "jieyue contributors"}]
    assert not any("@" in str(value) for value in project["authors"])
