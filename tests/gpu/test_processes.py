"""What needs a process of its own: faults, forks, and machines that have less installed."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
from runtime import gpu_toy, toy

ROOT = Path(__file__).parents[2]


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs Python text with the toy's helpers importable."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_fault_is_reported_and_the_process_ends(cuda_toy: gpu_toy.Builder) -> None:
    done = run(f"""
        import numpy as np
        from runtime import toy
        from vitc.errors import DeviceError
        from vitc.runtime import load

        x = toy.images()
        module = load({str(cuda_toy())!r})
        module(x)
        x.flat[0] = -2000
        for _ in range(2):
            try:
                module(x)
            except DeviceError as error:
                print(error)
        try:
            load({str(cuda_toy())!r})
        except DeviceError as error:
            print(error)
    """)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert all("illegal memory access" in line.lower() for line in lines), lines
    assert "The process must start anew" in lines[1]


def test_without_torch(cuda_toy: gpu_toy.Builder, tmp_path: Path) -> None:
    x = toy.images()
    x.tofile(tmp_path / "x.f32")
    done = run(f"""
        import sys

        class Blocker:
            def find_spec(self, name, path=None, target=None):
                root = name.partition(".")[0]
                if root not in {{"vitc", "numpy", "cuda"}} | sys.stdlib_module_names:
                    raise ImportError(f"{{name}} is blocked")

        sys.meta_path.insert(0, Blocker())
        import numpy as np
        from vitc.runtime import load

        with load({str(cuda_toy())!r}) as module:
            x = np.fromfile({str(tmp_path / "x.f32")!r}, np.float32).reshape({x.shape})
            for _ in range(3):
                module(x).y.tofile({str(tmp_path / "y.f32")!r})
        assert not {{"torch", "timm", "jinja2"}} & set(sys.modules)
    """)
    assert done.returncode == 0, done.stderr
    y = np.fromfile(tmp_path / "y.f32", np.float32).reshape(x.shape)
    np.testing.assert_array_equal(y, toy.expected(x))


def test_fork_after_use(cuda_toy: gpu_toy.Builder) -> None:
    done = run(f"""
        import os
        from runtime import toy
        from vitc.errors import DeviceError
        from vitc.runtime import load

        x = toy.images()
        module = load({str(cuda_toy())!r})
        module(x)
        child = os.fork()
        if child == 0:
            try:
                load({str(cuda_toy())!r})
            except DeviceError as error:
                print(error, flush=True)
            os._exit(3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
        module(x)
        module.close()
    """)
    assert done.returncode == 0, done.stderr
    assert "forked" in done.stdout, done.stdout


def test_no_visible_gpu(cuda_toy: gpu_toy.Builder) -> None:
    done = run(
        f"""
        from vitc.errors import DeviceError
        from vitc.runtime import load

        try:
            load({str(cuda_toy())!r})
        except DeviceError as error:
            print(error)
        """,
        CUDA_VISIBLE_DEVICES="",
    )
    assert done.returncode == 0, done.stderr
    assert "cudaErrorNoDevice" in done.stdout
    assert "CUDA_VISIBLE_DEVICES" in done.stdout
