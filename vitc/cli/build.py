"""vitc compile"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from vitc.cli.codes import command
from vitc.cli.options import (
    BatchOpt,
    CheckpointOpt,
    ClassesOpt,
    DebugOpt,
    DisableOpt,
    DtypeOpt,
    FeaturesOpt,
    JobsOpt,
    JsonOpt,
    ModelArg,
    SeedOpt,
    SizeOpt,
    TargetOpt,
    ThreadsOpt,
    compile_model,
    create_model,
    parse_batches,
    parse_names,
    parse_size,
)
from vitc.cli.output import emit, progress, show


class Weights(str, Enum):
    """Where the weights go."""

    embedded = "embedded"
    external = "external"


@command
def compile_command(
    model: ModelArg,
    batch: BatchOpt = None,
    target: TargetOpt = None,
    dtype: DtypeOpt = None,
    image_size: SizeOpt = None,
    num_classes: ClassesOpt = None,
    checkpoint: CheckpointOpt = None,
    redraw: Annotated[
        bool, typer.Option("--redraw", help="Redrawn weights in place of pretrained ones.")
    ] = False,
    seed: SeedOpt = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The library; NAME.so by default.")
    ] = None,
    weights: Annotated[
        Weights, typer.Option(help="In the library, or in a .safetensors file beside it.")
    ] = Weights.embedded,
    features: FeaturesOpt = False,
    disable: DisableOpt = None,
    dump: Annotated[
        Path | None, typer.Option(help="Folder for the graph after each pass and the sources.")
    ] = None,
    input_dtype: Annotated[str | None, typer.Option(help="Of the images.")] = None,
    output_dtype: Annotated[str | None, typer.Option(help="Of the results.")] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="First measure what kernels can choose (vitc tune).")
    ] = False,
    jobs: JobsOpt = None,
    threads: ThreadsOpt = None,
    as_json: JsonOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Compiles a model to one shared library: code, weights and manifest."""
    from vitc.report import compile_tables, summary_table

    exported = model.endswith(".pt2")
    name = Path(model).stem if exported else model.split(".")[0]
    path = output or Path(f"{name}.so")
    with progress() as tell:
        source: Any = model
        if not exported:
            tell("model", 0, 1)
            source = create_model(
                model,
                size=parse_size(image_size),
                classes=num_classes,
                checkpoint=checkpoint,
                pretrained=not redraw,
                seed=seed,
            )
            tell("model", 1, 1)
        module = compile_model(
            source,
            name,
            parse_batches(batch),
            tell,
            target=target,
            dtype=dtype,
            output=path,
            weights=weights.value,
            features=features,
            disable=parse_names(disable),
            dump_dir=dump,
            input_dtype=input_dtype,
            output_dtype=output_dtype,
            tune=tune,
            jobs=jobs,
            threads=threads,
        )
    report = module.report
    if as_json:
        emit(
            {
                "path": str(module.path),
                "bytes": report.bytes,
                "seconds": report.seconds,
                "stages": dict(report.stages),
                "objects": len(report.build.objects) if report.build else 0,
                "cache_hits": report.build.hits if report.build else 0,
                "graph_hash": module.manifest.get("graph_hash"),
                "batch": module.manifest["batch"],
                "target": module.manifest["target"],
                "dtype": module.manifest["dtype"],
            }
        )
        return
    show(summary_table(module.manifest), *compile_tables(report))
    show(f"[bold]{module.path}[/] ({report.bytes / 2**20:.1f} MiB)")
