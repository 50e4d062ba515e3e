"""Kernels are chosen by the times that the package ships, not by those that the user measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitc.codegen import records


@pytest.fixture(autouse=True)
def no_records_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "user_folder", lambda: tmp_path / "no-records")
