"""Pure functions as flat graphs: traced by running, replayed or compiled, with donated memory and loops."""

from fnn.compile.artifacts import load_compiled, save_compiled
from fnn.compile.graph import Graph, trace
from fnn.compile.jit import compile_count, disable_jit, jit
from fnn.compile.memory import keep_freed_memory
from fnn.compile.scan import epoch, fori_loop, scan

__all__ = [
    "Graph",
    "compile_count",
    "disable_jit",
    "epoch",
    "fori_loop",
    "jit",
    "keep_freed_memory",
    "load_compiled",
    "save_compiled",
    "scan",
    "trace",
]
