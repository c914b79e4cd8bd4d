"""torch's own table of inputs of modules, and the same computation by fnn.

A subject is one input of ``torch.testing._internal.common_modules.module_db``: torch's module, fnn's counterpart with
the same arguments, and values at which both are evaluated.
"""

import copy
import inspect
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing._internal import common_modules

import fnn
from docs import make_torch_nn
from fnn import tree

# arguments of modules that change nothing that can be seen, or where and how numbers are kept
IGNORED = {"inplace", "device", "dtype", "size_average", "reduce"}
# arguments of a loss with respect to which nobody differentiates, or whose values choose a branch
TARGETS = {"target", "targets"}


class Subject(NamedTuple):
    """``theirs(values)`` and ``ours(values)`` for a tree of floating tensors, params among them."""

    name: str
    theirs: Callable[[Any], Any]
    ours: Callable[[Any], Any]
    values: dict[str, Any]


def modules() -> list[str]:
    """The classes in torch's table that have a counterpart."""
    names = [info.name.removeprefix("nn.") for info in common_modules.module_db]
    return [name for name in names if make_torch_nn.counterpart(name) and name != "LinearCrossEntropyLoss"]


def subjects(name: str, training: bool, limit: int | None = None) -> Iterator[Callable[[], Subject]]:
    """Makers of the subjects of a class; making one raises the error of fnn's maker if it refuses the arguments."""
    (info,) = [info for info in common_modules.module_db if info.name == f"nn.{name}"]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inputs = info.module_inputs_func(
            info, device="cpu", dtype=torch.float64, requires_grad=False, training=training
        )
    for module_input in inputs[:limit]:
        if name == "Softmax" and module_input.constructor_input.args == (None,):
            continue
        yield lambda module_input=module_input: _subject(name, info.module_cls, module_input, training)


def _subject(name: str, cls: type, module_input: Any, training: bool) -> Subject:
    made, call = module_input.constructor_input, module_input.forward_input
    torch.manual_seed(0)
    module = cls(*copy.deepcopy(made.args), **copy.deepcopy(made.kwargs)).double().train(training)
    options = inspect.signature(cls).bind(*made.args, **made.kwargs).arguments
    options = {key: value for key, value in options.items() if key not in IGNORED}
    args = inspect.signature(module.forward).bind(*call.args, **call.kwargs).arguments
    moving = {
        key: value
        for key, value in args.items()
        if isinstance(value, Tensor) and value.is_floating_point() and key not in TARGETS
    }
    params = {key: leaf.detach().clone() for key, leaf in module.named_parameters()}
    buffers = {key: leaf.detach().clone() for key, leaf in module.named_buffers()}

    def theirs(values: Any) -> Any:
        state = {key: leaf.clone() for key, leaf in buffers.items()}
        return torch.func.functional_call(module, values["params"] | state, (), args | values["args"])

    make = ADAPTERS.get(name, _adapt)
    compute = make(name, options, buffers)

    def ours(values: Any) -> Any:
        return compute(tree.from_state_dict(values["params"]), args | values["args"], training)

    if name == "CTCLoss":  # torch's gradient is right behind a log-softmax only
        return Subject(name, _behind_log_softmax(theirs), _behind_log_softmax(ours), {"params": params, "args": moving})
    return Subject(name, theirs, ours, {"params": params, "args": moving})


def _behind_log_softmax(f: Callable) -> Callable:
    """The function of values that are no logarithms of probabilities yet."""

    def normalised(values: Any) -> Any:
        inputs = {key: F.log_softmax(leaf, -1) for key, leaf in values["args"].items()}
        return f(values | {"args": inputs})

    return normalised


def _adapt(name: str, options: dict[str, Any], buffers: dict[str, Tensor]) -> Callable[[Any, dict, bool], Any]:
    """The counterpart with the same options: a loss, a function, a layer, or a layer with state."""
    room, _, found = str(make_torch_nn.counterpart(name)).partition(".")
    function = getattr(getattr(fnn, room), found)
    if not hasattr(function, "__wrapped__"):  # makers of layers are decorated
        return lambda params, args, training: function(*args.values(), **options)
    layer = function(**options)
    if isinstance(layer, fnn.StatefulLayer):
        state = tree.from_state_dict(buffers)
        return lambda params, args, training: layer.apply(params, state, *args.values(), train=training)[0]
    return lambda params, args, training: layer.apply(params, *args.values())


# classes whose arguments or calls differ from torch's
ADAPTERS: dict[str, Callable[[str, dict[str, Any], dict[str, Tensor]], Callable[[Any, dict, bool], Any]]] = {}
