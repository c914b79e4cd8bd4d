"""Pure functions as flat graphs: traced by running, replayed or compiled, with donated memory and loops.

``jit``, ``trace``, ``scan`` and related functions are at the top level of fnn.
"""

from fnn.compile.graph import Graph
from fnn.compile.scan import epoch

__all__ = ["Graph", "epoch"]
