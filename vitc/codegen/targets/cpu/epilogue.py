"""The steps of a fused op as the C++ functor that every row-wise CPU kernel applies."""

from __future__ import annotations

from dataclasses import dataclass, field

from vitc.codegen.access import RowAccess, row_access, run_access
from vitc.codegen.kernel import Operand, Site
from vitc.codegen.steps import readable, step_shape
from vitc.ir.op import TypeMismatch
from vitc.ir.types import DType, Shape, per_image
from vitc.ops.fused import ROW_SCALES, Fused, Step

C_TYPES = {DType.FLOAT32: "float", DType.BFLOAT16: "bf16"}

_UNARY_TEXT = {
    "gelu": "gelu_erf(x)",
    "gelu_tanh": "gelu_tanh(x)",
    "quick_gelu": "gelu_quick(x)",
    "silu": "silu(x)",
    "relu": "relu(x)",
    "hardswish": "hardswish(x)",
    "hardsigmoid": "hardsigmoid(x)",
    "sigmoid": "sigmoid(x)",
    "tanh": "tanh_(x)",
    "exp": "exp_(x)",
    "sqrt": "sqrt(x)",
    "abs": "abs(x)",
    "rsqrt": "1.0f / sqrt(x)",
    "reciprocal": "1.0f / x",
    "square": "x * x",
    "neg": "-x",
}
_BINARY_TEXT = {
    "add": "x + {o}",
    "sub": "x - {o}",
    "rsub": "{o} - x",
    "mul": "x * {o}",
    "div": "x / {o}",
    "rdiv": "{o} / x",
    "maximum": "max(x, splat({o}))",
    "minimum": "min(x, splat({o}))",
}
_CONSTANT_TEXT = {
    "scale": "x * {c}",
    "shift": "x + {c}",
    "clamp_min": "max(x, splat({c}))",
    "clamp_max": "min(x, splat({c}))",
}


@dataclass(frozen=True)
class Member:
    """A field of the functor or of its row state: C++ type, name, and how it is filled."""

    type: str
    name: str
    value: str


@dataclass(frozen=True)
class Epilogue:
    """Parameters of templates/cpu/epilogue.jinja.

    members: pointers that the functor holds, filled from the call's arguments. row: what is worked
    out once per row. lines: one statement per step. slice, parts: column width and number of the
    emitted statistics, 0 for none. sums: whether every other one is a sum.
    """

    members: tuple[Member, ...]
    row: tuple[Member, ...]
    lines: tuple[str, ...]
    slice: int
    parts: int
    sums: bool


@dataclass
class _Writer:
    members: list[Member] = field(default_factory=list[Member])
    row: list[Member] = field(default_factory=list[Member])
    lines: list[str] = field(default_factory=list[str])


def writable(operand: Operand, result: Shape) -> bool:
    """Whether rows can be stored through the operand's map."""
    access = row_access(operand, result)
    return access is not None and access.column == 1 and not access.guards


def readable_step(site: Site, index: int, operand: Operand) -> bool:
    """Whether step operand `index` can be read; statistics also in runs, as a merge leaves them."""
    shape = step_shape(site, index)
    if shape == site.results[0].shape or readable(operand, shape):
        return readable(operand, shape)
    runs = run_access(operand, shape)
    return runs is not None and not runs.guards


def refusal(site: Site) -> str | None:
    """Why the steps of the site cannot be rendered, or None."""
    assert isinstance(site.op, Fused)
    for step in site.op.steps:
        if step.kind not in {*_BINARY_TEXT, *ROW_SCALES} and lone_step(step) is None:
            return f"step {step} has no form on the CPU"
    runtime = [t for t, const in zip(site.inputs, site.constant, strict=True) if not const]
    bad = [type_ for type_ in (*runtime, *site.results) if type_.dtype not in C_TYPES]
    return f"{bad[0]} is neither float32 nor bfloat16" if bad else None


def lone_step(step: Step) -> str | None:
    """The C++ statement of a step without an operand; None when it has one, or has no form."""
    if step.kind == "pow" and step.values[0] == 2.0:
        return "x = x * x;"
    if step.kind in _CONSTANT_TEXT:
        return f"x = {_CONSTANT_TEXT[step.kind].format(c=float_text(step.values[0]))};"
    return f"x = {_UNARY_TEXT[step.kind]};" if step.kind in _UNARY_TEXT else None


def render_epilogue(
    op: Fused,
    inputs: tuple[Operand, ...],
    outputs: tuple[Operand, ...],
    result: Shape,
    *,
    first_output: int | None = None,
) -> Epilogue:
    """The functor for the steps of `op`, whose first result has shape `result`.

    Raises TypeMismatch for an operand that `readable` refuses.
    """
    writer = _Writer()
    for number, step in enumerate(op.steps):
        _step(writer, number, step, inputs, result)
    position = len(inputs) if first_output is None else first_output
    _store(writer, outputs[0], position, result, op)
    parts = 0
    if op.stats:
        parts = per_image(outputs[1].type.shape[-1:])
        writer.members.append(Member("float*", "stats", f"arg<float>(call, {position + 1})"))
        names = ("squares", "sums") if op.sums else ("squares",)
        writer.row.extend(Member("Vec", name, "Vec{}") for name in names)
    members, row, lines = tuple(writer.members), tuple(writer.row), tuple(writer.lines)
    return Epilogue(members, row, lines, op.stats, parts, op.sums)


def _step(
    writer: _Writer, number: int, step: Step, inputs: tuple[Operand, ...], result: Shape
) -> None:
    if step.operand is None:
        line = lone_step(step)
        assert line is not None, step  # `refusal` was asked
        writer.lines.append(line)
        return
    operand = inputs[step.operand]
    if step.scales_rows:
        _row_scale(writer, number, step, operand, result)
        return
    access = _require(row_access(operand, result), operand)
    pointer = _pointer(writer, step.operand, operand)
    if access.column == 0:
        writer.row.append(Member("float", f"v{number}", f"to_float({pointer}[{access.row}])"))
        value = f"row.v{number}"
    elif access.constant:
        offset = f" + {access.row.constant}" if access.row.constant else ""
        value = f"load({pointer}{offset} + n, lanes)"
    else:
        type_ = f"const {C_TYPES[operand.type.dtype]}*"
        writer.row.append(Member(type_, f"p{number}", f"{pointer} + ({access.row})"))
        value = f"load(row.p{number} + n, lanes)"
    writer.lines.append(f"x = {_BINARY_TEXT[step.kind].format(o=value)};")


def _row_scale(writer: _Writer, number: int, step: Step, operand: Operand, result: Shape) -> None:
    shape = (*result[:-1], operand.map.result[-1])
    assert step.operand is not None
    pointer = _pointer(writer, step.operand, operand)
    size, eps = step.values
    parts = per_image(shape[-1:])
    name = "layer_rstd" if step.kind == "layer_rstd" else "rstd"
    access = row_access(operand, shape)
    if access is not None and not access.guards:
        call = f"{name}<{parts}>({pointer} + ({access.row}), {int(size)}, {float_text(eps)})"
    else:
        runs = run_access(operand, shape)
        if runs is None or runs.guards:
            raise TypeMismatch(f"statistics %{operand.value} cannot be read through {operand.map}")
        start = f"[&](int64_t k) {{ return {runs.start}; }}"
        call = f"{name}<{parts}, {runs.run}>({pointer}, {start}, {int(size)}, {float_text(eps)})"
    writer.row.append(Member("float", f"v{number}", call))
    writer.lines.append(f"x = x * row.v{number};")


def _store(writer: _Writer, output: Operand, position: int, result: Shape, op: Fused) -> None:
    type_ = C_TYPES[output.type.dtype]
    access = _require(row_access(output, result), output)
    writer.members.append(Member(f"{type_}*", "out", f"arg<{type_}>(call, {position})"))
    writer.row.append(Member(f"{type_}*", "out", f"out + ({access.row})"))
    if op.stats:
        writer.lines.append("x = store(row.out + n, x, lanes);")
        writer.lines.append("row.squares = row.squares + x * x;")
        if op.sums:
            writer.lines.append("row.sums = row.sums + x;")
    else:
        writer.lines.append("store(row.out + n, x, lanes);")


def _pointer(writer: _Writer, index: int, operand: Operand) -> str:
    """The functor's pointer to input `index`; two steps may share it."""
    name = f"in{index}"
    if all(member.name != name for member in writer.members):
        type_ = f"const {C_TYPES[operand.type.dtype]}"
        writer.members.append(Member(f"{type_}*", name, f"arg<{type_}>(call, {index})"))
    return name


def _require(access: RowAccess | None, operand: Operand) -> RowAccess:
    if access is None or access.guards:
        raise TypeMismatch(f"%{operand.value} cannot be read row by row through {operand.map}")
    return access


def float_text(value: float) -> str:
    """A C++ float literal."""
    text = repr(float(value))
    return f"{text}f" if any(c in text for c in ".en") else f"{text}.0f"
