"""New weights without recompiling: the checks, that runs are never torn, that save keeps them."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runtime import toy

from vitc.errors import WeightsError
from vitc.ir import recipes
from vitc.runtime import Module, load
from vitc.runtime.payload import WeightArray


@pytest.fixture(autouse=True)
def swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy's recipe: w = 2 * scale, b = offset. tests/ir evaluates real ones."""

    def evaluate(text: str, state: Mapping[str, Any]) -> dict[str, WeightArray]:
        assert text == toy.manifest()["recipes"]
        if float(state["scale"][0]) == -1:
            raise ValueError("a step overflows")
        w = WeightArray((2 * state["scale"]).astype(np.float32), "float32")
        b = WeightArray(state["offset"].astype(np.float32), "float32")
        return {"b": b, "w": w} if float(state["scale"][0]) != -2 else {"b": b}

    monkeypatch.setattr(recipes, "evaluate", evaluate)


def state(w: float, b: float) -> dict[str, torch.Tensor]:
    """Gives the constants toy.constants(w, b)."""
    constants = toy.constants(w, b)
    return {
        "scale": torch.from_numpy(constants["w"].data / 2).bfloat16(),
        "offset": torch.from_numpy(constants["b"].data).requires_grad_(),
    }


def test_load_weights(module: Module) -> None:
    x = toy.images()
    module(x)
    context = module.new_context()
    module.load_weights(state(6.0, 3.0))
    np.testing.assert_array_equal(module(x).y, toy.expected(x, 6.0, 3.0))
    np.testing.assert_array_equal(context(x).y, toy.expected(x, 6.0, 3.0))
    module.load_weights({name: t.detach().float().numpy() for name, t in state(4.0, 1.0).items()})
    np.testing.assert_array_equal(context(x).y, toy.expected(x, 4.0, 1.0))


def test_everything_wrong_is_listed(module: Module) -> None:
    wrong = {"scale": torch.zeros(4), "norm.weight": torch.zeros(3), "epoch": 3}
    with pytest.raises(WeightsError) as error:
        module.load_weights(wrong)
    for line in (
        "missing: offset",
        "unexpected: norm.weight",
        "unexpected: epoch",
        "scale has shape [4], the model has [3]",
    ):
        assert line in str(error.value)
    many = {f"layer{i}": torch.zeros(1) for i in range(99)}
    with pytest.raises(WeightsError, match="and 81 more"):
        module.load_weights(many)


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        ({"scale": torch.full((3,), -1.0)}, "cannot calculate .* a step overflows"),
        ({"scale": torch.full((3,), -2.0)}, "do not make its constant 'w'"),
        ({"scale": np.zeros(3).view()}, None),
        ({"scale": type("Fake", (), {"shape": (3,)})()}, "'scale' is a Fake"),
    ],
)
def test_nothing_changes_on_failure(module: Module, edit: Any, text: str | None) -> None:
    x = toy.images()
    if text is None:  # float64 is fine
        module.load_weights(state(6.0, 3.0) | edit)
        np.testing.assert_array_equal(module(x).y[:, 0], np.full_like(x[:, 0], 3.0))
        return
    with pytest.raises(WeightsError, match=text):
        module.load_weights(state(6.0, 3.0) | edit)
    np.testing.assert_array_equal(module(x).y, toy.expected(x))


def test_the_library_refuses_what_does_not_fit(module: Module) -> None:
    good, bad = toy.constants(9.0)["w"], WeightArray(np.zeros(4, np.float32), "float32")
    for given, text in (
        ({"w": good, "b": bad}, "weight 'b' has 16 bytes, the library was compiled for 12"),
        ({"w": good, "c": bad}, "the library has no weight 'c'"),
    ):
        with pytest.raises(WeightsError, match=text):
            module._library.set_weights(module._model, given)
        np.testing.assert_array_equal(module(toy.images()).y, toy.expected(toy.images()))
    module._library.set_weights(module._model, {})
    module._library.set_weights(module._model, {"w": good})
    np.testing.assert_array_equal(module(toy.images()).y, toy.expected(toy.images(), 9.0))


def test_a_run_sees_one_set_of_weights(module: Module) -> None:
    """w and b are read by different steps; a run must never mix two sets."""
    x = toy.images(1)
    x[0, 0, 0, 0] = -1000  # the first step sleeps, so that a swap falls between the steps
    wanted = {value: toy.expected(x, value, value).tobytes() for value in (2.0, 4.0, 8.0)}
    module.load_weights(state(2.0, 2.0))
    stop, seen, torn = threading.Event(), set[float](), []

    def run() -> None:
        context = module.new_context(threads=1)
        while not stop.is_set():
            y = context(x).y.tobytes()
            found = [value for value, want in wanted.items() if want == y]
            seen.update(found)
            torn.extend([] if found else [y])

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for index in range(60):
        value = (4.0, 8.0, 2.0)[index % 3]
        module.load_weights(state(value, value))
        stop.wait(0.007)
    stop.set()
    for thread in threads:
        thread.join()
    assert not torn
    assert seen == set(wanted)


@pytest.mark.parametrize("mode", ["embedded", "external"])
def test_save_writes_the_present_weights(elf: Path, tmp_path: Path, mode: Any) -> None:
    x = toy.images()
    path = toy.make_library(elf, tmp_path / "toy.so", mode)
    with load(path) as module:
        copy = module.save(tmp_path / "a" / "copy.so")
        module.load_weights(state(6.0, 3.0))
        changed = module.save(tmp_path / "changed.so")
        module.save(path)  # over itself
        np.testing.assert_array_equal(module(x).y, toy.expected(x, 6.0, 3.0))
    for saved, want in ((copy, (2.0, 1.0)), (changed, (6.0, 3.0)), (path, (6.0, 3.0))):
        with load(saved) as module:
            np.testing.assert_array_equal(module(x).y, toy.expected(x, *want))
    left = {entry.name for entry in tmp_path.rglob("*") if entry.is_file()}
    names = {"toy", "copy", "changed"}
    beside = {f"{name}.safetensors" for name in names} if mode == "external" else set[str]()
    assert left == {f"{name}.so" for name in names} | beside


def test_save_of_a_module_with_other_weights(elf: Path, library: Path, tmp_path: Path) -> None:
    toy.make_library(elf, tmp_path / "other.so", "external", w=5.0)
    with load(library, weights=tmp_path / "other.safetensors") as module:
        saved = module.save(tmp_path / "saved.so")
    with load(saved) as module:
        np.testing.assert_array_equal(module(toy.images()).y, toy.expected(toy.images(), 5.0))
