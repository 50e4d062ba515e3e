"""Times compiled ViTs beside eager torch and torch.compile in the same run.

Nothing is timed that has not verified. Results go to a table, and for each model to a JSON file
and a PNG chart in the output folder.

    python examples/benchmark_vit.py
    python examples/benchmark_vit.py --models vit_large_patch16_384 --batch 1 8 --peers eager
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import timm
from rich.console import Console

import vitc
from vitc.bench import PEERS, bench
from vitc.report import bench_chart, bench_table
from vitc.verify import redraw


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["vit_base_patch16_224"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--target", default=None, help="as of vitc.compile; None: the best here")
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=["eager", "compile"])
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--seconds", type=float, default=10.0, help="per contender and batch")
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks"))
    options = parser.parse_args()
    console = Console()
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.models:
        model = timm.create_model(name).eval()
        redraw(model, seed=0)
        with (
            console.status(name),
            vitc.compile(
                model,
                batch=options.batch,
                target=options.target,
                dtype=options.dtype,
                name=name,
            ) as module,
        ):
            report = bench(
                module,
                model,
                batches=options.batch,
                peers=options.peers,
                threads=options.threads,
                seconds=options.seconds,
            )
        console.print(bench_table(report))
        stem = options.output / f"{name}-{report.target.replace(':', '_')}-{report.dtype}"
        stem.with_suffix(".json").write_text(json.dumps(report.to_json(), indent=1) + "\n")
        console.print(f"written: {stem}.json, {bench_chart(report, stem.with_suffix('.png'))}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
