"""Compilation of whole pure functions: one graph, donated memory, loops on the device."""

from fnn.compile.artifacts import load_compiled, save_compiled
from fnn.compile.jit import compile_count, disable_jit, jit
from fnn.compile.scan import epoch, fori_loop, scan

__all__ = ["compile_count", "disable_jit", "epoch", "fori_loop", "jit", "load_compiled", "save_compiled", "scan"]
