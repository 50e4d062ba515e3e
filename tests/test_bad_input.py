"""What goes wrong in compile(): a clear error, before any work where that can be, and no leftovers.

Wrong tensors, damaged libraries and weights that do not fit: see tests/runtime.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import vitc
import vitc.frontend
from vitc.errors import CompileError, InputError, StorageError

SIZE = 8


class Small(nn.Module):
    """One convolution and one product: two kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, 4)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(x).flatten(2).mean(2))


def small() -> nn.Module:
    torch.manual_seed(0)
    return Small().eval()


def compile_small(**options: Any) -> vitc.CompiledModule:
    return vitc.compile(
        small(), **{"batch": 2, "image_size": SIZE, "target": "cpu:avx2", **options}
    )


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files, one's own, to see what stays in it."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def no_import(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model must not be touched: exporting takes seconds to minutes."""

    def fail(*_: object, **__: object) -> None:
        pytest.fail("the model was imported before the arguments were checked")

    monkeypatch.setattr(vitc.frontend, "import_model", fail)


@pytest.mark.usefixtures("no_import")
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"target": "tpu"}, "unknown target 'tpu'"),
        ({"target": "cpu:sse2"}, "'cpu:sse2' is no CPU target"),
        ({"target": "cpu:"}, "no CPU target"),
        ({"target": "cuda:sm_70"}, "no kernels for sm_70"),
        ({"dtype": "float9"}, "dtype: .*float9"),
        ({"dtype": "float16"}, "dtype float16 is not for this target\n.*float32, bfloat16"),
        ({"input_dtype": "int8"}, "input_dtype int8"),
        ({"output_dtype": "bfloat16"}, "output_dtype bfloat16"),
        ({"weights": "beside"}, "weights is 'beside'"),
        ({"disable": {"sink_row"}}, "cannot disable 'sink_row'(.|\n)*known: sink_rows"),
        ({"disable": "nosuch"}, "cannot disable 'nosuch'"),
        ({"batch": 0}, "batch is 0"),
        ({"batch": -1}, "batch is -1"),
        ({"batch": []}, r"batch is \[\]"),
        ({"batch": [1, 0]}, r"batch is \[1, 0\]"),
        ({"batch": True}, "batch is True"),
        ({"batch": 2.0}, "batch is 2.0"),
        ({"batch": "8"}, "batch is '8'"),
        ({"batch": None}, "batch is None"),
        ({"jobs": -1}, "jobs is -1"),
    ],
)
def test_arguments_are_checked_before_any_work(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        compile_small(**options)


@pytest.mark.usefixtures("no_import")
@pytest.mark.parametrize("size", [0, -8, (8, 0), (8,), (8, 8, 8), 8.0, "8"])
def test_image_sizes_that_are_none(size: Any) -> None:
    with pytest.raises(InputError, match="image_size is"):
        compile_small(image_size=size)


@pytest.mark.usefixtures("no_import")
@pytest.mark.parametrize("name", ["a/b", "..", "", "two words", 'quo"te', "line\nbreak", "end\n"])
def test_names_that_would_be_other_files(name: str) -> None:
    with pytest.raises(InputError, match="name is"):
        compile_small(name=name)


@pytest.mark.usefixtures("no_import")
@pytest.mark.parametrize("model", [None, 3, nn.Linear, {}])
def test_what_is_no_model(model: Any) -> None:
    with pytest.raises(InputError, match="is no model"):
        vitc.compile(model, batch=1, target="cpu")


@pytest.mark.usefixtures("no_import")
@pytest.mark.parametrize("chosen", [None, "no-such-compiler"])
def test_no_compiler(
    chosen: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    if chosen is not None:
        monkeypatch.setenv("CXX", chosen)
    monkeypatch.setattr("vitc.codegen.toolchain._distribution", lambda _: {"debian"})
    with pytest.raises(CompileError, match=r"no usable c\+\+ compiler") as caught:
        compile_small(output=tmp_path / "a.so")
    assert "apt-get install g++" in str(caught.value)
    assert (chosen or "g++ 11") in str(caught.value)
    assert not (tmp_path / "a.so").exists()
    assert list(temporary.glob("vitc-*")) == []


@pytest.mark.usefixtures("no_import")
def test_output_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is a folder\n.*model\.so"):
        compile_small(output=tmp_path)


@pytest.mark.usefixtures("no_import")
def test_output_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        compile_small(output=tmp_path / "file" / "a.so")


@pytest.mark.usefixtures("no_import")
def test_output_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    access = os.access
    # Root may write anywhere, so the answer is made up.
    monkeypatch.setattr(
        "vitc.options.os.access", lambda path, mode: mode != os.W_OK and access(path, mode)
    )
    with pytest.raises(StorageError, match="no permission"):
        compile_small(output=tmp_path / "new" / "a.so")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("weights", ["embedded", "external"])
def test_a_full_disk_leaves_the_old_library(
    weights: Any, tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/dev/full answers every write with ENOSPC."""
    output = tmp_path / "out" / "a.so"
    output.parent.mkdir()
    output.write_bytes(b"as it was")

    def full(path: Path, mode: int) -> tuple[int, bool]:
        if path.parent == output.parent:
            return os.open("/dev/full", os.O_RDWR), True
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode), False

    monkeypatch.setattr("vitc.runtime.files._create", full)
    with pytest.raises(StorageError, match="No space left"):
        compile_small(output=output, weights=weights)
    assert output.read_bytes() == b"as it was"
    assert list(output.parent.iterdir()) == [output]
    assert list(temporary.glob("vitc-*")) == []


def test_dump_dir_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot write to .*file/dump"):
        compile_small(dump_dir=tmp_path / "file" / "dump")


def test_a_failing_compiler_is_quoted(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", str(compiler(tmp_path, "echo 'kernel.cc:1: error: broken'; exit 1")))
    monkeypatch.setenv("VITC_CACHE", str(tmp_path / "cache"))
    with pytest.raises(CompileError, match="error: broken") as caught:
        compile_small(output=tmp_path / "a.so")
    assert caught.value.log is not None
    assert caught.value.log.is_file()
    assert caught.value.command is not None
    assert not (tmp_path / "a.so").exists()
    assert list(temporary.glob("vitc-*")) == []


INTERRUPTED = """
import signal, sys, tempfile
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where jobs run in the background
sys.path.insert(0, sys.argv[1])
from test_bad_input import compile_small
folder = Path(sys.argv[2])
tempfile.tempdir = str(folder / "temporary")
try:
    compile_small(output=folder / "a.so", jobs=2)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def test_an_interrupt_stops_the_compilers_and_leaves_nothing(
    tmp_path: Path, temporary: Path
) -> None:
    chosen = compiler(tmp_path, f"echo $$ >> {tmp_path}/pids; echo x > half.o; sleep 600")
    child = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(Path(__file__).parent), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "CXX": str(chosen), "VITC_CACHE": str(tmp_path / "cache")},
    )
    pids, deadline = tmp_path / "pids", time.monotonic() + 300
    while not pids.exists():
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)  # the weights of so small a model are folded by then: it waits for compilers
    child.send_signal(signal.SIGINT)
    out, _ = child.communicate(timeout=120)  # what waits for the compilers takes 600 s
    assert out == "interrupted\n"
    assert not [pid for pid in pids.read_text().split() if running(int(pid))]
    assert not (tmp_path / "a.so").exists()
    assert list(temporary.glob("vitc-*")) == []
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def compiler(folder: Path, body: str) -> Path:
    """A C++ compiler, as far as its version goes, that does `body` for everything else."""
    path = folder / "fake-g++"
    version = "g++ (Debian 12.2.0-14) 12.2.0\nCopyright (C) 2022 Free Software Foundation, Inc."
    path.write_text(f'#!/bin/sh\ncase "$*" in --version) echo "{version}"; exit 0;; esac\n{body}\n')
    path.chmod(0o755)
    return path


def running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
