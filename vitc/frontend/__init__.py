"""From what users have - a timm name, an nn.Module, an ExportedProgram - to the IR."""

from vitc.frontend.load import Imported, import_model

__all__ = ["Imported", "import_model"]
