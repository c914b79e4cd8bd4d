"""Into fnn and out of it: torch.nn modules as layers, layers as modules, and files of weights."""

from fnn.interop.from_module import Converted, from_module
from fnn.interop.state_dicts import Loaded, load_state_dict, state_dict
from fnn.interop.to_module import to_module
from fnn.interop.weights import read_state_dict, torchvision_weights

__all__ = [
    "Converted",
    "Loaded",
    "from_module",
    "load_state_dict",
    "read_state_dict",
    "state_dict",
    "to_module",
    "torchvision_weights",
]
