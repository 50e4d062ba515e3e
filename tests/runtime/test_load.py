"""A library that is absent, damaged, foreign or of another vitc is refused before its code runs."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime import toy

from vitc.errors import LoadError, WeightsError
from vitc.runtime import load
from vitc.runtime.artifact import Footer, read_footer
from vitc.runtime.library import _fresh_name
from vitc.runtime.payload import read_payload


@pytest.fixture
def no_dlopen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test when a file is handed to the system's loader, whose crash would be ours."""

    def opened(name: str) -> Any:
        raise AssertionError(f"{name} was opened")

    monkeypatch.setattr(ctypes, "CDLL", opened)


def footer_of(path: Path) -> Footer:
    footer = read_footer(path)
    assert footer is not None
    return footer


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x40
    path.write_bytes(data)


def test_absent(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"no library at '.*absent\.so'"):
        load(tmp_path / "absent.so")
    with pytest.raises(LoadError, match="no library at"):
        load(tmp_path)


@pytest.mark.usefixtures("no_dlopen")
@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"hello" * 100, b"PK\x03\x04" + bytes(5000)])
def test_not_a_library(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.so"
    path.write_bytes(content)
    with pytest.raises(LoadError, match="not an ELF shared library"):
        load(path)


@pytest.mark.usefixtures("no_dlopen")
@pytest.mark.parametrize(
    ("position", "value", "text"),
    [
        (18, b"\xb7\x00", r"is for aarch64 .* this machine is"),
        (18, b"\xf3\x00", r"is for riscv64"),
        (18, b"\x34\x12", r"ELF machine 4660"),
        (4, b"\x01", r"32-bit"),
        (5, b"\x02", r"big-endian"),
    ],
)
def test_another_architecture(library: Path, position: int, value: bytes, text: str) -> None:
    data = bytearray(library.read_bytes())
    data[position : position + len(value)] = value
    library.write_bytes(data)
    with pytest.raises(LoadError, match=text):
        load(library)


@pytest.mark.usefixtures("no_dlopen")
def test_truncated_anywhere(library: Path) -> None:
    data = library.read_bytes()
    for size in [*range(20, len(data), 997), len(data) - 64, len(data) - 1]:
        library.write_bytes(data[:size])
        with pytest.raises(LoadError):
            load(library)


@pytest.mark.usefixtures("no_dlopen")
def test_a_flipped_bit_anywhere(library: Path) -> None:
    """In code, manifest, weights or footer; zeros between code and weights mean nothing."""
    data = library.read_bytes()
    footer = footer_of(library)
    manifest = data.index(b'{"format"')
    places = [*range(0, footer.code_bytes, 499), manifest + 20]
    places += [*range(footer.payload_offset, len(data) - 8)]
    for place in places:
        library.write_bytes(data)
        flip(library, place)
        with pytest.raises(LoadError):
            load(library)


def test_verify_false_skips_the_weights_only(library: Path) -> None:
    footer = footer_of(library)
    data = library.read_bytes()
    w = footer.payload_offset + footer.payload_bytes - toy.constants()["b"].data.nbytes
    flip(library, w)
    load(library, verify=False).close()
    library.write_bytes(data)
    flip(library, 5000)
    with pytest.raises(LoadError, match=r"the code in .* is damaged"):
        load(library, verify=False)


def test_damaged_weights_header_without_verify(library: Path) -> None:
    """The library itself compares the header of its weights."""
    flip(library, footer_of(library).payload_offset + 12)
    with pytest.raises(WeightsError, match="belong to another model"):
        load(library, verify=False)


@pytest.mark.usefixtures("no_dlopen")
def test_footer_of_another_version(library: Path) -> None:
    data = bytearray(library.read_bytes())
    data[len(data) - 64 + 28] = 1
    library.write_bytes(data)
    with pytest.raises(LoadError, match="footer version 1; this vitc reads version 2"):
        load(library)


@pytest.mark.usefixtures("no_dlopen")
def test_stripped(elf: Path) -> None:
    with pytest.raises(LoadError, match="stripped"):
        load(elf)


def test_unreadable(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(LoadError, match=r"cannot read .*Permission denied"):
        load(library)


def test_another_abi(build: Callable[..., Path], tmp_path: Path) -> None:
    other = (
        'extern "C" [[gnu::weak, gnu::visibility("default")]] int vitc_abi_version() { return 2; }'
    )
    elf = build("abi", model_defines=("-Dvitc_abi_version=own",), more_code=other)
    path = toy.make_library(elf, tmp_path / "toy.so")
    with pytest.raises(LoadError, match="ABI version 2; this vitc runs version 1"):
        load(path)


def test_a_foreign_library(tmp_path: Path, build: Callable[..., Path]) -> None:
    elf = build("foreign", model_defines=("-Dvitc_abi_version=somebody_elses",))
    path = toy.make_library(elf, tmp_path / "toy.so")
    with pytest.raises(LoadError, match=r"not a library of vitc: it lacks vitc_abi_version"):
        load(path)


MANIFESTS: dict[str, tuple[toy.Edit, str]] = {
    "json": (lambda m: json.dumps(m)[:-9], "is not JSON"),
    "object": (lambda m: "[1]", "is not a JSON object"),
    "format": (lambda m: m | {"format": 2}, "has format 2, this vitc reads 1"),
    "key": (lambda m: {k: v for k, v in m.items() if k != "steps"}, "lacks 'steps'"),
    "kind": (lambda m: m | {"weights": 3}, r"lacks 'weights' \(list\)"),
    "ports": (lambda m: m | {"outputs": m["outputs"][:1]}, "lists other outputs"),
    "dtype": (lambda m: m | {"inputs": [m["inputs"][0] | {"dtype": "int8"}]}, "other inputs"),
    "entries": (lambda m: m | {"inputs": [None]}, "lists other inputs"),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_damaged_manifest(case: str, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a defect of vitc would write it: in the file itself the digest covers the manifest."""
    from vitc.runtime import module as module_file

    edit, text = MANIFESTS[case]
    edited = edit(toy.manifest())
    broken = edited if isinstance(edited, str) else json.dumps(edited)
    real = module_file.parse_manifest
    monkeypatch.setattr(
        module_file, "parse_manifest", lambda path, _, i, o: real(path, broken, i, o)
    )
    with pytest.raises(LoadError, match=text):
        load(library)


def test_external_weights(elf: Path, tmp_path: Path) -> None:
    path = toy.make_library(elf, tmp_path / "toy.so", "external")
    beside = tmp_path / "toy.safetensors"
    assert set(read_payload(beside)) == {"w", "b"}
    with load(path) as module:
        np.testing.assert_array_equal(module(toy.images()).y, toy.expected(toy.images()))

    whole = beside.read_bytes()
    for damaged in (whole[:-1], whole + b"\0", whole[:-1] + b"\x11", b""):
        beside.write_bytes(damaged)
        with pytest.raises(LoadError, match=r"weights in '.*safetensors' are damaged"):
            load(path)
    beside.write_bytes(whole[:-4])
    with pytest.raises(WeightsError, match=r"truncated or belong to another model"):
        load(path, verify=False)
    beside.unlink()
    with pytest.raises(LoadError, match=r"toy.safetensors' is absent"):
        load(path)


def test_other_weights(library: Path, elf: Path, tmp_path: Path) -> None:
    toy.make_library(elf, tmp_path / "other.so", "external", w=5.0)
    other = tmp_path / "other.safetensors"
    with load(library, weights=other) as module:
        np.testing.assert_array_equal(module(toy.images()).y, toy.expected(toy.images(), w=5.0))
    for wrong in (library, tmp_path, tmp_path / "none.safetensors"):
        with pytest.raises(WeightsError, match=r"other model|regular file|cannot open"):
            load(library, weights=wrong)
    text = other.read_bytes().replace(b'"w"', b'"v"')
    other.write_bytes(text)
    with pytest.raises(WeightsError, match="names or shapes differ"):
        load(library, weights=other)


def test_a_library_compiled_again_to_the_same_path(
    build: Callable[..., Path], elf: Path, tmp_path: Path
) -> None:
    """The system's loader would give the old code for the same name."""
    path = toy.make_library(elf, tmp_path / "toy.so")
    first = load(path)
    renamed = json.dumps(toy.manifest() | {"name": "second"})
    toy.make_library(build("second", manifest_text=renamed), path, w=7.0)
    second = load(path)
    assert second.manifest["name"] == "second"
    np.testing.assert_array_equal(second(toy.images()).y, toy.expected(toy.images(), w=7.0))
    np.testing.assert_array_equal(first(toy.images()).y, toy.expected(toy.images()))
    third = load(path)
    np.testing.assert_array_equal(third(toy.images()).y, toy.expected(toy.images(), w=7.0))


def test_overwritten_in_place(tmp_path: Path) -> None:
    """Only the bookkeeping: to do it in earnest would run code that is no more."""
    path = tmp_path / "toy.so"
    path.touch()
    assert _fresh_name(path, b"one") == str(path)
    assert _fresh_name(path, b"one") == str(path)
    with pytest.raises(LoadError, match="was overwritten while this process had it loaded"):
        _fresh_name(path, b"two")
