"""A trial: one library in which a kernel runs with each configuration that a choice has.

Its steps are, for each configuration, the same op on each of several copies of the operands, which
together are larger than a GPU's L2: in a model, too, weights come from memory. Nobody reads the
results, so they share one place in the workspace, unless the kernel can write them over an operand,
such as a residual: then each has the place of a copy of it, as in a model. The steps that make
those copies come before each configuration's, and are not timed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from vitc.codegen.kernel import KernelCall, OtherTarget, Rendered, Site, Target
from vitc.codegen.records import Choice
from vitc.codegen.toolchain import Toolchain
from vitc.compiler import build_graph
from vitc.ir.builder import Builder, Value
from vitc.ir.graph import Graph, Port
from vitc.ir.index_map import IndexMap
from vitc.ir.op import Array
from vitc.ir.types import Batch, DType, TensorType, per_image, shape_at
from vitc.ops import Fused, Move, Pointwise
from vitc.options import CompileOptions
from vitc.runtime.library import PortInfo
from vitc.runtime.module import Module
from vitc.verify.handle import decode, device_of, torch_dtype

COPIES_BYTES = 128 << 20  # of all copies together at least: an H100's L2 has 50 MB
MOST_COPIES = 96
SHARED_BYTES = 1 << 16  # constants up to this size, such as biases, are not copied

# Relative L2 by which configurations may differ: each sums in its own order, and rounds at the end.
AGREEMENT = {
    DType.FLOAT16: 2e-3,
    DType.BFLOAT16: 1.6e-2,
    DType.TF32: 2e-3,
    DType.FLOAT32: 2e-5,
}


@dataclass(frozen=True)
class Work:
    """A choice at one site, for one batch, and the target whose kernel has it.

    moved: from the result as the op has it to how it is stored; None where it is stored as it is.
    """

    call: KernelCall
    choice: Choice
    batch: int
    target: Target
    moved: IndexMap | None = None

    @property
    def copies(self) -> int:
        """Of the operands; at least two."""
        site = self.call.site
        size = sum(type_.nbytes(self.batch) for type_ in site.inputs)
        return min(MOST_COPIES, max(2, math.ceil(COPIES_BYTES / size)))

    @property
    def overwritten(self) -> tuple[int, ...]:
        """Operands that the result may be written over."""
        return self.call.kernel.in_place(self.call)


def build_trial(work: Work, options: CompileOptions, toolchain: Toolchain, path: Path) -> None:
    """Compiles the library of a trial, its configurations in parallel through the build cache."""
    graph, names = trial_graph(work)
    operands = {_operand(port): port for port in graph.weights}
    drawn = {name: _constant(port) for name, port in operands.items()}
    state = {port.name: drawn[_operand(port)] for port in graph.weights}
    wanted = replace(options, batches=(work.batch,), weights="embedded", dump_dir=None)
    fixed = _Fixed(work.target, work.call, names)
    build_graph(graph, state, wanted, path, toolchain=toolchain, target=fixed)


def trial_graph(work: Work) -> tuple[Graph, dict[str, str]]:
    """The graph, and the configuration by which each node of the tuned op is computed.

    Operands lie in memory as in the model, and are read and written through the same maps.
    The last node, whose result is the graph's, is there because a library has to return something.
    """
    builder = Builder()
    inputs, weights, operands = _operands(work, builder)
    names: dict[str, str] = {}

    def run(name: str, values: Sequence[Value]) -> Value:
        result, *_ = builder.emit_all(work.call.site.op, *values)
        names[result.name] = name
        return result if work.moved is None else builder.emit(Move(work.moved), result)

    def fresh(values: Sequence[Value]) -> list[Value]:
        """The operands, those that are overwritten copied: inputs of a library never are."""
        return [
            builder.emit(Pointwise(), value) if index in work.overwritten else value
            for index, value in enumerate(values)
        ]

    for name in work.choice.names:
        for values in [fresh(values) for values in operands]:
            run(name, values)
    last = run(work.choice.names[0], fresh(operands[0]))
    result = builder.reshape(last, _with_batch_first(last.type).shape).name
    return Graph("trial", inputs, weights, tuple(builder.nodes), (result,)), names


def _operands(
    work: Work, builder: Builder
) -> tuple[tuple[Port, ...], tuple[Port, ...], list[list[Value]]]:
    """The trial's inputs and weights, and the values that each copy of the op takes."""
    site = work.call.site
    inputs: list[Port] = []
    weights: dict[str, Port] = {}
    operands: list[list[Value]] = []
    for copy in range(work.copies):
        values: list[Value] = []
        stored: dict[str, Value] = {}  # q, k and v, say, are often one tensor
        for index, (type_, operand) in enumerate(zip(site.inputs, work.call.inputs, strict=True)):
            if site.constant[index]:
                shared = type_.nbytes() <= SHARED_BYTES
                port = Port(f"w{index}" if shared else f"w{index}_{copy}", type_)
                weights[port.name] = port
                values.append(Value(port.name, type_))
            else:
                if operand.value not in stored:
                    port = Port(f"x{index}_{copy}", _with_batch_first(operand.type))
                    inputs.append(port)
                    given = Value(port.name, port.type)
                    stored[operand.value] = builder.reshape(given, operand.type.shape)
                value = stored[operand.value]
                values.append(
                    builder.reshape(value, type_.shape)
                    if operand.is_dense
                    else builder.emit(Move(operand.map), value)
                )
        operands.append(values)
    return tuple(inputs), tuple(weights.values()), operands


def _with_batch_first(type_: TensorType) -> TensorType:
    """[3B, n] as [B, 3, n], which is what a library takes and returns."""
    first, *rest = type_.shape
    if isinstance(first, Batch) and first.count > 1:
        return type_.with_shape((Batch(), first.count, *rest))
    return type_


class _Fixed(OtherTarget):
    """A target of one architecture that is told the configuration at each node of one kernel."""

    def __init__(self, target: Target, call: KernelCall, names: Mapping[str, str]) -> None:
        super().__init__(target)
        self.kernels = (call.kernel, *target.kernels)
        self._call, self._names = call, names
        self._rendered: dict[str, Rendered] = {}

    def render(self, call: KernelCall) -> Mapping[str, Rendered]:
        name = self._names.get(call.node.output)
        if name is None:  # a copy of an operand or the result
            return super().render(call)
        views, tuned = ([x.is_dense for x in (*c.inputs, *c.outputs)] for c in (call, self._call))
        assert call.kernel is self._call.kernel, call
        assert views == tuned, call  # else a copy of its own is among the steps
        if name not in self._rendered:  # the copies differ in their arguments alone
            self._rendered[name] = call.kernel.render_choice(call, name)
        return {self.isas[0]: self._rendered[name]}


def _operand(port: Port | PortInfo) -> str:
    """Which operand a port is a copy of: w1_7 is of w1."""
    return port.name.partition("_")[0]


def _constant(port: Port) -> Array:
    """Normal numbers, the same for all copies; a weight's make results of about one."""
    shape = shape_at(port.type.shape, 1)
    if not port.type.dtype.is_float:
        return np.zeros(shape)
    drawn = np.random.default_rng(0).standard_normal(shape, np.float32)
    return drawn / math.sqrt(max(1, shape[-1] if len(shape) > 1 else 1))


class Trial:
    """A loaded library of a trial, with distinct random inputs on its device."""

    def __init__(self, work: Work, path: Path) -> None:
        """Raises LoadError, DeviceError."""
        self.work = work
        self.module = Module.open(path, verify=False)
        self.context = self.module.new_context()
        device = device_of(self.module)
        statistics = _statistics(work.call.site)
        draw = torch.Generator(device)
        self.inputs = [
            _activation(port.shape, port.dtype, statistics.get(_operand(port)), draw)
            for port in self.module.inputs
        ]
        self.outputs = [
            torch.empty(port.shape, dtype=torch_dtype(port.dtype), device=device)
            for port in self.module.outputs
        ]

    def close(self) -> None:
        self.context.close()
        self.module.close()

    def runner(self, name: str) -> Callable[[], None]:
        """Runs a configuration once on each copy, whatever its overwritten operands hold."""
        start = self._first(name)
        return lambda: self._run(start, start + self.work.copies)

    def results(self, name: str) -> list[Array]:
        """What a configuration computes of the first copy, as float64; samples of large results.

        The preferred one first fills the place with results of the second copy, so that what a
        configuration leaves unwritten differs.
        """
        self._once(self.work.choice.names[0], 1)
        self._once(name, 0)
        step = self.module.manifest["steps"][self._first(name)]
        places = {a["value"]: a["offset"] for a in step["args"] if a["space"] == "workspace"}
        found: list[Array] = []
        for entry, operand in zip(step["outputs"], self.work.call.outputs, strict=True):
            at, size = places[entry["value"]], operand.type.nbytes(self.work.batch)
            raw = np.concatenate([self.context.read(at + i, n) for i, n in _sections(size)])
            found.append(decode(raw, operand.type.dtype, (-1,)))
        return found

    def _first(self, name: str) -> int:
        """The step that runs a configuration on the first copy."""
        copied = self.work.copies * len(self.work.overwritten)
        return self.work.choice.names.index(name) * (copied + self.work.copies) + copied

    def _once(self, name: str, copy: int) -> None:
        """Runs a configuration on one copy, whose overwritten operands are made anew."""
        first, each = self._first(name), len(self.work.overwritten)
        made = first - (self.work.copies - copy) * each
        self._run(made, made + each)
        self._run(first + copy, first + copy + 1)

    def _run(self, first: int, last: int) -> None:
        self.context.run_steps(self.inputs, (first, last), self.outputs)


def _sections(size: int) -> list[tuple[int, int]]:
    """(offset, bytes) of all of a result, or of 16 parts from its first bytes to its last."""
    part = 1 << 19
    if size <= 16 * part:
        return [(0, size)]
    return [((size - part) * i // 15 // 64 * 64, part) for i in range(15)] + [(size - part, part)]


def difference(results: Sequence[Array], expected: Sequence[Array]) -> float:
    """The largest relative L2 error of a result; inf where one is not finite."""
    worst = 0.0
    for got, wanted in zip(results, expected, strict=True):
        error = float(
            np.sum(np.square(got - wanted)) / max(float(np.sum(np.square(wanted))), 1e-60)
        )
        error = math.sqrt(error)
        worst = max(worst, error if math.isfinite(error) else math.inf)
    return worst


def _statistics(site: Site) -> dict[str, float]:
    """Names of trial inputs that scale rows: of how many columns a pair (squares, sum) is, or 0
    where there are squares alone.
    """
    found: dict[str, float] = {}
    for step in site.op.steps if isinstance(site.op, Fused) else ():
        if step.scales_rows and step.operand is not None:
            parts = per_image(site.inputs[step.operand].shape[-1:])
            paired = step.kind == "layer_rstd"
            found[f"x{step.operand}"] = 2 * step.values[0] / parts if paired else 0.0
    return found


def _activation(
    shape: Sequence[int], dtype: str, width: float | None, draw: torch.Generator
) -> torch.Tensor:
    """Random numbers; statistics where there is a width (see `_statistics`).

    A sum is at most half of what its squares allow, sqrt(width * squares): a row's squared mean is
    at most a quarter of its mean square, so that no variance is clamped.
    """
    make: Callable[..., torch.Tensor] = torch.randn if width is None else torch.rand
    drawn = make(*shape, generator=draw, device=draw.device)
    if width is not None:
        drawn *= 100
    if width:
        squares, sums = drawn.view(-1, 2).unbind(1)
        sums *= 0.005 * (width * squares).sqrt()
    return drawn.to(torch_dtype(dtype))
