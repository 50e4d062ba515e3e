"""vitc compiles vision transformers: a timm model in, one shared library out.

module = vitc.compile(timm.create_model("vit_base_patch16_224").eval(), batch=32)
logits = module(images)
"""

from vitc.compiler import CompiledModule, compile
from vitc.runtime.module import Module, load
from vitc.version import __version__

__all__ = ["CompiledModule", "Module", "__version__", "compile", "load"]
