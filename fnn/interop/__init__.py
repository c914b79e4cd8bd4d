"""Into fnn and out of it: torch.nn modules as layers, layers as modules, and files of weights."""

from fnn.interop.from_module import Converted, from_module

__all__ = ["Converted", "from_module"]
