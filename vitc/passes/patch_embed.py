"""Convolutions whose windows do not overlap are matrix products over moved pixels."""

from __future__ import annotations

from vitc.ir.builder import Value
from vitc.ir.graph import Graph, Node
from vitc.ir.index_map import IndexMap, Permute, Reshape, Slice, View
from vitc.ir.types import per_image
from vitc.ops import Conv2d, Linear, Move, Pointwise, Pool2d
from vitc.passes.maps import canonical
from vitc.passes.options import PassOptions
from vitc.passes.rewrite import Match, Replacement, rewrite, rule
from vitc.passes.steps import bound_steps, emit_steps, main_operands


@rule
def conv_to_linear(match: Match, node: Node) -> Replacement:
    """conv2d(x, w) with kernel = stride = linear(patches of x, w as a matrix)"""
    op = node.op
    if not isinstance(op, Conv2d) or op.groups != 1 or any(op.padding):
        return None
    x, w = main_operands(match, node, op)
    out, kh, kw, channels = (per_image((dim,)) for dim in w.shape)
    if (kh, kw) == (1, 1):
        patches = _sampled(match, x, op.stride)
    elif (kh, kw) == op.stride and op.dilation == (1, 1):
        patches = None
    else:
        return None
    steps = bound_steps(match, node, op)
    if patches is not None:
        matrix = match.build.reshape(w, (out, channels))
        return emit_steps(match.build, _linear(op), (patches, matrix), steps)
    planar = _is_planar(match, x)
    match.build.hint = node.inputs[1]
    if planar:  # patches in the image's own order: runs of kw pixels lie together
        w = match.build.permute(w, (0, 3, 1, 2))
    matrix = match.build.reshape(w, (out, kh * kw * channels))
    match.build.hint = node.output
    patches = match.build.emit(Move(_patches(x, (kh, kw), planar)), x)
    return emit_steps(match.build, _linear(op), (patches, matrix), steps)


def _linear(op: Conv2d) -> Linear:
    return Linear(stats=op.stats, dtype=op.dtype)


def _sampled(match: Match, x: Value, stride: tuple[int, int]) -> Value:
    """Every stride-th pixel."""
    views: list[View] = []
    for axis, step in enumerate(stride, 1):
        size = per_image((x.shape[axis],))
        if step != 1:
            views.append(Slice(axis, 0, size, step))
    return match.build.view(x, *views) if views else x


def _is_planar(match: Match, x: Value) -> bool:
    """Whether x is a permuted view of channel planes, as images are."""
    moved = match.producer(x.name, Move)
    strides = moved[1].map.strides() if moved is not None else None
    return strides is not None and strides[1][-1] != 1


def _patches(x: Value, kernel: tuple[int, int], planar: bool) -> IndexMap:
    """[B, H, W, C] to [B, H / kh, W / kw, kh * kw * C] (C * kh * kw when planar)."""
    batch, channels = x.shape[0], per_image(x.shape[3:])
    height, width = per_image(x.shape[1:2]), per_image(x.shape[2:3])
    kh, kw = kernel
    rows, columns = height // kh, width // kw
    views: list[View] = [
        Slice(1, 0, rows * kh),
        Slice(2, 0, columns * kw),
        Reshape((batch, rows, kh, columns, kw, channels)),
        Permute((0, 1, 3, 5, 2, 4) if planar else (0, 1, 3, 2, 4, 5)),
        Reshape((batch, rows, columns, kh * kw * channels)),
    ]
    return canonical(IndexMap(x.shape, tuple(views)))


@rule
def pool_to_slice(match: Match, node: Node) -> Replacement:
    """pool2d(x) over single pixels = every stride-th pixel of x"""
    op = node.op
    if not isinstance(op, Pool2d) or op.kernel != (1, 1) or any(op.padding) or op.stats:
        return None
    pixels = _sampled(match, match.value(node.inputs[0]), op.stride)
    plain = Pointwise(dtype=op.dtype)
    return emit_steps(match.build, plain, (pixels,), bound_steps(match, node, op))


RULES = (conv_to_linear, pool_to_slice)


def patch_embed(graph: Graph, options: PassOptions) -> Graph:
    """No unpadded convolution has windows that do not overlap, and no pool single pixels."""
    return rewrite(graph, options.enabled(RULES), check=options.check)
