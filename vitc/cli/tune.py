"""vitc tune"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitc.cli.codes import command
from vitc.cli.options import (
    BatchOpt,
    DebugOpt,
    DisableOpt,
    DtypeOpt,
    FeaturesOpt,
    JobsOpt,
    JsonOpt,
    SizeOpt,
    TargetOpt,
    create_model,
    parse_batches,
    parse_names,
    parse_size,
)
from vitc.cli.output import emit, progress, show


@command
def tune(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="timm model names.")],
    batch: BatchOpt = None,
    target: TargetOpt = None,
    dtype: DtypeOpt = None,
    image_size: SizeOpt = None,
    features: FeaturesOpt = False,
    disable: DisableOpt = None,
    only: Annotated[
        str, typer.Option(help="Part of a kernel's or problem's name: only what contains it.")
    ] = "",
    force: Annotated[
        bool, typer.Option("--force", help="Measure again what was measured before.")
    ] = False,
    records: Annotated[
        Path | None, typer.Option(help="Record file; by default the user's, which compile reads.")
    ] = None,
    jobs: JobsOpt = None,
    as_json: JsonOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Measures the kernels' configurations on this machine's GPU, for the next compilations.

    For each product of the model and each batch all tiles are compiled, compared with each other
    and timed. The times are kept by card, CUDA release and kernel version; where there are none,
    vitc takes those that it comes with, and else a cost model.
    """
    from vitc.report import tune_table
    from vitc.tune import tune as measure

    reports: list[object] = []
    for name in models:
        with progress() as tell:
            report = measure(
                create_model(name, size=parse_size(image_size)),
                batch=parse_batches(batch),
                target=target,
                dtype=dtype,
                features=features,
                disable=parse_names(disable),
                only=only,
                force=force,
                path=records,
                jobs=jobs,
                progress=tell,
            )
        reports.append({"model": name, **report.to_json()})
        if not as_json:
            show(tune_table(name, report))
    if as_json:
        emit(reports)
