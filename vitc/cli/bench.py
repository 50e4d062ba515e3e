"""vitc bench"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from vitc.cli.codes import command
from vitc.cli.options import (
    BatchOpt,
    CheckpointOpt,
    DebugOpt,
    DisableOpt,
    DtypeOpt,
    FeaturesOpt,
    JobsOpt,
    JsonOpt,
    PretrainedOpt,
    SeedOpt,
    SizeOpt,
    SubjectArg,
    TargetOpt,
    ThreadsOpt,
    compile_model,
    create_model,
    is_library,
    load_library,
    model_of_library,
    parse_batches,
    parse_names,
    parse_size,
)
from vitc.cli.output import emit, progress, show, split
from vitc.errors import StorageError


@command
def bench(
    subject: SubjectArg,
    model: Annotated[str | None, typer.Option(help="timm name of a library's model.")] = None,
    batch: BatchOpt = None,
    peers: Annotated[
        list[str] | None,
        typer.Option(
            help="eager, graph, compile, autotune, autotune-cudnn, frozen; the first three by "
            "default (graph on a GPU alone); none for no peer."
        ),
    ] = None,
    target: TargetOpt = None,
    dtype: DtypeOpt = None,
    image_size: SizeOpt = None,
    checkpoint: CheckpointOpt = None,
    pretrained: PretrainedOpt = False,
    features: FeaturesOpt = False,
    disable: DisableOpt = None,
    seconds: Annotated[float, typer.Option(help="Of running, per contender and batch.")] = 3.0,
    rounds: Annotated[int, typer.Option(help="Slices in which the contenders take turns.")] = 5,
    seed: SeedOpt = 0,
    threads: ThreadsOpt = None,
    jobs: JobsOpt = None,
    chart: Annotated[Path | None, typer.Option(help="PNG chart to write.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="JSON file to write.")
    ] = None,
    as_json: JsonOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Times a model beside eager torch and torch.compile in the same process.

    Nothing is timed that has not verified at the same batches. Contenders have the same threads
    and inputs and take turns; medians are shown. The roof is what the library would reach if each
    of its kernels ran as fast as torch multiplies or copies large tensors on this device.
    """
    from vitc.bench import bench as race
    from vitc.report import bench_chart, bench_table

    sizes = parse_batches(batch, None if is_library(subject) else 1)
    named = [name for name in split(peers) if name != "none"] if peers else None
    with progress() as tell:
        if is_library(subject):
            module: Any = load_library(subject, threads)
            source = model_of_library(
                module, model, checkpoint=checkpoint, pretrained=pretrained, seed=seed
            )
        else:
            source = create_model(
                subject,
                size=parse_size(image_size),
                checkpoint=checkpoint,
                pretrained=pretrained,
                seed=seed,
            )
            module = compile_model(
                source,
                subject,
                sizes,
                tell,
                target=target,
                dtype=dtype,
                features=features,
                disable=parse_names(disable),
                jobs=jobs,
                threads=threads,
            )
        report = race(
            module,
            source,
            batches=sizes or None,
            peers=named,
            threads=threads,
            seconds=seconds,
            rounds=rounds,
            features=features or None,
            seed=seed,
            progress=tell,
        )
    if output is not None:
        try:
            output.write_text(json.dumps(report.to_json(), indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise StorageError(f"cannot write '{output}': {error.strerror}") from error
    if chart is not None:
        bench_chart(report, chart)
    if as_json:
        emit(report.to_json())
    else:
        show(bench_table(report))
