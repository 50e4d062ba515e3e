"""Runs compilers so that none of them outlives the build that started it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


class Cancelled(Exception):
    """The build was stopped while this command ran, or before it could."""


@dataclass(frozen=True)
class Finished:
    """A command that ended. code: exit status, negative is the signal that killed it; output:
    stdout and stderr.
    """

    code: int
    output: str


class Runner:
    """Runs commands from several threads, each in a process group of its own; stop() ends all of
    them at once.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def run(self, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Finished:
        """Runs a command to its end. Raises Cancelled after stop(), OSError when it cannot be
        started.
        """
        with self._lock:  # so that stop() sees every process that was started
            if self._stopped:
                raise Cancelled
            process = subprocess.Popen(
                list(command),
                cwd=folder,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._running.add(process)
        try:
            output, _ = process.communicate()
        finally:
            with self._lock:
                self._running.discard(process)
        if self._stopped:
            raise Cancelled
        return Finished(process.returncode, output.decode("utf-8", errors="replace"))

    def stop(self) -> None:
        """Kills what runs, with all its children (g++ starts cc1plus, as and ld), and refuses to
        start more.
        """
        with self._lock:
            self._stopped = True
            for process in self._running:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
