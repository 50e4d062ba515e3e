"""The op families. Importing this package registers every op."""

from vitc.ops.attention import Attention
from vitc.ops.conv import Conv2d, Pool2d
from vitc.ops.fused import Fused, Step
from vitc.ops.linear import Linear, MatMul
from vitc.ops.movement import Concat, Gather, Literal, Move
from vitc.ops.norm import GroupNorm, Norm
from vitc.ops.pointwise import Pointwise
from vitc.ops.reduce import Reduce, Softmax

__all__ = [
    "Attention",
    "Concat",
    "Conv2d",
    "Fused",
    "Gather",
    "GroupNorm",
    "Linear",
    "Literal",
    "MatMul",
    "Move",
    "Norm",
    "Pointwise",
    "Pool2d",
    "Reduce",
    "Softmax",
    "Step",
]
