"""Attention written out as products and a softmax becomes one op."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vitc.ir.builder import Value
from vitc.ir.graph import Graph, Node
from vitc.ir.index_map import Expand, IndexMap, Permute, Reshape
from vitc.ir.types import Batch, Dim, Shape, per_image, shape_at
from vitc.ops import Attention, Literal, MatMul, Move, Pointwise, Reduce, Softmax
from vitc.passes.clean import compose_moves, drop_identity
from vitc.passes.options import PassOptions
from vitc.passes.rewrite import Match, Replacement, rewrite, rule
from vitc.passes.steps import Bound, bound_steps, emit_steps, is_plain, main_operands


@rule
def attention_of_products(match: Match, node: Node) -> Replacement:
    """matmul(softmax(matmul(q, k^T) c f + b + mask), v) = attention(q, k, v, b, regions, f)"""
    op = node.op
    if not isinstance(op, MatMul) or match.types[node.inputs[0]].rank != 4:
        return None
    weights = match.producer(node.inputs[0], Softmax)
    if weights is None or match.is_constant(node.output) or not match.single_use(node.inputs[0]):
        return None
    found = _product_of_scores(match, weights[0].inputs[0])
    scores = found and _amount(match, found[1])
    if found is None or scores is None:
        return None
    q, k_transposed = main_operands(match, *found[0])
    v = match.value(node.inputs[1])
    if not q.type.rank == k_transposed.type.rank == v.type.rank == 4:
        return None
    k = match.build.permute(k_transposed, (0, 1, 3, 2))
    attention = Attention(stats=op.stats, dtype=op.dtype, scale=scores.scale)
    added = list[Value]()
    if scores.mask is not None and (regions := _regions(scores.mask)) is not None:
        apart, labels = regions
        scores = replace(scores, mask=None)
        if apart:
            attention = replace(attention, regions=True, apart=apart)
            added.append(match.build.literal(labels))
    bias = _bias(match, scores, (*q.shape[:3], k.shape[2]))
    if bias is not None:
        attention, added = replace(attention, bias=True), [bias, *added]
    if scores.factors is not None:
        attention, added = replace(attention, factors=True), [*added, scores.factors]
    return emit_steps(match.build, attention, (q, k, v, *added), bound_steps(match, node, op))


@rule
def weights_on_the_left(match: Match, node: Node) -> Replacement:
    """matmul(v^T, softmax(s)^T) = matmul(softmax(s), v)^T"""
    op = node.op
    moved = match.producer(node.inputs[1], Move) if isinstance(op, MatMul) else None
    weights = match.producer(moved[0].inputs[0], Softmax) if moved is not None else None
    if moved is None or weights is None or not isinstance(op, MatMul) or op.stats:
        return None
    if any(step.operand is not None for step in op.steps):
        return None
    v = match.value(node.inputs[0])
    rank = v.type.rank
    swap = (*range(rank - 2), rank - 1, rank - 2)
    private = match.single_use(moved[0].output)
    if moved[1].map.views != (Permute(swap),) or not private or op.dtype is not None:
        return None
    build = match.build
    product = build.emit(MatMul(op.steps), match.value(weights[0].output), build.permute(v, swap))
    return build.permute(product, swap)


_Step = tuple[Bound, Shape]  # a step and the shape of the scores that it is applied to


def _product_of_scores(match: Match, name: str) -> tuple[tuple[Node, MatMul], list[_Step]] | None:
    """The product that makes the scores, and the steps on them, first to last."""
    steps: list[_Step] = []
    while match.single_use(name):
        node = match.producers.get(name)
        if node is None or not isinstance(node.op, MatMul | Pointwise | Move):
            return None
        shape = match.types[name].shape
        if isinstance(node.op, Move):
            if not all(isinstance(view, Reshape) for view in node.op.map.views):
                return None
        else:
            steps = [*((step, shape) for step in bound_steps(match, node, node.op)), *steps]
        if isinstance(node.op, MatMul):
            return ((node, node.op), steps) if not node.op.stats else None
        name = node.inputs[0]
    return None


@dataclass(frozen=True)
class _Scores:
    """What becomes of q k^T: scale * factors[h] * scores + bias + mask[window].

    mask: the numbers [W, Nq, Nk] of a literal; window = batch entry mod W.
    """

    scale: float = 1.0
    factors: Value | None = None
    bias: Value | None = None
    mask: NDArray[np.float64] | None = None


def _amount(match: Match, steps: list[_Step]) -> _Scores | None:
    """What the steps on the scores amount to; a shift of all scores changes no softmax."""
    scores, build = _Scores(), match.build
    for step, shape in steps:
        term = step.operand
        if step.kind == "scale" and scores.mask is None:
            bias = scores.bias and build.scale(scores.bias, step.values[0])
            scores = replace(scores, scale=scores.scale * step.values[0], bias=bias)
        elif step.kind == "mul" and term is not None and scores.mask is None:
            factors = _per_head(match, term, shape)
            if factors is None:
                return None
            bias = scores.bias and build.binary("mul", scores.bias, term)
            if scores.factors is not None:
                factors = build.binary("mul", scores.factors, factors)
            scores = replace(scores, factors=factors, bias=bias)
        elif step.kind in ("add", "sub") and term is not None and len(shape) == 4:
            term = term if step.kind == "add" else build.scale(term, -1.0)
            bias = term if scores.bias is None else build.binary("add", scores.bias, term)
            scores = replace(scores, bias=bias)
        elif step.kind == "add" and term is not None and scores.mask is None:
            mask = _window_mask(match, term, shape)
            if mask is None:
                return None
            scores = replace(scores, mask=mask)
        elif step.kind != "shift":
            return None
    return scores


def _per_head(match: Match, term: Value, shape: Shape) -> Value | None:
    """The constant as [H] when it is one number for each head of scores [B, H, Nq, Nk]."""
    if len(shape) != 4 or not match.is_constant(term.name) or len(term.shape) < 3:
        return None
    heads: Dim = shape[1]
    if term.shape[-3:] != (heads, 1, 1) or per_image(term.shape) != heads:
        return None
    return match.build.reshape(term, (heads,))


def _window_mask(match: Match, term: Value, shape: Shape) -> NDArray[np.float64] | None:
    """The numbers [W, Nq, Nk] of a literal that is added to scores [B, W, H, Nq, Nk]."""
    if len(shape) != 5 or not isinstance(shape[0], Batch):
        return None
    numbers = _numbers(match, term.name)
    if numbers is None:
        return None
    padded = np.reshape(numbers, (1,) * (5 - numbers.ndim) + numbers.shape)
    if padded.shape[0] != 1 or padded.shape[2] != 1:
        return None
    _, windows, _, queries, keys = shape_at(shape, 1)
    return np.broadcast_to(padded[0, :, 0], (windows, queries, keys))


def _numbers(match: Match, name: str) -> NDArray[np.float64] | None:
    """The numbers of a literal, perhaps moved, which no weight changes."""
    node = match.producers.get(name)
    if node is None or not isinstance(node.op, Literal | Move):
        return None
    operands = [_numbers(match, operand) for operand in node.inputs]
    known = [array for array in operands if array is not None]
    return node.op.reference(*known, batch=1)[0] if len(known) == len(operands) else None


def _regions(mask: NDArray[np.float64]) -> tuple[float, NDArray[np.int32]] | None:
    """(apart, regions [W, N]) when the mask [W, N, N] parts the tokens of each window, else None.

    A token's region is called after its first token. apart is 0 where nothing is parted.
    """
    apart = float(mask.min())
    same = mask == 0.0
    if mask.shape[1] != mask.shape[2] or not (same | (mask == apart)).all():
        return None
    labels = np.argmax(same, -1).astype(np.int32)
    if not (same == (labels[:, :, None] == labels[:, None, :])).all():
        return None
    return apart, labels


def _bias(match: Match, scores: _Scores, shape: Shape) -> Value | None:
    """Bias and what is left of the mask as one operand that broadcasts to scores [B, H, Nq, Nk]."""
    if scores.mask is None:
        return scores.bias
    build = match.build
    bias = build.literal(np.ascontiguousarray(scores.mask[:, None], np.float32))
    if scores.bias is not None:
        bias = build.binary("add", bias, scores.bias)
    windows, *rest = bias.shape
    whole = shape[0]
    assert isinstance(whole, Batch)
    assert isinstance(windows, int)
    each: Shape = (Batch(whole.count // windows), windows, *rest)
    views = (Expand(each), Reshape((whole, *rest)))
    return build.emit(Move(IndexMap(bias.shape, views)), bias)


@rule
def scale_into_attention(match: Match, node: Node) -> Replacement:
    """attention(q c, k) = attention(q, k) with scale c; so for k c"""
    op = node.op
    if not isinstance(op, Attention) or op.cosine is not None:
        return None
    operands = list(match.values(node))
    for i in (0, 1):
        moves: list[Move] = []
        name = operands[i].name
        while (moved := match.producer(name, Move)) is not None and match.single_use(name):
            moves.insert(0, moved[1])
            name = moved[0].inputs[0]
        made = match.producer(name, Pointwise)
        steps = bound_steps(match, *made) if made is not None else []
        if made is None or not steps or steps[-1].kind != "scale" or not match.single_use(name):
            continue
        mains = main_operands(match, *made)
        x = emit_steps(match.build, made[1], mains, steps[:-1])[0]
        for move in moves:
            x = match.build.emit(move, x)
        operands[i] = x
        scale = op.scale * steps[-1].values[0]
        return match.build.emit_all(replace(op, scale=scale), *operands)
    return None


@rule
def cosine_attention(match: Match, node: Node) -> Replacement:
    """attention(q / max(|q|, eps), k / max(|k|, eps)) = attention(q, k) with cosine eps"""
    op = node.op
    if not isinstance(op, Attention) or op.cosine is not None:
        return None
    q, k = (_unit_rows(match, name) for name in node.inputs[:2])
    if q is None or k is None or q[1] != k[1]:
        return None
    rest = match.values(node)[2:]
    return match.build.emit_all(replace(op, cosine=q[1]), q[0], k[0], *rest)


def _unit_rows(match: Match, name: str) -> tuple[Value, float] | None:
    """(x, eps) when the value is x / max(norm of x's rows, eps)."""
    made = match.producer(name, Pointwise)
    steps = bound_steps(match, *made) if made is not None else []
    if made is None or [step.kind for step in steps] != ["div"] or not is_plain(made[1]):
        return None
    assert steps[0].operand is not None
    x, norm = match.value(made[0].inputs[0]), steps[0].operand.name
    spread = match.producer(norm, Move)
    if spread is not None and [type(view) for view in spread[1].map.views] == [Expand]:
        norm = spread[0].inputs[0]
    summed = match.producer(norm, Reduce)
    squares = match.producer(summed[0].inputs[0], Pointwise) if summed is not None else None
    if summed is None or squares is None or squares[0].inputs != (x.name,):
        return None
    rows = replace(summed[1], axes=(summed[1].axes[0] % x.type.rank,))
    kinds = [step.kind for step in (*squares[1].steps, *rows.steps)]
    if kinds != ["square", "sqrt", "clamp_min"] or len(summed[1].axes) != 1:
        return None
    plain = Reduce(rows.steps, kind="sum", axes=(x.type.rank - 1,), keepdims=True)
    return (x, rows.steps[1].values[0]) if rows == plain and is_plain(squares[1]) else None


RULES = (
    weights_on_the_left,
    attention_of_products,
    scale_into_attention,
    cosine_attention,
    compose_moves,
    drop_identity,
)


def recognise_attention(graph: Graph, options: PassOptions) -> Graph:
    """No softmax of a product multiplies a third value of rank four; q and k come unscaled."""
    return rewrite(graph, options.enabled(RULES), check=options.check)
