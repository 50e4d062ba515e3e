"""Times vitc.compile, cold (an empty build cache) and cached, each in a process of its own.

    python benchmarks/compile_time.py --output benchmarks/compile_time.json
    python benchmarks/compile_time.py --model vit_tiny_patch16_224 --target cuda:sm_90a

The seconds are those of compile() alone: importing torch and timm and creating the model come
before, and are stated beside them. The machine should have nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any


def measure(model: str, target: str, dtype: str | None, batches: list[int]) -> dict[str, Any]:
    """One compilation in this process, with the cache that VITC_CACHE names."""
    start = time.perf_counter()
    import timm

    import vitc
    from vitc.bench.machine import describe_machine
    from vitc.verify import redraw

    imported = time.perf_counter()
    net = timm.create_model(model).eval()
    redraw(net, seed=0)
    created = time.perf_counter()
    module = vitc.compile(net, batch=batches, target=target, dtype=dtype)
    seconds = time.perf_counter() - created
    with module:
        report = module.report
        assert report.build is not None
        made = [item for item in (*report.build.objects, report.build.link) if not item.hit]
        return {
            "dtype": module.manifest["dtype"],
            "seconds": round(seconds, 2),
            "imports": round(imported - start, 2),
            "stages": {name: round(taken, 2) for name, taken in report.stages},
            "objects": len(report.build.objects),
            "compilers": {item.name: round(item.seconds, 2) for item in made},
            "machine": asdict(describe_machine(module.manifest)),
        }


def in_a_process(cache: str, *arguments: str) -> dict[str, Any]:
    """What `measure` returns in a new process."""
    command = [sys.executable, __file__, "--child", *arguments]
    done = subprocess.run(
        command, env=os.environ | {"VITC_CACHE": cache}, stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--target", nargs="+", default=["cuda:sm_80"])
    parser.add_argument("--dtype")
    parser.add_argument("--batch", type=int, nargs="+", default=[32])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(measure(given.model, given.target[0], given.dtype, given.batch)))
        return 0
    results: list[dict[str, Any]] = []
    for target in given.target:
        arguments = ["--model", given.model, "--target", target]
        arguments += ["--batch", *map(str, given.batch)]
        arguments += ["--dtype", given.dtype] if given.dtype else []
        with tempfile.TemporaryDirectory() as cache:
            cold = in_a_process(cache, *arguments)
            cached = in_a_process(cache, *arguments)
        machine = cold.pop("machine")
        del cached["machine"], cached["compilers"]
        about = {"model": given.model, "target": target, "batch": given.batch}
        results.append({**about, "cold": cold, "cached": cached, "machine": machine})
        print(f"{given.model} {target}: cold {cold['seconds']} s, cached {cached['seconds']} s")
        print(f"  cold {cold['stages']}\n  cached {cached['stages']}\n  {cold['compilers']}")
    if given.output:
        given.output.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
