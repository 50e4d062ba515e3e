"""The wheel holds what pyproject.toml names and all that vitc reads at run time."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from vitc.version import __version__

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from a copy, offline, as pip builds it."""
    folder = tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(ROOT / "vitc", folder / "vitc", ignore=ignore)
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, folder)
    code = "from setuptools.build_meta import build_wheel; build_wheel('dist')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (path,) = (folder / "dist").glob("*.whl")
    return zipfile.ZipFile(path)


def metadata(wheel: zipfile.ZipFile, name: str) -> str:
    return wheel.read(f"vitc-{__version__}.dist-info/{name}").decode()


def test_every_file_of_the_package_is_in_the_wheel(wheel):
    files = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "vitc").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in files if "/templates/" in name}, "templates have moved?"
    assert files <= set(wheel.namelist())


def test_only_the_package_is_in_the_wheel(wheel):
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {"vitc", f"vitc-{__version__}.dist-info"}


def test_the_metadata_says_what_it_should(wheel):
    fields = Parser().parsestr(metadata(wheel, "METADATA"))
    assert fields["Name"] == "vitc"
    assert fields["Version"] == __version__
    assert fields["License-Expression"] == "Apache-2.0"
    assert set(fields.get_all("Provides-Extra", [])) == {"plot", "cuda", "test", "dev"}
    assert "Apache License" in metadata(wheel, "licenses/LICENSE")
    assert str(fields.get_payload()).startswith("# vitc")


def test_the_command_exists(wheel):
    entry = configparser.ConfigParser()
    entry.read_string(metadata(wheel, "entry_points.txt"))
    module, _, attribute = entry["console_scripts"]["vitc"].partition(":")
    source = wheel.read(module.replace(".", "/") + "/__init__.py").decode()
    assert attribute in source
