"""The application: its commands, and what `vitc` alone says."""

from __future__ import annotations

from typing import Annotated

import typer

from vitc.cli.bench import bench
from vitc.cli.build import compile_command
from vitc.cli.codes import EPILOG
from vitc.cli.inspect import inspect
from vitc.cli.machine import doctor
from vitc.cli.passes import opt
from vitc.cli.tune import tune
from vitc.cli.verify import verify
from vitc.version import __version__

app = typer.Typer(
    name="vitc",
    help="Compiles vision transformers: a timm model in, one shared library out.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("compile", epilog=EPILOG)(compile_command)
app.command("verify", epilog=EPILOG)(verify)
app.command("bench", epilog=EPILOG)(bench)
app.command("tune", epilog=EPILOG)(tune)
app.command("inspect", epilog=EPILOG)(inspect)
app.command("doctor", epilog=EPILOG)(doctor)
app.command("opt", epilog=EPILOG)(opt)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"vitc {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """Compiles vision transformers: a timm model in, one shared library out."""
