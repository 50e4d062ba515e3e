"""Convolution and pooling over channels-last images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vitc.codegen.kernel import Kernel, KernelCall, Operand, Packing, Rendered, Site
from vitc.codegen.render import render
from vitc.codegen.steps import aliasable
from vitc.codegen.targets.cpu.epilogue import (
    C_TYPES,
    Epilogue,
    readable_step,
    refusal,
    render_epilogue,
    writable,
)
from vitc.codegen.targets.cpu.packings import (
    depthwise_packing,
    group_packing,
    planes_packing,
    weight_packing,
)
from vitc.codegen.targets.cpu.rows import row_total
from vitc.codegen.windows import Window, window_of
from vitc.ir.op import Op
from vitc.ir.types import per_image
from vitc.ops import Conv2d, Pool2d


@dataclass(frozen=True)
class WindowParams:
    """Parameters of templates/cpu/window.cc.jinja.

    header: of the kernel. kernel: its C++ type, written in terms of Shape and Epilogue. arguments:
    of its run() after the call.
    """

    header: str
    window: Window
    epilogue: Epilogue
    kernel: str
    arguments: tuple[str, ...]


class _WindowKernel(Kernel):
    """What both share: the image must be dense, steps ride along."""

    def refuses(self, site: Site) -> str | None:
        return refusal(site)

    def reads(self, site: Site, index: int, operand: Operand) -> bool:
        if index < site.op.arity:  # type: ignore[attr-defined]
            return False
        return readable_step(site, index, operand)

    def writes(self, site: Site, operand: Operand) -> bool:
        return writable(operand, site.results[0].shape)


class CpuConv2d(_WindowKernel):
    """Convolution as an implicit GEMM, grouped or depthwise too."""

    name: ClassVar[str] = "conv2d"
    ops: ClassVar[tuple[type[Op], ...]] = (Conv2d,)

    def refuses(self, site: Site) -> str | None:
        op = site.op
        assert isinstance(op, Conv2d)
        if not site.constant[1]:
            return "the weight depends on the input"
        if op.groups > 1 and op.stats:
            return "a grouped convolution emits no statistics"
        return refusal(site)

    def packing(self, site: Site, index: int) -> Packing | None:
        op = site.op
        assert isinstance(op, Conv2d)
        if index != 1:
            return None
        if _depthwise(site):
            return depthwise_packing()
        dtype = site.inputs[1].dtype
        return group_packing(dtype, op.groups) if op.groups > 1 else weight_packing(dtype)

    def in_place(self, call: KernelCall) -> tuple[int, ...]:
        return aliasable(call, first_step_operand=2)

    def render(self, call: KernelCall) -> Rendered:
        op, site = call.site.op, call.site
        assert isinstance(op, Conv2d)
        x, w = site.inputs[:2]
        result = site.results[0].shape
        out, height, width = (per_image((dim,)) for dim in w.shape[:3])
        image, weight = C_TYPES[x.dtype], C_TYPES[w.dtype]
        data, panels = f"arg<const {image}>(call, 0)", f"arg<const {weight}>(call, 1)"
        m = row_total(result)
        if _depthwise(site):
            kernel, panels = f"DepthwiseConv<{image}, Shape, Epilogue>", "arg<const float>(call, 1)"
            arguments = (data, panels)
        elif op.groups > 1:
            kernel = f"GroupedConv<{image}, Shape, {out}, {op.groups}, {weight}, Epilogue>"
            arguments = (data, panels)
        else:
            rows = f"ColumnsNhwc<{image}, Shape>"
            kernel = f"Gemm<{out}, {rows}::kColumns, {rows}, {weight}, Epilogue>"
            arguments = (m, f"{{{data}}}", panels)
        params = WindowParams(
            "conv.h",
            window_of(x.shape, result, op, (height, width)),
            render_epilogue(op, call.inputs, call.outputs, result),
            kernel,
            arguments,
        )
        return Rendered(render("cpu/window.cc.jinja", params), kernel)


class CpuPlanesConv2d(_WindowKernel):
    """Convolution of an image as torch lays it out, seen channels-last: a model's first layer."""

    name: ClassVar[str] = "planes_conv2d"
    ops: ClassVar[tuple[type[Op], ...]] = (Conv2d,)

    def refuses(self, site: Site) -> str | None:
        op = site.op
        assert isinstance(op, Conv2d)
        if op.groups > 1 or op.stats or not site.constant[1]:
            return "it takes one group and a constant weight, and emits no statistics"
        return refusal(site)

    def declines(self, site: Site, operands: tuple[Operand | None, ...]) -> str | None:
        image = operands[0]
        planes = image is not None and self.reads(site, 0, image)
        return None if planes else "the image is not stored as planes"

    def reads(self, site: Site, index: int, operand: Operand) -> bool:
        if index > 0:
            return super().reads(site, index, operand)
        height, width, channels = (per_image((dim,)) for dim in site.inputs[0].shape[1:])
        plane = height * width
        return operand.map.strides() == (0, (channels * plane, width, 1, plane))

    def packing(self, site: Site, index: int) -> Packing | None:
        return planes_packing() if index == 1 else None

    def render(self, call: KernelCall) -> Rendered:
        op, site = call.site.op, call.site
        assert isinstance(op, Conv2d)
        x, w = site.inputs[:2]
        result = site.results[0].shape
        out, height, width = (per_image((dim,)) for dim in w.shape[:3])
        kernel = f"PlanesConv<{C_TYPES[x.dtype]}, Shape, {out}, Epilogue>"
        params = WindowParams(
            "conv.h",
            window_of(x.shape, result, op, (height, width)),
            render_epilogue(op, call.inputs, call.outputs, result),
            kernel,
            (f"arg<const {C_TYPES[x.dtype]}>(call, 0)", "arg<const float>(call, 1)"),
        )
        return Rendered(render("cpu/window.cc.jinja", params), kernel)


class CpuPool2d(_WindowKernel):
    """Maximum and average pooling."""

    name: ClassVar[str] = "pool2d"
    ops: ClassVar[tuple[type[Op], ...]] = (Pool2d,)

    def render(self, call: KernelCall) -> Rendered:
        op, site = call.site.op, call.site
        assert isinstance(op, Pool2d)
        average = "kMeanPadded" if op.count_padding else "kMean"
        kind = "kMax" if op.kind == "max" else average
        image = C_TYPES[site.inputs[0].dtype]
        kernel = f"Pool2d<{image}, Shape, Pool::{kind}, Epilogue>"
        result = site.results[0].shape
        params = WindowParams(
            "pool.h",
            window_of(site.inputs[0].shape, result, op, op.kernel),
            render_epilogue(op, call.inputs, call.outputs, result),
            kernel,
            (f"arg<const {image}>(call, 0)",),
        )
        return Rendered(render("cpu/window.cc.jinja", params), kernel)


def _depthwise(site: Site) -> bool:
    op = site.op
    assert isinstance(op, Conv2d)
    out, depth = per_image(site.inputs[1].shape[:1]), per_image(site.inputs[1].shape[3:])
    return op.groups > 1 and op.groups == out and depth == 1
