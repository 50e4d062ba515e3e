"""Finding compilers, and what is said when there is none. Compilers are played by shell scripts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vitc.codegen import toolchain
from vitc.codegen.toolchain import find_compiler, find_toolchain, install_command, parse_version
from vitc.errors import CompileError

GCC = "g++ (Debian 12.2.0-14+deb12u1) 12.2.0\nCopyright (C) 2022 Free Software Foundation, Inc."
OLD_GCC = "g++ (Debian 10.2.1-6) 10.2.1 20210110\nCopyright (C) 2020 Free Software Foundation, Inc."
CLANG = "Debian clang version 14.0.6\nTarget: x86_64-pc-linux-gnu"
NVCC = "nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release 12.4, V12.4.131"
HIPCC = "HIP version: 5.2.21153-0\nDebian clang version 15.0.6"


def script(path: Path, text: str, code: int = 0) -> Path:
    """An executable that prints `text` whatever it is asked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\nexit {code}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the whole PATH: no compiler of this machine can be found."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "cat").symlink_to("/bin/cat")
    monkeypatch.setenv("PATH", str(folder))
    for name in ("CXX", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(toolchain.site, "getsitepackages", lambda: [str(tmp_path / "site")])
    monkeypatch.setattr(toolchain.site, "getusersitepackages", lambda: str(tmp_path / "user"))
    return folder


@pytest.mark.parametrize(
    ("language", "text", "family", "version"),
    [
        ("c++", GCC, "gcc", (12, 2, 0)),
        ("c++", "g++ (Ubuntu 11.4.0-1ubuntu1~22.04) 11.4.0\nCopyright", "gcc", (11, 4, 0)),
        ("c++", "g++ (GCC) 13.2.1 20230728 (Red Hat 13.2.1-1)\nCopyright", "gcc", (13, 2, 1)),
        ("c++", CLANG, "clang", (14, 0, 6)),
        ("c++", "Ubuntu clang version 18.1.3 (1ubuntu1)", "clang", (18, 1, 3)),
        ("c++", "Intel(R) oneAPI DPC++/C++ Compiler 2024.0", None, ()),
        ("cuda", NVCC, "nvcc", (12, 4, 131)),
        ("hip", HIPCC, "hipcc", (5, 2, 21153)),
    ],
)
def test_versions_are_read(language, text, family, version):
    assert parse_version(text, language) == (family, version)


def test_this_machine_has_a_compiler():
    host = find_toolchain().host
    assert host.family in ("gcc", "clang")
    assert host.version >= toolchain.MINIMUM_VERSION[host.family]


def test_cxx_comes_first(alone, monkeypatch):
    script(alone / "g++", GCC)
    mine = script(alone / "sub" / "my-clang", CLANG)
    assert find_compiler("c++").require().label == "gcc 12.2.0"
    monkeypatch.setenv("CXX", f"{mine} -m64")
    found = find_compiler("c++").require()
    assert found.label == "clang 14.0.6"
    assert found.command == (str(mine), "-m64")


def test_a_chosen_compiler_is_not_replaced(alone, monkeypatch):
    script(alone / "g++", GCC)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(CompileError, match="no-such-compiler: not found"):
        find_toolchain()


def test_a_launcher_is_kept_but_the_compiler_identified(alone, monkeypatch):
    script(alone / "ccache", GCC)
    real = script(alone / "g++", GCC)
    monkeypatch.setenv("CXX", "ccache g++")
    found = find_compiler("c++").require()
    assert found.command == ("ccache", str(real))
    assert found.driver == str(real)
    assert found.real_path == real.resolve()


def test_an_old_compiler_is_passed_over_for_a_newer_one_beside_it(alone):
    script(alone / "g++", OLD_GCC)
    search = find_compiler("c++")
    assert search.compiler is None
    assert "gcc 10.2.1 is older than 11" in search.rejected[0]
    script(alone / "g++-12", GCC)
    assert find_compiler("c++").require().label == "gcc 12.2.0"


def test_a_compiler_that_does_not_run_is_named(alone):
    script(alone / "g++", "Illegal instruction", code=1)
    with pytest.raises(CompileError, match="g\\+\\+: does not run"):
        find_toolchain()


def test_identity_follows_the_file(alone):
    path = script(alone / "g++", GCC)
    before = find_compiler("c++").require().identity
    assert find_compiler("c++").require().identity == before
    path.write_text(path.read_text() + "# rebuilt\n")
    assert find_compiler("c++").require().identity != before


def test_nvcc_is_looked_for_in_the_documented_order(alone, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_PATH", str(tmp_path / "path"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    places = [
        alone / "nvcc",
        tmp_path / "path" / "bin" / "nvcc",
        tmp_path / "home" / "bin" / "nvcc",
        tmp_path / "user" / "nvidia" / "cu12" / "bin" / "nvcc",
        tmp_path / "site" / "nvidia" / "cu13" / "bin" / "nvcc",
    ]
    for place in places:  # each beats the one before it
        script(place, NVCC)
        assert find_compiler("cuda").require().command == (str(place),)


def test_hipcc_is_told_its_platform(alone):
    script(alone / "hipcc", HIPCC)
    assert find_compiler("hip").require().environment == (("HIP_PLATFORM", "amd"),)


@pytest.mark.parametrize(
    ("release", "language", "command"),
    [
        ("ID=debian", "c++", "apt-get install g++"),
        ('ID=ubuntu\nID_LIKE="debian"', "hip", "apt-get install hipcc"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"', "c++", "dnf install gcc-c++"),
        ('ID="opensuse-leap"\nID_LIKE="suse opensuse"', "c++", "zypper install gcc-c++"),
        ("ID=arch", "c++", "pacman -S gcc"),
        ("ID=solus", "c++", "your system's package manager: g++ or clang++"),
    ],
)
def test_the_command_that_installs_a_compiler(tmp_path, release, language, command):
    path = tmp_path / "os-release"
    path.write_text(release)
    assert install_command(language, path) == command


def test_a_missing_compiler_names_its_installation(alone):
    for language in ("c++", "hip"):
        with pytest.raises(CompileError, match=f"no usable {re.escape(language)}") as caught:
            find_compiler(language).require()
        assert install_command(language) in str(caught.value)
    if not Path("/usr/local/cuda/bin/nvcc").exists():
        with pytest.raises(CompileError, match="cuda-toolkit"):
            find_toolchain(["cuda"])


def test_a_language_that_was_not_asked_for(alone):
    script(alone / "g++", GCC)
    with pytest.raises(CompileError, match="no hip compiler"):
        find_toolchain().compiler("hip")
