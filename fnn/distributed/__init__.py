"""Many processes that compute one pure step together, on ``torch.distributed``."""

from fnn._processes import rank, world_size
from fnn.distributed.parts import local, local_batches
from fnn.distributed.processes import Processes, init
from fnn.distributed.reduction import data_parallel, reduce

__all__ = ["Processes", "data_parallel", "init", "local", "local_batches", "rank", "reduce", "world_size"]
