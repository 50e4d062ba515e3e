"""Kernels that work element by element, and the convolution that is a GEMM: the rare cases."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from vitc.codegen.access import run_access
from vitc.codegen.kernel import KernelCall, Operand, Packing, Rendered, Site
from vitc.codegen.products import left_shape, right_operand
from vitc.codegen.reductions import neighbours, reduction, split_axes, viewed
from vitc.codegen.render import render
from vitc.codegen.steps import aliasable
from vitc.codegen.targets.gpu.epilogue import (
    C_TYPES,
    Epilogue,
    float_text,
    readable_step,
    refusal,
    render_epilogue,
    writable,
)
from vitc.codegen.targets.gpu.gemm import Config, choose_configs
from vitc.codegen.targets.gpu.kernel import GpuKernel
from vitc.codegen.targets.gpu.sources import RowSource, row_source, row_total
from vitc.codegen.windows import Window, window_of
from vitc.ir.builder import Builder, Value
from vitc.ir.op import Op
from vitc.ir.types import Batch, Shape, TensorType, per_image
from vitc.ops import Conv2d, Fused, GroupNorm, MatMul, Pool2d, Reduce


@dataclass(frozen=True)
class Pixels:
    """How an image [B, H, W, C] lies in memory: strides in elements.

    vector: whether chunks of channels lie whole and aligned.
    """

    image: int
    row: int
    pixel: int
    channel: int
    vector: bool


@dataclass(frozen=True)
class ElementsParams:
    """Parameters of templates/gpu/elements.cu.jinja.

    value: C++ type of the functor that computes an element; start: how it is filled. window,
    pixels, source, offset: what the type refers to, where it does. kernel: "elementwise",
    "group_norm" with its template arguments in `value`, or "gemm" with `configs` and `depth`.
    """

    kernel: str
    label: str
    m: str
    n: int
    value: str
    start: str
    epilogue: Epilogue
    window: Window | None = None
    pixels: Pixels | None = None
    source: RowSource | None = None
    offset: str = ""
    configs: tuple[Config, ...] = ()
    eps: str = "0.f"
    depth: int = 0


def _rendered(params: ElementsParams) -> Rendered:
    config = params.value if not params.configs else "; ".join(c.tile for c in params.configs)
    return Rendered(render("gpu/elements.cu.jinja", params), config)


class _ElementKernel(GpuKernel):
    """What they share: dense operands, steps behind, no statistics."""

    def refuses(self, site: Site) -> str | None:
        assert isinstance(site.op, Fused)
        return "it emits no statistics" if site.op.stats else refusal(site)

    def reads(self, site: Site, index: int, operand: Operand) -> bool:
        assert isinstance(site.op, Fused)
        return index >= site.op.main_operands and readable_step(site, index, operand)

    def writes(self, site: Site, operand: Operand) -> bool:
        return writable(operand, site.results[0].shape)


class _WindowKernel(_ElementKernel):
    """Windows over images, which may lie in memory as planes."""

    def reads(self, site: Site, index: int, operand: Operand) -> bool:
        if index == 0:
            return _pixels(operand, 1) is not None
        return super().reads(site, index, operand)


def _pixels(operand: Operand, chunk: int) -> tuple[int, Pixels] | None:
    """(offset, strides) of an image, read in chunks of so many channels where it can be."""
    affine = operand.map.strides()
    if affine is None:
        return None
    offset, (image, row, pixel, channel) = affine
    whole = per_image(operand.map.result[-1:]) % chunk == 0 and channel == 1
    aligned = all(step % chunk == 0 for step in (offset, image, row, pixel))
    return offset, Pixels(image, row, pixel, channel, whole and aligned)


class GpuConv2d(_WindowKernel):
    """Convolution as an implicit GEMM; grouped ones term by term."""

    name: ClassVar[str] = "conv2d"
    ops: ClassVar[tuple[type[Op], ...]] = (Conv2d,)

    def refuses(self, site: Site) -> str | None:
        return super().refuses(site) if site.constant[1] else "the weight depends on the input"

    def in_place(self, call: KernelCall) -> tuple[int, ...]:
        return aliasable(call, first_step_operand=2)

    def packing(self, site: Site, index: int) -> Packing | None:
        assert isinstance(site.op, Conv2d)
        return _whole_chunks(site.inputs[1]) if index == 1 and site.op.groups == 1 else None

    def render(self, call: KernelCall) -> Rendered:
        op, site = call.site.op, call.site
        assert isinstance(op, Conv2d)
        x, w = site.inputs[:2]
        result = site.results[0].shape
        out, height, width = (per_image((dim,)) for dim in w.shape[:3])
        found = _pixels(call.inputs[0], 16 // w.dtype.itemsize)
        assert found is not None, call.inputs[0].map
        offset, pixels = found
        image, weight = C_TYPES[x.dtype], C_TYPES[w.dtype]
        data = f"arg<const {image}>(call, 0)" + (f" + {offset}" if offset else "")
        depth = per_image(call.inputs[1].type.shape[1:])
        params = ElementsParams(
            kernel="gemm",
            label=f"conv2d {height}x{width}",
            m=row_total(result),
            n=out,
            value=f"WindowRows<{image}, Shape, {depth}>",
            start=data,
            epilogue=render_epilogue(op, call.inputs, call.outputs, result),
            window=window_of(x.shape, result, op, (height, width)),
            pixels=pixels,
            configs=choose_configs(self.tuning, w.dtype, result, depth),
            depth=depth,
        )
        if op.groups == 1:
            return _rendered(params)
        direct = replace(
            params,
            kernel="elementwise",
            value=f"DirectConv<{image}, {weight}, Shape, {out}, {op.groups}>",
            start=f"{data}, arg<const {weight}>(call, 1)",
            configs=(),
        )
        return _rendered(direct)


def _whole_chunks(w: TensorType) -> Packing | None:
    """[O, kh, kw, C] as rows of whole 16-byte chunks, or None where they are."""
    chunk = 16 // w.dtype.itemsize
    out, depth = per_image(w.shape[:1]), per_image(w.shape[1:])
    if depth % chunk == 0:
        return None

    def build(b: Builder, value: Value) -> Value:
        return b.pad(b.reshape(value, (out, depth)), 1, 0, -depth % chunk)

    return Packing(f"chunks{chunk}", build)


class GpuPool2d(_WindowKernel):
    """Maximum and average pooling."""

    name: ClassVar[str] = "pool2d"
    ops: ClassVar[tuple[type[Op], ...]] = (Pool2d,)

    def render(self, call: KernelCall) -> Rendered:
        op, site = call.site.op, call.site
        assert isinstance(op, Pool2d)
        result = site.results[0].shape
        average = "kMeanPadded" if op.count_padding else "kMean"
        kind = "kMax" if op.kind == "max" else average
        image = C_TYPES[site.inputs[0].dtype]
        found = _pixels(call.inputs[0], 1)
        assert found is not None, call.inputs[0].map
        offset, pixels = found
        return _rendered(
            ElementsParams(
                kernel="elementwise",
                label=f"pool2d {op.kind}",
                m=row_total(result),
                n=per_image(result[-1:]),
                value=f"PoolWindow<{image}, Shape, Pool::{kind}>",
                start=f"arg<const {image}>(call, 0)" + (f" + {offset}" if offset else ""),
                epilogue=render_epilogue(op, call.inputs, call.outputs, result),
                window=window_of(site.inputs[0].shape, result, op, op.kernel),
                pixels=pixels,
            )
        )


class GpuReduce(_ElementKernel):
    """Sum, mean or maximum over neighbouring axes."""

    name: ClassVar[str] = "reduce"
    ops: ClassVar[tuple[type[Op], ...]] = (Reduce,)

    def refuses(self, site: Site) -> str | None:
        return neighbours(site) or super().refuses(site)

    def reads(self, site: Site, index: int, operand: Operand) -> bool:
        if index == 0:
            return reduction(operand, site) is not None
        return readable_step(site, index, operand)

    def writes(self, site: Site, operand: Operand) -> bool:
        return False

    def render(self, call: KernelCall) -> Rendered:
        op, site = call.site.op, call.site
        assert isinstance(op, Reduce)
        found = reduction(call.inputs[0], site)
        assert found is not None
        offset, outer_stride, axis_stride = found
        outer, count, inner = split_axes(site)
        view: Shape = (outer, inner)  # rows and columns of the kernel's result
        inputs, outputs = viewed(call, view)
        ctype = C_TYPES[site.inputs[0].dtype]
        kind = {"sum": "kSum", "mean": "kMean", "max": "kMax"}[op.kind]
        rows = f"int(call.batch) * {outer.count}" if isinstance(outer, Batch) else str(outer)
        return _rendered(
            ElementsParams(
                kernel="elementwise",
                label=f"reduce {op.kind}",
                m=rows,
                n=inner,
                value=f"ReduceAxis<{ctype}, Reduction::{kind}, {count}, {outer_stride}, "
                f"{axis_stride}>",
                start=f"arg<const {ctype}>(call, 0)" + (f" + {offset}" if offset else ""),
                epilogue=render_epilogue(op, inputs, outputs, view),
            )
        )


class GpuGroupNorm(_ElementKernel):
    """Group norm over dense channels-last tensors."""

    name: ClassVar[str] = "group_norm"
    ops: ClassVar[tuple[type[Op], ...]] = (GroupNorm,)

    def render(self, call: KernelCall) -> Rendered:
        op, site = call.site.op, call.site
        assert isinstance(op, GroupNorm)
        shape = site.inputs[0].shape
        pixels, channels = per_image(shape[1:-1]), per_image(shape[-1:])
        ctype = C_TYPES[site.inputs[0].dtype]
        return _rendered(
            ElementsParams(
                kernel="group_norm",
                label="group_norm",
                m="int(call.batch)",
                n=channels,
                value=f"{pixels}, {channels}, {op.groups}",
                start=f"arg<const {ctype}>(call, 0)",
                epilogue=render_epilogue(op, call.inputs, call.outputs, site.results[0].shape),
                eps=float_text(op.eps),
            )
        )


class GpuMatMul(_ElementKernel):
    """Batched product of two activations, element by element."""

    name: ClassVar[str] = "matmul"
    ops: ClassVar[tuple[type[Op], ...]] = (MatMul,)

    def reads(self, site: Site, index: int, operand: Operand) -> bool:
        if index == 0:
            return run_access(operand, left_shape(site)) is not None
        if index == 1:
            return right_operand(operand, site.results[0].shape) is not None
        return readable_step(site, index, operand)

    def render(self, call: KernelCall) -> Rendered:
        op, site = call.site.op, call.site
        assert isinstance(op, MatMul)
        result = site.results[0].shape
        right = right_operand(call.inputs[1], result)
        assert right is not None
        rows, columns, offset = right
        type_, k = C_TYPES[call.inputs[1].type.dtype], per_image(site.inputs[0].shape[-1:])
        source = row_source(call.inputs[0], left_shape(site))
        m = per_image(result[-2:-1])
        return _rendered(
            ElementsParams(
                kernel="elementwise",
                label="matmul",
                m=row_total(result),
                n=per_image(result[-1:]),
                value=f"SmallProduct<Source, {type_}, Offset, {m}, {k}, {rows}, {columns}>",
                start=f"{{{source.start}}}, arg<const {type_}>(call, 1), {{}}",
                epilogue=render_epilogue(op, call.inputs, call.outputs, result),
                source=source,
                offset=str(offset),
            )
        )
