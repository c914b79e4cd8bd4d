"""Many processes that compute one pure step together, on ``torch.distributed``."""

from fnn._processes import rank, world_size
from fnn.distributed.agreement import check_equal
from fnn.distributed.batch_statistics import sync_batch_norm
from fnn.distributed.checkpoints import load, load_metadata, save
from fnn.distributed.parts import local, local_batches
from fnn.distributed.processes import Processes, init
from fnn.distributed.reduction import data_parallel, reduce
from fnn.distributed.sharding import Sharding, check_elementwise, fully_sharded, gather, global_norm, shard

__all__ = [
    "Processes",
    "Sharding",
    "check_elementwise",
    "check_equal",
    "data_parallel",
    "fully_sharded",
    "gather",
    "global_norm",
    "init",
    "load",
    "load_metadata",
    "local",
    "local_batches",
    "rank",
    "reduce",
    "save",
    "shard",
    "sync_batch_norm",
    "world_size",
]
