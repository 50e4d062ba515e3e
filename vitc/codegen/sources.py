"""What is compiled: one rendered source per object, and the key under which the cache knows its
object.
"""

from __future__ import annotations

import functools
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


_INCLUDES = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)


def headers_digest(text: str, folder: Path = INCLUDE) -> str:
    """sha256 over the headers under `folder` that `text` includes, directly or through others.

    Includes count whatever conditions they stand under; a change of any other header does not.
    """
    found: dict[str, str] = {}
    wanted = _INCLUDES.findall(text)
    while wanted:
        name = wanted.pop()
        path = folder / name
        if name in found or not path.is_file():
            continue
        stat = path.stat()
        found[name] = _read(path, stat.st_mtime_ns, stat.st_size)
        wanted += _INCLUDES.findall(found[name])
    return digest(part.encode() for item in sorted(found.items()) for part in item)


@functools.cache
def _read(path: Path, modified: int, size: int) -> str:
    """A header's text, read again only when it changed."""
    del modified, size
    return path.read_text(encoding="utf-8")


def object_key(source: Source, toolchain: Toolchain) -> str:
    """The cache key of a source: whatever can change the object changes it."""
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
        headers_digest(source.text),
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
