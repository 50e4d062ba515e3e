"""Attention cases: one pass and online, every form, bias, ragged lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from kernels.gpu.case import CPP, Case, compare, decode, draw, encode, poison
from kernels.gpu.gemm_cases import FORMS, POLICY
from numpy.typing import NDArray


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


def softmax(scores: NDArray) -> NDArray:
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def reference(q: NDArray, k: NDArray, v: NDArray, bias: NDArray, scale: float) -> NDArray:
    """[B, tokens, H, d] in float64 -> [B, queries, H, dv]."""
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) * scale + bias
    return np.einsum("bhqk,bkhd->bqhd", softmax(scores), v)


def program(
    form: str, s: Shape, *, views: str, bias: str, scale: float, activation: str = "Identity"
) -> str:
    """args: q, k, v, out, bias; `views` defines Q, K, V, Out as StridedHeads."""
    policy = POLICY[form]
    copies = "false" if "sm_75" in form else "true"
    return f"""
using T = {CPP[form.split()[0]].replace("half", "gpu::half").replace("bfl", "gpu::bfl")};
using Tile = gpu::AttentionTile<{policy}, {s.queries}, {s.keys}, {s.head_dim}, {s.value_dim},
                                {s.block_keys}, {s.warps}, {copies}>;
{views}
using Bias = gpu::{bias};
extern "C" int @run@(void* const* args, const int64_t* sizes) {{
  gpu::HeadsOutput<Out, gpu::{activation}> output{{{{(T*)args[3]}}}};
  Bias bias = {"{}" if bias == "NoBias" else "{(const T*)args[4]}"};
  return gpu::attention<Tile>("attention", nullptr, int(sizes[0]), {s.heads},
                              Q{{(const T*)args[0]}}, K{{(const T*)args[1]}},
                              V{{(const T*)args[2]}}, bias, output, {scale!r}f);
}}
"""


def view(name: str, const: str, tokens: int, row: int, head: int) -> str:
    return f"using {name} = gpu::StridedHeads<{const}T, {tokens * row}, {row}, {head}>;\n"


def attention(
    name: str, form: str, s: Shape, *, bias: str = "none", exact: bool = False, activation: str = ""
) -> Case:
    """q, k, v in separate [B, tokens, H, d] arrays.

    exact: all scores are equal, so every row is the mean of V, which is chosen to be exact.
    bias: none | padded (rows a multiple of 16) | tight | masked (also -inf, two classes).
    """
    dtype = form.split()[0]
    scale = 0.0 if exact else s.head_dim**-0.5
    qs, qv = draw((s.batch, s.queries, s.heads, s.head_dim), dtype, 21, exact=False)
    ks, kv = draw((s.batch, s.keys, s.heads, s.head_dim), dtype, 22, exact=False)
    vs, vv = draw((s.batch, s.keys, s.heads, s.value_dim), dtype, 23, exact=exact)
    if exact:  # powers of two of keys make 1 / keys exact
        assert s.keys & (s.keys - 1) == 0
    stride = -(-s.keys // 16) * 16 if bias in ("padded", "masked") else s.keys
    classes = 2 if bias == "masked" else 1
    raw = np.random.default_rng(24).standard_normal((classes, s.heads, s.queries, stride))
    if bias == "masked":
        hidden = np.random.default_rng(25).random(raw.shape) < 0.4
        hidden[..., 0] = False
        hidden[1, 0, 3, 1 : s.block_keys] = True  # a first block with one key
        raw[hidden] = -np.inf
    table = encode(raw, dtype)
    added = decode(table, dtype)[..., : s.keys] if bias != "none" else np.zeros((1, 1, 1, 1))
    added = added[np.arange(s.batch) % len(added)]
    want = reference(qv, kv, vv, added, scale)
    if activation:
        want = want * np.clip(want + 3, 0, 6) / 6
    views = (
        view("Q", "const ", s.queries, s.heads * s.head_dim, s.head_dim)
        + view("K", "const ", s.keys, s.heads * s.head_dim, s.head_dim)
        + view("V", "const ", s.keys, s.heads * s.value_dim, s.value_dim)
        + view("Out", "", s.queries, s.heads * s.value_dim, s.value_dim)
    )
    functor = f"TableBias<T, {classes}, {s.heads}, {s.queries}, {s.keys}, {stride}>"
    text = program(
        form,
        s,
        views=views,
        bias="NoBias" if bias == "none" else functor,
        scale=scale,
        activation=activation or "Identity",
    )
    out = poison((s.batch, s.queries, s.heads, s.value_dim), dtype)

    def check(arrays: Sequence[NDArray]) -> None:
        compare(arrays[3], want, dtype, exact=exact, factor=2)

    arrays = [qs, ks, vs, out, table]
    return case(f"{name} {form}", text, arrays, check, s, form)


def from_qkv(form: str, s: Shape) -> Case:
    """q, k and v straight from a [B, tokens, 3, H, d] matrix, out into [B, tokens, H, d]."""
    dtype = form.split()[0]
    qkv, values = draw((s.batch, s.keys, 3, s.heads, s.head_dim), dtype, 26, exact=False)
    want = reference(*np.moveaxis(values, 2, 0), np.zeros((1, 1, 1, 1)), 0.25)
    width = s.heads * s.head_dim
    views = "".join(view(x, "const ", s.keys, 3 * width, s.head_dim) for x in "QKV")
    views += view("Out", "", s.keys, width, s.head_dim)
    text = program(form, s, views=views, bias="NoBias", scale=0.25)
    text = text.replace("(const T*)args[1]", f"(const T*)args[0] + {width}")
    text = text.replace("(const T*)args[2]", f"(const T*)args[0] + {2 * width}")

    def check(arrays: Sequence[NDArray]) -> None:
        compare(arrays[3], want, dtype, exact=False, factor=2)

    unused = np.zeros(1, np.float32)
    arrays = [qkv, unused, unused, poison((s.batch, s.keys, s.heads, s.head_dim), dtype)]
    return case(f"from qkv {form}", text, arrays, check, s, form)


def case(name: str, text: str, arrays: list, check: object, s: Shape, form: str) -> Case:
    flops = 2 * s.batch * s.heads * s.queries * s.keys * (s.head_dim + s.value_dim)
    arch = 75 if "sm_75" in form else 80
    return Case(name, text, arrays, check, (s.batch,), arch, flops, "vitc/gpu/attention.cuh")


def attention_cases(form: str) -> list[Case]:
    return [
        attention("mean of values", form, Shape(20, 32, 32, 32, 32, 2), exact=True),
        from_qkv(form, Shape(49, 49, 32, 32, 64)),
        attention("one pass 70 keys", form, Shape(70, 70, 64, 64, 80)),
        attention("online 75 keys", form, Shape(40, 75, 64, 64, 32, 2)),
        attention("online 64 keys, whole blocks", form, Shape(16, 64, 16, 16, 16, 1)),
        attention(
            "fewer queries, d 16, dv 64",
            form,
            Shape(16, 49, 16, 64, 64, 1),
            bias="tight",
            activation="HardSwish",
        ),
        attention("odd head dimension 24", form, Shape(33, 50, 24, 40, 64, 2), bias="padded"),
        attention("window masks", form, Shape(49, 49, 32, 32, 64, 4, 3), bias="masked"),
        attention("online window masks", form, Shape(20, 60, 32, 32, 16, 2), bias="masked"),
    ]


def large_attention_cases() -> list[Case]:
    """The sequences of ViT and of detection backbones, for one form each."""
    return [
        attention("vit 197", "float16", Shape(197, 197, 64, 64, 208, 4, 1, 1)),
        attention("vit 577", "bfloat16", Shape(100, 577, 64, 64, 64, 4, 1, 1)),
        attention("head 128", "float16", Shape(64, 144, 128, 128, 48, 4, 1, 1)),
        attention("head 80", "float16", Shape(40, 100, 80, 80, 64, 4, 1, 1), bias="tight"),
    ]


ATTENTION_FORMS = FORMS
