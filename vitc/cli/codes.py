"""Exit codes, and errors as one panel."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import typer
from rich.markup import escape
from rich.panel import Panel

from vitc import errors
from vitc.cli.output import ERRORS

OK = 0
FAILED = 1
USAGE = 2
OTHER = 9

# (exit code, errors, what it means); the first entry that an error is an instance of counts.
CODES: tuple[tuple[int, tuple[str, ...], str], ...] = (
    (FAILED, ("VerificationError", "BenchmarkRefused"), "it does not verify, so is not timed"),
    (USAGE, ("InputError",), "an argument is wrong"),
    (3, ("UnsupportedModelError",), "the model uses something vitc cannot compile"),
    (4, ("CompileError",), "a compiler is missing or failed"),
    (5, ("LoadError", "WeightsError"), "a library or its weights cannot be loaded"),
    (6, ("DeviceError",), "the device is absent or failed"),
    (7, ("StorageError",), "a file cannot be written"),
    (8, ("GraphError",), "a graph is not valid"),
    (OTHER, ("VitcError",), "any other error of vitc"),
)

EPILOG = "Exit codes: 0 success; " + "; ".join(f"{code} {text}" for code, _, text in CODES) + "."

P = ParamSpec("P")
R = TypeVar("R")


def exit_code(error: errors.VitcError) -> int:
    """The exit code of an error, by its class or the nearest base that has one."""
    for base in type(error).__mro__:
        for code, names, _ in CODES:
            if base.__name__ in names:
                return code
    return OTHER


def command(function: Callable[P, R]) -> Callable[P, R]:
    """Turns errors of vitc into one panel (or JSON) and an exit code.

    The command's parameters `as_json` and `debug` say how: with `debug` the traceback is shown.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        options: dict[str, Any] = dict(kwargs)
        try:
            return function(*args, **kwargs)
        except errors.VitcError as error:
            if options.get("debug"):
                ERRORS.print_exception(show_locals=False)
            code = exit_code(error)
            _show(error, code, as_json=bool(options.get("as_json")))
            raise typer.Exit(code) from error

    return run


def _show(error: errors.VitcError, code: int, *, as_json: bool) -> None:
    kind = type(error).__name__
    text, _, _ = str(error).partition("\n  hint: ")
    if as_json:
        found = {"kind": kind, "message": text, "hint": error.hint, "exit_code": code}
        typer.echo(json.dumps({"error": found}, indent=1))
    body = escape(text) + (f"\n[bold]hint:[/] {escape(error.hint)}" if error.hint else "")
    ERRORS.print(Panel(body, title=kind, title_align="left", border_style="red"))
