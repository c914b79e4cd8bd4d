"""Compilation of whole pure functions: one graph, donated memory, loops on the device."""

from fnn.compile.jit import compile_count, jit

__all__ = ["compile_count", "jit"]
