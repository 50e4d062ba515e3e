"""Tests of this folder compile for GPUs that need not be there; without a compiler, skipped."""

from __future__ import annotations

import pytest

from vitc.codegen.toolchain import (
    Language,
    Toolchain,
    find_compiler,
    find_toolchain,
    install_command,
)


def _toolchain(language: Language) -> Toolchain:
    if find_compiler(language).compiler is None:
        pytest.skip(f"no {language} compiler: {install_command(language)}")
    return find_toolchain([language])


@pytest.fixture(scope="session")
def cuda_toolchain() -> Toolchain:
    """g++ or clang++, and nvcc."""
    return _toolchain("cuda")


@pytest.fixture(scope="session")
def hip_toolchain() -> Toolchain:
    """g++ or clang++, and hipcc."""
    return _toolchain("hip")
