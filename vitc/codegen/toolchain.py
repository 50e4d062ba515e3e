"""Finds the compilers that a target needs, and says what to install when one is missing.

A compiler is used by the path it was found under (a ccache link must be called by that name) and
identified by its real path, version text, size and modification time, so that the build cache
notices every change of it.
"""

from __future__ import annotations

import functools
import glob
import os
import re
import shlex
import shutil
import site
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vitc.errors import CompileError

Language = Literal["c++", "cuda", "hip"]
Family = Literal["gcc", "clang", "nvcc", "hipcc"]

MINIMUM_VERSION: Mapping[Family, tuple[int, ...]] = {
    "gcc": (11,),
    "clang": (14,),
    "nvcc": (12,),
    "hipcc": (5,),
}

NVCC_PACKAGE = '"cuda-toolkit[nvcc,cudart,cccl]"'


@dataclass(frozen=True)
class Compiler:
    """One compiler that was found and asked for its version.

    command: how it is called, `$CXX="ccache g++"` gives two words; environment: variables it needs
    set. real_path, size (bytes) and modified (ns since the epoch) are those of the file behind
    command[0].
    """

    language: Language
    family: Family
    command: tuple[str, ...]
    version: tuple[int, ...]
    version_text: str
    real_path: Path
    size: int
    modified: int
    environment: tuple[tuple[str, str], ...] = ()

    @property
    def driver(self) -> str:
        """The compiler proper, for nvcc's -ccbin: the first word of the command that is no
        launcher.
        """
        return self.command[_driver_index(self.command)]

    @property
    def identity(self) -> str:
        """What the build cache's keys take of this compiler: any change of it changes this text."""
        parts = (
            shlex.join(self.command[1:]),
            str(self.real_path),
            self.version_text,
            str(self.size),
            str(self.modified),
        )
        return "\n".join(parts)

    @property
    def label(self) -> str:
        """For people and manifests: `gcc 12.2.0`."""
        return f"{self.family} {_dotted(self.version)}"


@dataclass(frozen=True)
class Toolchain:
    """The compilers of one build: always one for C++, which also links, and one per GPU language
    asked for.
    """

    host: Compiler
    cuda: Compiler | None = None
    hip: Compiler | None = None

    def compiler(self, language: Language) -> Compiler:
        """The compiler of a language. Raises CompileError when the toolchain is without it."""
        found = {"c++": self.host, "cuda": self.cuda, "hip": self.hip}[language]
        if found is None:
            raise CompileError(
                f"the toolchain has no {language} compiler: ask find_toolchain for it"
            )
        return found

    def describe(self) -> dict[str, str]:
        """Language to compiler and version, as the manifest states it."""
        compilers = (self.host, self.cuda, self.hip)
        return {c.language: c.label for c in compilers if c is not None}

    def runtime_flags(self, languages: Iterable[Language]) -> tuple[str, ...]:
        """Linker flags with which objects of these languages find their runtime library."""
        wanted = set(languages)
        flags: list[str] = []
        if "cuda" in wanted:
            flags += [
                f"-L{folder}" for folder in _cuda_library_folders(self.compiler("cuda").command)
            ]
            flags += ["-l:libcudart_static.a", "-lpthread", "-ldl", "-lrt"]
        if "hip" in wanted:
            root = self.compiler("hip").real_path.parent.parent
            flags += [f"-L{root / 'lib'}", "-lamdhip64"]
        return tuple(flags)


@dataclass(frozen=True)
class Search:
    """The outcome of looking for one language's compiler: found, or why each candidate was turned
    down.
    """

    language: Language
    compiler: Compiler | None
    rejected: tuple[str, ...] = field(default=())

    def require(self) -> Compiler:
        """The compiler, or CompileError with what was tried and the command that installs one."""
        if self.compiler is not None:
            return self.compiler
        needed = _NEEDED[self.language]
        tried = "".join(f"\n  - {reason}" for reason in self.rejected)
        raise CompileError(
            f"no usable {self.language} compiler: vitc needs {needed}{tried}",
            hint=f"to install one: {install_command(self.language)}",
        )


_NEEDED: Mapping[Language, str] = {
    "c++": "g++ 11 or later, or clang++ 14 or later ($CXX chooses)",
    "cuda": "nvcc 12 or later",
    "hip": "hipcc of ROCm 5 or later",
}


def find_toolchain(languages: Iterable[Language] = ()) -> Toolchain:
    """The C++ compiler and those of the GPU languages given. Raises CompileError naming what to
    install.
    """
    wanted = set(languages)
    return Toolchain(
        host=find_compiler("c++").require(),
        cuda=find_compiler("cuda").require() if "cuda" in wanted else None,
        hip=find_compiler("hip").require() if "hip" in wanted else None,
    )


def find_compiler(language: Language) -> Search:
    """Looks for one language's compiler in its documented order; never raises for one that is
    missing.
    """
    candidates, probe = _FINDERS[language]
    rejected: list[str] = []
    for command, chosen in candidates():
        found = probe(command)
        if isinstance(found, Compiler):
            return Search(language, found, tuple(rejected))
        rejected.append(found)
        if chosen:  # the user named this one: using another silently would surprise
            break
    return Search(language, None, tuple(rejected))


def install_command(language: Language, os_release: Path = Path("/etc/os-release")) -> str:
    """The command that installs a language's compiler on this distribution."""
    if language == "cuda":
        return f"{pip_install()} {NVCC_PACKAGE}"
    families = _distribution(os_release)
    for family, installer, packages in _INSTALLERS:
        if family in families:
            return f"{installer} {packages[language]}"
    return {
        "c++": "your system's package manager: g++ or clang++",
        "hip": "https://rocm.docs.amd.com (hipcc)",
    }[language]


_INSTALLERS: tuple[tuple[str, str, Mapping[Language, str]], ...] = (
    ("debian", "apt-get install", {"c++": "g++", "hip": "hipcc"}),
    ("fedora", "dnf install", {"c++": "gcc-c++", "hip": "hipcc"}),
    ("suse", "zypper install", {"c++": "gcc-c++", "hip": "hipcc"}),
    ("arch", "pacman -S", {"c++": "gcc", "hip": "hip-runtime-amd"}),
    ("alpine", "apk add", {"c++": "g++", "hip": "hipcc"}),
)


def _distribution(os_release: Path) -> set[str]:
    """ID and ID_LIKE of /etc/os-release (freedesktop.org), lower case; {"ubuntu", "debian"} for
    instance.
    """
    try:
        lines = os_release.read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    words: set[str] = set()
    for line in lines:
        name, _, value = line.partition("=")
        if name in ("ID", "ID_LIKE"):
            words |= set(value.strip().strip("\"'").lower().split())
    if any(word.startswith("opensuse") for word in words):
        words.add("suse")
    return words | ({"fedora"} if words & {"rhel", "centos"} else set())


def pip_install() -> str:
    """How this environment installs a package: one made by uv has no pip of its own."""
    try:
        configuration = (Path(sys.prefix) / "pyvenv.cfg").read_text(encoding="utf-8")
    except OSError:
        configuration = ""
    return "uv pip install" if re.search(r"^uv\s*=", configuration, re.MULTILINE) else "pip install"


@functools.lru_cache(maxsize=8)
def _cuda_library_folders(command: tuple[str, ...]) -> tuple[Path, ...]:
    """Where nvcc's own libraries lie. Asked of nvcc itself, as the nvcc on the PATH may be a script
    elsewhere.
    """
    call = (*command, "--dryrun", "-x", "cu", "-c", "/dev/null")
    done = subprocess.run(call, capture_output=True, text=True, timeout=60, check=False)
    match = re.search(r"^#\$ TOP=(.+)$", done.stderr, re.MULTILINE)
    root = Path(match.group(1)).resolve() if match else Path(command[0]).resolve().parent.parent
    return tuple(
        f for f in (root / "lib", root / "lib64", root / "targets/x86_64-linux/lib") if f.is_dir()
    )


# --- candidates: (command, whether the user chose it), best first
# ----------------------------------

Candidates = Iterator[tuple[tuple[str, ...], bool]]


def _host_candidates() -> Candidates:
    chosen = os.environ.get("CXX", "").strip()
    if chosen:
        yield tuple(shlex.split(chosen)), True
        return
    names = ["g++", "clang++"]
    # Where the plain name is an old release (Debian 11), a newer one often stands beside it.
    names += [f"g++-{v}" for v in range(16, 10, -1)] + [f"clang++-{v}" for v in range(21, 13, -1)]
    for name in names:
        if shutil.which(name):
            yield (name,), False


def _nvcc_candidates() -> Candidates:
    folders = [Path(p) for p in (*site.getsitepackages(), site.getusersitepackages())]
    for folder in folders:
        for path in sorted(glob.glob(f"{folder}/nvidia/cu*/bin/nvcc"), reverse=True):
            yield (path,), False
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(variable):
            path = Path(os.environ[variable]) / "bin" / "nvcc"
            yield (str(path),), False
    for path in (shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"):
        if path and os.access(path, os.X_OK):
            yield (path,), False


def _hipcc_candidates() -> Candidates:
    for path in (shutil.which("hipcc"), "/opt/rocm/bin/hipcc"):
        if path and os.access(path, os.X_OK):
            yield (path,), False


# --- probes: a Compiler, or the reason why the command is none -----------------------------------


def _probe_host(command: tuple[str, ...]) -> Compiler | str:
    return _probe("c++", command, ())


def _probe_nvcc(command: tuple[str, ...]) -> Compiler | str:
    return _probe("cuda", command, ())


def _probe_hipcc(command: tuple[str, ...]) -> Compiler | str:
    # hipcc otherwise compiles for NVIDIA as soon as it sees an nvcc.
    return _probe("hip", command, (("HIP_PLATFORM", "amd"),))


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


_LAUNCHERS = frozenset({"ccache", "sccache", "distcc", "icecc"})


def _driver_index(command: tuple[str, ...]) -> int:
    return next((i for i, word in enumerate(command) if Path(word).name not in _LAUNCHERS), 0)


def _probe(
    language: Language, command: tuple[str, ...], environment: tuple[tuple[str, str], ...]
) -> Compiler | str:
    index = _driver_index(command)
    path = shutil.which(command[index])
    if path is None:
        return f"{shlex.join(command)}: not found"
    command = (*command[:index], path, *command[index + 1 :])
    real = Path(path).resolve()
    stat = real.stat()
    text = _version_text(command, environment, stat.st_size, stat.st_mtime_ns)
    if text is None:
        return (
            f"{shlex.join(command)}: does not run (`{shlex.join((*command, '--version'))}` fails)"
        )
    family, version = parse_version(text, language)
    if family is None:
        first = text.strip().splitlines()[0] if text.strip() else "nothing"
        return f"{shlex.join(command)}: not {_NEEDED[language]}; its version reads {first!r}"
    least = MINIMUM_VERSION[family]
    if version < least:
        return f"{path}: {family} {_dotted(version)} is older than {_dotted(least)}"
    return Compiler(
        language,
        family,
        command,
        version,
        text.strip(),
        real,
        stat.st_size,
        stat.st_mtime_ns,
        environment,
    )


@functools.lru_cache(maxsize=64)
def _version_text(
    command: tuple[str, ...], environment: tuple[tuple[str, str], ...], size: int, modified: int
) -> str | None:
    """What `--version` prints, or None when it fails. size and modified renew the answer when the
    file changes.
    """
    del size, modified
    variables = {**os.environ, **dict(environment), "LC_ALL": "C"}
    try:
        done = subprocess.run(
            (*command, "--version"),
            capture_output=True,
            text=True,
            timeout=60,
            env=variables,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


_PATTERNS: Mapping[Language, tuple[tuple[Family, str], ...]] = {
    # The word in parentheses is the vendor's and may hold digits: the version follows it.
    "c++": (
        ("clang", r"clang version (\d+(?:\.\d+)*)"),
        ("gcc", r"^[^\n]*\) (\d+\.\d+(?:\.\d+)?)[^\n]*\nCopyright"),
    ),
    "cuda": (("nvcc", r"release [\d.]+, V(\d+(?:\.\d+)*)"),),
    "hip": (("hipcc", r"HIP version: (\d+(?:\.\d+)*)"),),
}


def parse_version(text: str, language: Language) -> tuple[Family | None, tuple[int, ...]]:
    """Family and version out of what `--version` printed; (None, ()) when no known compiler prints
    that.
    """
    for family, pattern in _PATTERNS[language]:
        match = re.search(pattern, text)
        if match:
            return family, tuple(int(part) for part in match.group(1).split("."))
    return None, ()


_FINDERS: Mapping[
    Language, tuple[Callable[[], Candidates], Callable[[tuple[str, ...]], Compiler | str]]
] = {
    "c++": (_host_candidates, _probe_host),
    "cuda": (_nvcc_candidates, _probe_nvcc),
    "hip": (_hipcc_candidates, _probe_hipcc),
}
