"""The cache of compiled objects and linked libraries, safe to share by any number of processes.

    <root>/objects/<key>/   a finished entry: source, command.txt, log.txt, entry.json, artefact
    <root>/work/<id>/       what a running build has not finished; it holds a lock on <id>.lock
    <root>/failed/<name>/   source, command and log of the last failed compiles, to look at

An entry appears by one rename and leaves by one rename, so nobody ever sees half of one. A build
links the artefacts it uses into its own work folder, so an eviction by another process cannot take
them away from it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vitc.errors import StorageError

DEFAULT_LIMIT = 5 * 2**30  # bytes
KEPT_FAILURES = 8
_TRIM_TO = 0.9  # of the limit, so that not every build after the first full one evicts


@dataclass(frozen=True)
class Entry:
    """A finished cache entry. artefact: file name inside `folder`; seconds: what making it took."""

    key: str
    folder: Path
    artefact: str
    sha256: str
    bytes: int
    seconds: float


def cache_root(environ: Mapping[str, str] = os.environ) -> Path:
    """$VITC_CACHE, else $XDG_CACHE_HOME/vitc, else ~/.cache/vitc (XDG Base Directory
    Specification).
    """
    if environ.get("VITC_CACHE"):
        return Path(environ["VITC_CACHE"]).expanduser().absolute()
    base = Path(environ.get("XDG_CACHE_HOME", ""))
    # The specification says to ignore a relative path.
    return (base if base.is_absolute() else Path.home() / ".cache") / "vitc"


_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def parse_size(text: str) -> int:
    """Bytes of "5GiB", "500M" or "1048576"; units are powers of 1024. Raises ValueError for
    anything else.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", text.lower())
    if match is None:
        raise ValueError(f"{text!r} is no size: write it as 500M or 5GiB")
    return int(float(match.group(1)) * _UNITS[match.group(2)])


def storage_error(error: OSError, path: Path) -> StorageError:
    """The StorageError that says what `error` means for the cache at `path`, with the free space
    there.
    """
    free = free_bytes(path)
    left = "" if free is None else f" ({free / 2**20:.0f} MiB free)"
    return StorageError(
        f"cannot write to the build cache '{path}': {error.strerror or error}{left}",
        hint="free some space, or set VITC_CACHE to a folder on another disk; nothing was left "
        "half-written",
    )


def free_bytes(path: Path) -> int | None:
    """Free bytes on the disk that holds `path` or would hold it; None when that cannot be told."""
    for folder in (path, *path.parents):
        if folder.exists():
            try:
                return shutil.disk_usage(folder).free
            except OSError:
                return None
    return None


class BuildCache:
    """A folder of entries by key, with a size limit. Every method may be called from several
    threads.
    """

    def __init__(self, root: Path, limit: int = DEFAULT_LIMIT) -> None:
        """root: made when first written to. limit: bytes that all entries together may take."""
        self.root = root
        self.limit = limit

    @classmethod
    def default(cls, environ: Mapping[str, str] = os.environ) -> BuildCache:
        """The user's cache. Raises StorageError when $VITC_CACHE_LIMIT is no size."""
        try:
            limit = parse_size(environ.get("VITC_CACHE_LIMIT") or str(DEFAULT_LIMIT))
        except ValueError as error:
            raise StorageError(f"VITC_CACHE_LIMIT: {error}") from error
        return cls(cache_root(environ), limit)

    @property
    def objects(self) -> Path:
        """The folder of the finished entries."""
        return self.root / "objects"

    @contextlib.contextmanager
    def workspace(self) -> Generator[Path]:
        """A fresh folder on the cache's disk for one build; it is gone afterwards, however the
        build ended.

        What a killed process left behind is swept away first. Raises StorageError when the cache
        cannot be written.
        """
        work = self.root / "work"
        folder = work / uuid.uuid4().hex
        lock = folder.with_suffix(".lock")
        try:
            work.mkdir(parents=True, exist_ok=True)
            self.objects.mkdir(exist_ok=True)
            # Locked before the folder exists: a sweep takes a folder for dead only when it gets its
            # lock.
            handle = os.open(lock, os.O_CREAT | os.O_RDWR, 0o666)
            fcntl.flock(handle, fcntl.LOCK_EX)
            folder.mkdir()
        except OSError as error:
            raise storage_error(error, self.root) from error
        try:
            self.sweep()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock.unlink(missing_ok=True)
            os.close(handle)

    def sweep(self) -> int:
        """Removes the work folders of processes that are no more; returns how many."""
        swept = 0
        for lock in (self.root / "work").glob("*.lock"):
            folder = lock.with_suffix("")
            if not folder.exists():  # its owner is about to make it, or has just removed it
                continue
            try:
                handle = os.open(lock, os.O_RDWR)
            except OSError:
                continue
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue  # alive
            else:
                shutil.rmtree(folder, ignore_errors=True)
                lock.unlink(missing_ok=True)
                swept += 1
            finally:
                os.close(handle)
        return swept

    def fetch(self, key: str, into: Path) -> Entry | None:
        """Links the artefact of `key` into the folder `into/<key>/`; None when there is none, or a
        damaged one.
        """
        folder = self.objects / key
        try:
            fields = json.loads((folder / "entry.json").read_text(encoding="utf-8"))
            entry = Entry(key=key, folder=folder, **fields)
            target = into / key / entry.artefact
            target.parent.mkdir(exist_ok=True)
            place(folder / entry.artefact, target)
        except (FileNotFoundError, ValueError, TypeError):  # absent, or damaged
            self._discard(folder, into)
            return None
        if target.stat().st_size != entry.bytes or file_digest(target) != entry.sha256:
            target.unlink()
            self._discard(
                folder, into
            )  # a crash of the machine, say: the rename reached the disk before the data
            return None
        with contextlib.suppress(
            OSError
        ):  # another's cache, or just evicted: the time of use is only a hint
            os.utime(folder)
        return entry

    def store(self, key: str, folder: Path, artefact: str, seconds: float, into: Path) -> Entry:
        """Makes `folder` (in the same workspace as `into`) the entry of `key`, and links its
        artefact as fetch does.
        """
        made = folder / artefact
        entry = Entry(
            key, self.objects / key, artefact, file_digest(made), made.stat().st_size, seconds
        )
        fields = {name: getattr(entry, name) for name in ("artefact", "sha256", "bytes", "seconds")}
        (folder / "entry.json").write_text(json.dumps(fields, indent=1), encoding="utf-8")
        target = into / key / artefact
        target.parent.mkdir(exist_ok=True)
        place(made, target)
        try:
            os.rename(folder, entry.folder)
        except OSError as error:
            # Another process was faster: its entry has the same content, so ours may go with the
            # workspace.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        return entry

    def keep_failure(self, folder: Path, name: str) -> Path:
        """Moves a failed compile's folder to where people can look at it; the oldest of them make
        room.
        """
        failed = self.root / "failed"
        failed.mkdir(exist_ok=True)
        target = failed / name
        if target.exists():
            self._discard(target, folder.parent)
        try:
            os.rename(folder, target)
        except OSError:
            return folder
        kept = sorted(_folders(failed), key=lambda item: item[1], reverse=True)
        for old, _ in kept[KEPT_FAILURES:]:
            shutil.rmtree(old, ignore_errors=True)
        return target

    def size(self) -> int:
        """Bytes that all entries take."""
        return sum(_tree_bytes(folder) for folder, _ in _folders(self.objects))

    def trim(self, workspace: Path) -> int:
        """Evicts the least recently used entries when the cache is over its limit; returns the
        bytes freed.
        """
        sized = [(used, folder, _tree_bytes(folder)) for folder, used in _folders(self.objects)]
        total = sum(item[2] for item in sized)
        if total <= self.limit:
            return 0
        freed = 0
        for _, folder, size in sorted(sized, key=lambda item: item[0]):
            if total - freed <= self.limit * _TRIM_TO:
                break
            self._discard(folder, workspace)
            freed += size
        return freed

    def clear(self) -> int:
        """Removes every entry; returns the bytes freed. Running builds keep what they use."""
        with self.workspace() as workspace:
            freed = self.size()
            for folder, _ in _folders(self.objects):
                self._discard(folder, workspace)
        return freed

    @staticmethod
    def _discard(folder: Path, workspace: Path) -> None:
        """Takes an entry out by one rename; its files go with the workspace."""
        grave = workspace / f"evicted-{uuid.uuid4().hex}"
        with contextlib.suppress(
            OSError
        ):  # another process evicts it too, or the cache is not ours to trim
            os.rename(folder, grave)
            shutil.rmtree(grave, ignore_errors=True)


def place(source: Path, target: Path) -> None:
    """Hard-links a file, or copies it where the file system has no links."""
    try:
        os.link(source, target)
    except FileExistsError:
        pass  # the same key again: the same content
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EXDEV, errno.EMLINK):
            raise
        shutil.copyfile(source, target)


def file_digest(path: Path) -> str:
    """sha256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _folders(parent: Path) -> list[tuple[Path, float]]:
    """The folders in `parent` with the time of their last use."""
    found: list[tuple[Path, float]] = []
    with contextlib.suppress(FileNotFoundError), os.scandir(parent) as items:
        for item in items:
            with contextlib.suppress(FileNotFoundError):  # evicted meanwhile
                if item.is_dir():
                    found.append((Path(item.path), item.stat().st_mtime))
    return found


def _tree_bytes(folder: Path) -> int:
    total = 0
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as items:
        for item in items:
            with contextlib.suppress(FileNotFoundError):
                total += item.stat().st_size
    return total
