"""vitc doctor"""

from __future__ import annotations

import typer

from vitc.cli.codes import command
from vitc.cli.options import DebugOpt, JsonOpt
from vitc.cli.output import emit, show

UNHEALTHY = 4


@command
def doctor(as_json: JsonOpt = False, debug: DebugOpt = False) -> None:
    """Says which compilers and devices are here, what is missing, and what to type to get it.

    Exits with 4 when there is no target that can be both compiled for and run.
    """
    from vitc.doctor import doctor as look
    from vitc.report import doctor_tables

    report = look()
    if as_json:
        emit(report.to_json())
    else:
        show(*doctor_tables(report))
    if not report.healthy:
        raise typer.Exit(UNHEALTHY)
