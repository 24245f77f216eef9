"""The modules that a module runs one after the other."""

from torch import nn


def chain(module: nn.Module) -> list[nn.Module]:
    """Those of (nested) `nn.Sequential`s in their order; any other module is one of its own."""
    return [m for child in module for m in chain(child)] if type(module) is nn.Sequential else [module]
