"""verify: what is right passes, each kind of wrong fails and is named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from verify.fakes import SHAPE, TEXT, FakeModule, torch_model

from vitc.errors import VitcError
from vitc.ir.text import parse_graph, print_graph
from vitc.passes import pipeline
from vitc.verify import VerificationError, images, verify, weights_matter


def failed(module: FakeModule, **options: object) -> set[str]:
    report = verify(module, module.model, **options)
    assert not report.passed
    with pytest.raises(VerificationError):
        report.require()
    return {check.name for check in report.failures}


def test_a_right_library_passes() -> None:
    model = torch_model()
    report = verify(FakeModule(model), model).require()
    assert report.batches == (1, 2, 4)
    assert 0 < report.error < report.bound == 1e-5
    assert report.finding is None
    assert report.graph_hash == "feed"
    assert {check.name for check in report.checks} >= {
        "batch 1: error",
        "batch 2: finite",
        "batch 4: top-1",
        "batch 4: permutation",
    }
    assert report.to_json()["passed"] is True


def test_a_small_error_fails_float32() -> None:
    module = FakeModule(torch_model(), whole=lambda y: y * (1 + 2e-5))
    assert failed(module) == {"batch 1: error", "batch 2: error", "batch 4: error"}


def test_half_precision_is_held_to_eager() -> None:
    right = FakeModule(torch_model(), dtype="bfloat16", whole=lambda y: y.bfloat16().float())
    report = verify(right, right.model).require()
    assert report.bound == 1.5 * report.eager_error > 1e-4
    worse = 2.0 * report.eager_error
    wrong = FakeModule(torch_model(), dtype="bfloat16", whole=lambda y: y * (1 + worse))
    assert "batch 4: error" in failed(wrong)


def test_dtypes_without_a_bound_are_refused() -> None:
    module = FakeModule(torch_model(), dtype="int8")
    with pytest.raises(VitcError, match="int8"):
        verify(module, module.model)


def test_nan_fails() -> None:
    def poison(y: Tensor) -> Tensor:
        y[-1, 3] = float("nan")
        return y

    names = failed(FakeModule(torch_model(), whole=poison))
    assert {"batch 4: finite", "batch 4: error"} <= names


def test_mixed_rows_fail() -> None:
    def swap(y: Tensor) -> Tensor:
        return y.flip(0)

    assert "batch 4: error" in failed(FakeModule(torch_model(), whole=swap))


def test_rows_that_see_each_other_slightly_fail_bit_for_bit() -> None:
    def leak(y: Tensor) -> Tensor:
        return y + 3e-7 * y[:1]

    assert failed(FakeModule(torch_model(), whole=leak)) == {"batch 4: permutation"}


def test_a_wrong_class_fails_even_within_a_generous_bound() -> None:
    def promote(y: Tensor) -> Tensor:
        y[0, y[0].argmin()] = y[0].max() + 0.01
        return y

    assert "batch 4: top-1" in failed(FakeModule(torch_model(), whole=promote), bound=1e-2)


def test_a_mistake_at_one_batch_alone_is_found() -> None:
    def at_two(y: Tensor) -> Tensor:
        return y * (1.001 if len(y) == 2 else 1.0)

    assert failed(FakeModule(torch_model(), whole=at_two)) == {"batch 2: error"}

    def at_three(y: Tensor) -> Tensor:
        return y * (1.001 if len(y) == 3 else 1.0)

    module = FakeModule(torch_model(), whole=at_three)
    assert verify(module, module.model).passed
    assert failed(module, batches=(3,)) == {"batch 3: error"}


def test_the_wrong_shape_fails() -> None:
    assert "batch 1: shape" in failed(FakeModule(torch_model(), whole=lambda y: y[:, :9]))


def test_images_that_do_not_fit_are_refused() -> None:
    module = FakeModule(torch_model())
    with pytest.raises(VitcError, match="the library takes"):
        verify(module, module.model, torch.zeros(1, 3, 5, 5))


def test_large_batches_have_references_for_some_images() -> None:
    module = FakeModule(torch_model(), batch=40)
    report = verify(module, module.model, references=6).require()
    assert report.references == 6
    assert report.batches == (1, 2, 40)

    def late(y: Tensor) -> Tensor:
        if len(y) == 40:
            y[33] *= 2  # no reference reaches it, but the permutation does
        return y

    assert failed(FakeModule(torch_model(), batch=40, whole=late), references=6) == {
        "batch 40: permutation"
    }


@pytest.mark.parametrize(("value", "step", "loc"), [("a", 0, "1"), ("b", 1, "3"), ("y", 2, "5")])
def test_a_wrong_kernel_is_named(value: str, step: int, loc: str) -> None:
    module = FakeModule(torch_model(), bugs={value: lambda v: v * np.float32(1.0001)})
    report = verify(module, module.model)
    finding = report.finding
    assert finding is not None
    assert finding.stage == "kernel"
    assert finding.step is not None
    assert (finding.step.index, finding.step.loc) == (step, loc)
    assert finding.step.own == pytest.approx(1e-4, rel=0.1)
    # Kernels after the first wrong one are right on the inputs that they had.
    assert [s.passed for s in finding.steps] == [i != step for i in range(3)]
    with pytest.raises(VerificationError, match=f"step that differs: {step} 'linear_{value}'"):
        report.require()
    assert f"%{value} = linear" in finding.message


def test_an_overwritten_buffer_is_the_memory_plan() -> None:
    # %x -> %a -> %b, and %c reads %a again after %b has taken its place.
    text = TEXT.replace(
        "%y = linear(%b, %5.weight, %5.bias) {steps=[add($2)]} : f32[B,10] @ 5",
        "%s = move(%a) {map=map([B,16], slice(1, 0, 12, 1))} : f32[B,12]\n"
        "  %c = pointwise(%s, %b) {steps=[add($1)]} : f32[B,12] @ late\n"
        "  %y = linear(%c, %5.weight, %5.bias) {steps=[add($2)]} : f32[B,10] @ 5",
    )
    model = torch_model()
    module = FakeModule(model, text=text, offsets={"a": 0, "b": 32, "c": 4096})
    late = {
        "name": "add",
        "symbol": "k",
        "kernel": "pointwise",
        "ir": "%c = pointwise(%s, %b)",
        "args": [module._ref("a"), module._ref("b"), module._ref("c")],
    }
    steps = module.manifest["steps"]
    steps[2]["args"][0] = module._ref("c")
    steps.insert(2, late)
    finding = verify(module, model).finding
    assert finding is not None
    assert finding.stage == "memory plan"
    assert "'%a', written by step 0" in finding.message
    assert "before step 2 'add'" in finding.message


def test_a_wrong_import_and_a_wrong_pass_are_told_apart() -> None:
    right, wrong = parse_graph(TEXT), TEXT.replace("gelu]} : f32[B,12]", "gelu_tanh]} : f32[B,12]")
    by_pass = FakeModule(torch_model(), text=wrong, imported=right)
    finding = verify(by_pass, by_pass.model).finding
    assert finding is not None
    assert finding.stage == "pass"
    by_import = FakeModule(torch_model(), text=wrong, imported=parse_graph(wrong))
    finding = verify(by_import, by_import.model).finding
    assert finding is not None
    assert finding.stage == "frontend"
    assert "first in" in finding.message


def test_the_pass_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = parse_graph(TEXT.replace("gelu]} : f32[B,12]", "gelu_tanh]} : f32[B,12]"))
    passes = (pipeline.Pass("keep", lambda g, _: g), pipeline.Pass("tanh_it", lambda g, _: wrong))
    monkeypatch.setattr(pipeline, "PIPELINE", passes)
    module = FakeModule(torch_model(), text=print_graph(wrong), imported=parse_graph(TEXT))
    finding = verify(module, module.model).finding
    assert finding is not None
    assert "pass '02-tanh_it'" in finding.message


def test_without_a_graph_the_report_says_so() -> None:
    module = FakeModule(torch_model(), whole=lambda y: y * 1.01)
    module.graph = None
    finding = verify(module, module.model).finding
    assert finding is not None
    assert finding.stage == "unknown"


def test_rounding_that_accumulates_is_called_so() -> None:
    module = FakeModule(torch_model(), bugs={"a": lambda v: v * np.float32(1 + 6e-6)})
    finding = verify(module, module.model, bound=4e-6).finding
    assert finding is not None
    assert finding.stage == "accumulation"
    assert finding.step is not None
    assert finding.step.index == 0


def test_every_single_weight_matters() -> None:
    module = FakeModule(torch_model())
    before = dict(module.weights)
    effects = weights_matter(module, module.model, images(3, SHAPE))
    assert [effect.name for effect in effects] == list(before)
    for effect in effects:
        assert effect.caught, effect
        assert effect.follows, effect
        assert not effect.inert, effect
    assert all(np.array_equal(module.weights[name], before[name]) for name in before)


def test_a_library_that_ignores_a_weight_is_seen() -> None:
    class Deaf(FakeModule):
        def load_weights(self, state_dict: dict[str, Tensor]) -> None:
            super().load_weights(state_dict)
            self.weights["3.bias"] = self.model.state_dict()["3.bias"].clone().numpy()

    module = Deaf(torch_model())
    effects = {e.name: e for e in weights_matter(module, module.model, images(3, SHAPE))}
    assert not effects["3.bias"].caught
    assert not effects["3.bias"].follows
    assert effects["1.bias"].caught
