"""The C ABI from C and C++: header, exported symbols, example program, threads, sanitizers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from runtime import toy

ROOT = Path(__file__).parents[2]
HEADER = toy.TEMPLATES / "include" / "vitc" / "vitc.h"
EXAMPLE = ROOT / "examples" / "cpp"


def declared() -> set[str]:
    return set(
        re.findall(r"\b(vitc_\w+)\(", re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.S))
    )


def test_the_header_is_c99(tmp_path: Path) -> None:
    source = tmp_path / "x.c"
    source.write_text('#include "vitc/vitc.h"\nint main(void) { return VITC_OK; }\n')
    flags = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", f"-I{HEADER.parents[1]}"]
    subprocess.run(["cc", *flags, "-fsyntax-only", str(source)], check=True)


def test_a_library_exports_the_abi_and_nothing_else(elf: Path) -> None:
    nm = subprocess.run(
        ["nm", "-D", "--defined-only", str(elf)], check=True, capture_output=True, text=True
    )
    exported = {line.split()[2] for line in nm.stdout.splitlines()}
    assert exported == declared()
    assert exported == set(
        re.findall(r"vitc_\w+(?=;)", (toy.TEMPLATES / "exports.map").read_text())
    )


@pytest.fixture(scope="module")
def classify(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, built by its own Makefile in a folder of its own."""
    folder = tmp_path_factory.mktemp("example")
    for name in ("classify.cc", "Makefile"):
        shutil.copy(EXAMPLE / name, folder)
    include = f"VITC_INCLUDE={HEADER.parents[1]}"
    subprocess.run(
        ["make", "-s", include, "CXXFLAGS=-O1 -Wall -Wextra -Werror"], cwd=folder, check=True
    )
    return folder / "classify"


def run(program: Path, *args: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(program), *map(str, args)], capture_output=True, text=True, cwd=cwd, check=False
    )


def test_example(classify: Path, library: Path, tmp_path: Path) -> None:
    x = toy.images(2)
    x.tofile(tmp_path / "x.f32")
    result = run(classify, library, tmp_path / "x.f32", "--batch", 2, "--threads", 2)
    assert result.returncode == 0, result.stderr
    y = toy.expected(x).reshape(2, -1)
    for image in range(2):
        best = np.argsort(-y[image])[:5]
        text = "".join(f"  {index} ({y[image][index]:.4f})" for index in best)
        assert f"image {image}, y:{text}\n" in result.stdout
    assert re.search(r"batch 2: [\d.]+ ms, [\d.]+ images/s \(median of 10 runs\)", result.stdout)


def test_example_by_bare_name_and_with_weights(classify: Path, elf: Path, tmp_path: Path) -> None:
    toy.make_library(elf, tmp_path / "toy.so", "external")
    assert run(classify, "toy.so", cwd=tmp_path).returncode == 0
    (tmp_path / "toy.safetensors").rename(tmp_path / "moved")
    toy.make_library(elf, tmp_path / "other.so", "external", w=5.0)
    (tmp_path / "other.safetensors").rename(tmp_path / "toy.safetensors")
    foreign = run(classify, "toy.so", cwd=tmp_path)
    assert foreign.returncode == 1
    assert "their checksum is not that of './toy.so'" in foreign.stderr
    assert run(classify, "toy.so", "--weights", "toy.safetensors", cwd=tmp_path).returncode == 0
    (tmp_path / "toy.safetensors").unlink()
    absent = run(classify, "toy.so", cwd=tmp_path)
    assert absent.returncode == 1
    assert "cannot open './toy.safetensors'" in absent.stderr
    assert run(classify, "toy.so", "--weights", "moved", cwd=tmp_path).returncode == 0


def test_example_on_bad_input(classify: Path, library: Path, tmp_path: Path) -> None:
    (tmp_path / "short.f32").write_bytes(b"1234")
    (tmp_path / "text.so").write_text("hello")
    for args, text in (
        ((), "usage"),
        (
            (library, "--batch", "5"),
            "dimension 0 (batch) is 5, the library was compiled for 1 to 4",
        ),
        ((library, "--batch", "x"), "classify: "),
        ((library, "--fast"), "unknown option --fast"),
        ((library, tmp_path / "short.f32"), "has 4 bytes, 'x' at this batch takes 420"),
        ((library, tmp_path / "none.f32"), "cannot open"),
        ((tmp_path / "text.so",), "text.so"),
        (("/lib/x86_64-linux-gnu/libm.so.6",), "vitc_abi_version"),
    ):
        if args and str(args[0]).startswith("/lib/") and not Path(str(args[0])).exists():
            continue
        result = run(classify, *args)
        assert result.returncode == 1
        assert text in result.stderr


def test_truncated_library_from_c(classify: Path, library: Path) -> None:
    """Python checks more before it loads; the library itself still notices, and does not crash."""
    data = library.read_bytes()
    for size, text in ((len(data) - 64, "footer"), (len(data) - 10, "footer")):
        library.write_bytes(data[:size])
        result = run(classify, library)
        assert result.returncode == 1
        assert text in result.stderr
    footer = bytearray(data[-64:])
    for field, value, text in (
        (8, 2**63, "truncated"),
        (16, 2**62, "truncated"),
        (16, 5, "5 bytes"),
    ):
        footer[:] = data[-64:]
        footer[field : field + 8] = value.to_bytes(8, "little")
        library.write_bytes(data[:-64] + footer)
        result = run(classify, library)
        assert result.returncode == 1
        assert text in result.stderr


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_stress_under_a_sanitizer(sanitizer: str, elf: Path, tmp_path: Path) -> None:
    toy.make_library(elf, tmp_path / "toy.so", "external")
    flags = [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", "-g", "-O1", "-std=c++17"]
    include = f"-I{HEADER.parents[1]}"
    sources = toy.write_sources(tmp_path)
    todo = [(sources.model, ()), (Path(__file__).with_name("stress.cc"), ())]
    todo += [(sources.kernels, (f"-DVITC_ISA={isa}",)) for isa in ("avx2", "avx512")]
    objects: list[str] = []
    for index, (source, defines) in enumerate(todo):
        objects.append(str(tmp_path / f"{index}.o"))
        command = ["g++", *flags, *defines, include, "-c", str(source), "-o", objects[-1]]
        subprocess.run(command, check=True)
    program = tmp_path / "stress"
    link = ["g++", *flags, *objects, "-o", str(program), "-lpthread", "-ldl"]
    linked = subprocess.run(link, capture_output=True, text=True, check=False)
    if "cannot find" in linked.stderr:
        pytest.skip(f"the compiler lacks the runtime of -fsanitize={sanitizer}")
    assert linked.returncode == 0, linked.stderr
    result = subprocess.run(
        [str(program), str(tmp_path / "toy.safetensors")],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "TSAN_OPTIONS": "halt_on_error=1"},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout == "passed\n"
