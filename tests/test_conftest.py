"""The rules that tests/conftest.py sets, tried on a folder of small tests."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest


class Folder:
    """A copy of conftest.py with tests beside it, run by a pytest of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "tests" / "ir").mkdir(parents=True)
        (path / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib\n")
        shutil.copy(Path(__file__).parent / "conftest.py", path / "tests")

    def run(self, test: str, *arguments: str) -> tuple[int, str]:
        (self.path / "tests" / "ir" / "test_it.py").write_text(f"import pytest\n{test}\n")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
        done = subprocess.run(command, cwd=self.path, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_a_golden_is_missing_written_kept_and_changed(folder):
    test = (
        "@pytest.mark.parametrize('n', [1])\n"
        "def test_a(golden, n): golden.check('one\\n', part='x')"
    )
    code, out = folder.run(test)
    assert code == 1
    assert "no golden tests/ir/golden/it/a-1-x.txt" in out
    assert "--update-golden" in out
    assert folder.run(test, "--update-golden")[0] == 0
    assert (folder.path / "tests/ir/golden/it/a-1-x.txt").read_text() == "one\n"
    assert folder.run(test)[0] == 0
    code, out = folder.run(test.replace("one", "two"))
    assert code == 1
    assert "if that is meant: pytest --update-golden" in out


def test_skips_are_counted_by_reason(folder):
    test = (
        "@pytest.mark.parametrize('n', range(3))\n"
        "def test_a(n): pytest.skip('no GPU')\n"
        "@pytest.mark.skipif(True, reason='too big')\ndef test_b(): pass"
    )
    code, out = folder.run(test)
    assert code == 0
    assert "tests/ir: 3 × no GPU" in out
    assert "tests/ir: 1 × too big" in out


@pytest.mark.parametrize(
    "skip", ["def test_a(): pytest.skip()", "@pytest.mark.skip\ndef test_a(): pass"]
)
def test_a_skip_without_a_reason_fails(folder, skip):
    code, out = folder.run(skip)
    assert code == 1
    assert "skipped without a reason" in out


def test_an_expected_failure_is_no_skip(folder):
    code, out = folder.run("@pytest.mark.xfail(strict=True)\ndef test_a(): assert 0")
    assert code == 0
    assert "1 xfailed" in out
