"""What must hold of a library before the system's loader may map it, and of its manifest after."""

from __future__ import annotations

import hashlib
import json
import platform
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from vitc.errors import LoadError
from vitc.runtime.artifact import Footer, external_weights, read_footer
from vitc.runtime.library import PortInfo
from vitc.runtime.payload import CRC_BYTES

MANIFEST_FORMAT = 1
_REQUIRED = (
    ("name", str),
    ("target", str),
    ("inputs", list),
    ("outputs", list),
    ("weights", list),
    ("steps", list),
    ("workspace", dict),
    ("parameters", list),
    ("recipes", str),
)
# ELF specification, e_machine; the names are those of platform.machine().
_MACHINES = {
    3: "i686",
    21: "ppc64",
    22: "s390x",
    40: "armv7l",
    62: "x86_64",
    183: "aarch64",
    243: "riscv64",
    258: "loongarch64",
}
_ALIASES = {"AMD64": "x86_64", "arm64": "aarch64", "ppc64le": "ppc64"}
_CHUNK = 8 << 20


def check_file(path: Path, *, weights: Path | None, verify: bool) -> Footer:
    """Checks all that can be checked without running code of the file, in the order of the layers.

    Args:
        path: of the library.
        weights: a weights file that replaces the library's own, which then need not be there.
        verify: whether to read the weights to the end and compare their checksum.

    Raises:
        LoadError: the file is absent, no library, for another machine, truncated or altered.
    """
    if not path.is_file():
        raise LoadError(f"there is no library at '{path}'")
    try:
        with path.open("rb") as file:
            _check_machine(path, file)
            footer = read_footer(path)
            if footer is None:
                raise LoadError(
                    f"'{path}' does not end with a footer of vitc: it is truncated, was stripped, "
                    "or vitc did not write it",
                    hint="copy or compile it again",
                )
            file.seek(0)
            code = file.read(footer.code_bytes)
            if hashlib.sha256(code).digest()[:16] != footer.code_digest:
                raise LoadError(f"the code in '{path}' is damaged", hint="copy or compile it again")
            if weights is None:
                _check_weights(path, file, footer, verify)
    except OSError as error:
        raise LoadError(f"cannot read '{path}': {error.strerror or error}") from error
    return footer


def _check_machine(path: Path, file: BinaryIO) -> None:
    start = file.read(20)
    if len(start) < 20 or start[:4] != b"\x7fELF":
        raise LoadError(f"'{path}' is not an ELF shared library")
    order = "little" if start[5] == 1 else "big"
    number = int.from_bytes(start[18:20], order)
    built = _MACHINES.get(number, f"ELF machine {number}")
    here = _ALIASES.get(platform.machine(), platform.machine())
    if built != here or start[4] != 2 or order != "little":
        bits = {1: "32-bit", 2: "64-bit"}.get(start[4], "damaged")
        raise LoadError(
            f"'{path}' is for {built} ({bits}, {order}-endian), this machine is {here} "
            "(64-bit, little-endian)",
            hint="compile the model on a machine of this kind",
        )


def _check_weights(path: Path, file: BinaryIO, footer: Footer, verify: bool) -> None:
    if footer.mode == "embedded":
        place = footer.payload_offset, footer.payload_bytes
        if verify and not _intact(file, *place, footer.payload_crc):
            raise LoadError(f"the weights in '{path}' are damaged", hint="copy or compile it again")
        return
    beside = external_weights(path)
    if not beside.is_file():
        raise LoadError(
            f"'{path}' has its weights beside it, and '{beside}' is absent",
            hint="copy the two files together, or pass weights=",
        )
    if verify:
        with beside.open("rb") as other:
            if not _intact(other, 0, beside.stat().st_size, footer.payload_crc):
                raise LoadError(
                    f"the weights in '{beside}' are damaged or belong to another library",
                    hint="copy the two files together; pass weights= to use others on purpose",
                )


def _intact(file: BinaryIO, offset: int, size: int, expected: int) -> bool:
    """Whether the payload's bytes have this crc32, and end with it."""
    file.seek(offset)
    size -= CRC_BYTES
    crc = 0
    while size > 0 and (chunk := file.read(min(size, _CHUNK))):
        crc = zlib.crc32(chunk, crc)
        size -= len(chunk)
    return crc == expected and file.read(CRC_BYTES) == expected.to_bytes(CRC_BYTES, "little")


def parse_manifest(
    path: Path, text: str, inputs: Sequence[PortInfo], outputs: Sequence[PortInfo]
) -> dict[str, Any]:
    """The manifest of an open library.

    Raises:
        LoadError: it is not JSON, lacks a key, is of another format, or contradicts the library.
    """

    def damaged(what: str) -> LoadError:
        return LoadError(f"the manifest of '{path}' {what}", hint="compile the model again")

    try:
        manifest = json.loads(text)
    except json.JSONDecodeError as error:
        raise damaged(f"is not JSON: {error}") from error
    if not isinstance(manifest, dict):
        raise damaged("is not a JSON object")
    manifest = cast(dict[str, Any], manifest)
    if manifest.get("format") != MANIFEST_FORMAT:
        raise damaged(f"has format {manifest.get('format')}, this vitc reads {MANIFEST_FORMAT}")
    for key, kind in _REQUIRED:
        if not isinstance(manifest.get(key), kind):
            raise damaged(f"lacks '{key}' ({kind.__name__})")
    for kind, ports in (("inputs", inputs), ("outputs", outputs)):
        if [_port(entry) for entry in manifest[kind]] != [
            (port.name, port.dtype, port.shape[1:]) for port in ports
        ]:
            raise damaged(f"lists other {kind} than the library: {', '.join(map(str, ports))}")
    return manifest


def _port(entry: Any) -> tuple[Any, ...] | None:
    try:
        return entry["name"], entry["dtype"], tuple(entry["shape"][1:])
    except (KeyError, TypeError):
        return None
