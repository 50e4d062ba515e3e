"""vitc inspect"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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

if TYPE_CHECKING:
    from vitc.bench.ceilings import Ceilings
    from vitc.runtime.context import StepProfile


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
        bool,
        typer.Option("--profile", help="Measure each kernel, at the largest batch or --batch."),
    ] = False,
    trace: Annotated[
        Path | None,
        typer.Option(help="Write the profile as a trace for ui.perfetto.dev or chrome://tracing."),
    ] = None,
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
    from vitc.report import memory_chart, write_graph, write_trace

    sizes = parse_batches(batch, None if is_library(subject) else 1)
    times = None
    with progress() as tell:
        if is_library(subject):
            module: Any = load_library(subject, threads)
        else:
            source = create_model(subject, size=parse_size(image_size), classes=num_classes)
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
        if profile or trace is not None:
            times = _profile(module, max(sizes, default=module.inputs[0].shape[0]), threads)
    if trace is not None and times is not None:
        write_trace(module.manifest, times.steps, times.batch, trace)
    if graph is not None:
        write_graph(_optimised(module), graph)
    if memory is not None:
        memory_chart(module.manifest, memory)
    before, after = _texts(module) if graphs or as_json else ("", "")
    if as_json:
        found = {"before": before or None, "after": after}
        measured: dict[str, Any] = {"profile": None}
        if times is not None:
            measured = {
                "batch": times.batch,
                "ceilings": asdict(times.ceilings),
                "profile": [asdict(entry) for entry in times.steps],
            }
        emit({"manifest": module.manifest, "graphs": found, **measured})
        return
    if graphs:
        typer.echo(f"before the passes:\n{before or 'not kept in a library'}\n")
        typer.echo(f"after the passes:\n{after}\n")
    _show(module.manifest, times, ir=ir, weights=weights)


@dataclass(frozen=True)
class _Profile:
    """What was measured at a batch, and what the device could do at most."""

    batch: int
    steps: list[StepProfile]
    ceilings: Ceilings


def _show(manifest: dict[str, Any], times: _Profile | None, *, ir: bool, weights: bool) -> None:
    from vitc.report import (
        kernel_table,
        lifetimes,
        maps_table,
        memory_table,
        summary_table,
        weights_table,
    )

    if times is None:
        show(summary_table(manifest), kernel_table(manifest))
    else:
        show(summary_table(manifest), kernel_table(manifest, times.steps, times.ceilings))
    if ir:
        typer.echo("IR lines of the kernels")
        for index, step in enumerate(manifest["steps"]):
            typer.echo(f"{index:4} {step['ir']}")
    show(maps_table(manifest), memory_table(manifest))
    typer.echo(lifetimes(manifest))
    if weights:
        show(weights_table(manifest))


def _profile(module: Any, batch: int, threads: int | None) -> _Profile:
    from vitc.bench.ceilings import measure_ceilings
    from vitc.verify import images
    from vitc.verify.handle import device_of, image_shape, torch_dtype

    device = device_of(module)
    drawn = images(batch, image_shape(module)).to(device, torch_dtype(module.inputs[0].dtype))
    steps = module.profile(drawn)
    cores = threads or len(os.sched_getaffinity(0))
    ceilings = measure_ceilings(device, str(module.manifest["dtype"]), threads=cores)
    return _Profile(batch, steps, ceilings)


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
