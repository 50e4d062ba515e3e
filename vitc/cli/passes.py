"""vitc opt"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitc.cli.codes import command
from vitc.cli.options import DebugOpt, DisableOpt, DtypeOpt, JsonOpt, parse_names
from vitc.cli.output import ERRORS, emit, split
from vitc.errors import InputError, LoadError, StorageError

if TYPE_CHECKING:
    from vitc.ir.types import DType
    from vitc.passes.options import PassReport


@command
def opt(
    graph: Annotated[
        str | None, typer.Argument(help="A graph as .vit text, or - for standard input.")
    ] = None,
    passes: Annotated[
        list[str] | None,
        typer.Option("--pass", "-p", help="Passes to run, in order; all of them by default."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; stdout by default.")
    ] = None,
    list_passes: Annotated[bool, typer.Option("--list", "-l", help="List the passes.")] = False,
    disable: DisableOpt = None,
    dtype: DtypeOpt = None,
    check: Annotated[
        bool, typer.Option("--check", help="Interpret both sides of every rewrite.")
    ] = False,
    dump: Annotated[Path | None, typer.Option(help="Folder for the graph after each pass.")] = None,
    as_json: JsonOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Runs passes on a graph in text form and prints the result."""
    from vitc.ir.text import parse_graph, print_graph
    from vitc.ir.types import DType
    from vitc.ir.verify import verify
    from vitc.passes.options import PassOptions
    from vitc.passes.pipeline import run_passes, run_pipeline

    if list_passes:
        _list(as_json)
        return
    if graph is None:
        raise InputError("no graph", hint="give a .vit file, - for standard input, or --list")
    parsed = parse_graph(_read(graph))
    verify(parsed)
    reports: list[PassReport] = []
    kind = _dtype(dtype) if dtype else DType.FLOAT32
    options = PassOptions(
        dtype=kind,
        disable=frozenset(parse_names(disable)),
        check=check,
        dump_dir=dump,
        report=reports.append,
    )
    names = split(passes)
    result = run_passes(parsed, names, options) if names else run_pipeline(parsed, options)
    text = print_graph(result)
    for entry in reports:
        nodes = f"{entry.nodes_before} to {entry.nodes_after} nodes"
        ERRORS.print(f"{entry.index:02d} {entry.name}: {nodes}, {1e3 * entry.seconds:.1f} ms")
    if output is not None:
        try:
            output.write_text(text, encoding="utf-8")
        except OSError as error:
            raise StorageError(f"cannot write '{output}': {error.strerror}") from error
    if as_json:
        emit({"graph": text, "passes": [asdict(entry) for entry in reports]})
    elif output is None:
        typer.echo(text, nl=False)


def _list(as_json: bool) -> None:
    """Passes in the order they run, each with its contract and rules."""
    from vitc.passes.pipeline import PIPELINE

    seen = {entry.name: entry for entry in PIPELINE}
    rows = [
        {
            "pass": name,
            "contract": " ".join((entry.function.__doc__ or "").split("\n\n")[0].split()),
            "rules": [rule.name for rule in entry.rules],
        }
        for name, entry in seen.items()
    ]
    if as_json:
        emit({"order": [entry.name for entry in PIPELINE], "passes": rows})
        return
    typer.echo("order: " + ", ".join(entry.name for entry in PIPELINE))
    for row in rows:
        typer.echo(f"\n{row['pass']}: {row['contract']}")
        for rule in row["rules"]:
            typer.echo(f"  {rule}")


def _read(graph: str) -> str:
    if graph == "-":
        return sys.stdin.read()
    try:
        return Path(graph).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LoadError(f"cannot read '{graph}': {error}") from error


def _dtype(name: str) -> DType:
    from vitc.ir.types import DType

    try:
        return DType.parse(name)
    except ValueError as error:
        raise InputError(f"--dtype: {error}") from None
