"""The emulator itself: scheduling, collectives, shared memory, and the errors it reports."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from kernels.emu.emulation import FLAGS, INCLUDE, EmulationError, build

ORDERS = ("forward", "reverse", "random:3")
HEAD = """
#include "vitc/gpu/launch.h"
using namespace vitc::gpu;
"""
PROBES: dict[str, str] = {}


class Probe:
    """A kernel over (float* out, const float* in, int n). All probes are built as one source."""

    def __init__(
        self, body: str, *, threads: int = 64, grid: str = "Dim3(1)", shared: int = 1024
    ) -> None:
        self.name = f"probe{len(PROBES)}"
        PROBES[self.name] = f"""
VITC_KERNEL({threads}, 1) {self.name}(float* out, const float* in, int n) {{
  (void)out, (void)in, (void)n;
#line 1 "{self.name}"
{body.strip(chr(10))}
}}
extern "C" int run_{self.name}(void* const* args, const int64_t* sizes) {{
  return launch({{"probe", {grid}, {threads}, {shared}, nullptr}}, {self.name}, (float*)args[0],
                (const float*)args[1], int(sizes[0]));
}}
"""

    def __call__(
        self, out: np.ndarray, given: np.ndarray, n: int = 0, order: str = "forward"
    ) -> np.ndarray:
        library = build(HEAD + "".join(PROBES.values()))
        return library.run([out, given], [n], schedule=order, entry=f"run_{self.name}")[0]

    def fails(self, *parts: str, n: int = 0, out: int = 256, given: int = 64) -> None:
        """The launch fails in every order, and the message holds every part."""
        for order in ORDERS:
            with pytest.raises(EmulationError) as error:
                self(np.zeros(out, np.float32), np.zeros(given, np.float32), n, order)
            for part in ("emulated kernel probe, block (0,0,0)", *parts):
                assert part.replace("@", self.name) in str(error.value)


def floats(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.float32)


INDICES = Probe(
    "  Dim3 b = block_index(), g = grid_size();\n"
    "  out[((b.z * g.y + b.y) * g.x + b.x) * 64 + thread()] = b.x + 10 * b.y + 100 * b.z;",
    grid="Dim3(3, 2, 2)",
)


@pytest.mark.parametrize("order", ORDERS)
def test_blocks_and_threads_have_their_indices(order: str) -> None:
    out = INDICES(np.zeros(12 * 64, np.float32), floats(1), order=order)
    x, y, z = np.arange(3), np.arange(2), np.arange(2)
    want = x[None, None, :] + 10 * y[None, :, None] + 100 * z[:, None, None]
    np.testing.assert_array_equal(out.reshape(2, 2, 3, 64), want[..., None] * np.ones(64))


REDUCTION = Probe("""
  VITC_SHARED(float, partial, 2);
  float sum = warp_sum(in[thread()]);
  if (lane() == 0) partial[warp()] = sum;
  sync_block();
  out[thread()] = partial[0] + partial[1];""")


@pytest.mark.parametrize("order", ORDERS)
def test_block_reduction_through_shared_memory(order: str) -> None:
    out = REDUCTION(np.zeros(64, np.float32), floats(64), order=order)
    np.testing.assert_array_equal(out, np.full(64, 2016))


SHUFFLES = Probe("""
  float v = in[thread()];
  out[thread()] = shuffle(v, 3, n);
  out[64 + thread()] = shuffle_xor(v, 5, n);
  out[128 + thread()] = shuffle_down(v, 3, n);
  out[192 + thread()] = shuffle_up(v, 3, n);
  out[256 + thread()] = float(uint32_t(ballot(thread() % 3 == 0)) >> 8);""")


@pytest.mark.parametrize("width", [8, 32])
def test_shuffles(width: int) -> None:
    out = SHUFFLES(np.zeros(320, np.float32), floats(64), width).reshape(5, 64)
    group, place = np.divmod(np.arange(64), width)
    down, up = np.where(place + 3 < width, place + 3, place), np.where(place >= 3, place - 3, place)
    np.testing.assert_array_equal(out[0], group * width + 3)
    np.testing.assert_array_equal(out[1], group * width + (place ^ 5))
    np.testing.assert_array_equal(out[2], group * width + down)
    np.testing.assert_array_equal(out[3], group * width + up)
    votes = [sum(1 << i for i in range(32) if (w * 32 + i) % 3 == 0) >> 8 for w in range(2)]
    np.testing.assert_array_equal(out[4], np.repeat(np.float32(votes), 32))


def test_a_warp_can_have_64_lanes() -> None:
    text = f"""{HEAD}
VITC_KERNEL(128, 1) sums(float* out, const float* in) {{ out[thread()] = warp_sum(in[thread()]); }}
extern "C" int run(void* const* args, const int64_t*) {{
  return launch({{"sums", Dim3(1), 128, 0, nullptr}}, sums, (float*)args[0], (const float*)args[1]);
}}"""
    library = build(text, flags=["-DVITC_EMU_WARP=64"])
    out = library.run([np.zeros(128, np.float32), floats(128)])[0]
    np.testing.assert_array_equal(out, np.repeat(floats(128).reshape(2, 64).sum(1), 64))


FRESH = Probe(
    "  float* shared = dynamic_shared<float>();\n"
    "  VITC_SHARED(float, other, 64);\n"
    "  out[block() * 128 + thread()] = shared[thread()];\n"
    "  out[block() * 128 + 64 + thread()] = other[thread()];\n"
    "  shared[thread()] = other[thread()] = 1;",
    grid="Dim3(3)",
)


def test_shared_memory_starts_as_nan_in_every_block() -> None:
    assert np.isnan(FRESH(np.zeros(3 * 128, np.float32), floats(1))).all()


PING_PONG = Probe("""
  float* shared = dynamic_shared<float>();
  for (int step = 0; step < 3; ++step) {
    if (warp() == 0) shared[lane()] = in[step * 32 + lane()];
    sync_named(1, 64);
    if (warp() == 1) out[step * 32 + lane()] = shared[31 - lane()];
    sync_named(2, 64);
  }""")


@pytest.mark.parametrize("order", ORDERS)
def test_named_barriers_let_two_groups_meet(order: str) -> None:
    """Warp 0 hands values to warp 1 in steps."""
    out = PING_PONG(np.zeros(96, np.float32), floats(96), order=order)
    np.testing.assert_array_equal(out.reshape(3, 32), floats(96).reshape(3, 32)[:, ::-1])


ATOMIC = Probe("  atomic_add(out, in[thread()]);")


def test_atomic_add() -> None:
    assert ATOMIC(np.zeros(1, np.float32), floats(64))[0] == 2016


@pytest.mark.parametrize("native", [True, False], ids=["f16c", "portable"])
def test_half_conversions_are_exact(native: bool) -> None:
    text = f"""{HEAD}
extern "C" int run(void* const* args, const int64_t* sizes) {{
  for (int64_t i = 0; i < sizes[0]; ++i) {{
    ((half*)args[1])[i] = to_half(((float*)args[0])[i]);
    ((bfloat16*)args[2])[i] = to_bfloat16(((float*)args[0])[i]);
    ((float*)args[3])[i] = to_float(((half*)args[1])[i]);
  }}
  return 0;
}}"""
    rng = np.random.default_rng(0)
    every = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)
    ties = (every[:-1] + every[1:]) / 2
    values = np.concatenate(
        [every, ties, rng.standard_normal(4000, np.float32) * 1e-5, [7e4, -7e4]]
    )
    values = values.astype(np.float32)
    n = len(values)
    flags = [] if native else ["-mno-f16c"]
    blank = [np.zeros(n, np.uint16), np.zeros(n, np.uint16), np.zeros(n, np.float32)]
    _, half, brain, back = build(text, flags=flags).run([values, *blank], [n])
    with np.errstate(over="ignore", invalid="ignore"):
        want = values.astype(np.float16)
    finite = ~np.isnan(values)
    np.testing.assert_array_equal(half.view(np.float16)[finite], want[finite])
    np.testing.assert_array_equal(back[finite], want.astype(np.float32)[finite])
    assert np.isnan(half.view(np.float16)[~finite]).all()
    torch = pytest.importorskip("torch")
    rounded = torch.from_numpy(values).bfloat16().view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(brain[finite], rounded[finite])


DIVERGENT = Probe("  float v = 0;\n  if (lane() < 16) v = shuffle_xor(v, 1);\n  out[lane()] = v;")
TWO_PLACES = Probe("  if (lane() < 16) sync_warp();\n  else sync_warp();")
EARLY_RETURN = Probe("  if (thread() == 5) return;\n  sync_block();")
TWO_BARRIERS = Probe("  if (warp() == 0) sync_block();\n  else sync_block();")
LONELY = Probe("  if (warp() == 0) sync_named(1, 64);")
PARTIAL = Probe("  sync_warp();", threads=40)


def test_divergence() -> None:
    DIVERGENT.fails("divergent shuffle_xor", "is at exit", "(@:2)")
    TWO_PLACES.fails("divergent syncwarp", "(@:1)", "line 2")
    EARLY_RETURN.fails("divergent block barrier", "thread 5 is at exit", "(@:2)")
    TWO_BARRIERS.fails("divergent block barrier", "another, line")
    LONELY.fails("divergent named barrier", "exit", "(@:1)")
    PARTIAL.fails("syncwarp in a partial warp of 8 threads")


MISALIGNED_LOAD = Probe("  float v[4];\n  load<4>(v, in + 1);\n  out[0] = v[0];")
MISALIGNED_STORE = Probe("  float v[2] = {0, 0};\n  store<2>(out + 1, v);")


def test_misaligned_vector_access() -> None:
    MISALIGNED_LOAD.fails("load of 16 bytes at the misaligned address", "(@:2)", "thread")
    MISALIGNED_STORE.fails("store of 8 bytes at the misaligned", "(@:2)")


VECTOR_SHARED = Probe(
    "  float v[4];\n  load<4>(v, dynamic_shared<float>() + n);\n  out[0] = v[0];", shared=1000
)
PLAIN_SHARED = Probe("\n  out[0] = dynamic_shared<float>()[n + thread()];")
WRITE_SHARED = Probe("  dynamic_shared<float>()[n] = 1;")
WRITE_PADDING = Probe("  dynamic_shared<float>()[n] = 1;", shared=1000)


def test_access_outside_shared_memory() -> None:
    VECTOR_SHARED.fails("outside shared memory: offset 1008 of 1000 bytes", "(@:2)", n=252)
    PLAIN_SHARED.fails("out-of-bounds shared access", "past the end (1024 bytes)", "@:1", n=250)
    WRITE_SHARED.fails("wrote outside the 1024 bytes", n=-2)
    WRITE_PADDING.fails("wrote outside the 1000 bytes", n=251)


COPY = Probe("\n  out[thread()] = in[thread()];")
BEFORE = Probe("  out[0] = in[n];")


def test_access_outside_a_global_buffer() -> None:
    COPY.fails("illegal memory access", "past the end of args[1] (160 bytes)", "@:1)", given=40)
    COPY.fails("past the end of args[0] (128 bytes)", "@:1)", out=32)
    BEFORE.fails("4096 bytes before args[1]", "thread", n=-1024, given=1024)


NULL = Probe("  out[0] = *(const volatile float*)(size_t)(n);")
DIVISION = Probe("  out[0] = 7 / n;")
DEEP = Probe("""
  volatile float big[40000];
  for (int i = 0; i < 40000; ++i) big[i] = i;
  out[0] = big[n];""")


def test_other_faults() -> None:
    NULL.fails("illegal memory access at 0x10", "@:1)", n=16)
    DIVISION.fails("integer division by zero")
    DEEP.fails("stack overflow")


SOME_LEAVE = Probe("  if (thread() < n) return;\n  sync_block();\n  out[thread()] = 1;")


def test_a_failed_launch_leaves_the_library_usable() -> None:
    with pytest.raises(EmulationError):
        SOME_LEAVE(np.zeros(64, np.float32), floats(1), 1)
    assert SOME_LEAVE(np.zeros(64, np.float32), floats(1), 0).sum() == 64


MANY = Probe("  out[thread()] = 1;", threads=1024)


def test_a_library_at_rest_keeps_no_stacks() -> None:
    """Each takes two of the 65530 mappings that a process may have; a test run loads hundreds."""
    build(HEAD + "".join(PROBES.values()))
    maps = Path("/proc/self/maps")
    before = len(maps.read_text().splitlines())
    assert MANY(np.zeros(1024, np.float32), floats(1)).sum() == 1024
    assert len(maps.read_text().splitlines()) < before + 512


TOO_LARGE = Probe("", shared=1 << 20)


OVERLAPPING = """
import ctypes, sys
a, b = (ctypes.CDLL(path) for path in sys.argv[1:])
for first, second in ((a, b), (b, a), (a, b)):
    first.begin(), second.begin()
    first.end(), second.end()
ctypes.string_at(8)
"""


def test_launches_of_two_libraries_may_overlap(tmp_path: Path) -> None:
    text = """
      #include "vitc/emu/fault.h"
      static vitc::emu::FaultGuard* guard;
      extern "C" void begin() { guard = new vitc::emu::FaultGuard; }
      extern "C" void end() { delete guard; }
    """
    paths = [tmp_path / f"{name}.so" for name in ("first", "second")]
    source = tmp_path / "guard.cc"
    source.write_text(text)
    for path in paths:
        command = ["g++", *FLAGS, f"-I{INCLUDE}", str(source), "-o", str(path), "-ldl"]
        subprocess.run(command, check=True)
    command = [sys.executable, "-c", OVERLAPPING, *map(str, paths)]
    # Handlers that send each other the signal would go on for ever.
    assert subprocess.run(command, check=False, timeout=60).returncode == -signal.SIGSEGV


def test_impossible_launch() -> None:
    with pytest.raises(EmulationError, match="cannot launch"):
        TOO_LARGE(np.zeros(1), np.zeros(1))
