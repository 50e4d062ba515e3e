"""Compiles rendered sources in parallel and links them to one library, through the build cache."""

from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from vitc.codegen.cache import BuildCache, Entry, free_bytes, storage_error
from vitc.codegen.processes import Finished, Runner
from vitc.codegen.sources import (
    BASE_FLAGS,
    INCLUDE,
    SUFFIX,
    Source,
    digest,
    object_key,
)
from vitc.codegen.toolchain import Compiler, Language, Toolchain
from vitc.errors import CompileError, VitcError
from vitc.runtime.files import atomic_file

# Called with the name of what is ready, how many are ready and how many there are.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ObjectReport:
    """How one object, or the link, went.

    seconds: what making it took; for a hit, when it was made. path: the artefact in its cache
    entry, until that is evicted. log: what the compiler printed (warnings, ptxas statistics).
    """

    name: str
    key: str
    hit: bool
    seconds: float
    bytes: int
    path: Path
    command: str
    log: str


@dataclass(frozen=True)
class BuildReport:
    """How a build went. seconds: wall time; jobs: how many compilers ran at once at most."""

    output: Path
    objects: tuple[ObjectReport, ...]
    link: ObjectReport
    seconds: float
    jobs: int

    @property
    def hits(self) -> int:
        """How many objects came from the cache."""
        return sum(item.hit for item in self.objects)


@dataclass(frozen=True)
class _Job:
    """Something that one command makes in a folder of its own."""

    name: str
    key: str
    compiler: Compiler
    arguments: tuple[str, ...]
    files: Mapping[str, str]
    artefact: str

    @property
    def command(self) -> tuple[str, ...]:
        return (*self.compiler.command, *self.arguments)


def default_jobs() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def build_library(
    sources: Sequence[Source],
    *,
    toolchain: Toolchain,
    output: Path,
    link_flags: Sequence[str] = (),
    jobs: int = 0,
    cache: BuildCache | None = None,
    progress: Progress | None = None,
    runner: Runner | None = None,
) -> BuildReport:
    """Compiles `sources` and links them, in their order, into the shared library `output`.

    jobs: compilers at once, 0 = default_jobs(). cache: BuildCache.default() when None. progress:
    called in this thread. `output` appears complete or not at all, and is a file of its own: it may
    be appended to. runner: its stop(), called by another thread, ends the build with Cancelled; an
    interrupt of this thread needs no help.

    Raises:
        CompileError: a compiler failed, or the toolchain lacks the one that a source needs.
        StorageError: the cache or the output cannot be written; the disk is full, say.
    """
    start = time.perf_counter()
    cache = cache or BuildCache.default()
    jobs = jobs or default_jobs()
    languages: set[Language] = {source.language for source in sources}
    todo = _object_jobs(sources, toolchain)
    total = len(todo) + 1
    try:
        with cache.workspace() as workspace:
            runner = runner or Runner()
            objects = _run_all(todo, jobs, cache, workspace, runner, progress, total)
            flags = (*link_flags, *toolchain.runtime_flags(languages))
            link_job = _link_job(output.stem, objects, toolchain.host, flags)
            link = _run_all([link_job], 1, cache, workspace, runner)[0]
            _write_output(workspace / link.key / link.path.name, output)
            if not all(item.hit for item in (*objects, link)):
                cache.trim(workspace)
    except OSError as error:
        raise storage_error(error, cache.root) from error
    if progress is not None:
        progress(output.name, total, total)
    return BuildReport(output, objects, link, time.perf_counter() - start, jobs)


def compile_objects(
    sources: Sequence[Source],
    *,
    toolchain: Toolchain,
    jobs: int = 0,
    cache: BuildCache | None = None,
    progress: Progress | None = None,
) -> tuple[ObjectReport, ...]:
    """Compiles without linking, as tuning and tests of the toolchain do.

    Arguments and errors are those of build_library. Equal sources share one report.
    """
    cache = cache or BuildCache.default()
    todo = _object_jobs(sources, toolchain)
    try:
        with cache.workspace() as workspace:
            reports = _run_all(
                todo, jobs or default_jobs(), cache, workspace, Runner(), progress, len(todo)
            )
            if not all(item.hit for item in reports):
                cache.trim(workspace)
    except OSError as error:
        raise storage_error(error, cache.root) from error
    return reports


def _object_jobs(sources: Sequence[Source], toolchain: Toolchain) -> list[_Job]:
    """One job per key, in the order of the sources: twelve equal layers need one object."""
    unique: dict[str, Source] = {}
    for source in sources:
        unique.setdefault(object_key(source, toolchain), source)
    return [_object_job(key, source, toolchain) for key, source in unique.items()]


def _object_job(key: str, source: Source, toolchain: Toolchain) -> _Job:
    text_name, object_name = source.name + SUFFIX[source.language], source.name + ".o"
    host = ("-ccbin", toolchain.host.driver) if source.language == "cuda" else ()
    arguments = (
        *host,
        *BASE_FLAGS[source.language],
        f"-I{INCLUDE}",
        *source.flags,
        "-c",
        text_name,
        "-o",
        object_name,
    )
    compiler = toolchain.compiler(source.language)
    return _Job(source.name, key, compiler, arguments, {text_name: source.text}, object_name)


def _link_job(
    name: str, objects: Sequence[ObjectReport], host: Compiler, flags: Sequence[str]
) -> _Job:
    """Objects are named relative to the job's folder, which holds both in the workspace and in the
    cache.
    """
    inputs = [f"../{item.key}/{item.path.name}" for item in objects]
    arguments = ("-shared", "-o", "library.so", *inputs, *flags)
    named = (Path(flag.rpartition("=")[2]) for flag in flags)  # --version-script=/path/exports.map
    contents = [path.read_bytes() for path in named if path.is_file()]
    key = digest((*(p.encode() for p in ("link 1", host.identity, *arguments)), *contents))
    return _Job(name, key, host, arguments, {}, "library.so")


def _run_all(
    todo: Sequence[_Job],
    jobs: int,
    cache: BuildCache,
    workspace: Path,
    runner: Runner,
    progress: Progress | None = None,
    total: int = 1,
) -> tuple[ObjectReport, ...]:
    """Runs the jobs, stops all others as soon as one fails or the user interrupts."""
    pool = ThreadPoolExecutor(max_workers=max(1, jobs), thread_name_prefix="vitc-build")
    futures: list[Future[ObjectReport]] = []
    try:
        futures = [pool.submit(_run, job, cache, workspace, runner) for job in todo]
        for done, future in enumerate(as_completed(futures), start=1):
            finished = future.result()
            if progress is not None:
                progress(finished.name, done, total)
    except BaseException:
        runner.stop()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return tuple(future.result() for future in futures)


def _run(job: _Job, cache: BuildCache, workspace: Path, runner: Runner) -> ObjectReport:
    entry = cache.fetch(job.key, workspace)
    if entry is not None:
        return _report(job, entry, hit=True)
    folder = workspace / f"making-{uuid.uuid4().hex}"
    folder.mkdir()
    for name, text in job.files.items():
        (folder / name).write_text(text, encoding="utf-8")
    start = time.perf_counter()
    try:
        finished = runner.run(job.command, folder, _environment(job.compiler, folder))
    except OSError as error:
        raise CompileError(
            f"{job.compiler.command[0]} cannot be started: {error.strerror}"
        ) from error
    seconds = time.perf_counter() - start
    (folder / "log.txt").write_text(finished.output, encoding="utf-8")
    (folder / "command.txt").write_text(_shell(job) + "\n", encoding="utf-8")
    if finished.code != 0 or not (folder / job.artefact).is_file():
        raise _failure(job, finished, folder, cache)
    return _report(
        job,
        cache.store(job.key, folder, job.artefact, seconds, workspace),
        hit=False,
        log=finished.output,
    )


def _environment(compiler: Compiler, folder: Path) -> dict[str, str]:
    # TMPDIR: a killed compiler's temporary files go with the workspace. LC_ALL: errors are searched
    # for in English.
    return {**os.environ, **dict(compiler.environment), "LC_ALL": "C", "TMPDIR": str(folder)}


def _shell(job: _Job) -> str:
    """The command as one types it into a shell in the entry's folder."""
    return shlex.join(
        [*(f"{name}={value}" for name, value in job.compiler.environment), *job.command]
    )


def _report(job: _Job, entry: Entry, *, hit: bool, log: str | None = None) -> ObjectReport:
    path = entry.folder / entry.artefact
    if log is None:
        try:
            log = (entry.folder / "log.txt").read_text(encoding="utf-8")
        except FileNotFoundError:  # evicted meanwhile
            log = ""
    return ObjectReport(job.name, job.key, hit, entry.seconds, entry.bytes, path, _shell(job), log)


def _failure(job: _Job, finished: Finished, folder: Path, cache: BuildCache) -> VitcError:
    """Says what the compiler said first, and where to look and what to type to see it again."""
    if "No space left on device" in finished.output or (free_bytes(folder) or 2**20) < 2**20:
        return storage_error(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), cache.root)
    kept = cache.keep_failure(folder, f"{job.name}-{job.key[:12]}")
    killed = finished.code < 0 or "Killed signal" in finished.output
    reason = "it was killed" if killed else f"exit {finished.code}"
    lines = first_errors(finished.output) or ["(it printed nothing)"]
    return CompileError(
        "\n".join(
            (
                f"{job.compiler.label} failed on {job.name} ({reason})",
                *(f"  {line}" for line in lines),
            )
        ),
        command=f"cd {shlex.quote(str(kept))} && {_shell(job)}",
        log=kept / "log.txt",
        hint="memory may have run out: try with fewer jobs" if killed else None,
    )


_ERROR = re.compile(
    r"\berror\b|\bfatal\b|undefined reference|cannot find|Killed signal", re.IGNORECASE
)


def first_errors(log: str, errors: int = 3, context: int = 2) -> list[str]:
    """The first lines of a compiler's log that state an error, each with the lines after it; else
    the log's last lines.
    """
    lines = log.splitlines()
    starts = [number for number, line in enumerate(lines) if _ERROR.search(line)][:errors]
    shown = sorted(
        {n for start in starts for n in range(start, min(start + context + 1, len(lines)))}
    )
    return [lines[n] for n in shown] or lines[-5:]


def _write_output(made: Path, output: Path) -> None:
    """Copies, never links: weights are appended to the output, and the cache's file must not
    change.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, output.parent) from error
    with atomic_file(output, executable=True) as file, made.open("rb") as library:
        shutil.copyfileobj(library, file)
