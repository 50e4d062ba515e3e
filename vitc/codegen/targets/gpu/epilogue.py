"""The steps of a fused op as the functor that GPU kernels apply to a few columns of a row."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import gcd

from vitc.codegen.access import RowAccess, row_access, run_access
from vitc.codegen.kernel import Operand, Site
from vitc.codegen.steps import readable, step_shape
from vitc.ir.expr import Expr
from vitc.ir.op import TypeMismatch
from vitc.ir.types import DType, Shape, per_image
from vitc.ops.fused import Fused, Step

C_TYPES = {
    DType.FLOAT32: "float",
    DType.TF32: "float",
    DType.FLOAT16: "half",
    DType.BFLOAT16: "bfloat16",
}
_UNARY = {
    "gelu": "GeluErf",
    "gelu_tanh": "GeluTanh",
    "quick_gelu": "GeluQuick",
    "silu": "Silu",
    "relu": "Relu",
    "hardswish": "HardSwish",
    "sigmoid": "Sigmoid",
}
# Cheaper forms whose error a 16-bit result hides.
_HALF_FORMS = {"gelu": "GeluErfHalf", "gelu_tanh": "GeluTanhHalf"}
_EXPRESSIONS = {
    "hardsigmoid": "minimum(maximum(x + 3.f, 0.f), 6.f) * (1.f / 6.f)",
    "tanh": "tanhf(x)",
    "exp": "expf(x)",
    "log": "logf(x)",
    "sqrt": "sqrtf(x)",
    "rsqrt": "1.f / sqrtf(x)",
    "reciprocal": "1.f / x",
    "square": "x * x",
    "neg": "-x",
    "abs": "fabsf(x)",
    "sin": "sinf(x)",
    "cos": "cosf(x)",
    "add": "x + {o}",
    "sub": "x - {o}",
    "rsub": "{o} - x",
    "mul": "x * {o}",
    "div": "x / {o}",
    "rdiv": "{o} / x",
    "maximum": "maximum(x, {o})",
    "minimum": "minimum(x, {o})",
    "scale": "x * {o}",
    "shift": "x + {o}",
    "clamp_min": "maximum(x, {o})",
    "clamp_max": "minimum(x, {o})",
    "pow": "powf(x, {o})",
}
VECTOR = 8  # most columns that a lane handles at once; row offsets must keep to multiples of it


@dataclass(frozen=True)
class Member:
    """A pointer that the functor holds, and the argument that fills it."""

    type: str
    name: str
    value: str


@dataclass(frozen=True)
class Epilogue:
    """Parameters of `epilogue` in templates/gpu/functors.jinja.

    row_scale: expression of the row m, or "". lines: one statement per step. statistics: type of
    those emitted (vitc/gpu/epilogue.cuh). slices: of a row, 0 for none. operands: where those
    begin, in m and n, that differ from row to row and are read in aligned vectors.
    """

    members: tuple[Member, ...]
    row_scale: str
    lines: tuple[str, ...]
    statistics: str
    slices: int
    operands: tuple[str, ...] = ()


@dataclass
class _Writer:
    half: bool
    constant: tuple[bool, ...]  # of the inputs
    members: list[Member] = field(default_factory=list[Member])
    row_scale: str = ""
    lines: list[str] = field(default_factory=list[str])
    operands: list[str] = field(default_factory=list[str])


def refusal(site: Site) -> str | None:
    """Why the steps of the site cannot be rendered, or None."""
    scales = [i for i, step in enumerate(_steps(site)) if step.scales_rows]
    if scales not in ([], [0]):
        return "statistics can only scale the rows first"
    runtime = [t for t, const in zip(site.inputs, site.constant, strict=True) if not const]
    bad = [type_ for type_ in (*runtime, *site.results) if type_.dtype not in C_TYPES]
    return f"dtype {bad[0].dtype.value} has no GPU form" if bad else None


def _steps(site: Site) -> tuple[Step, ...]:
    assert isinstance(site.op, Fused)
    return site.op.steps


def writable(operand: Operand, result: Shape) -> bool:
    """Whether rows can be stored through the operand's map, in aligned vectors."""
    access = row_access(operand, result)
    return (
        access is not None and access.column == 1 and not access.guards and _aligned(access, result)
    )


def readable_step(site: Site, index: int, operand: Operand) -> bool:
    """Whether step operand `index` can be read; statistics also in runs, as a merge leaves them."""
    shape = step_shape(site, index)
    if shape == site.results[0].shape:
        return readable(operand, shape)
    runs = run_access(operand, shape)
    kinds = [step.kind for step in _steps(site) if step.operand == index]
    return runs is not None and (runs.run % 2 == 0 or "layer_rstd" not in kinds)  # whole pairs


def render_epilogue(
    op: Fused,
    inputs: tuple[Operand, ...],
    outputs: tuple[Operand, ...],
    result: Shape,
    *,
    first_output: int | None = None,
    constant: tuple[bool, ...] = (),
) -> Epilogue:
    """The functor for the steps of `op`, whose first result has shape `result`. constant: which
    inputs are known to be constants of the model.
    """
    half = outputs[0].type.dtype in (DType.FLOAT16, DType.BFLOAT16)
    writer = _Writer(half, constant or (False,) * len(inputs))
    for number, step in enumerate(op.steps):
        _step(writer, number, step, inputs, result)
    position = len(inputs) if first_output is None else first_output
    type_ = C_TYPES[outputs[0].type.dtype]
    writer.members.append(Member(f"{type_}*", "out", f"arg<{type_}>(call, {position})"))
    access = _require(row_access(outputs[0], result), outputs[0])
    aligned = "" if _aligned(access, result) else "_unaligned"
    writer.lines.append(f"write{aligned}(out + {_at(access)}, v, inside);")
    slices = 0
    if op.stats:
        slices = -(-per_image(result[-1:]) // op.stats)
        writer.members.append(Member("float*", "stats", f"arg<float>(call, {position + 1})"))
    return Epilogue(
        tuple(writer.members),
        writer.row_scale,
        tuple(writer.lines),
        _statistics(op.sums) if op.stats else "NoStatistics",
        slices,
        tuple(writer.operands),
    )


def _step(
    writer: _Writer, number: int, step: Step, inputs: tuple[Operand, ...], result: Shape
) -> None:
    if step.scales_rows:
        _row_scale(writer, step, inputs[step.operand or 0], result)
    elif step.operand is None:
        writer.lines.append(_free_step(step, writer.half))
    else:
        _operand_step(writer, number, step, inputs[step.operand], result)


def _free_step(step: Step, half: bool) -> str:
    """The statement of a step without operands."""
    if step.kind in _UNARY:
        name = (_HALF_FORMS if half else _UNARY).get(step.kind, _UNARY[step.kind])
        return f"apply<{name}>(v);"
    constant = float_text(step.values[0]) if step.values else ""
    body = _EXPRESSIONS[step.kind].format(o=constant)
    return f"transform(v, [](float x) {{ return {body}; }});"


def free_steps(steps: tuple[Step, ...], dtype: DType) -> tuple[str, ...]:
    """Statements for steps without operands, whose results are stored as `dtype`."""
    return tuple(_free_step(step, dtype in (DType.FLOAT16, DType.BFLOAT16)) for step in steps)


def _operand_step(
    writer: _Writer, number: int, step: Step, operand: Operand, result: Shape
) -> None:
    assert step.operand is not None
    access = _require(row_access(operand, result), operand)
    pointer = _pointer(writer, step.operand, operand)
    body = _EXPRESSIONS[step.kind].format(o="o")
    if access.column == 0:
        writer.lines.append(f"const float r{number} = to_float({pointer}[{access.row}]);")
        body = _EXPRESSIONS[step.kind].format(o=f"r{number}")
        writer.lines.append(f"transform(v, [=](float x) {{ return {body}; }});")
        return
    aligned = "" if _aligned(access, result) else "_unaligned"
    where = f"{pointer} + {_at(access)}"
    if not access.constant and not aligned:
        writer.operands.append(where)
    elif writer.constant[step.operand] and not aligned:
        where = f"constant({where})"
    plain = {"add": "add", "mul": "multiply"}.get(step.kind) if not aligned else None
    if plain:
        writer.lines.append(f"{plain}(v, {where});")
    else:
        functor = f"[](float x, float o) {{ return {body}; }}"
        writer.lines.append(f"combine{aligned}(v, {where}, {functor});")


def _row_scale(writer: _Writer, step: Step, operand: Operand, result: Shape) -> None:
    shape = (*result[:-1], operand.map.result[-1])
    assert step.operand is not None
    runs = run_access(operand, shape)
    if runs is None:
        raise TypeMismatch(f"statistics %{operand.value} cannot be read through {operand.map}")
    pointer = _pointer(writer, step.operand, operand)
    size, eps = step.values
    kind = _statistics(step.kind == "layer_rstd")
    guard = " && ".join(str(guard) for guard in runs.guards)
    begin = f"{guard} ? {runs.start} : -1" if guard else str(runs.start)
    aligned = gcd(runs.run, 4, runs.start.constant, *(factor for _, factor in runs.start.terms))
    writer.row_scale = (
        f"rstd<{kind}, {per_image(shape[-1:])}, {runs.run}, {aligned}>({pointer}, "
        f"[&]([[maybe_unused]] int k) {{ return {begin}; }}, 1.f / {int(size)}, {float_text(eps)})"
    )
    writer.lines.append("scale(v, row_scale);")


def _statistics(sums: bool) -> str:
    return "SquaresAndSum" if sums else "Squares"


def step_kinds(op: Fused) -> tuple[str, ...]:
    """Kinds of the fused steps as measured times are recorded for them. Statistics with sums take
    the tiles that win without them, which is assumed rather than measured.
    """
    return tuple("row_rstd" if step.scales_rows else step.kind for step in op.steps)


def _pointer(writer: _Writer, index: int, operand: Operand) -> str:
    name = f"in{index}"
    if all(member.name != name for member in writer.members):
        type_ = f"const {C_TYPES[operand.type.dtype]}"
        writer.members.append(Member(f"{type_}*", name, f"arg<{type_}>(call, {index})"))
    return name


def _at(access: RowAccess) -> str:
    return "n" if access.row == Expr() else f"{access.row} + n"


def multiples(expr: Expr, of: int) -> bool:
    """Whether the expression is a multiple of `of` whatever its variables are."""
    return expr.constant % of == 0 and all(c % of == 0 for _, c in expr.terms)


def _aligned(access: RowAccess, result: Shape) -> bool:
    # Where the columns are no multiple of the vector, kernels go element by element anyway.
    return per_image(result[-1:]) % VECTOR != 0 or multiples(access.row, VECTOR)


def _require(access: RowAccess | None, operand: Operand) -> RowAccess:
    if access is None or access.guards:
        raise TypeMismatch(f"%{operand.value} cannot be read row by row through {operand.map}")
    return access


def float_text(value: float) -> str:
    """A C++ float literal."""
    text = repr(float(value))
    return f"{text}f" if any(c in text for c in ".en") else f"{text}.f"
