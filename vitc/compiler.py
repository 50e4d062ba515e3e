"""compile(): the whole way of a model, one line a stage."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

from vitc.errors import StorageError
from vitc.ir.graph import Graph
from vitc.options import CompileOptions, check_model, check_output, checked_options
from vitc.passes.options import PassReport
from vitc.runtime.module import Module

if TYPE_CHECKING:
    from vitc.codegen.build import BuildReport
    from vitc.codegen.kernel import Target
    from vitc.codegen.library import LibrarySource
    from vitc.codegen.toolchain import Toolchain
    from vitc.frontend import Imported
    from vitc.ir.op import Array
    from vitc.tune import TuningDevice

# Called with the stage, how many of its parts are done, and how many there are.
Progress = Callable[[str, int, int], None]


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
    tune: bool = False,
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
        input_dtype, output_dtype: at the boundary, float32 or dtype; None is float32 on a CPU,
            dtype on a GPU.
        name: of the graph; None takes the model's.
        tune: first measure, on the GPU that is compiled for, what its kernels can choose among, as
            `vitc tune` does. What was measured once is remembered.
        jobs: compilers at once; None means one per CPU.
        progress: called as each stage proceeds.

    Raises:
        InputError: an argument is wrong. UnsupportedModelError: the model uses what vitc lacks; all
        of it is listed. CompileError: a compiler is missing or failed. StorageError: a file cannot
        be written. DeviceError: the card to tune on is not here. On any error, also an interrupt,
        `output` stays as it was.
    """
    options = checked_options(
        batch, target, dtype, input_dtype, output_dtype, weights, disable, dump_dir, jobs
    )
    check_model(model, image_size, name)
    # What would fail at the end is told before any work is done.
    toolchain = toolchain_of(options)
    if output is not None:
        check_output(Path(output))
    stages = _Stages(progress)
    card = _card(options, toolchain) if tune else None
    imported, graph = optimised_graph(
        model,
        options,
        image_size=image_size,
        features=features,
        checkpoint=checkpoint,
        name=name,
        stages=stages,
    )
    if card is not None:
        from vitc.tune import tune_graph

        with stages("tune"):
            tune_graph(graph, options, toolchain=toolchain, device=card, progress=progress)
    about = {"preprocess": imported.preprocess, "features": features}
    with ExitStack() as kept:
        folder = None
        if output is None:
            with _storage("a temporary folder"):
                folder = tempfile.TemporaryDirectory(prefix="vitc-")
            kept.callback(folder.cleanup)
        path = Path(folder.name, f"{graph.name}.so") if folder else Path(output or "")
        build_graph(
            graph, imported.state, options, path, toolchain=toolchain, about=about, stages=stages
        )
        with stages("load"):
            module = CompiledModule.open(path, threads=threads, verify=False, lazy=True)
        module.imported, module.graph, module.report = imported.graph, graph, stages.report
        module.folder = folder
        kept.pop_all()  # the folder now lives as long as the module
    return module


def optimised_graph(
    model: Any,
    options: CompileOptions,
    *,
    image_size: int | tuple[int, int] | None = None,
    features: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    name: str | None = None,
    stages: _Stages | None = None,
) -> tuple[Imported, Graph]:
    """The first half of the way: the model as imported, and its graph after the passes."""
    from vitc.frontend import import_model

    stages = stages or _Stages(None)
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
        return imported, _optimise(imported.graph, options, stages)


def build_graph(
    graph: Graph,
    state: Mapping[str, Array],
    options: CompileOptions,
    output: Path,
    *,
    toolchain: Toolchain | None = None,
    target: Target | None = None,
    about: Mapping[str, Any] | None = None,
    stages: _Stages | None = None,
) -> CompileReport:
    """The second half of the way: an optimised graph and its weights to the library at `output`.

    state: the tensors of the state dict. toolchain: None looks for one. target: None takes that of
    the options. about: further keys of the manifest.
    """
    from vitc.codegen.library import library_source
    from vitc.codegen.memory import plan_memory
    from vitc.codegen.select import select
    from vitc.codegen.targets import find_target

    stages = stages or _Stages(None)
    target = target or find_target(options.target, options.batches)
    toolchain = toolchain or toolchain_of(options)
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


def toolchain_of(options: CompileOptions) -> Toolchain:
    """The compilers that the options' target needs. Raises CompileError naming what to install."""
    from vitc.codegen.targets import find_target
    from vitc.codegen.toolchain import find_toolchain

    return find_toolchain(find_target(options.target).languages)


def _card(options: CompileOptions, toolchain: Toolchain) -> TuningDevice:
    """The card to tune on. Raises InputError, DeviceError."""
    from vitc.codegen.targets import find_target
    from vitc.tune import find_device

    return find_device(find_target(options.target), toolchain)


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
    from vitc.passes.options import PassOptions
    from vitc.passes.pipeline import run_pipeline

    wanted = PassOptions(
        dtype=options.dtype,
        input_dtype=options.input_dtype,
        output_dtype=options.output_dtype,
        stats_width=find_target(options.target).stats_width,
        disable=options.disable,
        dump_dir=options.dump_dir,
        report=stages.report.passes.append,
    )
    with _storage(f"to '{options.dump_dir or tempfile.gettempdir()}'"):
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
    with (
        _storage("a temporary folder"),
        tempfile.TemporaryDirectory(prefix="vitc-") as folder,
        ThreadPoolExecutor(1) as pool,
    ):
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
            stages.report.build = building.result()
        except BaseException:  # also Ctrl-C: compilers must not go on in the background
            runner.stop()
            raise
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


@contextmanager
def _storage(what: str) -> Generator[None]:
    """Errors of the system become StorageError."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot write {what}: {error.strerror or error}",
            hint="free some space or choose another folder; $TMPDIR is where temporary ones are",
        ) from error


def _dump(folder: Path | None, source: LibrarySource) -> None:
    """Writes what can be looked at afterwards; the passes have written their graphs already."""
    from vitc.codegen.sources import SUFFIX

    if folder is None:
        return
    with _storage(f"to '{folder}'"):
        (folder / "sources").mkdir(parents=True, exist_ok=True)
        (folder / "manifest.json").write_text(json.dumps(source.manifest, indent=1))
        for part in source.sources:
            name = part.name + SUFFIX[part.language]
            (folder / "sources" / name).write_text(part.text)
