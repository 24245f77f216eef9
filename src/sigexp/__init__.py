"""sigexp: a YAML-configured experiment runner for learning in signal and image processing."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "load", "resume", "run"]

if TYPE_CHECKING:
    from sigexp.api import load, resume, run


def __getattr__(name: str) -> Any:
    """`run`, `resume` and `load` on first use, so that `import sigexp` and the light verbs do not import torch."""
    if name in ("load", "resume", "run"):
        from sigexp import api

        return getattr(api, name)
    raise AttributeError(f"module 'sigexp' has no attribute {name!r}")
