"""Compilation of whole pure functions: one graph, donated memory, loops on the device."""

from fnn.compile.jit import compile_count, jit
from fnn.compile.scan import epoch, fori, scan
from fnn.compile.ship import load_compiled, save_compiled

__all__ = ["compile_count", "epoch", "fori", "jit", "load_compiled", "save_compiled", "scan"]
