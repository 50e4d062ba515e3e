"""Where a command writes: results to stdout, progress and errors to stderr."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

ERRORS = Console(stderr=True)
TERMINAL_WIDTH = 140  # of tables that go to a file or a pipe

Tell = Callable[[str, int, int], None]


def show(*renderables: RenderableType) -> None:
    """Prints tables and text to stdout."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, TERMINAL_WIDTH))
    for renderable in renderables:
        console.print(renderable)


def emit(value: Any) -> None:
    """Prints JSON to stdout."""
    typer.echo(json.dumps(value, indent=1, default=str))


def split(values: Sequence[str] | None) -> list[str]:
    """Repeated options whose values may hold commas: ["a,b", "c"] to ["a", "b", "c"]."""
    return [part for value in values or () for part in value.split(",") if part]


@contextmanager
def progress() -> Generator[Tell]:
    """Bars on stderr, one per stage, while the block runs; nothing where stderr is no terminal."""
    if not ERRORS.is_terminal:  # rich before 14.3 ends even disabled bars with a newline
        yield lambda stage, done, total: None
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=ERRORS, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield tell
