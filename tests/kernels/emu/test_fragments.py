"""Lane layouts of mma, ldmatrix and cp.async, against the tables of the PTX ISA."""

from __future__ import annotations

import numpy as np
import pytest
from kernels.emu.emulation import EmulationError, build

# Each lane loads its registers from, and stores them to, [lane][register] arrays.
PROGRAM = """
#include "vitc/gpu/launch.h"
#include "vitc/gpu/ptx.h"
using namespace vitc::gpu;

template <int kA, int kB,
          void (*kMma)(float (&)[4], const uint32_t (&)[kA], const uint32_t (&)[kB])>
VITC_KERNEL(32, 1) mma_kernel(float* d, const uint32_t* a, const uint32_t* b) {
  uint32_t fa[kA], fb[kB];
  float fd[4];
  for (int i = 0; i < kA; ++i) fa[i] = a[lane() * kA + i];
  for (int i = 0; i < kB; ++i) fb[i] = b[lane() * kB + i];
  for (int i = 0; i < 4; ++i) fd[i] = d[lane() * 4 + i];
  kMma(fd, fa, fb);
  for (int i = 0; i < 4; ++i) d[lane() * 4 + i] = fd[i];
}
#define MMA(name, ka, kb)                                                                     \\
  VITC_DEVICE void call_##name(float (&d)[4], const uint32_t (&a)[ka], const uint32_t (&b)[kb]) { \\
    name(d, a, b);                                                                            \\
  }                                                                                           \\
  extern "C" int run_##name(void* const* args, const int64_t*) {                              \\
    return launch({#name, Dim3(1), 32, 0, nullptr}, mma_kernel<ka, kb, call_##name>,          \\
                  (float*)args[0], (const uint32_t*)args[1], (const uint32_t*)args[2]);       \\
  }
MMA(mma_f16_k16, 4, 2)
MMA(mma_bf16_k16, 4, 2)
MMA(mma_f16_k8, 2, 1)
MMA(mma_tf32_k8, 4, 2)
MMA(mma_tf32_k4, 2, 1)

// out: [lane][1 + 2 + 4 + 2 + 4] registers of x1, x2, x4, x2.trans, x4.trans
// in: 32 rows of 8 halves
VITC_KERNEL(32, 1) ldmatrix_kernel(uint32_t* out, const uint16_t* in) {
  uint16_t* rows = dynamic_shared<uint16_t>();
  for (int i = lane(); i < 256; i += 32) rows[i] = in[i];
  sync_warp();
  uint32_t x1[1], x2[2], x4[4], x2t[2], x4t[4];
  const uint16_t* row = rows + lane() * 8;
  ldmatrix_x1(x1, row);
  ldmatrix_x2(x2, row);
  ldmatrix_x4(x4, row);
  ldmatrix_x2_trans(x2t, row);
  ldmatrix_x4_trans(x4t, row);
  uint32_t* to = out + lane() * 13;
  to[0] = x1[0];
  for (int i = 0; i < 2; ++i) to[1 + i] = x2[i], to[7 + i] = x2t[i];
  for (int i = 0; i < 4; ++i) to[3 + i] = x4[i], to[9 + i] = x4t[i];
}
extern "C" int run_ldmatrix(void* const* args, const int64_t*) {
  return launch({"ldmatrix", Dim3(1), 32, 512, nullptr}, ldmatrix_kernel, (uint32_t*)args[0],
                (const uint16_t*)args[1]);
}

// Three groups of copies; what is visible after each wait. n = groups allowed in flight at first.
VITC_KERNEL(32, 1) copy_kernel(float* out, const float* in, int kept, int misplaced) {
  float* shared = dynamic_shared<float>();
  for (int group = 0; group < 3; ++group) {
    async_copy_16(shared + (group * 32 + lane()) * 4 + misplaced, in + (group * 32 + lane()) * 4,
                  lane() < 30);
    async_copy_commit();
  }
  if (kept == 2) async_copy_wait<2>();
  if (kept == 1) async_copy_wait<1>();
  if (kept == 0) async_copy_wait<0>();
  sync_warp();
  for (int i = lane(); i < 384; i += 32) out[i] = shared[i];
  sync_warp();
  if (misplaced != -4) async_copy_wait<0>();
}
extern "C" int run_copy(void* const* args, const int64_t* sizes) {
  return launch({"copy", Dim3(1), 32, 384 * 4, nullptr}, copy_kernel, (float*)args[0],
                (const float*)args[1], int(sizes[0]), int(sizes[1]));
}
"""
G, T = np.divmod(np.arange(32), 4)


def bits_of(values: np.ndarray, kind: str) -> np.ndarray:
    if kind == "f16":
        return values.astype(np.float16).view(np.uint16)
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def check_mma_16(kind: str, k: int) -> None:
    rng = np.random.default_rng(1)
    a, b = rng.integers(-8, 9, (16, k)), rng.integers(-8, 9, (k, 8))
    d = rng.integers(-8, 9, (16, 8)).astype(np.float32)
    ab, bb = bits_of(a, kind).astype(np.uint32), bits_of(b, kind).astype(np.uint32)
    # Register r of a: row g + 8 (r % 2), k = 2t + 8 (r / 2); low half first.
    fa = [
        ab[G + 8 * (r % 2), 2 * T + r // 2 * 8] | ab[G + 8 * (r % 2), 2 * T + 1 + r // 2 * 8] << 16
        for r in range(k // 4)
    ]
    fb = [bb[2 * T + 8 * r, G] | bb[2 * T + 1 + 8 * r, G] << 16 for r in range(k // 8)]
    out = run_mma(f"mma_{kind}_k{k}", d, fa, fb)
    np.testing.assert_array_equal(out, d + a @ b)


def check_mma_tf32(k: int) -> None:
    rng = np.random.default_rng(2)
    a = rng.integers(-8, 9, (16, k)).astype(np.float32)
    b = rng.integers(-8, 9, (k, 8)).astype(np.float32)
    d = rng.integers(-8, 9, (16, 8)).astype(np.float32)
    # The 13 low bits of a register do not count.
    ab, bb = a.view(np.uint32) | 0x1FFF, b.view(np.uint32) | 0x155
    fa = [ab[G + 8 * (r % 2), T + 4 * (r // 2)] for r in range(k // 2)]
    fb = [bb[T + 4 * r, G] for r in range(k // 4)]
    np.testing.assert_array_equal(run_mma(f"mma_tf32_k{k}", d, fa, fb), d + a @ b)


def run_mma(name: str, d: np.ndarray, fa: list[np.ndarray], fb: list[np.ndarray]) -> np.ndarray:
    """D as a matrix: lane (g, t) holds (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)."""
    rows, columns = np.stack([G, G, G + 8, G + 8], 1), np.stack([2 * T, 2 * T + 1] * 2, 1)
    registers = [np.stack(fa, 1).astype(np.uint32), np.stack(fb, 1).astype(np.uint32)]
    lanes = build(PROGRAM).run([d[rows, columns], *registers], entry=f"run_{name}")[0]
    out = np.empty_like(d)
    out[rows, columns] = lanes
    return out


def check_ldmatrix() -> None:
    rows = np.arange(256, dtype=np.uint16).reshape(4, 8, 8)
    library = build(PROGRAM)
    out = library.run([np.zeros((32, 13), np.uint32), rows], entry="run_ldmatrix")[0]
    plain = rows[:, G, 2 * T].astype(np.uint32) | rows[:, G, 2 * T + 1].astype(np.uint32) << 16
    turned = rows[:, 2 * T, G].astype(np.uint32) | rows[:, 2 * T + 1, G].astype(np.uint32) << 16
    for first, count, want in (
        (0, 1, plain),
        (1, 2, plain),
        (3, 4, plain),
        (7, 2, turned),
        (9, 4, turned),
    ):
        np.testing.assert_array_equal(out[:, first : first + count], want[:count].T)


@pytest.mark.parametrize(("kind", "k"), [("f16", 16), ("bf16", 16), ("f16", 8)])
def test_mma_of_16_bit_types(kind: str, k: int) -> None:
    check_mma_16(kind, k)


@pytest.mark.parametrize("k", [8, 4])
def test_mma_of_tf32(k: int) -> None:
    check_mma_tf32(k)


def test_ldmatrix() -> None:
    check_ldmatrix()
    statistics = build(PROGRAM).statistics
    assert (statistics.ldmatrix, statistics.ldmatrix_conflicts) == (13, 0)


@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_async_copies_land_at_the_wait_that_promises_them(kept: int) -> None:
    given = np.arange(384, dtype=np.float32)
    out = build(PROGRAM).run([np.zeros(384, np.float32), given], [kept, 0], entry="run_copy")[0]
    landed = 128 * (3 - kept)
    want = given.reshape(3, 32, 4).copy()
    want[:, 30:] = 0
    np.testing.assert_array_equal(out[:landed], want.reshape(-1)[:landed])
    assert np.isnan(out[landed:]).all()


def test_async_copy_errors() -> None:
    arrays = [np.zeros(384, np.float32), np.zeros(384, np.float32)]
    for kept, misplaced, message in (
        (0, 1, "cp.async of 16 bytes at the misaligned address"),
        (0, 4, "cp.async of 16 bytes outside shared memory: offset 1536 of 1536 bytes"),
        (2, -4, "outside shared memory: offset -16"),
    ):
        with pytest.raises(EmulationError, match=message):
            build(PROGRAM).run(arrays, [kept, misplaced], entry="run_copy")
