"""Jinja, as all targets use it: templates from `vitc/templates`, undefined names are errors."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATES = Path(__file__).parent.parent / "templates"

# Stands for the kernel's symbol in rendered text until that text is hashed.
KERNEL = "VITC_KERNEL"


@cache
def environment() -> Environment:
    """The one environment of the process."""
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        auto_reload=False,
    )


def render(template: str, params: object) -> str:
    """The text of `template`, whose one variable `k` is the dataclass of its parameters."""
    return environment().get_template(template).render(k=params, kernel=KERNEL)


def comment(text: str) -> str:
    """`text` as one line of // comment; a trailing backslash would swallow the next line."""
    return "// " + " ".join(text.split()).rstrip("\\")
