"""Layers made of one layer: frozen state, several repetitions, another precision."""

from typing import Any, overload

import torch
from torch import Tensor

from fnn import _torch, random
from fnn import tree as _tree
from fnn.compile.scan import scan
from fnn.layers.base import (
    ArgumentError,
    Layer,
    ShapeError,
    StatefulLayer,
    as_size,
    check_state,
    check_tensor,
    factory,
    with_parts,
)
from fnn.layers.capture import call_part, collected, tell
from fnn.layers.combinators import AnyPart, Part, as_stateful, like
from fnn.layers.remat import remat as recomputed
from fnn.tree import Tree


@factory
def frozen(layer: StatefulLayer, state: Tree) -> Layer:
    """A layer with state as a layer without, which is evaluated with this state and does not change it.

    It is for evaluation, for gradients of single samples and for Jacobians, where the running statistics of batch
    normalisation are constants. Params are those of ``layer``. ``init`` draws params and leaves the state alone. Raises
    ``TypeError`` for a layer that has no state and for a state that is not one.

    >>> import torch, fnn
    >>> layer = fnn.layers.sequential(fnn.layers.linear(3, 2), fnn.layers.batch_norm(2))
    >>> params, state = layer.init(fnn.random.key(0))
    >>> y = frozen(layer, state).apply(params, torch.ones(4, 3))
    >>> bool((y == layer.apply(params, state, torch.ones(4, 3))[0]).all())
    True
    """
    if not isinstance(layer, StatefulLayer):
        kind = "a layer without state, which needs no freezing" if isinstance(layer, Layer) else type(layer).__name__
        raise TypeError(f"frozen expects a layer with state, got {kind}")
    check_state("frozen", state, ())

    def init(key: Any = None) -> Tree:
        return layer.init(key)[0]

    def apply(params: Tree, *inputs: Any, key: Tensor | None = None, **options: Any) -> Any:
        return call_part("", layer, params, state, *inputs, key=key, **options)[0]

    return with_parts(Layer(init, apply), {"": layer})


@overload
def repeat(layer: Part, n: int, unroll: int = 1, remat: bool = False) -> Layer: ...
@overload
def repeat(layer: StatefulLayer, n: int, unroll: int = 1, remat: bool = False) -> StatefulLayer: ...
@factory
def repeat(layer: AnyPart, n: int, unroll: int = 1, remat: bool = False) -> Layer | StatefulLayer:
    """Apply ``n`` layers of one kind one after the other, y = layer(... layer(layer(x))), each with its own params.

    Params and state are those of ``layer`` with a new first axis of length n. The layers run as one :func:`fnn.scan`,
    so that :func:`fnn.jit` traces and compiles the layer once, whatever n is; each iteration of the loop runs
    ``unroll`` layers. With ``remat`` the backward pass keeps only the inputs of the n layers and computes the rest
    again, as in :func:`fnn.layers.remat`. A key is split into one for each layer.

    x: any shape that the layer keeps -> the same shape. Raises ``ShapeError`` when the layer changes the shape or
    dtype, and for params that are not stacked.

    >>> import torch, fnn
    >>> tower = repeat(fnn.layers.residual(fnn.models.mlp(8, 16, 8)), 12)
    >>> params = tower.init(fnn.random.key(0))
    >>> params["0"]["weight"].shape, tower.apply(params, torch.ones(4, 8)).shape
    (torch.Size([12, 16, 8]), torch.Size([4, 8]))
    """
    count = as_size("repeat", "n", n)
    part = as_stateful("repeat", "layer", layer)

    def init(key: Any = None) -> tuple[Tree, Tree]:
        params, state = zip(*(part.init(each) for each in random.split(key, count)), strict=True)
        return _stacked(params), _stacked(state)

    def apply(
        params: Tree, state: Tree, x: Any = None, *, train: bool = False, key: Tensor | None = None
    ) -> tuple[Tensor, Tree]:
        check_state("repeat", state, x)
        check_tensor("repeat", x)
        _check_stacked(params, count)

        def step(x: Tensor, each: dict[str, Tree]) -> tuple[Tensor, tuple[Tree, Tree]]:
            (y, new_state), outputs = collected(
                lambda: call_part("", part, each["params"], each["state"], x, train=train, key=each.get("key"))
            )
            if y.shape != x.shape or y.dtype != x.dtype:
                raise ShapeError(
                    "repeat expects a layer that keeps the shape and dtype of its input, but it turns "
                    f"{tuple(x.shape)} {x.dtype} into {tuple(y.shape)} {y.dtype}"
                )
            return y, (new_state, outputs)

        again = remat and not _torch.recording()  # in a graph the loop itself does it
        xs = {"params": params, "state": state} | ({} if key is None else {"key": random.split(key, count)})
        y, (state, outputs) = scan(recomputed(step) if again else step, x, xs, length=count, unroll=unroll, remat=remat)
        tell(outputs, part)
        return y, state

    return like(StatefulLayer(init, apply), layer, parts={"": layer})


def _stacked(trees: tuple[Tree, ...]) -> Tree:
    return _tree.stack(trees) if _tree.leaves(trees[0]) else trees[0]


def _check_stacked(params: Tree, count: int) -> None:
    for path, leaf in _tree.items(params):
        if not isinstance(leaf, Tensor):
            raise ArgumentError(f"repeat expects tensors in its params, got a {type(leaf).__name__} at {path!r}")
        if leaf.dim() == 0 or leaf.shape[0] != count:
            raise ShapeError(
                f"repeat of {count} layers expects leaves of shape ({count}, ...), got {tuple(leaf.shape)} at "
                f"{path!r}; the params of single layers are put together by fnn.tree.stack"
            )


@overload
def mixed_precision(
    layer: Part,
    params: torch.dtype = torch.float32,
    compute: torch.dtype = torch.bfloat16,
    output: torch.dtype = torch.float32,
) -> Layer: ...
@overload
def mixed_precision(
    layer: StatefulLayer,
    params: torch.dtype = torch.float32,
    compute: torch.dtype = torch.bfloat16,
    output: torch.dtype = torch.float32,
) -> StatefulLayer: ...
@factory
def mixed_precision(
    layer: AnyPart,
    params: torch.dtype = torch.float32,
    compute: torch.dtype = torch.bfloat16,
    output: torch.dtype = torch.float32,
) -> Layer | StatefulLayer:
    """Keep params in one dtype, compute in another, and return a third (Micikevicius et al., 2018).

    Params and inputs are cast to ``compute`` when the layer is applied, and its output is cast to ``output``. The casts
    are differentiated, so gradients have the dtype of the params. Integers, and the state, keep their dtypes. Sums over
    16-bit values are taken in float32 by the layers themselves. Raises ``TypeError`` for dtypes that are not floating.

    >>> import torch, fnn
    >>> model = mixed_precision(fnn.models.mlp(4, 8, 2))
    >>> params = model.init(fnn.random.key(0))
    >>> params["0"]["weight"].dtype, model.apply(params, torch.ones(3, 4)).dtype
    (torch.float32, torch.float32)
    """
    for name, dtype in (("params", params), ("compute", compute), ("output", output)):
        if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise TypeError(f"mixed_precision expects {name} as a floating dtype, got {dtype!r}; write torch.bfloat16")
    part = as_stateful("mixed_precision", "layer", layer)

    def init(key: Any = None) -> tuple[Tree, Tree]:
        made, state = part.init(key)
        return _cast(made, params), state

    def apply(
        values: Tree,
        state: Tree,
        x: Any = None,
        *inputs: Any,
        train: bool = False,
        key: Tensor | None = None,
        **options: Any,
    ) -> tuple[Any, Tree]:
        check_state("mixed_precision", state, x)
        low = _cast((x, *inputs), compute)
        y, state = call_part("", part, _cast(values, compute), state, *low, train=train, key=key, **options)
        return _cast(y, output), state

    return like(StatefulLayer(init, apply), layer, parts={"": layer})


def _cast(tree: Tree, dtype: torch.dtype) -> Tree:
    """Cast the floating tensors of a tree; a tensor that has the dtype already is not copied."""
    change = lambda leaf: leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf
    return _tree.map(change, tree)
