"""Measures Hopper's attention on one GPU beside torch's, straight from a QKV product's output.

    python benchmarks/attention_sm90.py > attention.txt     # there; needs torch and nvcc
    python benchmarks/attention_sm90.py --warm --only "197 tokens" >> attention.txt

Configurations are those of AttentionTile in vitc/gpu/sm90/attention.cuh: keys a block, stages,
query slots, consumer warpgroups. Each is compared with torch in float32 on the first eight images,
must fill a poisoned output, give the same bits three times and after hundreds of overlapping calls,
and is then timed: a CUDA graph of calls over rotating inputs, contenders in turn, the median of
seven rounds. TF/s count 4 B H N^2 d. --warm: one set of inputs, which stays in L2 as far as it
fits, as what the QKV product has just left does in a model; else they come from memory.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
import torch.nn.functional as F
from gemm_timing import nvcc_version, smi
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

INCLUDE = Path(__file__).resolve().parent.parent / "vitc" / "templates" / "include"
SCALE = 0.125
BATCHES = (1, 8, 32, 64, 256)
MOST = 256 * 12 * 197 * 64  # elements of an operand
ROTATED = 120e6  # bytes of inputs together, two to eight of them
BOUND = 5e-3  # relative L2 error

SOURCE = """
#include "vitc/gpu/sm90/attention.cuh"
using namespace vitc::gpu;
using T = {type};
using Tile = sm90::AttentionTile<T, {tokens}, {tokens}, {depth}, {tile}>;
extern "C" int run(int batch, const T* qkv, T* out, Stream stream) {{
  constexpr int kWidth = {heads} * {depth}, kRow = 3 * kWidth, kImage = {tokens} * kRow;
  const sm90::Heads<T> q{{qkv, kRow, {depth}, kImage}}, k{{qkv + kWidth, kRow, {depth}, kImage}},
      v{{qkv + 2 * kWidth, kRow, {depth}, kImage}};
  const sm90::HeadRows<T, {tokens} * kWidth, {depth}, kWidth> rows{{out}};
  return sm90::attention<Tile>("attention", stream, batch, {heads}, q, k, v, rows, {scale}f);
}}
"""


@dataclass(frozen=True)
class Shape:
    """One attention problem: element type, tokens, heads and their dimension."""

    dtype: torch.dtype
    tokens: int
    heads: int
    depth: int

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        return f"{kind} {self.tokens} tokens, {self.heads} heads, d {self.depth}"


VIT_B = Shape(torch.float16, 197, 12, 64)
CONFIGURATIONS: dict[Shape, tuple[str, ...]] = {
    VIT_B: ("208, 3, 4, 2", "112, 4, 6, 3"),
    Shape(torch.bfloat16, 197, 12, 64): ("208, 3, 4, 2", "112, 4, 6, 3"),
    Shape(torch.float16, 577, 16, 64): ("208, 3, 4, 2", "96, 6, 6, 3", "112, 5, 6, 3"),
    Shape(torch.float16, 1370, 16, 64): ("176, 4, 4, 2", "208, 3, 4, 2", "112, 5, 6, 3"),
    Shape(torch.float16, 257, 16, 80): ("144, 2, 2, 2", "96, 3, 3, 3"),
    Shape(torch.float16, 577, 16, 128): ("144, 2, 2, 2", "80, 4, 3, 3"),
}

Kernel = Callable[[Tensor, Tensor], None]
Call = Callable[[], object]


def build(shape: Shape, tile: str, folder: Path) -> Kernel:
    """Compiles one configuration. Raises RuntimeError with what nvcc says, spills included."""
    text = SOURCE.format(
        type="half" if shape.dtype is torch.float16 else "__nv_bfloat16",
        tile=tile,
        tokens=shape.tokens,
        heads=shape.heads,
        depth=shape.depth,
        scale=SCALE,
    )
    stem = folder / f"{shape}-{tile}".replace(" ", "_").replace(",", "")
    stem.with_suffix(".cu").write_text(text)
    flags = ["-std=c++17", "-O3", "-gencode=arch=compute_90a,code=sm_90a", "-diag-suppress=177"]
    command = ["nvcc", *flags, "-Xptxas=-warn-spills", f"-I{INCLUDE}", "-shared"]
    command += ["-Xcompiler=-fPIC"]
    command += [f"{stem}.cu", "-o", f"{stem}.so"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{shape}, {tile}: {done.stderr[-600:]}")
    if "warning" in done.stderr:
        print(f"{shape}, {tile}: {done.stderr.strip()[:200]}")
    function = ctypes.CDLL(f"{stem}.so").run

    def kernel(qkv: Tensor, out: Tensor) -> None:
        stream = torch.cuda.current_stream().cuda_stream
        pointers = [ctypes.c_void_p(p) for p in (qkv.data_ptr(), out.data_ptr(), stream)]
        if status := function(len(qkv), *pointers):
            raise RuntimeError(f"{shape}, {tile}: CUDA error {status}")

    return kernel


def trouble(kernel: Kernel, qkv: Tensor, out: Tensor) -> str:
    """What is wrong with a kernel's results, or ""."""
    results: list[Tensor] = []
    for _ in range(3):
        kernel(qkv, out.fill_(float("nan")))
        results.append(out.clone())
    q, k, v = qkv[:8].float().permute(2, 0, 3, 1, 4)
    wanted = (torch.softmax(SCALE * (q @ k.mT), -1) @ v).transpose(1, 2)
    error = float((results[0][:8].float() - wanted).norm() / wanted.norm())
    if not all(torch.equal(results[0], other) for other in results[1:]):
        return "launches differ"
    # NaN fails the comparison, too; the images after the eighth are looked at here.
    good = error <= BOUND and bool(results[0].isfinite().all())
    return "" if good else f"relative error {error:.1e}"


def sdpa(qkv: Tensor, backend: SDPBackend | None) -> Tensor:
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    if backend is None:
        return F.scaled_dot_product_attention(q, k, v, scale=SCALE)
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v, scale=SCALE)


def captured(calls: Sequence[Call]) -> tuple[torch.cuda.CUDAGraph, int]:
    """A graph of about 6 ms of the calls in turn, and how many it holds."""
    start, stop = torch.cuda.Event(True), torch.cuda.Event(True)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:
            call()
        start.record()
        for call in calls:
            call()
        stop.record()
    side.synchronize()
    each = max(start.elapsed_time(stop) / len(calls), 2e-3)
    count = min(400, max(len(calls), int(6 / each)))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(count):
            calls[i % len(calls)]()
    return graph, count


def steady(graph: torch.cuda.CUDAGraph, calls: Sequence[Call], outputs: Sequence[Tensor]) -> bool:
    """Whether calls one by one and many that overlap leave the same bits."""
    for call in calls:
        call()
        torch.cuda.synchronize()
    wanted = [output.clone() for output in outputs]
    for output in outputs:
        output.fill_(float("nan"))
    for _ in range(3):
        graph.replay()
    return all(torch.equal(output, other) for output, other in zip(outputs, wanted, strict=True))


def race(graphs: dict[str, tuple[torch.cuda.CUDAGraph, int]]) -> dict[str, float]:
    """Median microseconds of one call of each."""
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(8):
        for name, (graph, count) in graphs.items():
            start, stop = torch.cuda.Event(True), torch.cuda.Event(True)
            start.record()
            graph.replay()
            stop.record()
            stop.synchronize()
            times[name].append(1e3 * start.elapsed_time(stop) / count)
    return {name: statistics.median(found[1:]) for name, found in times.items()}


def measure(shape: Shape, kernels: dict[str, Kernel], batch: int, *, warm: bool) -> None:
    elements = batch * shape.tokens * shape.heads * shape.depth
    sets = 1 if warm else max(2, min(8, int(ROTATED / (8 * elements)) + 1))
    size = (batch, shape.tokens, 3, shape.heads, shape.depth)
    inputs = [torch.randn(size, device="cuda", dtype=shape.dtype) for _ in range(sets)]
    outputs = [torch.empty_like(x[:, :, 0]) for x in inputs]
    contenders: dict[str, list[Call]] = {}
    for tile, kernel in kernels.items():
        if wrong := trouble(kernel, inputs[0], outputs[0]):
            print(f"WRONG {shape}, batch {batch}, {tile}: {wrong}")
            continue
        pairs = list(zip(inputs, outputs, strict=True))
        contenders[tile] = [lambda f=kernel, x=x, o=o: f(x, o) for x, o in pairs]
    for name, backend in (
        ("SDPA", None),
        ("flash", SDPBackend.FLASH_ATTENTION),
        ("cuDNN", SDPBackend.CUDNN_ATTENTION),
    ):
        contenders[name] = [lambda x=x, b=backend: sdpa(x, b) for x in inputs]
    graphs = {name: captured(calls) for name, calls in contenders.items()}
    for name in [name for name in contenders if name in kernels]:
        if not steady(graphs[name][0], contenders[name], outputs):
            print(f"WRONG {shape}, batch {batch}, {name}: overlapping calls differ")
            del graphs[name]
    flops = 4 * elements * shape.tokens
    shown = [f"{n}: {us:.1f} us, {flops / us / 1e6:.0f} TF/s" for n, us in race(graphs).items()]
    print(f"{shape}, batch {batch}{', warm' if warm else ''}: {' | '.join(shown)}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", default="", help="shapes whose name contains this")
    parser.add_argument("--warm", action="store_true", help="one set of inputs")
    given = parser.parse_args()
    only = given.only
    jobs = [(s, tile) for s, tiles in CONFIGURATIONS.items() for tile in tiles if only in str(s)]
    print(
        f"{torch.cuda.get_device_name()}, driver {smi('driver_version')}, nvcc {nvcc_version()},"
        f" torch {torch.__version__}, CUDA {torch.version.cuda}, {date.today().isoformat()}"
    )
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        kernels = list(pool.map(lambda job: build(job[0], job[1], Path(folder)), jobs))
        built = dict(zip(jobs, kernels, strict=True))
        for shape in dict.fromkeys(shape for shape, _ in jobs):
            mine = {tile: kernel for (s, tile), kernel in built.items() if s == shape}
            for batch in BATCHES:
                if batch * shape.tokens * shape.heads * shape.depth <= MOST:
                    measure(shape, mine, batch, warm=given.warm)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
