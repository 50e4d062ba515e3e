"""The file of a library: ELF code, then the weights, then a footer that says where they are.

    [ELF][zeros to a multiple of 4096][payload: a safetensors file][footer, 64 bytes]

With external weights the payload is `<stem>.safetensors` beside the library and the footer, which
then follows the zeros, holds its checksum. The system's loader ignores what follows the ELF part.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vitc.errors import LoadError, StorageError, WeightsError
from vitc.runtime.files import atomic_file
from vitc.runtime.payload import WeightArray, plan_payload, write_payload

PAGE = 4096
WeightsMode = Literal["embedded", "external"]


@dataclass(frozen=True)
class Footer:
    """The last 64 bytes of a library, little endian; vitc/host/payload.h reads the same.

    Attributes:
        payload_offset: where the payload starts, a multiple of PAGE.
        payload_bytes: its size; 0 with external weights.
        payload_crc: the crc32 that the payload, or the file beside the library, ends with.
        code_digest: first 16 bytes of the SHA-256 of the ELF part.
        code_bytes: size of the ELF part.
    """

    payload_offset: int
    payload_bytes: int
    payload_crc: int
    code_digest: bytes
    code_bytes: int

    MAGIC = b"VITCWTS1"
    VERSION = 2
    BYTES = 64
    _FORMAT = struct.Struct("<8sQQII16sQ8x")

    def pack(self) -> bytes:
        """The footer as it stands in the file."""
        return self._FORMAT.pack(
            self.MAGIC,
            self.payload_offset,
            self.payload_bytes,
            self.payload_crc,
            self.VERSION,
            self.code_digest,
            self.code_bytes,
        )

    @property
    def mode(self) -> WeightsMode:
        """Where the weights are."""
        return "embedded" if self.payload_bytes else "external"


def external_weights(library: Path) -> Path:
    """The weights file that belongs to a library with external weights."""
    return library.with_suffix(".safetensors")


def read_footer(path: Path) -> Footer | None:
    """The footer of a file, or None where it has none. Raises LoadError when it is not sane."""
    size = path.stat().st_size
    if size < Footer.BYTES:
        return None
    with path.open("rb") as file:
        file.seek(size - Footer.BYTES)
        fields = Footer._FORMAT.unpack(file.read(Footer.BYTES))  # pyright: ignore[reportPrivateUsage]
    magic, offset, payload, crc, version, digest, code = fields
    if magic != Footer.MAGIC:
        return None
    if version != Footer.VERSION:
        raise LoadError(
            f"'{path}' has footer version {version}; this vitc reads version {Footer.VERSION}",
            hint="use the vitc that compiled it, or compile the model again",
        )
    if offset % PAGE or code > offset or offset + payload + Footer.BYTES != size:
        raise LoadError(
            f"'{path}' is damaged: its footer speaks of {offset + payload + Footer.BYTES} bytes, "
            f"the file has {size}",
            hint="copy or compile it again",
        )
    return Footer(offset, payload, crc, digest, code)


def write_library(
    elf_path: Path, weights: Mapping[str, WeightArray], output: Path, mode: WeightsMode
) -> None:
    """Joins code and weights to a library; each weight is written straight to the file.

    Args:
        elf_path: what the linker made, or a library of vitc, whose weights are then replaced.
        weights: the final constants, in the order that plan_payload was given at code generation.
        output: the library to write; with mode "external" also `<stem>.safetensors` beside it.

    Raises:
        WeightsError: the weights are not those the code was generated for: names, order, dtypes or
            shapes differ.
        StorageError: a file cannot be written, for example because the disk is full.
    """
    footer = read_footer(elf_path)
    code = elf_path.read_bytes()[: footer.code_bytes if footer else None]
    layout = plan_payload({name: weight.spec for name, weight in weights.items()})
    if layout.header not in code:
        raise WeightsError(f"the weights are not in the layout that '{elf_path}' was compiled for")
    offset = len(code) + -len(code) % PAGE
    digest = hashlib.sha256(code).digest()[:16]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot create folder '{output.parent}': {error.strerror}") from error
    total = layout.total_bytes if mode == "embedded" else 0
    with atomic_file(output, executable=True) as file, ExitStack() as both:
        file.write(code + bytes(offset - len(code)))
        # Both files are complete before either takes its place. A crash between the two leaves
        # weights that end with another checksum than the old library's footer: none loads them.
        beside = external_weights(output)
        target = file if mode == "embedded" else both.enter_context(atomic_file(beside))
        crc = write_payload(target, weights)
        file.write(Footer(offset, total, crc, digest, len(code)).pack())
        file.flush()
