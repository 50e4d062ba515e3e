"""Finds the first op that differs.

Each kernel of a library is run alone and compared with the float64 meaning of its IR on the values
that the kernels before it really left in memory, so that only its own error shows. Before it runs,
its inputs must still be what their producers wrote: if not, the memory plan is at fault.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from vitc.ir.graph import Graph
from vitc.ir.interp import interpret
from vitc.ir.op import Array
from vitc.ir.text import parse_graph
from vitc.ir.types import TensorType, shape_at
from vitc.verify.blame import blame
from vitc.verify.handle import Compiled, Stepper, decode, device_of, torch_dtype
from vitc.verify.report import Finding, StepError
from vitc.verify.values import Evaluator, UnknownValue, relative

# What one kernel may add, by compute dtype: some 4 times what rounding its inputs, intermediate
# values (such as attention probabilities) and results costs.
STEP_BOUND = {"float32": 1e-5, "tf32": 2.0**-9, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def find(module: Compiled, model: nn.Module, images: Tensor, *, features: bool = False) -> Finding:
    """Where the difference on these images comes from: a kernel, the memory plan, or earlier.

    Needs the optimised graph: `module.graph` after a compile, or "graph" in the manifest.
    """
    graph = graph_of(module)
    if graph is None:
        return Finding(
            "unknown",
            "the library carries no graph: compile the model again in this process "
            "(vitc verify NAME) to see which op differs",
        )
    weights = state_arrays(model)
    steps, clobbered = compare_steps(module, graph, weights, images)
    if clobbered is not None:
        return Finding("memory plan", clobbered, steps[-1] if steps else None, steps)
    first = next((step for step in steps if not step.passed), None)
    if first is not None:
        return Finding("kernel", _describe(first), first, steps)
    earlier = blame(module, graph, model, weights, images, features=features)
    if earlier is not None:
        return Finding(earlier[0], earlier[1], None, steps)
    if not steps:
        return Finding("unknown", "the library has no steps to compare")
    largest = max(steps, key=lambda step: step.own)
    message = (
        f"no kernel exceeds its own bound {largest.bound:.1e} and graph and timm agree: rounding "
        f"accumulates; step {largest.index} '{largest.name}' adds most, {largest.own:.1e}"
    )
    return Finding("accumulation", message, largest, steps)


def graph_of(module: Compiled) -> Graph | None:
    """The optimised graph of a module, of this compile or out of the manifest."""
    graph: Any = getattr(module, "graph", None)
    if isinstance(graph, Graph):
        return graph
    text = module.manifest.get("graph")
    return parse_graph(str(text)) if text else None


def state_arrays(model: nn.Module) -> dict[str, Array]:
    """The state dict (and buffers outside it) as numpy arrays; floats as float64."""
    tensors = {**dict(model.named_buffers()), **model.state_dict()}
    arrays: dict[str, Array] = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu()
        arrays[name] = (plain.double() if plain.is_floating_point() else plain).numpy()
    return arrays


def compare_steps(
    module: Compiled, graph: Graph, weights: Mapping[str, Array], images: Tensor
) -> tuple[tuple[StepError, ...], str | None]:
    """Every kernel's own error, and what was overwritten if the memory plan is at fault."""
    context = module.new_context()
    try:
        return _Comparison(module, graph, weights, images, context).run()
    finally:
        context.close()


class _Comparison:
    """One pass over the steps of a library in a context of its own."""

    def __init__(
        self,
        module: Compiled,
        graph: Graph,
        weights: Mapping[str, Array],
        images: Tensor,
        context: Stepper,
    ) -> None:
        port = module.inputs[0]
        self.images = images.to(device_of(module), torch_dtype(port.dtype)).contiguous()
        self.context = context
        self.manifest = module.manifest
        self.graph = graph
        self.batch = len(images)
        self.bound = STEP_BOUND.get(str(module.manifest["dtype"]), 2.0**-6)
        self.evaluator = Evaluator(graph, weights, self.batch)
        self.weights = weights
        self.outputs: tuple[Any, ...] | None = None
        self.written: dict[str, tuple[int, NDArray[np.float64]]] = {}
        self.truth: dict[str, Array] = {}

    def run(self) -> tuple[tuple[StepError, ...], str | None]:
        steps: list[dict[str, Any]] = self.manifest["steps"]
        self.truth = self._truth({arg["value"] for step in steps for arg in step["args"]})
        results: list[StepError] = []
        for index, step in enumerate(steps):
            reads, writes = self._operands(step)
            given: dict[str, Array] = {}
            for arg in reads:
                value = self._load(arg)
                if value is None:
                    continue
                given[arg["value"]] = value
                lost = self._overwritten(arg["value"], value, index, steps)
                if lost is not None:
                    return tuple(results), lost
            self.outputs = self.context.run_steps((self.images,), (index, index + 1), self.outputs)
            results.append(self._judge(index, step, given, writes))
        return tuple(results), None

    def _operands(self, step: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
        """The step's args that it reads and those that it writes.

        Args are inputs, then outputs; as many are outputs as were never seen before and are no
        constants, because values have one producer.
        """
        known = {port.name for port in self.graph.inputs} | set(self.written)
        reads = [a for a in step["args"] if a["space"] == "weight" or a["value"] in known]
        return reads, [a for a in step["args"] if a not in reads]

    def _truth(self, names: set[str]) -> dict[str, Array]:
        """Values in float64 all the way from the images."""
        kept: dict[str, Array] = {}

        def keep(node: Any, results: tuple[Array, ...]) -> None:
            pairs = zip(node.outputs, results, strict=True)
            kept.update((n, r) for n, r in pairs if n in names and n not in self.graph.constants)

        inputs = {self.graph.inputs[0].name: self.images.double().cpu().numpy()}
        interpret(self.graph, inputs, self.weights, observe=keep)
        return kept

    def _type(self, name: str) -> TensorType:
        if name not in self.graph.types:
            raise UnknownValue(f"'%{name}' is not a value of the graph")
        return self.graph.types[name]

    def _load(self, arg: Mapping[str, Any]) -> NDArray[np.float64] | None:
        """The value of an arg as the library holds it; None for weights."""
        name = str(arg["value"])
        if arg["space"] == "weight":
            return None
        if arg["space"] == "input":
            return self.images.double().cpu().numpy()
        type_ = self._type(name)
        shape = shape_at(type_.shape, self.batch)
        if arg["space"] == "output":
            assert self.outputs is not None
            return self.outputs[int(arg["index"])].double().cpu().numpy().reshape(shape)
        raw = self.context.read(int(arg["offset"]), type_.nbytes(self.batch))
        return decode(raw, type_.dtype, shape)

    def _overwritten(
        self, name: str, value: Array, index: int, steps: Sequence[Mapping[str, Any]]
    ) -> str | None:
        if name not in self.written:
            return None
        producer, before = self.written[name]
        if np.array_equal(before, value, equal_nan=True):
            return None
        return (
            f"memory plan: '%{name}', written by step {producer} '{steps[producer]['name']}', was "
            f"overwritten before step {index} '{steps[index]['name']}' reads it"
        )

    def _judge(
        self,
        index: int,
        step: Mapping[str, Any],
        given: Mapping[str, Array],
        writes: Sequence[Mapping[str, Any]],
    ) -> StepError:
        names = tuple(str(arg["value"]) for arg in writes)
        own, drift, problem = 0.0, None, ""
        try:
            if not names:
                raise UnknownValue("the manifest lists no result of this step")
            expected = self.evaluator.compute(names, given)
            for arg in writes:
                name = str(arg["value"])
                actual = self._load(arg)
                assert actual is not None
                self.written[name] = (index, actual)
                own = max(own, relative(actual, expected[name]))
                if name in self.truth:
                    drift = max(drift or 0.0, relative(actual, self.truth[name]))
        except UnknownValue as error:
            own, problem = float("inf"), str(error)
        line = str(step["ir"])
        return StepError(
            index=index,
            name=str(step["name"]),
            kernel=str(step["kernel"]),
            ir=line,
            loc=str(step.get("module", "")),
            own=own,
            drift=drift,
            bound=self.bound,
            problem=problem,
        )


def _describe(step: StepError) -> str:
    where = f" of '{step.loc}'" if step.loc else ""
    what = step.problem or (
        f"its own error is {step.own:.2e}, at most {step.bound:.1e} is right on the inputs it had"
    )
    return (
        f"first step that differs: {step.index} '{step.name}'{where}, kernel {step.kernel}: {what}"
        f"\n    {step.ir}"
    )
