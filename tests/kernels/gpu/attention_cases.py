"""Attention cases: one pass and online, every form and term, windows, ragged lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from kernels.gpu.case import CPP, Case, compare, draw, encode, poison
from kernels.gpu.gemm_cases import FORMS, POLICY
from numpy.typing import NDArray

LOG2_E = 1.4426950408889634
APART = -5.0  # not -100: a wrong label must show, but the right ones too


@dataclass(frozen=True)
class Shape:
    queries: int
    keys: int
    head_dim: int
    value_dim: int
    block_keys: int
    warps: int = 4
    batch: int = 2
    heads: int = 2
    groups: int = 1
    resident: int = 1


@dataclass(frozen=True)
class Terms:
    """What stands beside the products. bias: none | heads | shared | masked (also -inf).

    windows: of the mask regions, 0 for none. cosine: eps is 1e-6.
    """

    bias: str = "none"
    windows: int = 0
    factors: bool = False
    cosine: bool = False


def softmax(scores: NDArray) -> NDArray:
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def unit(x: NDArray) -> NDArray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-6)


def reference(q: NDArray, k: NDArray, v: NDArray, factor: NDArray, added: NDArray) -> NDArray:
    """[B, tokens, H, d] in float64 -> [B, queries, H, dv]; factor [H, 1, 1]."""
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) * factor + added
    return np.einsum("bhqk,bkhd->bqhd", softmax(scores), v)


def heads(name: str, row: str, head: int, *, steps: str = "", guard: str = "true") -> str:
    """The functor of an operand; `row` in b and n."""
    const = "" if name == "Output" else "const "
    return f"""
struct {name} {{
  using T = {const}Element;
  static constexpr int kHead = {head};
  T* data;
  VITC_DEVICE int row([[maybe_unused]] int b, [[maybe_unused]] int n) const {{
    return {guard} ? {row} : -1;
  }}
  template <int V>
  VITC_DEVICE void steps([[maybe_unused]] float (&v)[V]) const {{
    {steps}
  }}
}};"""


def strided(name: str, tokens: int, row: int, head: int, steps: str = "") -> str:
    return heads(name, f"b * {tokens * row} + n * {row}", head, steps=steps)


def program(form: str, s: Shape, views: str, t: Terms, scale: float) -> str:
    """args: q, k, v, out, bias, labels, factors; `views` defines Query, Key, Value, Output."""
    dtype, copies = form.split()[0], "false" if "sm_75" in form else "true"
    element = CPP[dtype]
    table = "gpu::half" if encode(np.zeros(1), dtype).itemsize == 2 else "float"
    tiles = f"{-(-s.queries // 16)}, {-(-s.keys // 16)}"
    bias = f"gpu::BiasTable<{table}, {1 if t.bias == 'shared' else s.heads}, {tiles}>"
    given = {
        "Bias": (bias, f"(const {table}*)args[4]") if t.bias != "none" else None,
        "Labels": (
            (f"gpu::Regions<{t.windows}, {s.keys}>", f"(const int32_t*)args[5], {APART * LOG2_E}f")
            if t.windows
            else None
        ),
        "Factors": ("gpu::HeadFactors<float>", "(const float*)args[6]") if t.factors else None,
    }
    types = "".join(
        f"using {name} = {term[0] if term else 'gpu::Absent'};\n" for name, term in given.items()
    )
    starts = ", ".join(f"{{{term[1]}}}" if term else "{}" for term in given.values())
    return f"""
using Element = {element.replace("half", "gpu::half").replace("bfl", "gpu::bfl")};
using Tile = gpu::AttentionTile<{POLICY[form]}, {s.queries}, {s.keys}, {s.head_dim},
                                {s.value_dim}, {s.block_keys}, {s.warps}, {s.groups}, {s.resident},
                                {copies}>;
{views}
{types}extern "C" int @run@(void* const* args, const int64_t* sizes) {{
  gpu::ScoreTerms<{"true" if t.cosine else "false"}, Bias, Labels, Factors> terms{{
      {scale * LOG2_E!r}f, 1e-6f, {starts}}};
  return gpu::attention<Tile, {s.heads}>(
      "attention", nullptr, int(sizes[0]), Query{{(const Element*)args[0]}},
      Key{{(const Element*)args[1]}}, Value{{(const Element*)args[2]}}, terms,
      Output{{(Element*)args[3]}});
}}
"""


def in_lane_order(bias: NDArray) -> NDArray:
    """[H, queries, keys] -> [H, query tiles, key tiles, lane, 8], as mma leaves the scores."""
    count, queries, keys = bias.shape
    tiles = -(-queries // 16), -(-keys // 16)
    padded = np.zeros((count, tiles[0] * 16, tiles[1] * 16))
    padded[:, :queries, :keys] = bias
    table = np.empty((count, *tiles, 32, 8))
    for lane in range(32):
        for i in range(8):
            row = lane // 4 + i // 2 % 2 * 8
            column = i // 4 * 8 + lane % 4 * 2 + i % 2
            table[..., lane, i] = padded[:, row::16, column::16]
    return table


def draw_terms(s: Shape, t: Terms, dtype: str) -> tuple[list[NDArray], NDArray, NDArray]:
    """(arguments 4 to 6, factor of the products [H, 1, 1], what is added [B, H, queries, keys])."""
    rng = np.random.default_rng(24)
    bias = rng.standard_normal((1 if t.bias == "shared" else s.heads, s.queries, s.keys))
    if t.bias == "masked":
        bias[rng.random(bias.shape) < 0.4] = -np.inf
        bias[..., 0] = 0
        bias[0, 3, 1 : s.block_keys] = -np.inf  # a first block with one key
    kind = "float16" if encode(np.zeros(1), dtype).itemsize == 2 else "float32"
    table = encode(in_lane_order(bias * LOG2_E), kind)
    labels = rng.integers(0, 3, (max(t.windows, 1), s.keys)).astype(np.int32)
    factors = rng.uniform(0.5, 2, s.heads).astype(np.float32)
    added = np.zeros((s.batch, s.heads, s.queries, s.keys))
    if t.bias != "none":
        added += bias
    if t.windows:
        apart = APART * (labels[:, :, None] != labels[:, None, :])
        added += apart[np.arange(s.batch) % t.windows][:, None]
    factor = factors if t.factors else np.ones(s.heads)
    return [table, labels, factors], factor.astype(np.float64)[:, None, None], added


HARD_SWISH = "gpu::apply<gpu::HardSwish>(v);"


def attention(
    name: str,
    form: str,
    s: Shape,
    t: Terms | None = None,
    *,
    exact: bool = False,
    activation: str = "",
) -> Case:
    """q, k, v in separate [B, tokens, H, d] arrays.

    exact: all scores are equal, so every row is the mean of V, which is chosen to be exact.
    """
    t = t or Terms()
    dtype = form.split()[0]
    scale = 0.0 if exact else 1.0 if t.cosine else s.head_dim**-0.5
    qs, qv = draw((s.batch, s.queries, s.heads, s.head_dim), dtype, 21, exact=False)
    ks, kv = draw((s.batch, s.keys, s.heads, s.head_dim), dtype, 22, exact=False)
    vs, vv = draw((s.batch, s.keys, s.heads, s.value_dim), dtype, 23, exact=exact)
    if exact:  # powers of two of keys make 1 / keys exact
        assert s.keys & (s.keys - 1) == 0
    rest, factor, added = draw_terms(s, t, dtype)
    views = (
        strided("Query", s.queries, s.heads * s.head_dim, s.head_dim)
        + strided("Key", s.keys, s.heads * s.head_dim, s.head_dim)
        + strided("Value", s.keys, s.heads * s.value_dim, s.value_dim)
        + strided("Output", s.queries, s.heads * s.value_dim, s.value_dim, activation)
    )
    out = poison((s.batch, s.queries, s.heads, s.value_dim), dtype)

    def check(arrays: Sequence[NDArray]) -> None:
        q, k = (unit(qv), unit(kv)) if t.cosine else (qv, kv)
        want = reference(q, k, vv, scale * factor, added)
        if activation:
            want = want * np.clip(want + 3, 0, 6) / 6
        compare(arrays[3], want, dtype, exact=exact, factor=2)

    text = program(form, s, views, t, scale)
    return case(f"{name} {form}", text, [qs, ks, vs, out, *rest], check, s, form)


def qkv_program(form: str, s: Shape, views: str, t: Terms, scale: float) -> str:
    """The same with q, k and v in one [..., 3, H, d] array."""
    width = s.heads * s.head_dim
    text = program(form, s, views, t, scale)
    text = text.replace("(const Element*)args[1]", f"(const Element*)args[0] + {width}")
    return text.replace("(const Element*)args[2]", f"(const Element*)args[0] + {2 * width}")


def from_qkv(form: str, s: Shape) -> Case:
    """q, k and v straight from a [B, tokens, 3, H, d] matrix, out into [B, tokens, H, d]."""
    dtype = form.split()[0]
    qkv, values = draw((s.batch, s.keys, 3, s.heads, s.head_dim), dtype, 26, exact=False)
    want = reference(*np.moveaxis(values, 2, 0), np.full((1, 1, 1), 0.25), np.zeros(1))
    width = s.heads * s.head_dim
    views = "".join(
        strided(name, s.keys, 3 * width, s.head_dim) for name in ("Query", "Key", "Value")
    )
    views += strided("Output", s.keys, width, s.head_dim)

    def check(arrays: Sequence[NDArray]) -> None:
        compare(arrays[3], want, dtype, exact=False, factor=2)

    unused = np.zeros(1, np.float32)
    arrays = [qkv, unused, unused, poison((s.batch, s.keys, s.heads, s.head_dim), dtype)]
    text = qkv_program(form, s, views, Terms(), 0.25)
    return case(f"from qkv {form}", text, arrays, check, s, form)


@dataclass(frozen=True)
class Windows:
    """`side` x `side` windows over a height x width image, padded to whole ones, then rolled."""

    height: int
    width: int
    side: int
    shift: int

    @property
    def grid(self) -> tuple[int, int]:
        """Windows along each axis."""
        return -(-self.height // self.side), -(-self.width // self.side)

    def pixel(self) -> tuple[str, str]:
        """(pixel of the image behind window token (b, n), whether there is one), as C++ text."""
        rows, columns = self.grid
        side, shift = self.side, self.shift
        y = f"((b / {columns} % {rows} * {side} + n / {side} + {shift}) % {rows * side})"
        x = f"((b % {columns} * {side} + n % {side} + {shift}) % {columns * side})"
        pixel = f"((b / {rows * columns} * {self.height} + {y}) * {self.width} + {x})"
        return pixel, f"({y} < {self.height} && {x} < {self.width})"

    def split(self, image: NDArray) -> NDArray:
        """[B, height, width, ...] -> [B windows, tokens, ...]."""
        rows, columns = self.grid
        pads = [(0, 0), (0, rows * self.side - self.height), (0, columns * self.side - self.width)]
        x = np.pad(image, [*pads, *[(0, 0)] * (image.ndim - 3)])
        x = np.roll(x, (-self.shift, -self.shift), (1, 2))
        x = x.reshape(-1, rows, self.side, columns, self.side, *image.shape[3:]).swapaxes(2, 3)
        return x.reshape(-1, self.side**2, *image.shape[3:])

    def join(self, windows: NDArray) -> NDArray:
        """The way back, padding cut off."""
        rows, columns = self.grid
        x = windows.reshape(-1, rows, columns, self.side, self.side, *windows.shape[2:])
        x = x.swapaxes(2, 3).reshape(-1, rows * self.side, columns * self.side, *windows.shape[2:])
        return np.roll(x, (self.shift, self.shift), (1, 2))[:, : self.height, : self.width]


def windows(
    name: str, form: str, w: Windows, s: Shape, t: Terms | None = None, *, exact: bool = False
) -> Case:
    """Windows of a [B, height, width, 3, H, d] image, into [B, height, width, H, d].

    s.batch counts windows. exact: as in `attention`.
    """
    t = t or Terms()
    dtype = form.split()[0]
    images = s.batch // (w.grid[0] * w.grid[1])
    shape = (images, w.height, w.width, 3, s.heads, s.head_dim)
    qkv, values = draw(shape, dtype, 27, exact=exact)
    rest, factor, added = draw_terms(s, t, dtype)
    scale = 0.0 if exact else s.head_dim**-0.5
    width, (pixel, inside) = s.heads * s.head_dim, w.pixel()
    views = "".join(
        heads(which, f"{pixel} * {3 * width}", s.head_dim, guard=inside)
        for which in ("Query", "Key", "Value")
    )
    views += heads("Output", f"{pixel} * {width}", s.head_dim, guard=inside)

    def check(arrays: Sequence[NDArray]) -> None:
        q, k, v = np.moveaxis(w.split(values), 2, 0)
        q, k = (unit(q), unit(k)) if t.cosine else (q, k)
        want = w.join(reference(q, k, v, scale * factor, added))
        compare(arrays[3], want, dtype, exact=exact, factor=2)

    unused = np.zeros(1, np.float32)
    out = poison((*shape[:3], *shape[4:]), dtype)
    arrays = [qkv, unused, unused, out, *rest]
    return case(f"{name} {form}", qkv_program(form, s, views, t, scale), arrays, check, s, form)


def case(name: str, text: str, arrays: list, check: object, s: Shape, form: str) -> Case:
    flops = 2 * s.batch * s.heads * s.queries * s.keys * (s.head_dim + s.value_dim)
    arch = 75 if "sm_75" in form else 80
    header = 'vitc/gpu/attention.cuh"\n#include "vitc/gpu/epilogue.cuh'
    return Case(name, text, arrays, check, (s.batch,), arch, flops, header)


def attention_cases(form: str) -> list[Case]:
    everything = Terms("heads", 4, factors=True, cosine=True)
    return [
        attention("mean of values", form, Shape(20, 32, 32, 32, 32, 2), exact=True),
        from_qkv(form, Shape(49, 49, 32, 32, 64)),
        attention("one pass 70 keys", form, Shape(70, 70, 64, 64, 80)),
        attention("online 75 keys", form, Shape(40, 75, 64, 64, 32, 2)),
        attention("online 64 keys, whole blocks", form, Shape(16, 64, 16, 16, 16, 1)),
        attention(
            "fewer queries, d 16, dv 64, two heads a block",
            form,
            Shape(16, 49, 16, 64, 64, 1, 3, 1, 2),
            Terms("heads"),
            activation=HARD_SWISH,
        ),
        attention(
            "16 tokens, dv 128", form, Shape(16, 16, 32, 128, 16, 1, 1, 3, 4), Terms("heads")
        ),
        attention("odd head dimension 24", form, Shape(33, 50, 24, 40, 64, 2), Terms("shared")),
        attention("masks", form, Shape(49, 49, 32, 32, 64, 4, 3), Terms("masked")),
        attention("online masks", form, Shape(20, 60, 32, 32, 16, 2), Terms("masked")),
        windows(
            "mean of windows",
            form,
            Windows(7, 10, 4, 0),
            Shape(16, 16, 16, 16, 16, 1, 6, 2, 4),
            exact=True,
        ),
        windows(
            "shifted windows",
            form,
            Windows(14, 14, 7, 3),
            Shape(49, 49, 32, 32, 64, 4, 4, 1),
            Terms("heads", 4),
        ),
        windows(
            "padded, shifted, cosine",
            form,
            Windows(7, 6, 4, 1),
            Shape(16, 16, 32, 32, 16, 1, 4, 3, 4),
            everything,
        ),
        windows(
            "online windows, cosine",
            form,
            Windows(16, 8, 8, 3),
            Shape(64, 64, 32, 32, 48, 4, 2, 2),
            Terms("heads", 2, factors=True, cosine=True),
        ),
    ]


def large_attention_cases() -> list[Case]:
    """The sequences of ViT, of detection backbones and of wide windows, for one form each."""
    return [
        attention("vit 197", "float16", Shape(197, 197, 64, 64, 208, 4, 1, 1)),
        attention("vit 577", "bfloat16", Shape(100, 577, 64, 64, 64, 4, 1, 1)),
        attention("head 128", "float16", Shape(64, 144, 128, 128, 48, 4, 1, 1)),
        attention("head 80", "float16", Shape(40, 100, 80, 80, 64, 4, 1, 1), Terms("heads")),
        windows(
            "window 12",
            "float16",
            Windows(12, 12, 12, 5),
            Shape(144, 144, 32, 32, 144, 3, 1, 1),
            Terms("heads", 1),
        ),
    ]


ATTENTION_FORMS = FORMS
