"""Times GEMMs and attentions of ViT-B, Swin-T and LeViT-256 against torch on this machine.

`python tests/kernels/cpu/bench.py [threads]`. The two sides alternate, so that disturbances hit
both; the best and the median of many rounds are printed. With one thread CPU time is measured,
which other processes disturb less than wall time.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import harness as h
import numpy as np
import torch
from torch.nn import functional

GEMM = """
#include "vitc/cpu/gemm.h"
using namespace vitc;
struct Epilogue {
  const float *stats, *bias; const TYPE* residual; TYPE* out;
  static constexpr int64_t kSlice = 0;
  struct Row { float rstd; const TYPE* residual; TYPE* out; };
  VITC_INLINE Row begin(int64_t m) const {
    return {rstd<24>(stats + m * 24, 768, 1e-6f), residual + m * N, out + m * N};
  }
  template <class L> VITC_INLINE void apply(Vec x, Row& row, int64_t n, L lanes) const {
    x = x * row.rstd;
    x = x + load(bias + n, lanes);
    STEP
    store(row.out + n, x, lanes);
  }
};
using Kernel = Gemm<N, K, DenseRows<TYPE, K>, TYPE, Epilogue>;
extern "C" int VITC_SYMBOL(fn)(const Call& c) {
  return Kernel::run(c, c.batch, {arg<const TYPE>(c, 0)}, arg<const TYPE>(c, 1),
                     {arg<const float>(c, 2), arg<const float>(c, 3), arg<const TYPE>(c, 4),
                      arg<TYPE>(c, 5)});
}
extern "C" uint64_t VITC_SYMBOL(fn_scratch)(int t) { return Kernel::scratch(t); }
"""
ATTENTION = """
#include "vitc/cpu/attention.h"
using namespace vitc;
template <int64_t kStride>
struct Packed {
  static constexpr int64_t kHead = DEPTH;
  static int64_t row(int64_t b, int64_t n) { return (b * TOKENS + n) * kStride; }
};
struct Shape {
  static constexpr int64_t kHeads = HEADS, kQueries = TOKENS, kKeys = TOKENS;
  static constexpr int64_t kDim = DEPTH, kValueDim = DEPTH;
  static constexpr float kScale = 0.125f, kApart = 0, kEps = 0;
  using Query = Packed<3 * HEADS * DEPTH>;
  using Key = Query;
  using Value = Query;
  using Out = Packed<HEADS * DEPTH>;
  static constexpr bool kBias = BIASED, kFactors = false, kCosine = false;
  static constexpr int64_t kBiasHead = TOKENS * TOKENS, kBiasRow = TOKENS, kWindows = 0;
  static int64_t bias_image(int64_t) { return 0; }
  static VITC_INLINE Vec finish(Vec x) { return x; }
};
using Kernel = Attention<TYPE, Shape>;
extern "C" int VITC_SYMBOL(fn)(const Call& c) {
  const TYPE* x = arg<const TYPE>(c, 0);
  return Kernel::run(c, c.batch, x, x + HEADS * DEPTH, x + 2 * HEADS * DEPTH, arg<TYPE>(c, 1),
                     arg<const float>(c, 2), nullptr, nullptr);
}
extern "C" uint64_t VITC_SYMBOL(fn_scratch)(int t) { return Kernel::scratch(t); }
"""
STEPS = {
    "": "",
    "gelu": "x = gelu_erf(x);",
    "residual": "x = x + load(row.residual + n, lanes);",
}


def compare(
    label: str, flops: float, clock: Callable[[], float], *sides: Callable[[], object]
) -> None:
    times: list[list[float]] = [[] for _ in sides]
    end = time.perf_counter() + 2
    while time.perf_counter() < end or len(times[0]) < 5:
        for side, record in zip(sides, times, strict=True):
            start = clock()
            side()
            record.append(clock() - start)
    ours, other = (min(t[1:]) for t in times)
    medians = [float(np.median(t)) for t in times]
    print(
        f"{label:44} {ours * 1e3:8.3f} ms {flops / ours / 1e9:6.0f} GFLOP/s | "
        f"torch {other * 1e3:8.3f} ms | x{other / ours:5.2f}, "
        f"medians x{medians[1] / medians[0]:5.2f}",
        flush=True,
    )


def gemm(isa: str, dtype: str, m: int, n: int, k: int, step: str, threads: int) -> None:
    source = GEMM.replace("STEP", STEPS[step])
    library = h.KernelLibrary(source, ["fn"], isa, (f"-DTYPE={dtype}", f"-DN={n}", f"-DK={k}"))
    rng = np.random.default_rng(0)
    a, w, residual = (rng.standard_normal(s).astype(np.float32) for s in ((m, k), (n, k), (m, n)))
    stats, bias = np.full((m, 24), 32, np.float32), np.zeros(n, np.float32)
    out = h.empty((m, n), dtype)
    args = [h.cast(a, dtype), h.pack_panels(w, dtype), stats, bias, h.cast(residual, dtype), out]
    executor = h.Executor(library, threads)
    kind = torch.float32 if dtype == "float" else torch.bfloat16
    ta, tw, tb, tr = (torch.tensor(x).to(kind) for x in (a, w, bias, residual))

    def eager() -> torch.Tensor:
        y = functional.linear(ta, tw, tb)
        return functional.gelu(y) if step == "gelu" else y + tr if step == "residual" else y

    clock = time.thread_time if threads == 1 else time.perf_counter
    label = f"gemm {isa} {dtype} M={m} N={n} K={k} {step}"
    compare(label, 2.0 * m * n * k, clock, lambda: executor.run("fn", args, m), eager)
    executor.close()


def attention(
    isa: str,
    dtype: str,
    batch: int,
    heads: int,
    tokens: int,
    depth: int,
    biased: bool,
    threads: int,
) -> None:
    sizes = {"HEADS": heads, "TOKENS": tokens, "DEPTH": depth, "BIASED": int(biased)}
    flags = (f"-DTYPE={dtype}", *(f"-D{name}={size}" for name, size in sizes.items()))
    library = h.KernelLibrary(ATTENTION, ["fn"], isa, flags)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, tokens, 3, heads, depth)).astype(np.float32)
    bias = rng.standard_normal((heads, tokens, tokens)).astype(np.float32) if biased else None
    args = [h.cast(x, dtype), h.empty((batch, tokens, heads * depth), dtype), bias]
    executor = h.Executor(library, threads)
    kind = torch.float32 if dtype == "float" else torch.bfloat16
    q, k, v = torch.tensor(x).to(kind).permute(2, 0, 3, 1, 4).unbind(0)
    mask = None if bias is None else torch.tensor(bias)[None].to(kind)
    clock = time.thread_time if threads == 1 else time.perf_counter
    label = f"attention {isa} {dtype} B={batch} H={heads} N={tokens} d={depth}"
    flops = 4.0 * batch * heads * tokens * tokens * depth
    compare(
        label + biased * " bias", flops, clock, lambda: executor.run("fn", args, batch),
        lambda: functional.scaled_dot_product_attention(q, k, v, mask),
    )  # fmt: skip
    executor.close()


def main() -> None:
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    torch.set_num_threads(threads)
    available = h.isas()
    with torch.inference_mode():
        for dtype in ("float", "bf16"):
            usable = [isa for isa in available if isa != "avx512bf16" or dtype == "bf16"]
            isa = usable[-1]
            for n, k, step in ((2304, 768, ""), (768, 768, "residual"), (3072, 768, "gelu"),
                               (768, 3072, "residual")):  # fmt: skip
                for m in (197, 1576):
                    gemm(isa, dtype, m, n, k, step, threads)
            for batch in (1, 8):
                attention(isa, dtype, batch, 12, 197, 64, False, threads)
            attention(isa, dtype, 64, 3, 49, 32, True, threads)  # Swin-T's first stage
            attention(isa, dtype, 1, 4, 196, 32, True, threads)  # LeViT-256's


if __name__ == "__main__":
    main()
