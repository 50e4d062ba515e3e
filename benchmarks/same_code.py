"""Whether two checkouts make the same machine code of the GEMMs whose times are recorded.

    python benchmarks/same_code.py BEFORE AFTER FOLDER

Records hold for the headers that were measured. Headers that changed keep them where each recorded
kernel is the same, which this compares: all tiles of benchmarks/h100/gemm.json in AFTER, rendered
by either checkout, as PTX of one compiler, from which equal machine code follows. Names are left
out, since they are of types and files, and so are the lines that say where code came from.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

FLAGS = "-std=c++17 -O3 -arch=sm_90a -ptx -diag-suppress=177 -DVITC_ISA=sm_90a"
# Runs in a checkout: one source per problem with all of its recorded tiles.
RENDER = """
import json, sys
sys.path[:0] = [".", "benchmarks"]
from gemm_sm90 import PRODUCTS, graph_text
from vitc.codegen.render import KERNEL
from vitc.codegen.select import select
from vitc.codegen.targets import find_target
from vitc.codegen.targets.gpu.sm90_gemm import problem
from vitc.codegen.targets.gpu.sm90_tiles import tile_named
from vitc.ir.text import parse_graph
wanted, sources = json.loads(sys.stdin.read()), {}
for product in PRODUCTS:
    (call,) = select(parse_graph(graph_text(product)), find_target("cuda:sm_90a", (1,))).calls
    key = problem(call.site, 1).key
    tiles = [(tile_named(name), batch) for batch, name in enumerate(wanted[key], 1)]
    sources[key] = call.kernel.render_with(call, tiles).body.replace(KERNEL, "kernel")
print(json.dumps(sources))
"""


def recorded(checkout: Path) -> dict[str, list[str]]:
    """The tiles that were timed, by problem."""
    found: dict[str, set[str]] = {}
    for result in json.loads((checkout / "benchmarks/h100/gemm.json").read_text())["results"]:
        found.setdefault(result["problem"], set()).update(result["us"].keys() - {"cublas"})
    return {problem: sorted(names) for problem, names in found.items()}


def rendered(checkout: Path, tiles: dict[str, list[str]]) -> dict[str, str]:
    """A source per problem, as the checkout makes it."""
    command = [sys.executable, "-c", RENDER]
    done = subprocess.run(
        command,
        cwd=checkout,
        input=json.dumps(tiles),
        text=True,
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(done.stdout)


def compiled(checkout: Path, source: Path, nvcc: str) -> list[str]:
    """The kernels of a source as PTX, without names."""
    ptx = source.with_suffix(".ptx")
    include = checkout / "vitc/templates/include"
    command = [nvcc, *FLAGS.split(), f"-I{include}", str(source), "-o", str(ptx)]
    subprocess.run(command, check=True)
    return kernels_of(ptx.read_text())


def kernels_of(ptx: str) -> list[str]:
    """What stands before the kernels, then each of them, without comments, places and names; names
    of the same thing stay the same.
    """
    ptx = re.sub(r"//.*|^\s*\.(?:file|loc|section)\b.*", "", ptx, flags=re.MULTILINE)
    parts: list[str] = []
    for part in re.split(r"(?=^(?:\.visible )?\.entry)", ptx, flags=re.MULTILINE):
        names: dict[str, str] = {}
        for name in re.findall(r"\b_Z\w+|\$L\w+", part):
            names.setdefault(name, f"name{len(names)}")
        text = re.sub(r"\b_Z\w+|\$L\w+", lambda match, n=names: n[match[0]], part)
        parts.append("\n".join(line.strip() for line in text.splitlines() if line.strip()))
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("folder", type=Path, help="for sources and PTX")
    parser.add_argument("--nvcc", default="nvcc")
    parser.add_argument("--only", default="", help="part of a problem's name")
    given = parser.parse_args()
    tiles = recorded(given.after)
    checkouts = {"before": given.before, "after": given.after}
    sources = {side: rendered(checkout, tiles) for side, checkout in checkouts.items()}
    equal = different = 0
    for problem, names in tiles.items():
        if given.only not in problem:
            continue
        found: list[list[str]] = []
        for side, checkout in checkouts.items():
            source = given.folder / side / f"{re.sub(r'[^a-z0-9]+', '-', problem)}.cu"
            source.parent.mkdir(parents=True, exist_ok=True)
            source.write_text(sources[side][problem])
            found.append(compiled(checkout, source, given.nvcc))
        same = [a == b for a, b in zip(*found, strict=True)]
        assert len(same) == 1 + len(names), f"{len(same) - 1} kernels of {len(names)} tiles"
        equal, different = equal + sum(same[1:]), different + same.count(False)
        print(f"{problem}: {sum(same[1:])} of {len(names)} tiles equal", flush=True)
    print(f"{equal} kernels equal, {different} different parts")
    sys.exit(different > 0 or equal == 0)


if __name__ == "__main__":
    main()
