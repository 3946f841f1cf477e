"""Score recordings in this process or in many, without a server; the pipeline and its numbers are the server's.

What is imported from here loads the runtime only when it is used, so that commands can say what is missing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speakerlens.scoring.rows import Row, columns
    from speakerlens.scoring.scorer import Scorer

__all__ = ["Row", "Scorer", "columns"]

_MODULES = {"Row": "rows", "columns": "rows", "Scorer": "scorer"}


def __getattr__(name: str) -> Any:
    """Return a public name, whose module is imported by its first use."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
