"""Activations against float64 over their whole range, and the storage conversions."""

from __future__ import annotations

import math

import coefficients
import harness as h
import numpy as np

SOURCE = """
#include "vitc/cpu/rows.h"
using namespace vitc;
template <Vec (*kF)(Vec)> struct Apply {
  float* out;
  static constexpr int64_t kSlice = 0;
  struct Row { float* out; };
  VITC_INLINE Row begin(int64_t m) const { return {out + m * 1000}; }
  template <class L> VITC_INLINE void apply(Vec x, Row& row, int64_t n, L lanes) const {
    store(row.out + n, kF(x), lanes);
  }
};
#define ENTRY(f) \\
  static Vec call_##f(Vec x) { return f(x); } \\
  using Kernel_##f = RowWise<1000, RowOp::kNone, DenseRows<float, 1000>, Apply<call_##f>>; \\
  extern "C" int VITC_SYMBOL(k_##f)(const Call& c) { \\
    return Kernel_##f::run(c, c.batch, {arg<const float>(c, 0)}, {arg<float>(c, 1)}); \\
  } \\
  extern "C" uint64_t VITC_SYMBOL(k_##f##_scratch)(int t) { return Kernel_##f::scratch(t); }
"""


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


REFERENCE = {  # function, bound on |error| / max(1, |value|)
    "exp_": (np.exp, 3e-7),
    "gelu_erf": (lambda x: 0.5 * x * np.vectorize(math.erfc)(-x / math.sqrt(2)), 2e-7),
    "gelu_tanh": (
        lambda x: x * _sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)),
        2e-7,
    ),
    "gelu_quick": (lambda x: x * _sigmoid(1.702 * x), 2e-7),
    "silu": (lambda x: x * _sigmoid(x), 3e-7),
    "sigmoid": (_sigmoid, 2e-7),
    "tanh_": (np.tanh, 2e-7),
    "relu": (lambda x: np.maximum(x, 0), 0),
    "relu6": (lambda x: np.clip(x, 0, 6), 0),
    "hardsigmoid": (lambda x: np.clip(x / 6 + 0.5, 0, 1), 2e-7),
    "hardswish": (lambda x: x * np.clip(x / 6 + 0.5, 0, 1), 2e-7),
    "identity": (lambda x: x, 0),
}


def _library(isa: str) -> h.KernelLibrary:
    text = "".join(f"ENTRY({name})\n" for name in REFERENCE)
    return h.KernelLibrary(SOURCE + text, [f"k_{name}" for name in REFERENCE], isa)


def test_activations(isa: str) -> None:
    library = _library(isa)
    x = np.concatenate(
        [np.linspace(-12, 12, 299_000), np.linspace(-85, 85, 100_000), np.zeros(1000)]
    )
    x = x.astype(np.float32)
    for name, (function, bound) in REFERENCE.items():
        out = np.full_like(x, np.nan)
        library.run(f"k_{name}", [x, out], len(x) // 1000)
        with np.errstate(over="ignore"):
            want = function(x.astype(np.float64))
        error = np.abs(out - want) / np.maximum(1, np.abs(want))
        assert error.max() <= bound, f"{name}: {error.max():.2e} at {x[error.argmax()]}"


def test_extremes(isa: str) -> None:
    """Infinities saturate, NaN stays NaN."""
    library = _library(isa)
    x = np.zeros(1000, np.float32)
    x[:5] = [-np.inf, -1e4, 1e4, np.inf, np.nan]
    for name in REFERENCE:
        out = np.full_like(x, 7)
        library.run(f"k_{name}", [x, out], 1)
        assert np.isnan(out[4]), name
        assert not np.isnan(out[1:3]).any(), name
    library.run("k_exp_", [x, out := np.empty_like(x)], 1)
    assert out[0] < 1e-44
    assert out[3] > 1e38
    assert out[5] == 1


def test_bf16_rounds_to_nearest_even(isa: str, rng: np.random.Generator) -> None:
    source = (
        SOURCE.replace("float* out;", "bf16* out;").replace("arg<float>", "arg<bf16>")
        + "ENTRY(identity)\n"
    )
    library = h.KernelLibrary(source, ["k_identity"], isa)
    bits = rng.integers(0, 2**32, 4000, dtype=np.uint64).astype(np.uint32)
    bits[:4] = [0x3F808000, 0x3F818000, 0x7F7FFFFF, 0xFF800000]  # ties, overflow, -infinity
    x = bits.view(np.float32)
    x = np.where(np.isnan(x) | (np.abs(x) < 1e-37), np.float32(1), x)  # denormals may flush
    out = np.zeros(4000, np.uint16)
    library.run("k_identity", [x, out], 4)
    assert np.array_equal(out, h.to_bf16(x))


def test_coefficients_are_those_of_the_header() -> None:
    header = (h.INCLUDE / "vitc" / "cpu" / "math.h").read_text()
    for name, fit in (
        ("kExp2", coefficients.exp2_coefficients()),
        ("kTail", coefficients.gelu_tail_coefficients()),
    ):
        body = header.split(f"{name}[] = {{", 1)[1].split("}", 1)[0]
        written = [float(c.strip().rstrip("f")) for c in body.split(",")]
        f = np.linspace(-0.5, 0.5, 101) if name == "kExp2" else np.linspace(-1, 1, 101)
        got, want = (np.polynomial.polynomial.polyval(f, c) for c in (written, fit))
        assert np.allclose(got, want, rtol=2e-7), name
