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


KEY = fnn.random.key(7)


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
    options |= options.pop("kwargs", {})  # RNNs name none of their arguments
    options = {key: value for key, value in options.items() if key not in IGNORED}
    signature = inspect.signature(module.forward)
    args = signature.bind(*call.args, **call.kwargs).arguments
    if name not in ADAPTERS:  # which hand their arguments on in order
        assert list(args) == list(signature.parameters)[: len(args)], f"{name} is called with {list(args)}"
    moving = {
        key: value
        for key, value in args.items()
        if isinstance(value, Tensor) and value.is_floating_point() and key not in TARGETS
    }
    if name.startswith("FractionalMaxPool"):  # the windows of both are placed by the same draws
        module._random_samples = fnn.random.uniform(KEY, module._random_samples.shape, torch.float64)
    params = {key: leaf.detach().clone() for key, leaf in module.named_parameters()}
    buffers = {key: leaf.detach().clone() for key, leaf in module.named_buffers()}

    def theirs(values: Any) -> Any:
        state = {key: leaf.clone() for key, leaf in buffers.items()}
        try:  # evaluation without gradients takes a path of its own, which gives zeros for padding
            torch.backends.mha.set_fastpath_enabled(False)
            return torch.func.functional_call(module, values["params"] | state, (), args | values["args"])
        finally:
            torch.backends.mha.set_fastpath_enabled(True)

    compute = ADAPTERS.get(name, _adapt)(name, options, buffers)

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
    if name.startswith("InstanceNorm"):  # one function for all, which must be told to tell samples from batches
        options = options | {"spatial": int(name[-2])}
    layer = function(**options)
    if isinstance(layer, fnn.StatefulLayer):
        state = tree.from_state_dict(buffers)
        return lambda params, args, training: layer.apply(params, state, *args.values(), train=training)[0]
    return lambda params, args, training: layer.apply(params, *args.values())


def _batch_first(names: set[str], renamed: dict[str, str]) -> Callable:
    """For layers whose inputs of these names have the batch first, where torch's have it second unless told."""

    def adapt(name: str, options: dict[str, Any], buffers: dict[str, Tensor]) -> Callable[[Any, dict, bool], Any]:
        first = options.get("batch_first", False)
        turn = lambda x: x if first or not isinstance(x, Tensor) or x.dim() != 3 else x.transpose(0, 1)
        kept = {key: value for key, value in options.items() if key not in ("batch_first", "activation")}
        if "activation" in options:
            kept["activation"] = _activation(options["activation"])
        layer = getattr(fnn.layers, str(make_torch_nn.counterpart(name)).removeprefix("layers."))(**kept)

        def compute(params: Any, args: dict, training: bool) -> Any:
            called = {renamed.get(key, key): turn(x) if key in names else x for key, x in args.items()}
            y = layer.apply(params, **called)
            return (turn(y[0]), *y[1:]) if isinstance(y, tuple) else turn(y)

        return compute

    return adapt


def _activation(given: Any) -> Any:
    return {F.relu: "relu", F.gelu: "gelu"}.get(given, given)


def _encoder(name: str, options: dict[str, Any], buffers: dict[str, Tensor]) -> Callable[[Any, dict, bool], Any]:
    """The layers are made again from the attributes of the module that is the argument."""
    one = options["encoder_layer"]
    layer = fnn.layers.transformer_encoder_layer(
        one.self_attn.embed_dim,
        one.self_attn.num_heads,
        one.linear1.out_features,
        one.dropout.p,
        _activation(one.activation),
        one.norm1.eps,
        norm_first=one.norm_first,
        bias=one.linear1.bias is not None,
    )
    assert options.get("norm") is None
    encoder = fnn.layers.transformer_encoder(layer, options["num_layers"])
    first = one.self_attn.batch_first
    turn = lambda x: x if first or x.dim() != 3 else x.transpose(0, 1)

    def compute(params: Any, args: dict, training: bool) -> Any:
        return turn(encoder.apply(params, **args | {"src": turn(args["src"])}))

    return compute


def _attention(name: str, options: dict[str, Any], buffers: dict[str, Tensor]) -> Callable[[Any, dict, bool], Any]:
    """torch's module gives the weights, too, unless told."""
    compute = _batch_first({"query", "key", "value"}, {"key": "keys", "value": "values"})(name, options, buffers)
    return lambda params, args, training: compute(params, {"need_weights": True} | args, training)


def _fractional(name: str, options: dict[str, Any], buffers: dict[str, Tensor]) -> Callable[[Any, dict, bool], Any]:
    kept = {key: value for key, value in options.items() if key != "_random_samples"}
    layer = getattr(fnn.layers, make_torch_nn.snake_case(name))(**kept)
    return lambda params, args, training: layer.apply(params, *args.values(), key=KEY)


# classes whose arguments or calls differ from torch's
ADAPTERS: dict[str, Callable[[str, dict[str, Any], dict[str, Tensor]], Callable[[Any, dict, bool], Any]]] = {
    "FractionalMaxPool2d": _fractional,
    "FractionalMaxPool3d": _fractional,
    "MultiheadAttention": _attention,
    "TransformerEncoder": _encoder,
    **{
        name: _batch_first({"src", "tgt", "memory"}, {})
        for name in ("Transformer", "TransformerEncoderLayer", "TransformerDecoderLayer")
    },
    **{name: _batch_first({"input"}, {"input": "x", "hx": "state"}) for name in ("RNN", "LSTM", "GRU")},
}
