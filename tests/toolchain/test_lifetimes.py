"""Who waits for whom in vitc/host on a GPU, on a fake runtime (fake_cuda.h); tests/gpu has more."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from runtime import gpu_toy, toy

from vitc.codegen.model_source import render_model
from vitc.codegen.toolchain import Toolchain
from vitc.runtime.payload import write_payload

HERE = Path(__file__).parent
SANITIZE = "-fsanitize=address\\,undefined,-fno-sanitize-recover=all"


@pytest.fixture(scope="module")
def program(cuda_toolchain: Toolchain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """lifetimes.cc with the toy's model and weights, under a sanitizer."""
    folder = tmp_path_factory.mktemp("lifetimes")
    (folder / "model.cc").write_text(render_model(gpu_toy.source("cuda", ["sm_80"])))
    with (folder / "toy.safetensors").open("wb") as file:
        write_payload(file, toy.constants())
    assert cuda_toolchain.cuda is not None
    command = [*cuda_toolchain.cuda.command, "-ccbin", cuda_toolchain.host.driver]
    command += ["-x=c++", "-std=c++17", "-cudart=none", "-O1", "-g"]
    command.append(f"-Xcompiler={SANITIZE}")
    command += [f"-I{toy.TEMPLATES / 'include'}", f"-I{HERE}"]
    sources = (folder / "model.cc", HERE / "lifetimes.cc")
    subprocess.run([*command, *sources, "-o", folder / "program"], check=True)
    return folder / "program"


@pytest.mark.parametrize("graphs", ["1", "0"])
@pytest.mark.parametrize("seed", range(8))
def test_lifetimes(program: Path, seed: int, graphs: str) -> None:
    command = [program, program.with_name("toy.safetensors"), str(seed)]
    done = subprocess.run(
        command,
        env={**os.environ, "VITC_GRAPHS": graphs},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "passed\n"
