"""Measures Hopper's GEMM on one GPU: every tile on ViT-B's and ViT-L's products, beside cuBLAS.

    python benchmarks/gemm_sm90.py render build/gemm_sm90          # here; needs vitc, no GPU
    python benchmarks/gemm_sm90.py run build/gemm_sm90 OUTPUT      # there; needs torch and nvcc
    python benchmarks/gemm_sm90.py records OUTPUT/gemm.json        # into the package

`run` compiles the rendered kernels in parallel, compares each with torch in float32 (distinct
random inputs, poisoned outputs, ragged row counts, repeated launches), and times those that are
right. Candidates of a problem are timed in rounds, one CUDA graph each, so that all see the same
clocks; the median of the rounds counts. Below 3000 rows the weights rotate through 130 MB, as they
come from memory in a model; activations rotate through two sets. A result with a residual is
written over it, as in a model. cuBLAS is F.linear: one kernel, with the bias only.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gemm_timing import (
    EPSILON,
    SLICE,
    Buffers,
    build,
    capture,
    check,
    launcher,
    measure,
    nvcc_version,
    smi,
)

ROOT = Path(__file__).resolve().parent.parent

# What rides on each product of a compiled ViT, and what a library kernel would leave to others.
KINDS = {
    "bias": ["add"],
    "hardswish": ["add", "hardswish"],
    "rstd": ["row_rstd", "add"],
    "gelu": ["add", "gelu"],
    "rstd+gelu": ["row_rstd", "add", "gelu"],
    "residual": ["add", "add"],
    "residual+stats": ["add", "add"],
}
B, L = (197, 1576, 3152, 6304, 12608, 50432), (197, 577, 1576, 4616, 18464, 36928)
S = (197, 1576, 6304, 50432)


@dataclass(frozen=True)
class Product:
    """[m, k] x [n, k]^T for each m of `rows`, with the steps of a kind."""

    name: str
    n: int
    k: int
    kind: str
    rows: tuple[int, ...]
    dtype: str = "f16"

    @property
    def key(self) -> str:
        return f"{self.name}-{self.kind}-{self.dtype}".replace("+", "_")


def block(name: str, c: int, rows: tuple[int, ...]) -> list[Product]:
    """The four products of a transformer block of c channels."""
    return [
        Product(f"{name}.qkv", 3 * c, c, "rstd", rows),
        Product(f"{name}.proj", c, c, "residual+stats", rows),
        Product(f"{name}.fc1", 4 * c, c, "rstd+gelu", rows),
        Product(f"{name}.fc2", c, 4 * c, "residual+stats", rows),
    ]


def levit(name: str, c: int, qkv: int, rows: tuple[int, ...]) -> list[Product]:
    """The products of a LeViT stage: its normalisations are folded into the weights."""
    return [
        Product(f"{name}.qkv", qkv, c, "bias", rows),
        Product(f"{name}.proj", c, qkv // 2, "residual", rows),
        Product(f"{name}.fc1", 2 * c, c, "hardswish", rows),
        Product(f"{name}.fc2", c, 2 * c, "residual", rows),
    ]


PRODUCTS = [
    *block("B", 768, (*B, 49)),  # ViT-B, and the last stage of Swin-T
    *block("L", 1024, L),
    *block("S", 384, S),
    *block("Swin96", 96, (3136, 100352)),
    *block("Swin192", 192, (784, 25088)),
    *levit("LeViT384", 384, 768, (196, 3136, 50176)),
    *levit("LeViT768", 768, 1536, (16, 256, 4096)),
    Product("B.proj", 768, 768, "bias", (12608, 50432)),
    Product("B.fc1", 3072, 768, "bias", (6304, 50432)),
    Product("B.fc1", 3072, 768, "rstd+gelu", (1576, 12608, 50432), "bf16"),
    Product("B.fc2", 768, 3072, "residual+stats", (1576, 12608, 50432), "bf16"),
]


# ---- render --------------------------------------------------------------------------------------


def graph_text(product: Product) -> str:
    n, k, t = product.n, product.k, product.dtype
    slices = -(-k // SLICE)
    inputs, steps = [f"%x: {t}[B,{k}]"], []
    operands = ["%x", "%w"]
    for i, kind in enumerate(KINDS[product.kind]):
        if kind == "row_rstd":
            inputs.append(f"%s: f32[B,{slices}]")
            steps.append(f"row_rstd(${len(operands)}, {float(k)}, {EPSILON})")
            operands.append("%s")
        elif kind == "add" and "%b" in operands:
            inputs.append(f"%r: {t}[B,{n}]")
            steps.append(f"add(${len(operands)})")
            operands.append("%r")
        elif kind == "add":
            steps.append(f"add(${len(operands)})")
            operands.append("%b")
        else:
            assert i > 0
            steps.append(kind)
    stats = f", stats={SLICE}" if "stats" in product.kind else ""
    results = "%y, %t" if stats else "%y"
    return (
        f"graph g({', '.join(inputs)}) {{\n  weight %w: {t}[{n},{k}]\n  weight %b: {t}[{n}]\n"
        f"  {results} = linear({', '.join(operands)}) {{steps=[{', '.join(steps)}]{stats}}}\n"
        f"  return {results}\n}}\n"
    )


def render(folder: Path) -> None:
    """Writes one source per product and tile, and the list of them."""
    sys.path.insert(0, str(ROOT))
    from vitc.codegen.records import kernel_digest
    from vitc.codegen.render import KERNEL
    from vitc.codegen.select import select
    from vitc.codegen.targets import find_target
    from vitc.codegen.targets.gpu.sm90_gemm import Sm90Gemm, problem
    from vitc.codegen.targets.gpu.sm90_tiles import TILES, choose_tile, tile_choice
    from vitc.ir.text import parse_graph

    folder.mkdir(parents=True, exist_ok=True)
    entries: list[dict[str, Any]] = []
    digest = ""
    for product in PRODUCTS:
        graph = parse_graph(graph_text(product))
        target = find_target("cuda:sm_90a", (1,))
        (call,) = select(graph, target).calls
        kernel = call.kernel
        assert isinstance(kernel, Sm90Gemm)
        key = problem(call.site, 1)
        digest = kernel_digest(tile_choice(key, 132).headers)
        chosen = {
            m: choose_tile(problem(call.site, m), kernel.tuning.arch.multiprocessors).name
            for m in product.rows
        }
        texts: dict[str, tuple[str, list[int]]] = {}
        names = {m: tile_choice(problem(call.site, m), 132).names for m in product.rows}
        for tile in TILES:
            rows = [m for m in product.rows if tile.name in names[m]]
            if rows:
                texts[tile.name] = (kernel.render_with(call, [(tile, 1 << 30)]).body, rows)
        for name, (text, rows) in texts.items():
            stem = f"{product.key}-{name}"
            (folder / f"{stem}.cu").write_text(text.replace(KERNEL, "kernel"))
            entries.append({"product": product.key, "tile": name, "source": stem, "rows": rows})
        print(f"{product.key}: {len(texts)} tiles; the model chooses {chosen}")
        for entry in entries:
            if entry["product"] == product.key:
                entry["problem"] = key.key
                entry["chosen"] = chosen
    content = {
        "kernel": digest,
        "products": [asdict(p) for p in PRODUCTS],
        "entries": entries,
    }
    (folder / "entries.json").write_text(json.dumps(content, indent=1))


# ---- run -----------------------------------------------------------------------------------------


def matches(only: str, key: str) -> bool:
    return any(word in key for word in only.split(","))


def problems(content: dict[str, Any], only: str) -> Iterator[tuple[dict[str, Any], str, int]]:
    for product in content["products"]:
        key = f"{product['name']}-{product['kind']}-{product['dtype']}".replace("+", "_")
        if matches(only, key):
            for m in product["rows"]:
                yield product, key, m


def spread(times: dict[str, list[float]]) -> float:
    """How far rounds of one candidate lie apart, at most, as a part of the shortest."""
    return max(max(values) / min(values) for values in times.values()) - 1


def undisturbed(graphs: dict[str, Any]) -> dict[str, list[float]]:
    """Times of seven rounds, once more if something came between them."""
    times = measure(graphs, 7)
    return times if spread(times) <= 0.5 else measure(graphs, 7)


def run(folder: Path, output: Path, only: str, jobs: int) -> None:
    """Builds, checks and times; writes gemm.json and prints a table."""
    import torch
    import torch.nn.functional as F

    content = json.loads((folder / "entries.json").read_text())
    entries = [e for e in content["entries"] if matches(only, e["product"])]
    began = time.time()
    libraries, complaints = build(folder, [e["source"] for e in entries], jobs)
    print(f"built {len(libraries)} of {len(entries)} in {time.time() - began:.0f} s")
    for text in complaints:
        print("COMPILER", text)
    torch.backends.cuda.matmul.allow_tf32 = False
    results: list[dict[str, Any]] = []
    wrong: list[str] = []
    for product, key, m in problems(content, only):
        mine = [e for e in entries if e["product"] == key and m in e["rows"]]
        mine = [e for e in mine if e["source"] in libraries]
        for rows, exact in ((m, False), (1, False), (333, False), (333, True)):
            if rows != m and m != product["rows"][0]:
                continue
            if exact and not set(KINDS[product["kind"]]) <= {"add"}:
                continue
            buffers = Buffers(product, rows)
            for entry in mine if rows == m else [e for e in entries if e["product"] == key]:
                if entry["source"] not in libraries:
                    continue
                library = libraries[entry["source"]]
                trouble = check(library, buffers, exact)
                if trouble:
                    wrong.append(f"{entry['source']} at {rows} rows: {trouble}")
                    print("WRONG", wrong[-1], flush=True)
                    libraries.pop(entry["source"])
        buffers = Buffers(product, m)
        calls = {
            e["tile"]: [
                launcher(libraries[e["source"]], buffers, i) for i in range(buffers.weights)
            ]
            for e in mine
            if e["source"] in libraries
        }

        def linear(i: int, b: Buffers = buffers) -> Callable[[], Any]:
            return lambda: F.linear(b.x[i % 2], b.w[i % b.weights], b.b)

        calls["cublas"] = [linear(i) for i in range(buffers.weights)]
        graphs = {name: capture(list_, 5.0) for name, list_ in calls.items()}
        times = undisturbed(graphs)
        medians = {name: statistics.median(values) for name, values in times.items()}
        tflops = 2e-6 * m * product["n"] * product["k"]
        order = sorted(medians, key=lambda name: medians[name])
        fastest = next(name for name in order if name != "cublas")
        chosen = next(e["chosen"] for e in entries if e["product"] == key)[str(m)]
        results.append(
            {
                **product,
                "m": m,
                "problem": mine[0]["problem"],
                "us": {name: round(value, 3) for name, value in medians.items()},
                "spread": round(spread(times), 3),
                "fastest": fastest,
                "model_choice": chosen,
            }
        )
        ratio = medians["cublas"] / medians[fastest]
        print(
            f"{key} m={m} cublas {medians['cublas']:.1f} us, best x{ratio:.2f} | "
            + " ".join(f"{n} {medians[n]:.1f} ({tflops / medians[n]:.0f})" for n in order[:7])
            + f" | model {chosen} {medians.get(chosen, 0):.1f}",
            flush=True,
        )
        del graphs, calls, buffers
    about = {
        "device": torch.cuda.get_device_name(),
        "driver": smi("driver_version"),
        "power_limit_w": smi("power.limit"),
        "toolkit": nvcc_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "date": time.strftime("%Y-%m-%d"),
        "kernel": content["kernel"],
        "wrong": wrong,
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / "gemm.json").write_text(json.dumps({**about, "results": results}, indent=1))
    print(f"{len(wrong)} wrong; {time.time() - began:.0f} s")


# ---- records -------------------------------------------------------------------------------------


def records(path: Path) -> None:
    """Adds the times to those that the package ships, by which tiles are chosen."""
    sys.path.insert(0, str(ROOT))
    from vitc.codegen.records import SHIPPED, Measured, store
    from vitc.codegen.targets.gpu.sm90_tiles import TILES

    tiles = {tile.name for tile in TILES}
    data = json.loads(path.read_text())
    measured = [
        Measured(
            "sm90_gemm",
            r["problem"],
            r["m"],
            {n: t for n, t in r["us"].items() if n in tiles},
        )
        for r in data["results"]
    ]
    about = {"device": data["device"], "arch": "sm_90a"}
    about |= {name: data[name] for name in ("toolkit", "date")}
    store(SHIPPED / "h100.json", about, {"sm90_gemm": data["kernel"]}, measured)
    print(f"{len(measured)} problems in {SHIPPED / 'h100.json'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    rendering = commands.add_parser("render")
    rendering.add_argument("folder", type=Path)
    running = commands.add_parser("run")
    running.add_argument("folder", type=Path)
    running.add_argument("output", type=Path)
    running.add_argument("--only", default="", help="words, one of which a product's name contains")
    running.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    recording = commands.add_parser("records")
    recording.add_argument("json", type=Path)
    given = parser.parse_args()
    if given.command == "render":
        render(given.folder)
    elif given.command == "run":
        run(given.folder, given.output, given.only, given.jobs)
    else:
        records(given.json)


if __name__ == "__main__":
    main()
