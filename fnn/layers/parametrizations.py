"""Layers whose weight is computed from other params, under torch's names for parametrizations."""

from collections.abc import Collection, Mapping
from typing import Any, overload

import torch
from torch import Tensor

from fnn import random
from fnn._configs import config_of
from fnn._numerics import widen
from fnn.layers.base import (
    Layer,
    ShapeError,
    StatefulLayer,
    as_size,
    check_floating,
    check_mapping,
    check_names,
    check_params,
    check_state,
    factory,
    with_parts,
)
from fnn.tree import Tree


@overload
def weight_norm(layer: Layer, name: str = "weight", dim: int | None = 0) -> Layer: ...
@overload
def weight_norm(layer: StatefulLayer, name: str = "weight", dim: int | None = 0) -> StatefulLayer: ...
@factory
def weight_norm(layer: Layer | StatefulLayer, name: str = "weight", dim: int | None = 0) -> Layer | StatefulLayer:
    """Compute a leaf of a layer as g v / |v|: its size and its direction are trained apart (Salimans and Kingma, 2016).

    |v| is the norm of each slice along ``dim``, so that g has a number for each output of a linear layer; with
    ``dim=None`` it is the norm of the whole leaf. The params are those of ``layer`` without the leaf ``name``, and
    ``parametrizations[name]`` with ``original0`` (g) and ``original1`` (v), which are torch's names. They start such
    that the leaf has its usual first value. Raises ``TypeError`` for what is not a layer, and ``ShapeError`` for params
    of other names and shapes.

    >>> from fnn.layers import linear
    >>> layer = weight_norm(linear(2, 1))
    >>> v = {"original0": torch.tensor([[10.0]]), "original1": torch.tensor([[3.0, 4.0]])}
    >>> layer.apply({"bias": torch.zeros(1), "parametrizations": {"weight": v}}, torch.ones(2))
    tensor([14.])
    """
    _check_layer("weight_norm", layer)
    axis = None if dim is None else as_size("weight_norm", "dim", dim, 0)

    def init(key: Any = None) -> Any:
        made: Any = layer.init(key)
        params, *state = made if isinstance(layer, StatefulLayer) else (made,)
        leaf, rest = _without_leaf("weight_norm", params, name)
        params = _with_part(rest, name, {"original0": _norm(leaf, axis), "original1": leaf})
        return (params, *state) if state else params

    def apply(params: Any, *inputs: Any, **options: Any) -> Any:
        names = ("original0", "original1")
        (g, v), rest = _without_part("weight_norm", params, name, names)
        check_floating("weight_norm", v)
        norm = _norm(v, axis)
        check_params("weight_norm", {"original0": g}, original0=tuple(norm.shape))
        weight = (v * (g / norm)).to(v.dtype)
        return layer.apply(rest | {name: weight}, *inputs, **options)

    return with_parts(type(layer)(init, apply), {"": layer})


def _norm(v: Tensor, axis: int | None) -> Tensor:
    """Return the norm of each slice along an axis, with the other axes of size 1, or the norm of the whole."""
    if axis is not None and axis >= v.dim():
        raise ShapeError(f"weight_norm with dim={axis} got a leaf of shape {tuple(v.shape)}")
    others = [other for other in range(v.dim()) if other != axis]
    if not others:
        return v.abs()
    return widen(v).square().sum(others, keepdim=axis is not None).sqrt().to(v.dtype)


@factory
def spectral_norm(
    layer: Layer | StatefulLayer,
    name: str = "weight",
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    dim: int | None = None,
) -> StatefulLayer:
    """Divide a leaf of a layer by its largest singular value (Miyato et al., 2018).

    The leaf is taken as a matrix whose rows are its slices along ``dim``, by default 0, and 1 for transposed
    convolutions. Its singular value is estimated by u^T W v, with vectors u and v that are state; with ``train=True``
    they are improved by ``n_power_iterations`` steps of the power method, which are not differentiated. A leaf with one
    axis is divided by its norm and has no state. The params are those of ``layer``, with the leaf as
    ``parametrizations[name]["original"]``, and the state has ``parametrizations[name]["0"]`` with ``_u`` and ``_v``,
    which are torch's names. Raises ``TypeError`` for what is not a layer, and ``ShapeError`` for params and state of
    other names and shapes.

    >>> from fnn.layers import linear
    >>> layer = spectral_norm(linear(2, 2, bias=False))
    >>> params, state = layer.init(random.key(0))
    >>> params["parametrizations"]["weight"]["original"] = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    >>> for _ in range(20):
    ...     y, state = layer.apply(params, state, torch.ones(2), train=True)
    >>> y
    tensor([1.0000, 0.3333])
    """
    _check_layer("spectral_norm", layer)
    config = config_of(layer)
    transposed = config is not None and config.maker.__name__.startswith("conv_transpose")
    axis = int(transposed) if dim is None else as_size("spectral_norm", "dim", dim, 0)
    steps = as_size("spectral_norm", "n_power_iterations", n_power_iterations)

    def init(key: Any = None) -> tuple[dict[str, Tree], dict[str, Tree]]:
        made: Any = layer.init(key)
        params, state = made if isinstance(layer, StatefulLayer) else (made, {})
        leaf, rest = _without_leaf("spectral_norm", params, name)
        params = _with_part(rest, name, {"original": leaf})
        if leaf.dim() < 2:
            return params, state
        matrix = _as_matrix(leaf, axis)
        u_key, v_key = random.split(random.fold_in(key, 1))
        u, v = (
            random.normal(u_key, matrix.shape[:1], matrix.dtype),
            random.normal(v_key, matrix.shape[1:], matrix.dtype),
        )
        u, v = _power_method(matrix, _unit(u, eps), _unit(v, eps), 15, eps)
        return params, _with_part(state, name, {"0": {"_u": u, "_v": v}})

    def apply(
        params: Any, state: Any, *inputs: Any, train: bool = False, key: Tensor | None = None
    ) -> tuple[Any, dict[str, Tree]]:
        check_mapping("spectral_norm", params)
        check_state("spectral_norm", state, inputs[0] if inputs else None)
        (leaf,), rest = _without_part("spectral_norm", params, name, ("original",))
        check_floating("spectral_norm", leaf)
        if leaf.dim() < 2:
            weight, inner_state, part = _unit(widen(leaf), eps), state, {}
        else:
            (vectors,), inner_state = _without_part("spectral_norm", state, name, ("0",))
            matrix = _as_matrix(leaf, axis)
            check_params("spectral_norm", vectors, _u=tuple(matrix.shape[:1]), _v=tuple(matrix.shape[1:]))
            u, v = (vectors[entry].to(matrix.dtype) for entry in ("_u", "_v"))
            if train:
                u, v = _power_method(matrix.detach(), u, v, steps, eps)
                vectors = {"_u": u.to(vectors["_u"].dtype), "_v": v.to(vectors["_v"].dtype)}
            weight, part = widen(leaf) / (u @ (matrix @ v)), {"0": vectors}
        rest = rest | {name: weight.to(leaf.dtype)}
        if isinstance(layer, StatefulLayer):
            y, inner_state = layer.apply(rest, inner_state, *inputs, train=train, key=key)
        else:
            y = layer.apply(rest, *inputs, key=key)
        return y, _with_part(inner_state, name, part) if part else inner_state

    return with_parts(StatefulLayer(init, apply), {"": layer})


def _as_matrix(leaf: Tensor, axis: int) -> Tensor:
    """Return the matrix whose rows are the slices of the leaf along an axis."""
    if axis >= leaf.dim():
        raise ShapeError(f"spectral_norm with dim={axis} got a leaf of shape {tuple(leaf.shape)}")
    return widen(leaf).movedim(axis, 0).flatten(1)


def _power_method(matrix: Tensor, u: Tensor, v: Tensor, steps: int, eps: float) -> tuple[Tensor, Tensor]:
    """Return approximations of the singular vectors of the largest singular value."""
    for _ in range(steps):
        u = _unit(matrix @ v, eps)
        v = _unit(matrix.mT @ u, eps)
    return u, v


def _unit(x: Tensor, eps: float) -> Tensor:
    return x / torch.linalg.vector_norm(x).clamp_min(eps)


def _check_layer(caller: str, layer: Any) -> None:
    if not isinstance(layer, (Layer, StatefulLayer)):
        raise TypeError(f"{caller} expects a layer, got {layer!r}; write {caller}(fnn.layers.linear(4, 3))")


def _without_leaf(caller: str, params: Tree, name: str) -> tuple[Tensor, dict[str, Tree]]:
    """Return a leaf of the layer's own params, and the others."""
    if not isinstance(params, Mapping) or not isinstance(params.get(name), Tensor):
        known = sorted(params) if isinstance(params, Mapping) else "none"
        raise ValueError(f"{caller}: the layer has no leaf {name!r}; its own entries are {known}")
    return params[name], {other: value for other, value in params.items() if other != name}


def _with_part(tree: Mapping[str, Tree], name: str, part: Tree) -> dict[str, Tree]:
    """Return params or state with one more parametrization."""
    return {**tree, "parametrizations": {**tree.get("parametrizations", {}), name: part}}


def _without_part(caller: str, tree: Any, name: str, names: Collection[str]) -> tuple[list[Any], dict[str, Tree]]:
    """Return the entries of a parametrization, and the rest of params or state."""
    check_mapping(caller, tree)
    every = tree.get("parametrizations", {})
    part = every.get(name, {}) if isinstance(every, Mapping) else {}
    missing = [entry for entry in names if not isinstance(part, Mapping) or entry not in part]
    if missing:
        wanted = " and ".join(f"['parametrizations'][{name!r}][{entry!r}]" for entry in missing)
        raise ShapeError(f"{caller} expects {wanted}, but was given only {sorted(tree)}")
    check_names(caller, part, names)
    if name in tree:
        raise ShapeError(f"{caller} computes {name!r} from its parametrization, but was given it as well")
    others = {other: value for other, value in every.items() if other != name}
    rest = {other: value for other, value in tree.items() if other != "parametrizations"}
    return [part[entry] for entry in names], rest | ({"parametrizations": others} if others else {})
