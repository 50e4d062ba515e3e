"""Which architecture of a library a GPU gets, as vitc/host/cuda/arch.h decides it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from runtime import toy

PROGRAM = """
#include <cstdio>
#include <vector>
#include "vitc/host/cuda/arch.h"

using namespace vitc::host;

int main(int argc, char** argv) {
  std::vector<const char*> isas(argv + 2, argv + argc);
  const vitc_status status = guarded("choose", [&] {
    CudaArch gpu = CudaArch::parse(argv[1]);
    std::printf("%s", isas[choose_cuda_code({isas.data(), argc - 2}, gpu, "the card")]);
  });
  if (status != VITC_OK) std::printf("%d %s", status, last_error);
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("arch")
    (folder / "arch.cc").write_text(PROGRAM)
    include = f"-I{toy.TEMPLATES / 'include'}"
    command = ["g++", "-std=c++17", "-Wall", "-Werror", include, folder / "arch.cc"]
    subprocess.run([*command, "-o", folder / "arch"], check=True)
    return folder / "arch"


def choose(program: Path, gpu: str, *isas: str) -> str:
    return subprocess.run([program, gpu, *isas], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    ("gpu", "isas", "best"),
    [
        ("sm_80", "sm_80", "sm_80"),
        ("sm_86", "sm_75 sm_80", "sm_80"),
        ("sm_89", "sm_80 sm_86", "sm_86"),
        ("sm_86", "sm_80 sm_89", "sm_80"),
        ("sm_90", "sm_80 sm_90", "sm_90"),
        ("sm_90", "sm_90 sm_90a", "sm_90a"),
        ("sm_90", "sm_90a sm_90", "sm_90a"),
        ("sm_90", "sm_75 sm_80 sm_89", "sm_89"),  # from PTX
        ("sm_100", "sm_80 sm_90 sm_90a", "sm_90"),  # from PTX, which sm_90a has none of
        ("sm_100", "sm_90 sm_100 sm_120", "sm_100"),
        ("sm_103", "sm_90 sm_100a sm_100f", "sm_100f"),
        ("sm_103", "sm_100 sm_100f", "sm_100f"),
        ("sm_103", "sm_100 sm_100a", "sm_100"),
        ("sm_120", "sm_90 sm_100", "sm_100"),
        ("sm_121", "sm_120 sm_90", "sm_120"),
    ],
)
def test_best(program: Path, gpu: str, isas: str, best: str) -> None:
    assert choose(program, gpu, *isas.split()) == best


@pytest.mark.parametrize(
    ("gpu", "isas", "capability"),
    [
        ("sm_75", "sm_80 sm_90", "7.5"),
        ("sm_100", "sm_90a", "10.0"),
        ("sm_100", "sm_103f", "10.0"),
        ("sm_90", "sm_100 sm_120", "9.0"),
    ],
)
def test_none(program: Path, gpu: str, isas: str, capability: str) -> None:
    names = isas.replace(" ", ", ")
    assert choose(program, gpu, *isas.split()) == (
        f"4 choose: the card has compute capability {capability}, the library has code for "
        f"{names}; compile the model for {gpu}"
    )


def test_by_hand(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITC_ISA", "sm_80")
    assert choose(program, "sm_90", "sm_80", "sm_90") == "sm_80"
    assert "VITC_ISA is 'sm_80', which the card" in choose(program, "sm_75", "sm_75", "sm_80")
    assert "VITC_ISA is 'sm_80', the library has code for: sm_75" in choose(
        program, "sm_90", "sm_75"
    )
