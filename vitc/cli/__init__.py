"""The vitc command: `vitc --help`."""

from vitc.cli.main import app

__all__ = ["app"]
