"""What is compiled: one rendered source per object, and the key under which the cache knows its
object.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vitc.codegen.toolchain import Language, Toolchain

INCLUDE = Path(__file__).parent.parent / "templates" / "include"

# A library needs these whatever the kernel; optimisation and architecture are the source's own
# flags.
BASE_FLAGS: Mapping[Language, tuple[str, ...]] = {
    "c++": ("-std=c++17", "-fPIC", "-fvisibility=hidden"),
    "cuda": ("-std=c++17", "-Xcompiler", "-fPIC,-fvisibility=hidden"),
    "hip": ("-std=c++17", "-fPIC", "-fvisibility=hidden"),
}
SUFFIX: Mapping[Language, str] = {"c++": ".cc", "cuda": ".cu", "hip": ".hip"}


@dataclass(frozen=True)
class Source:
    """One object file to be. name: file name without suffix; text: the rendered source; flags:
    added to BASE_FLAGS.
    """

    name: str
    text: str
    flags: tuple[str, ...] = ()
    language: Language = "c++"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", self.name):
            raise ValueError(
                f"{self.name!r} is no name for a source: letters, digits and _ . + - only"
            )
        if any(flag.endswith("=native") for flag in self.flags):
            raise ValueError(
                f"{self.name}: '=native' ties the object to this machine; name the architecture"
            )


_HEADER_SUFFIXES = frozenset({".h", ".hpp", ".cuh", ".inc"})


def headers_digest(folder: Path = INCLUDE) -> str:
    """sha256 over the headers under `folder`, names and contents.

    A file is read again only when it changed; looking takes a millisecond or two.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix in _HEADER_SUFFIXES)
    state = tuple((path, (stat := path.stat()).st_mtime_ns, stat.st_size) for path in files)
    known = _HEADERS.get(folder)
    if known is None or known[0] != state:
        parts = [
            part
            for path in files
            for part in (str(path.relative_to(folder)).encode(), path.read_bytes())
        ]
        known = _HEADERS[folder] = (state, digest(parts))
    return known[1]


_HEADERS: dict[Path, tuple[tuple[tuple[Path, int, int], ...], str]] = {}


def object_key(source: Source, toolchain: Toolchain, headers: str | None = None) -> str:
    """The cache key of a source: whatever can change the object changes it.

    headers: headers_digest(), when the caller has asked for it already.
    """
    compiler = toolchain.compiler(source.language)
    # nvcc's host compiler makes half of the object.
    identities = (
        compiler.identity
        if source.language == "c++"
        else compiler.identity + toolchain.host.identity
    )
    flags = "\0".join((*BASE_FLAGS[source.language], *source.flags))
    parts = (
        "object 1",
        source.language,
        source.text,
        headers or headers_digest(),
        flags,
        identities,
    )
    return digest(part.encode() for part in parts)


def digest(parts: Iterable[bytes]) -> str:
    """sha256 with each part's length, so that no two lists of parts give one text."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()
