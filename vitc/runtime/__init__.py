"""Loading and running compiled libraries.

Needs the standard library and numpy alone. torch is used only where the caller hands in a tensor
of it.
"""

from vitc.runtime.context import Context, StepProfile
from vitc.runtime.library import PortInfo
from vitc.runtime.module import Module, load

__all__ = ["Context", "Module", "PortInfo", "StepProfile", "load"]
