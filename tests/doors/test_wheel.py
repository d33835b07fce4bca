"""The wheel, installed in a fresh environment, has its version, its corpus and its licences, and trains."""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import jieyue

ROOT = Path(__file__).parents[2]


def built(source, out, environment=None):
    """The wheel of a source tree."""
    pytest.importorskip("hatchling", reason="building needs hatchling (the dev extra)")
    pytest.importorskip("build", reason="building needs build (the dev extra)")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    subprocess.run(command, check=True, capture_output=True, env=environment)
    (path,) = out.glob("*.whl")
    return path


def hurried(folder):
    """A compiler that does what the one at hand does, without optimising, which takes a tenth of the time; None where there is none."""
    compiler = next(filter(shutil.which, filter(None, (os.environ.get("CXX"), "g++", "clang++", "c++"))), None)
    if compiler is None or os.name != "posix":
        return None
    path = folder / "hurried"
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(compiler)} "$@" -O0\n', encoding="utf-8")
    path.chmod(0o755)
    return path


def test_contents(tmp_path):
    """Built from a copy, so that the libraries in use stay as they are."""
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("*.so", "*.dylib", "__pycache__"))
    compiler = hurried(tmp_path)
    wheel = built(tmp_path, tmp_path / "dist", os.environ | ({} if compiler is None else {"CXX": str(compiler)}))
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "jieyue/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert any(name.endswith("LICENSE-CORPUS") for name in names)
    assert wheel.name.split("-")[1] == jieyue.__version__
    assert not [name for name in names if name.startswith("tests")]
    libraries = {name for name in names if name.endswith(".so")}
    assert libraries == (set() if compiler is None else {"jieyue/attention/libband.so", "jieyue/linear/liblinear.so"})


@pytest.mark.slow
def test_fresh_install_trains(tmp_path):
    """The environment sees this one's dependencies, but takes jieyue from the wheel."""
    wheel = built(ROOT, tmp_path / "dist")
    home = tmp_path / "env"
    venv.create(home, with_pip=False)
    (site,) = home.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    python = home / "bin" / "python"
    command = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--no-deps",
        "--no-index",
        "--quiet",
        str(wheel),
    ]
    subprocess.run(command, check=True, capture_output=True)
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    where = subprocess.check_output(
        [python, "-c", "import jieyue; print(jieyue.__file__)"], text=True, cwd=tmp_path, env=clean
    )
    assert str(home) in where
    cli = home / "bin" / "jieyue"
    version = subprocess.run([cli, "--version"], capture_output=True, text=True, check=True, cwd=tmp_path, env=clean)
    assert jieyue.__version__ in version.stdout
    train = [cli, "train", "read", "--steps", "3", "--questions", "300", "--effective-batch", "8", "--out", "model"]
    done = subprocess.run(train, capture_output=True, text=True, cwd=tmp_path, env=clean)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert (tmp_path / "model" / "report.html").is_file()
