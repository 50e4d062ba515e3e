"""compile(): the whole way of a model, one line a stage."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

from vitc.errors import InputError
from vitc.ir.graph import Graph
from vitc.ir.types import DType
from vitc.passes.options import PassReport
from vitc.runtime.module import Module

if TYPE_CHECKING:
    from vitc.codegen.build import BuildReport
    from vitc.codegen.library import LibrarySource
    from vitc.codegen.toolchain import Toolchain
    from vitc.ir.op import Array

# Called with the stage, how many of its parts are done, and how many there are.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class CompileOptions:
    """What decides the library, checked. Fields as the arguments of `compile`."""

    batches: tuple[int, ...]
    target: str
    dtype: DType
    input_dtype: DType
    output_dtype: DType
    weights: Literal["embedded", "external"] = "embedded"
    disable: frozenset[str] = frozenset()
    dump_dir: Path | None = None
    jobs: int = 0

    @property
    def max_batch(self) -> int:
        return max(self.batches)


@dataclass
class CompileReport:
    """How a compilation went: seconds per stage in order, each pass, and what the build did."""

    stages: list[tuple[str, float]] = field(default_factory=list[tuple[str, float]])
    passes: list[PassReport] = field(default_factory=list[PassReport])
    build: BuildReport | None = None
    bytes: int = 0

    @property
    def seconds(self) -> float:
        return sum(seconds for _, seconds in self.stages)


class CompiledModule(Module):
    """A Module that knows how it was made.

    imported: the graph before the passes. graph: after them. report: times and the build. folder:
    temporary, where the library lies when no output was given.
    """

    imported: Graph
    graph: Graph
    report: CompileReport
    folder: tempfile.TemporaryDirectory[str] | None = None


def compile(
    model: Any,
    *,
    batch: int | Sequence[int],
    target: str | None = None,
    dtype: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    output: str | os.PathLike[str] | None = None,
    weights: Literal["embedded", "external"] = "embedded",
    checkpoint: str | os.PathLike[str] | None = None,
    features: bool = False,
    disable: Collection[str] = (),
    dump_dir: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    input_dtype: str | None = None,
    output_dtype: str | None = None,
    name: str | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> CompiledModule:
    """Compiles a vision transformer into one shared library and loads it.

    Args:
        model: an nn.Module in eval mode, the name of a timm model, or an ExportedProgram.
        batch: N for any batch from 1 to N, tuned for N; several numbers tune for each.
        target: "cpu", "cuda:sm_80", several architectures as "cuda:sm_80+sm_90"; None takes the
            first GPU that is here, else the CPU. A GPU need not be present to compile for it.
        dtype: of weights and activations: "float32", "bfloat16", and on a GPU "float16" and "tf32";
            None is float32 on a CPU, float16 on a GPU.
        image_size: height and width in pixels; None takes the model's own.
        output: path of the library; None keeps it in a temporary folder while the module lives.
        weights: inside the library, or in a `.safetensors` file beside it.
        checkpoint: a `.safetensors`, `.pth` or Google `.npz` file to load into the model first.
        features: compile `forward_features` instead of `forward`.
        disable: names of passes or rules to leave out.
        dump_dir: a folder for the graph after each pass, the sources and the memory plan.
        threads: CPU threads of each context; None means all that this process may use.
        input_dtype, output_dtype: at the boundary; None is float32 on a CPU, dtype on a GPU.
        name: of the graph; None takes the model's.
        jobs: compilers at once; None means one per CPU.
        progress: called as each stage proceeds.

    Raises:
        InputError: an argument is wrong. UnsupportedModelError: the model uses what vitc lacks; all
        of it is listed. CompileError: a compiler is missing or failed. StorageError: disk full.
    """
    from vitc.frontend import import_model

    options = checked_options(
        batch, target, dtype, input_dtype, output_dtype, weights, disable, dump_dir, jobs
    )
    toolchain = _toolchain(options)  # a missing compiler is told before any work is done
    stages = _Stages(progress)
    with stages("import"):
        imported = import_model(
            model,
            image_size=image_size,
            features=features,
            max_batch=options.max_batch,
            name=name,
            **({} if checkpoint is None else {"checkpoint": Path(checkpoint)}),
        )
    with stages("passes"):
        graph = _optimise(imported.graph, options, stages)
    folder = None if output else tempfile.TemporaryDirectory(prefix="vitc-")
    path = Path(folder.name, f"{graph.name}.so") if folder else Path(output or "")
    about = {"preprocess": imported.preprocess, "features": features}
    build_graph(
        graph, imported.state, options, path, toolchain=toolchain, about=about, stages=stages
    )
    with stages("load"):
        module = CompiledModule.open(path, threads=threads, verify=False, lazy=True)
    module.imported, module.graph, module.report = imported.graph, graph, stages.report
    module.folder = folder
    return module


def build_graph(
    graph: Graph,
    state: Mapping[str, Array],
    options: CompileOptions,
    output: Path,
    *,
    toolchain: Toolchain | None = None,
    about: Mapping[str, Any] | None = None,
    stages: _Stages | None = None,
) -> CompileReport:
    """The second half of the way: an optimised graph and its weights to the library at `output`.

    state: the tensors of the state dict. toolchain: None looks for one. about: further keys of the
    manifest.
    """
    from vitc.codegen.library import library_source
    from vitc.codegen.memory import plan_memory
    from vitc.codegen.select import select
    from vitc.codegen.targets import find_target

    stages = stages or _Stages(None)
    target = find_target(options.target, options.batches)
    toolchain = toolchain or _toolchain(options)
    with stages("select"):
        selection = select(graph, target)
    with stages("plan"):
        plan = plan_memory(selection.calls, graph.outputs, options.max_batch)
    with stages("render"):
        source = library_source(
            selection,
            plan,
            target,
            batches=options.batches,
            weights_mode=options.weights,
            about={
                **(about or {}),
                **_about(graph, state, options),
                "toolchain": toolchain.describe(),
            },
        )
        _dump(options.dump_dir, source)
    with stages("build"):
        _build(source, selection.recipes, state, options, output, toolchain, stages)
    return stages.report


def _toolchain(options: CompileOptions) -> Toolchain:
    from vitc.codegen.targets import find_target
    from vitc.codegen.toolchain import find_toolchain

    return find_toolchain(find_target(options.target).languages)


def _about(graph: Graph, state: Mapping[str, Array], options: CompileOptions) -> dict[str, Any]:
    from vitc.ir.text import print_graph

    text = print_graph(graph)
    return {
        "dtype": options.dtype.value,
        "parameters": [
            {"name": name, "shape": list(array.shape), "dtype": str(array.dtype)}
            for name, array in state.items()
        ],
        "disable": sorted(options.disable),
        "graph": text,
        "graph_hash": hashlib.sha256(text.encode()).hexdigest(),
    }


def _optimise(graph: Graph, options: CompileOptions, stages: _Stages) -> Graph:
    from vitc.codegen.targets import find_target
    from vitc.ir.text import print_graph
    from vitc.passes.options import PassOptions
    from vitc.passes.pipeline import run_pipeline

    if options.dump_dir is not None:
        options.dump_dir.mkdir(parents=True, exist_ok=True)
        (options.dump_dir / "00-imported.vit").write_text(print_graph(graph))
    wanted = PassOptions(
        dtype=options.dtype,
        input_dtype=options.input_dtype,
        output_dtype=options.output_dtype,
        stats_width=find_target(options.target).stats_width,
        disable=options.disable,
        dump_dir=options.dump_dir,
        report=stages.report.passes.append,
    )
    return run_pipeline(graph, wanted)


def _build(
    source: LibrarySource,
    recipes: Graph,
    state: Mapping[str, Array],
    options: CompileOptions,
    path: Path,
    toolchain: Toolchain,
    stages: _Stages,
) -> None:
    """Compiles in the background while the weights are folded, then joins both to one file."""
    from vitc.codegen.build import build_library
    from vitc.codegen.library import LINK_FLAGS
    from vitc.codegen.processes import Runner
    from vitc.ir.recipes import evaluate_graph
    from vitc.runtime.artifact import write_library

    runner = Runner()
    with tempfile.TemporaryDirectory(prefix="vitc-") as folder, ThreadPoolExecutor(1) as pool:
        building = pool.submit(
            build_library,
            source.sources,
            toolchain=toolchain,
            output=Path(folder) / "code.so",
            link_flags=LINK_FLAGS,
            jobs=options.jobs,
            progress=stages.on_object,
            runner=runner,
        )
        try:
            constants = evaluate_graph(recipes, state)
        except BaseException:  # also Ctrl-C: compilers must not go on in the background
            runner.stop()
            raise
        stages.report.build = building.result()
        write_library(stages.report.build.output, constants, path, options.weights)
    stages.report.bytes = path.stat().st_size


class _Stages:
    """Times the stages and tells the caller's progress function."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress
        self.report = CompileReport()

    @contextmanager
    def __call__(self, stage: str) -> Generator[None]:
        self._tell(stage, 0, 1)
        start = perf_counter()
        yield
        self.report.stages.append((stage, perf_counter() - start))
        self._tell(stage, 1, 1)

    def on_object(self, name: str, done: int, total: int) -> None:
        self._tell("build", done, total + 1)

    def _tell(self, stage: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(stage, done, total)


def checked_options(
    batch: int | Sequence[int],
    target: str | None,
    dtype: str | None,
    input_dtype: str | None,
    output_dtype: str | None,
    weights: Literal["embedded", "external"],
    disable: Collection[str],
    dump_dir: str | os.PathLike[str] | None,
    jobs: int | None,
) -> CompileOptions:
    """Checks the arguments before any work is done. Raises InputError."""
    from vitc.codegen.targets import default_target, find_target

    batches: tuple[Any, ...] = (batch,) if isinstance(batch, int) else tuple(batch)
    if not batches or any(type(b) is not int or b < 1 for b in batches):
        raise InputError(f"batch is {batch!r}; it must be a number from 1 up, or several of them")
    if weights not in ("embedded", "external"):
        raise InputError(f"weights is {weights!r}; it must be 'embedded' or 'external'")
    device = find_target(target or default_target())
    compute = _dtype("dtype", dtype, device.dtypes[0], device.dtypes)
    boundary = device.io_dtype(compute)
    allowed = tuple(dict.fromkeys((boundary, compute)))
    return CompileOptions(
        tuple(sorted(set(batches))),
        device.name,
        compute,
        _dtype("input_dtype", input_dtype, boundary, allowed),
        _dtype("output_dtype", output_dtype, boundary, allowed),
        weights,
        frozenset(disable),
        Path(dump_dir) if dump_dir is not None else None,
        jobs or 0,
    )


def _dtype(argument: str, name: str | None, default: DType, allowed: Sequence[DType]) -> DType:
    known = ", ".join(dtype.value for dtype in allowed)
    if name is None:
        return default
    try:
        dtype = DType.parse(str(name).removeprefix("torch."))
    except ValueError as error:
        raise InputError(f"{argument}: {error}", hint=f"this target takes: {known}") from None
    if dtype not in allowed:
        raise InputError(
            f"{argument} {dtype.value} is not for this target", hint=f"it takes: {known}"
        )
    return dtype


def _dump(folder: Path | None, source: LibrarySource) -> None:
    """Writes what can be looked at afterwards; the passes have written their graphs already."""
    if folder is None:
        return
    (folder / "sources").mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps(source.manifest, indent=1))
    for part in source.sources:
        (folder / "sources" / f"{part.name}.cc").write_text(part.text)
