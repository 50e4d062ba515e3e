"""Writing libraries: the format, and that nothing half-written is ever left."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from runtime import toy

from vitc.errors import LoadError, StorageError, WeightsError
from vitc.runtime import load
from vitc.runtime.artifact import read_footer, write_library
from vitc.runtime.dtypes import DTYPES
from vitc.runtime.files import atomic_file
from vitc.runtime.payload import (
    ALIGNMENT,
    PADDING,
    WeightArray,
    WeightSpec,
    plan_payload,
    read_payload,
    write_payload,
)

ROOT = Path(__file__).parents[2]
SPECS = st.dictionaries(
    st.text(min_size=1, max_size=12).filter(lambda s: not s.startswith(PADDING)),
    st.builds(
        WeightSpec,
        st.sampled_from(list(DTYPES)),
        st.lists(st.integers(0, 9), max_size=3).map(tuple),
    ),
    max_size=7,
)


def arrays_of(specs: dict[str, WeightSpec]) -> dict[str, WeightArray]:
    generator = np.random.default_rng(0)
    made: dict[str, WeightArray] = {}
    for name, spec in specs.items():
        data = generator.integers(0, 100, spec.shape).astype(DTYPES[spec.dtype].storage)
        made[name] = WeightArray(np.asarray(data), spec.dtype)
    return made


@given(SPECS)
def test_payload_round_trip(tmp_path_factory: pytest.TempPathFactory, specs: Any) -> None:
    """What is written is read, aligned, and a safetensors file for others too."""
    weights = arrays_of(specs)
    path = tmp_path_factory.getbasetemp() / "payload.safetensors"
    with path.open("wb") as file:
        write_payload(file, weights)
    layout = plan_payload(specs)
    assert path.stat().st_size == layout.total_bytes
    assert all((len(layout.header) + at) % ALIGNMENT == 0 for at in layout.offsets.values())
    read = read_payload(path)
    assert list(read) == list(weights)
    for name, weight in weights.items():
        assert read[name].dtype == weight.dtype
        np.testing.assert_array_equal(read[name].data, weight.data)
    with safetensors.safe_open(path, "np") as theirs:
        assert {n for n in theirs.keys() if not n.startswith(PADDING)} == set(specs)  # noqa: SIM118


def test_payload_of_strided_arrays(tmp_path: Path) -> None:
    data = np.arange(12, dtype=np.float32).reshape(3, 4).T
    with (tmp_path / "p").open("wb") as file:
        write_payload(file, {"t": WeightArray(data, "float32")})
    np.testing.assert_array_equal(safetensors.numpy.load_file(tmp_path / "p")["t"], data)


@pytest.mark.parametrize("name", [PADDING + "1", "__metadata__"])
def test_reserved_names(name: str) -> None:
    with pytest.raises(WeightsError, match="reserved"):
        plan_payload({name: WeightSpec("float32", (1,))})


def test_weight_arrays_are_checked() -> None:
    with pytest.raises(WeightsError, match="not an element type"):
        WeightArray(np.zeros(1), "float65")
    with pytest.raises(WeightsError, match="bfloat16 is stored as uint16, not as float32"):
        WeightArray(np.zeros(1, np.float32), "bfloat16")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        b"\xff" * 64,
        b"\x02" + bytes(7) + b"[]",
        b"\x02" + bytes(7) + b"{}"[:1],
        (
            b"\x3b"
            + bytes(7)
            + b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}     '
            + b"1234"
        ),
        (
            b"\x3b"
            + bytes(7)
            + b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}     '
            + b"1" * 8
        ),
        (
            b"\x3b"
            + bytes(7)
            + b'{"a":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}}     '
            + b"1" * 8
        ),
        (b"\x0c" + bytes(7) + b'{"a": "b"}  '),
    ],
)
def test_malformed_payload(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"x\.safetensors"):
        read_payload(path)


def test_the_wrong_weights_are_not_joined(elf: Path, tmp_path: Path) -> None:
    weights = toy.constants()
    for wrong in (
        {"w": weights["w"]},
        dict(reversed(weights.items())),
        weights | {"c": weights["w"]},
    ):
        with pytest.raises(WeightsError, match="not in the layout"):
            write_library(elf, wrong, tmp_path / "toy.so", "embedded")
    assert list(tmp_path.iterdir()) == []


def test_weights_of_a_whole_library_are_replaced(library: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.so"
    write_library(library, toy.constants(5.0), other, "external")
    footer = read_footer(other)
    assert footer is not None
    assert footer.mode == "external"
    write_library(other, toy.constants(5.0), other, "embedded")
    assert other.stat().st_size == library.stat().st_size
    with load(other) as module:
        np.testing.assert_array_equal(module(toy.images()).y, toy.expected(toy.images(), 5.0))


def test_a_crash_between_library_and_weights(
    elf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New weights beside an old library are refused, not run."""
    path = toy.make_library(elf, tmp_path / "toy.so", "external")
    replace = os.replace

    def crash(source: Path, target: Path) -> None:
        if target == path:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        write_library(elf, toy.constants(5.0), path, "external")
    with pytest.raises(LoadError, match="belong to another library"):
        load(path)
    with pytest.raises(WeightsError, match="their checksum is not that of"):  # as C programs do
        load(path, verify=False)
    monkeypatch.undo()
    write_library(elf, toy.constants(5.0), path, "external")
    with load(path) as module:
        np.testing.assert_array_equal(module(toy.images()).y, toy.expected(toy.images(), 5.0))


def test_mode_of_the_file(library: Path) -> None:
    mask = os.umask(0)
    os.umask(mask)
    assert library.stat().st_mode & 0o777 == 0o777 & ~mask


@pytest.fixture(params=["nameless", "named"])
def kind_of_file(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of writing, whatever the file system here can do."""
    if request.param == "named":
        monkeypatch.delattr(os, "O_TMPFILE")
    return request.param


@pytest.mark.usefixtures("kind_of_file")
def test_atomic_file_on_errors(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")

    def stop(error: type[BaseException]) -> None:
        with atomic_file(path) as file:
            file.write(b"new")
            raise error

    for error in (KeyboardInterrupt, ValueError):
        with pytest.raises(error):
            stop(error)
    with (
        pytest.raises(StorageError, match=r"Is a directory|File exists"),
        atomic_file(tmp_path) as file,
    ):
        file.write(b"new")
    with pytest.raises(StorageError, match="No such file"), atomic_file(tmp_path / "a" / "b"):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]
    assert path.read_text() == "old"


@pytest.mark.parametrize("mode", ["embedded", "external"])
def test_full_disk(elf: Path, tmp_path: Path, mode: Any) -> None:
    """A limit on the size of files stands in for a full disk; the old library stays as it was."""
    path = toy.make_library(elf, tmp_path / "toy.so", mode)
    before = {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()}
    limit = 100 if mode == "external" else path.stat().st_size - 100
    program = f"""
        import resource, sys
        from pathlib import Path
        from vitc.errors import StorageError
        from vitc.runtime import load
        module = load({str(path)!r})
        resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
        for target in ({str(path)!r}, {str(tmp_path / "new.so")!r}):
            try:
                module.save(target)
            except StorageError as error:
                assert "File too large" in str(error) and "free some space" in str(error), error
            else:
                sys.exit("saved")
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT, check=True)
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == before


def test_no_space_is_named(tmp_path: Path) -> None:
    def fill() -> None:
        with atomic_file(tmp_path / "x") as file:
            os.dup2(full.fileno(), file.fileno())
            file.write(b"new")

    no_space = pytest.raises(StorageError, match="No space left on device")
    with open("/dev/full", "wb", buffering=0) as full, no_space:
        fill()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("old")
    program = f"""
        import os, signal
        from pathlib import Path
        from vitc.runtime.files import _create, atomic_file
        probe = Path({str(tmp_path)!r}) / "probe"
        print(_create(probe, 0o666)[1])
        probe.unlink(missing_ok=True)
        with atomic_file(Path({str(tmp_path / "x")!r})) as file:
            file.write(b"new" * 100_000)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-u", "-c", textwrap.dedent(program)]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert killed.returncode == -9, killed.stderr
    if killed.stdout != "True\n":
        pytest.skip("the file system of the temporary folder has no O_TMPFILE")
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_text() == "old"


def test_save_notices_that_its_file_is_gone(library: Path, tmp_path: Path) -> None:
    with load(library) as module:
        library.unlink()
        np.testing.assert_array_equal(module(toy.images()).y, toy.expected(toy.images()))
        with pytest.raises(LoadError, match="no library at"):
            module.save(tmp_path / "new.so")
