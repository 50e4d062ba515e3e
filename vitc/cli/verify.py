"""vitc verify"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from vitc.cli.codes import FAILED, command
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
from vitc.cli.output import Tell, emit, progress, show


@command
def verify(
    subject: SubjectArg,
    model: Annotated[str | None, typer.Option(help="timm name of a library's model.")] = None,
    batch: BatchOpt = None,
    target: TargetOpt = None,
    dtype: DtypeOpt = None,
    image_size: SizeOpt = None,
    checkpoint: CheckpointOpt = None,
    pretrained: PretrainedOpt = False,
    features: FeaturesOpt = False,
    disable: DisableOpt = None,
    bound: Annotated[
        float | None, typer.Option(help="Allowed relative error, in place of the dtype's.")
    ] = None,
    each_weight: Annotated[
        bool, typer.Option("--each-weight", help="Zero each weight in turn and see it fail.")
    ] = False,
    seed: SeedOpt = 0,
    threads: ThreadsOpt = None,
    jobs: JobsOpt = None,
    as_json: JsonOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Compares a compiled model with timm in float64, on weights that matter and distinct images.

    A timm name is compiled first. Float32 must be within 1e-5 (relative L2), float16 and bfloat16
    within 1.5 times the error of eager torch in that dtype. On a mismatch the first op that
    differs is named.
    """
    from vitc.report import verify_tables
    from vitc.verify import verify as check

    sizes = parse_batches(batch, None if is_library(subject) else 2)
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
        inner = features or bool(module.manifest.get("features"))
        report = check(
            module,
            source,
            features=inner,
            bound=bound,
            batches=sizes,
            seed=seed,
            progress=tell,
        )
        effects = _each_weight(module, source, inner, seed, tell) if each_weight else []
    passed = report.passed and all(row["good"] for row in effects)
    if as_json:
        emit({**report.to_json(), "passed": passed, "weights": effects})
    else:
        show(*verify_tables(report))
        if effects:
            show(_weights_table(effects))
        if report.finding is not None:
            show(f"[bold red]{escape(report.finding.message)}[/]")
        show("[bold green]verified[/]" if passed else "[bold red]FAILED[/]")
    if not passed:
        raise typer.Exit(FAILED)


def _each_weight(
    module: Any, model: Any, features: bool, seed: int, tell: Tell
) -> list[dict[str, Any]]:
    from vitc.verify import images, weights_matter
    from vitc.verify.handle import image_shape, max_batch

    drawn = images(min(2, max_batch(module)), image_shape(module), seed)
    effects = weights_matter(module, model, drawn, features=features, progress=tell)
    return [
        {**asdict(effect), "inert": effect.inert, "good": effect.follows and _expected(effect)}
        for effect in effects
    ]


def _expected(effect: Any) -> bool:
    return effect.caught or effect.inert


def _weights_table(effects: list[dict[str, Any]]) -> Table:
    table = Table(title="each weight zeroed", title_justify="left", header_style="bold")
    for column in ("weight", "changes timm by", "caught", "library follows"):
        table.add_column(column)
    for row in effects:
        caught = "yes" if row["caught"] else ("inert" if row["inert"] else "NO")
        follows = "yes" if row["follows"] else "NO"
        style = None if row["good"] else "bold red"
        name = escape(str(row["name"]))
        table.add_row(name, f"{row['reference']:.1e}", caught, follows, style=style)
    return table
