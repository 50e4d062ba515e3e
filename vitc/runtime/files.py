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
    """Opens a temporary file beside `path` that replaces it when the block ends without an error.

    On any error, also an interrupt, the temporary file is removed and `path` is as before.

    Raises:
        StorageError: the file cannot be created, written or renamed.
    """
    temporary = path.parent / f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp"
    try:
        descriptor = os.open(
            temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o777 if executable else 0o666
        )
        try:
            with os.fdopen(descriptor, "w+b") as file:
                yield file
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
