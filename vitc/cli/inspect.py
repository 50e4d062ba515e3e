"""vitc inspect"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from vitc.cli.codes import command
from vitc.cli.options import (
    BatchOpt,
    ClassesOpt,
    DebugOpt,
    DisableOpt,
    DtypeOpt,
    FeaturesOpt,
    JobsOpt,
    JsonOpt,
    SizeOpt,
    SubjectArg,
    TargetOpt,
    ThreadsOpt,
    compile_model,
    create_model,
    is_library,
    load_library,
    parse_batches,
    parse_names,
    parse_size,
)
from vitc.cli.output import emit, progress, show
from vitc.errors import InputError


@command
def inspect(
    subject: SubjectArg,
    batch: BatchOpt = None,
    target: TargetOpt = None,
    dtype: DtypeOpt = None,
    image_size: SizeOpt = None,
    num_classes: ClassesOpt = None,
    features: FeaturesOpt = False,
    disable: DisableOpt = None,
    graphs: Annotated[
        bool, typer.Option("--graphs", help="Print the graph before and after the passes.")
    ] = False,
    ir: Annotated[bool, typer.Option("--ir/--no-ir", help="Each kernel's IR line.")] = True,
    weights: Annotated[bool, typer.Option("--weights", help="List the constants.")] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Measure each kernel at the largest batch.")
    ] = False,
    graph: Annotated[
        Path | None, typer.Option(help="Draw the optimised graph to a .dot or .svg file.")
    ] = None,
    memory: Annotated[Path | None, typer.Option(help="Draw the memory plan to a PNG file.")] = None,
    threads: ThreadsOpt = None,
    jobs: JobsOpt = None,
    as_json: JsonOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Shows a library: its graph, kernels, index maps, memory plan and weights.

    A timm name is compiled first, with redrawn weights. A library knows the IR line of each of its
    kernels, but not the graph before the passes.
    """
    from vitc.report import memory_chart, write_graph

    with progress() as tell:
        if is_library(subject):
            module: Any = load_library(subject, threads)
        else:
            source = create_model(subject, size=parse_size(image_size), classes=num_classes)
            module = compile_model(
                source,
                subject,
                parse_batches(batch),
                tell,
                target=target,
                dtype=dtype,
                features=features,
                disable=parse_names(disable),
                jobs=jobs,
                threads=threads,
            )
        times = _profile(module) if profile else None
    if graph is not None:
        write_graph(_optimised(module), graph)
    if memory is not None:
        memory_chart(module.manifest, memory)
    before, after = _texts(module) if graphs or as_json else ("", "")
    if as_json:
        measured = None if times is None else [asdict(entry) for entry in times]
        found = {"before": before or None, "after": after}
        emit({"manifest": module.manifest, "graphs": found, "profile": measured})
        return
    if graphs:
        typer.echo(f"before the passes:\n{before or 'not kept in a library'}\n")
        typer.echo(f"after the passes:\n{after}\n")
    _show(module.manifest, times, ir=ir, weights=weights)


def _show(manifest: dict[str, Any], times: Any, *, ir: bool, weights: bool) -> None:
    from vitc.report import (
        kernel_table,
        lifetimes,
        maps_table,
        memory_table,
        summary_table,
        weights_table,
    )

    show(summary_table(manifest), kernel_table(manifest, times))
    if ir:
        typer.echo("IR lines of the kernels")
        for index, step in enumerate(manifest["steps"]):
            typer.echo(f"{index:4} {step['ir']}")
    show(maps_table(manifest), memory_table(manifest))
    typer.echo(lifetimes(manifest))
    if weights:
        show(weights_table(manifest))


def _profile(module: Any) -> Any:
    from vitc.verify import images
    from vitc.verify.handle import device_of, image_shape, max_batch, torch_dtype

    drawn = images(max_batch(module), image_shape(module))
    drawn = drawn.to(device_of(module), torch_dtype(module.inputs[0].dtype))
    return module.profile(drawn)


def _optimised(module: Any) -> Any:
    from vitc.verify.localise import graph_of

    found = graph_of(module)
    if found is None:
        raise InputError(
            "the library keeps no graph to draw", hint="inspect the model by its timm name"
        )
    return found


def _texts(module: Any) -> tuple[str, str]:
    """The graph before the passes ("" when it is not kept) and after them."""
    from vitc.ir.text import print_graph
    from vitc.verify.localise import graph_of

    imported = getattr(module, "imported", None)
    optimised = graph_of(module)
    lines = "\n".join(str(step["ir"]) for step in module.manifest["steps"])
    return (
        print_graph(imported) if imported is not None else "",
        print_graph(optimised) if optimised is not None else lines,
    )
