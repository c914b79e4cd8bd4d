"""Pure functions as flat graphs: traced by running, replayed or compiled, with donated memory and loops.

``jit``, ``trace``, ``scan`` and their company stand at the top level of fnn.
"""

from fnn.compile.graph import Graph
from fnn.compile.scan import epoch

__all__ = ["Graph", "epoch"]
