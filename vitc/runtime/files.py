"""Writing files so that a reader sees the old one or the new one, never half of one."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from vitc.errors import StorageError


@contextmanager
def atomic_file(path: Path, *, executable: bool = False) -> Generator[BinaryIO, None, None]:
    """Opens a file without a name that takes the place of `path` when the block ends well.

    On any error, also an interrupt, `path` is as before and nothing is left beside it. Where the
    file system knows no nameless files, a killed process leaves `.<name>.<random>.tmp`.

    Raises:
        StorageError: the file cannot be created, written or renamed.
    """
    temporary = path.parent / f".{path.name}.{os.urandom(6).hex()}.tmp"
    try:
        descriptor, nameless = _create(temporary, 0o777 if executable else 0o666)
        try:
            with os.fdopen(descriptor, "w+b") as file:
                yield file
                file.flush()
                if nameless:
                    # src_dir_fd is not used, but makes Python follow the link (linkat, not link).
                    os.link(f"/proc/self/fd/{descriptor}", temporary, src_dir_fd=descriptor)
            os.replace(temporary, path)
        except BaseException:
            with suppress(FileNotFoundError):
                temporary.unlink()
            raise
    except OSError as error:
        raise StorageError(
            f"cannot write '{path}': {error.strerror or error}",
            hint="free some space or choose another folder; nothing was left behind",
        ) from error


def _create(temporary: Path, mode: int) -> tuple[int, bool]:
    """A new file's descriptor, and whether the file is still without a name."""
    if hasattr(os, "O_TMPFILE") and os.path.isdir("/proc/self/fd"):
        # Not every file system has it, and old kernels take the flag for O_DIRECTORY.
        with suppress(OSError):
            return os.open(temporary.parent, os.O_RDWR | os.O_TMPFILE, mode), True
    return os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode), False
