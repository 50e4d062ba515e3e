"""Verification: a result counts only against timm in float64 on the same weights and images."""

from vitc.verify.check import verify
from vitc.verify.localise import compare_steps, find
from vitc.verify.matter import WeightEffect, weights_matter
from vitc.verify.redraw import images, redraw
from vitc.verify.reference import eager, reference, relative_error
from vitc.verify.report import Check, Finding, StepError, VerificationError, VerifyReport

__all__ = [
    "Check",
    "Finding",
    "StepError",
    "VerificationError",
    "VerifyReport",
    "WeightEffect",
    "compare_steps",
    "eager",
    "find",
    "images",
    "redraw",
    "reference",
    "relative_error",
    "verify",
    "weights_matter",
]
