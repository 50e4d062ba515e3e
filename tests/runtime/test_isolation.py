"""Running a library needs numpy alone: no torch, no compiler."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from runtime import gpu_toy, toy

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("device", ["cpu", "emulated"])
def test_load_without_torch_and_compilers(
    library: Path, device: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Every package but numpy and the standard library is out of reach, and every program."""
    if device == "emulated":
        library = gpu_toy.Builder(tmp_path_factory.getbasetemp(), "emulated")()
    x = toy.images()
    (tmp_path / "x.f32").write_bytes(x.tobytes())
    program = f"""
        import sys

        class Blocker:
            def find_spec(self, name, path=None, target=None):
                root = name.partition(".")[0]
                if root not in {{"vitc", "numpy"}} | sys.stdlib_module_names:
                    raise ImportError(f"{{name}} is blocked")

        sys.meta_path.insert(0, Blocker())
        import numpy as np
        from vitc.runtime import load

        with load({str(library)!r}) as module:
            x = np.fromfile({str(tmp_path / "x.f32")!r}, np.float32).reshape({x.shape})
            y, s = module(x)
            module.profile(x)
            module.save({str(tmp_path / "copy.so")!r})
            try:
                module(x.astype(np.float64))
            except Exception as error:
                assert type(error).__name__ == "InputError", error
        y.tofile({str(tmp_path / "y.f32")!r})
        assert not {{"torch", "timm", "jinja2"}} & set(sys.modules)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    subprocess.run(command, cwd=ROOT, env={"PATH": ""}, check=True)
    assert (tmp_path / "y.f32").read_bytes() == toy.expected(x).tobytes()
