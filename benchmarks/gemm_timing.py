"""Kernels of Hopper's GEMM on a GPU, built, checked against torch and timed; needs no vitc."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

INCLUDE = Path(__file__).resolve().parent.parent / "vitc" / "templates" / "include"
EPSILON = 1e-6  # of row_rstd
SLICE = 32  # columns of a sum of squares
FLAGS = "-std=c++17 -O3 -gencode=arch=compute_90a,code=sm_90a -diag-suppress=177 -DVITC_ISA=sm_90a"


class Call(ctypes.Structure):
    """vitc::Call of vitc/kernel.h."""

    _fields_ = (
        ("args", ctypes.POINTER(ctypes.c_void_p)),
        ("batch", ctypes.c_int64),
        ("scratch", ctypes.c_void_p),
        ("exec", ctypes.c_void_p),
    )


def build(folder: Path, names: list[str], jobs: int) -> tuple[dict[str, Any], list[str]]:
    """Compiles the sources to libraries; (library by name, what the compiler complained about)."""
    out = Path("/tmp/gemm_sm90")
    out.mkdir(exist_ok=True)

    def compile_one(name: str) -> str:
        library = out / f"{name}.so"
        if not library.exists():
            command = ["nvcc", *FLAGS.split(), f"-I{INCLUDE}", "-Xptxas=-warn-spills", "-shared"]
            command += ["-Xcompiler=-fPIC", "-o", str(library), str(folder / f"{name}.cu")]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0 or done.stderr.strip():
                return f"{name}: {done.stderr[:600]}"
        return ""

    with ThreadPoolExecutor(jobs) as pool:
        complaints = [text for text in pool.map(compile_one, names) if text]
    found = {n: ctypes.CDLL(str(out / f"{n}.so")) for n in names if (out / f"{n}.so").exists()}
    return found, complaints


class Buffers:
    """Operands of a product at m rows, in sets to rotate through. The result is written over the
    residual, as in a compiled model.
    """

    def __init__(self, product: dict[str, Any], m: int) -> None:
        import torch

        n, k = product["n"], product["k"]
        self.m, self.n, self.k, self.kind = m, n, k, product["kind"]
        self.dtype = torch.float16 if product["dtype"] == "f16" else torch.bfloat16
        self.weights = 2 if m > 3000 else max(2, -(-130_000_000 // (2 * n * k)))

        def normal(*shape: int) -> Any:
            return torch.randn(*shape, device="cuda").to(self.dtype)

        torch.manual_seed(m + n + k)
        self.x = [normal(m, k) for _ in range(2)]
        self.w = [
            (torch.randn(n, k, device="cuda") / k**0.5).to(self.dtype) for _ in range(self.weights)
        ]
        self.packed = [pack(w) for w in self.w]
        self.b = normal(n)
        self.r = normal(m, n)
        self.s = torch.rand(m, -(-k // SLICE), device="cuda") * 2 * SLICE
        self.y = [torch.zeros(m + 64, n, device="cuda", dtype=self.dtype) for _ in range(2)]
        self.t = torch.empty(m + 64, -(-n // SLICE), device="cuda")

    def use_integers(self) -> None:
        """Makes the first set such that a product with a bias and a residual is exact."""
        import torch

        for t in (self.x[0], self.w[0], self.r, self.b):
            t.copy_(torch.randint(-1, 2, t.shape, device="cuda"))
        self.packed[0] = pack(self.w[0])

    def arguments(self, i: int) -> list[Any]:
        """Inputs and outputs in the order of the graph's operands."""
        args = [self.x[i % 2], self.packed[i % self.weights]]
        args += [self.s] if "rstd" in self.kind else []
        args += [self.b]
        args += [self.y[i % 2]] if "residual" in self.kind else []
        args += [self.y[i % 2]]
        return args + ([self.t] if "stats" in self.kind else [])

    def reference(self) -> Any:
        import torch

        y = self.x[0].float() @ self.w[0].float().T
        if "rstd" in self.kind:
            y *= torch.rsqrt(self.s.sum(1, keepdim=True) / self.k + EPSILON)
        y += self.b.float()
        if "gelu" in self.kind:
            y = torch.nn.functional.gelu(y)
        if "hardswish" in self.kind:
            y = torch.nn.functional.hardswish(y)
        return y + self.r.float() if "residual" in self.kind else y


def pack(w: Any) -> Any:
    """pack_weight of sm90_gemm.py, on a tensor with a multiple of 32 rows."""
    n, k = w.shape
    return w.view(n // 32, 4, 4, 2, k).transpose(1, 2).reshape(n, k).contiguous()


def launcher(library: Any, buffers: Buffers, i: int) -> Callable[[], None]:
    """A call of the kernel on set i of the buffers, on torch's current stream."""
    import torch

    tensors = buffers.arguments(i)
    args = (ctypes.c_void_p * len(tensors))(*[t.data_ptr() for t in tensors])
    function = library.kernel_sm_90a

    def launch() -> None:
        stream = torch.cuda.current_stream().cuda_stream
        call = Call(ctypes.cast(args, ctypes.POINTER(ctypes.c_void_p)), buffers.m, None, stream)
        status = function(ctypes.byref(call))
        if status != 0:
            raise RuntimeError(f"launch returned {status}")

    return launch


def check(library: Any, buffers: Buffers, exact: bool = False) -> str:
    """What is wrong with a kernel's results, or "". exact: on integers."""
    import torch

    if exact:
        buffers.use_integers()
    wanted = buffers.reference()
    launch = launcher(library, buffers, 0)
    y, t, m = buffers.y[0], buffers.t, buffers.m
    first = None
    for _ in range(3):
        y.fill_(float("nan"))
        if "residual" in buffers.kind:
            y[:m] = buffers.r
        t.fill_(float("nan"))
        launch()
        torch.cuda.synchronize()
        if first is None:
            first = y.clone()
        elif not torch.equal(first[:m], y[:m]):
            return "launches differ"
    error = ((y[:m].float() - wanted).norm() / wanted.norm()).item()
    bound = 4e-4 if buffers.dtype is torch.float16 else 3e-3
    if not (error == 0 if exact else error < bound):
        return f"error {error:.2e}"
    if not y[m:].isnan().all():
        return "writes past the last row"
    if "stats" in buffers.kind:
        squares = y[:m].float().square().view(m, -1, SLICE).sum(2)
        error = ((t[:m] - squares).norm() / squares.norm()).item()
        if not error < 1e-5 or not t[m:].isnan().all():
            return f"sums of squares: error {error:.2e}"
    return ""


def capture(calls: list[Callable[[], Any]], milliseconds: float) -> tuple[Any, int]:
    """A CUDA graph that makes the calls in turn for about so long; (graph, number of calls)."""
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
        start, end = torch.cuda.Event(True), torch.cuda.Event(True)
        start.record()
        for call in calls:
            call()
        end.record()
        stream.synchronize()
    each = start.elapsed_time(end) / len(calls)
    count = min(600, max(4, int(milliseconds / max(each, 2e-3))))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(count):
            calls[i % len(calls)]()
    graph.replay()
    return graph, count


def measure(graphs: dict[str, tuple[Any, int]], rounds: int) -> dict[str, list[float]]:
    """Microseconds a call of each graph, one value a round."""
    import torch

    found: dict[str, list[float]] = {name: [] for name in graphs}
    for number in range(rounds + 1):
        for name in sorted(graphs, reverse=number % 2 == 1):
            graph, count = graphs[name]
            start, end = torch.cuda.Event(True), torch.cuda.Event(True)
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            if number > 0:  # the first round warms up
                found[name].append(start.elapsed_time(end) * 1e3 / count)
    return found


def smi(field: str) -> str:
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def nvcc_version() -> str:
    text = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    return text.split("release ")[1].split(",")[0]
