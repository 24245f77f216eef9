"""sigexp: a YAML-configured experiment runner for learning in signal and image processing."""

__version__ = "0.1.0"
