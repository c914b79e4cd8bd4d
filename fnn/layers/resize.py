"""Resizing of images and other arrays."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fnn._numerics import widen
from fnn.layers.base import Layer, ShapeError, as_size, check_floating, check_params, factory

Factor = float | Sequence[float]
_DIMS = {"linear": (1,), "bilinear": (2,), "bicubic": (2,), "trilinear": (3,)}
_MODES = {"nearest": (1, 2, 3), "nearest-exact": (1, 2, 3), "area": (1, 2, 3), **_DIMS}


def interpolate(
    x: Tensor,
    size: int | Sequence[int] | None = None,
    scale_factor: Factor | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor:
    """Resize the axes after the channels, with the arguments of ``torch.nn.functional.interpolate``.

    x: (batch, channels, length), (batch, channels, height, width) or (batch, channels, depth, height, width) -> the
    same with other sizes: ``size``, or floor(``scale_factor`` times the old size). ``mode`` is "nearest" (as in torch
    and OpenCV, off by half a pixel), "nearest-exact", "area" (adaptive average pooling), "linear", "bilinear",
    "bicubic" or "trilinear". The last four take ``align_corners``: whether the centres of the outermost pixels keep
    their places, rather than their edges. ``recompute_scale_factor`` computes the ratio from the sizes in place of
    using ``scale_factor`` as it is. ``antialias`` widens the filter where images become smaller ("bilinear" and
    "bicubic"). Raises ``ShapeError`` for another rank, for a rank that the mode does not have, for an empty axis and
    for an empty result, ``TypeError`` for integers, and ``ValueError`` unless exactly one of size and scale_factor is
    given, for another mode and for options that the mode does not have.

    >>> interpolate(torch.tensor([[[1.0, 3.0]]]), scale_factor=2, mode="linear")
    tensor([[[1.0000, 1.5000, 2.5000, 3.0000]]])
    """
    _check_options("interpolate", size, scale_factor, mode, align_corners, recompute_scale_factor, antialias)
    return _resized("interpolate", x, size, scale_factor, mode, align_corners, recompute_scale_factor, antialias)


@factory
def upsample(
    size: int | Sequence[int] | None = None,
    scale_factor: Factor | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
) -> Layer:
    """:func:`interpolate` as a layer, with the arguments of ``torch.nn.Upsample``.

    >>> upsample(scale_factor=2).apply({}, torch.tensor([[[1.0, 3.0]]]))
    tensor([[[1., 1., 3., 3.]]])
    """
    return _upsample("upsample", size, scale_factor, mode, align_corners, recompute_scale_factor)


@factory
def upsampling_nearest2d(size: int | Sequence[int] | None = None, scale_factor: Factor | None = None) -> Layer:
    """:func:`upsample` of images with mode "nearest", as in ``torch.nn.UpsamplingNearest2d``.

    >>> upsampling_nearest2d(scale_factor=2).apply({}, torch.ones(1, 1, 3, 4)).shape
    torch.Size([1, 1, 6, 8])
    """
    return _upsample("upsampling_nearest2d", size, scale_factor, "nearest", None, None, 2)


@factory
def upsampling_bilinear2d(size: int | Sequence[int] | None = None, scale_factor: Factor | None = None) -> Layer:
    """:func:`upsample` with mode "bilinear" and ``align_corners``, as in ``torch.nn.UpsamplingBilinear2d``.

    >>> upsampling_bilinear2d(size=(1, 3)).apply({}, torch.tensor([[[[1.0, 3.0]]]]))
    tensor([[[[1., 2., 3.]]]])
    """
    return _upsample("upsampling_bilinear2d", size, scale_factor, "bilinear", True, None)


def _upsample(
    layer: str,
    size: int | Sequence[int] | None,
    scale_factor: Factor | None,
    mode: str,
    align_corners: bool | None,
    recompute_scale_factor: bool | None,
    dims: int | None = None,
) -> Layer:
    _check_options(layer, size, scale_factor, mode, align_corners, recompute_scale_factor, False)

    def apply(params: dict, x: Tensor, *, key: Tensor | None = None) -> Tensor:
        check_params(layer, params)
        return _resized(layer, x, size, scale_factor, mode, align_corners, recompute_scale_factor, False, dims)

    return Layer(lambda key=None: {}, apply)


def _check_options(
    layer: str,
    size: int | Sequence[int] | None,
    scale_factor: Factor | None,
    mode: str,
    align_corners: bool | None,
    recompute_scale_factor: bool | None,
    antialias: bool,
) -> None:
    if (size is None) == (scale_factor is None):
        raise ValueError(f"{layer} expects either size or scale_factor")
    if mode not in _MODES:
        raise ValueError(f"{layer}: mode is one of {', '.join(map(repr, _MODES))}, got {mode!r}")
    if align_corners is not None and mode not in _DIMS:
        raise ValueError(f"{layer}: align_corners needs a mode of {', '.join(map(repr, _DIMS))}, got {mode!r}")
    if antialias and mode not in ("bilinear", "bicubic"):
        raise ValueError(f"{layer}: antialias needs mode 'bilinear' or 'bicubic', got {mode!r}")
    if recompute_scale_factor and scale_factor is None:
        raise ValueError(f"{layer}: recompute_scale_factor needs scale_factor")
    factors: Any = scale_factor if isinstance(scale_factor, (tuple, list)) else (scale_factor,)
    if scale_factor is not None and not all(factor > 0 for factor in factors):
        raise ValueError(f"{layer} expects scale_factor > 0, got {scale_factor}")


def _resized(
    layer: str,
    x: Tensor,
    size: int | Sequence[int] | None,
    scale_factor: Factor | None,
    mode: str,
    align_corners: bool | None,
    recompute_scale_factor: bool | None,
    antialias: bool,
    dims: int | None = None,
) -> Tensor:
    check_floating(layer, x)
    ranks = [dims + 2] if dims else [dims + 2 for dims in _MODES[mode]]
    if x.dim() not in ranks or 0 in x.shape[1:]:
        wanted = " or ".join(map(str, ranks))
        raise ShapeError(
            f"{layer} with mode {mode!r} expects inputs (batch, channels, ...) of {wanted} axes without an empty one, "
            f"got {tuple(x.shape)}"
        )
    given = tuple(x.shape[2:])
    asked = scale_factor if size is None else size
    for_each: Any = tuple(asked) if isinstance(asked, (tuple, list)) else (asked,) * len(given)
    if len(for_each) != len(given):
        raise ShapeError(f"{layer} of an input of size {given} expects one number or {len(given)}, got {asked}")
    if size is not None:
        sizes = tuple(as_size(layer, "size", number, 0) for number in for_each)
    else:
        sizes = tuple(int(number * factor) for number, factor in zip(given, for_each, strict=True))
    if min(sizes) < 1:
        raise ShapeError(f"{layer} of an input of size {given} would give one of size {sizes}")
    by_factor = size is None and not recompute_scale_factor
    uneven = by_factor and any(n * factor != m for n, m, factor in zip(given, sizes, for_each, strict=True))
    # torch's kernel for nearest-exact is a loop under vmap, and with a factor that is not the ratio of the sizes its
    # gradients of "nearest" along one or three axes belong to another function
    if mode == "nearest-exact" or (mode == "nearest" and uneven and len(given) != 2):
        ratios = [1 / f if by_factor else n / m for n, m, f in zip(given, sizes, for_each, strict=True)]
        return _taken(x, sizes, ratios, 0.5 if mode == "nearest-exact" else 0.0)
    exact = {"size": list(sizes)} if size is not None else {"scale_factor": list(for_each)}
    options = {"align_corners": align_corners, "recompute_scale_factor": recompute_scale_factor}
    return F.interpolate(widen(x), mode=mode, antialias=antialias, **exact, **options).to(x.dtype)


def _taken(x: Tensor, sizes: tuple[int, ...], ratios: list[float], place: float) -> Tensor:
    """Take the pixel in which the new pixel lies, that is its centre (place 0.5) or its edge (0)."""
    for axis, (size, ratio) in enumerate(zip(sizes, ratios, strict=True), start=2):
        places = torch.arange(size, device=x.device, dtype=widen(x).dtype) + place
        x = x.index_select(axis, (places * ratio).long().clamp_max(x.shape[axis] - 1))
    return x
