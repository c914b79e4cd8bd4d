"""What losses share: dtypes, reductions, and checks of shapes."""

import functools
from typing import Literal

import torch
from torch import Tensor

from fnn._numerics import under_autocast, widen

Reduction = Literal["mean", "sum", "none"]


def widened(*tensors: Tensor | None) -> tuple:
    """Convert 16-bit floats to float32 and leave other tensors, and None, as they are."""
    return tuple(None if tensor is None else widen(tensor) for tensor in tensors)


def result_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the floating dtype to which the tensors promote, or float32 in place of 16 bits under autocast."""
    dtypes = [tensor.dtype for tensor in tensors if tensor.is_floating_point()] or [torch.get_default_dtype()]
    dtype = functools.reduce(torch.promote_types, dtypes)
    if under_autocast(tensors[0]) and dtype.itemsize == 2:
        return torch.float32
    return dtype


def along(weight: Tensor, like: Tensor, dim: int) -> Tensor:
    """Reshape a vector so that it broadcasts along axis ``dim`` of another tensor."""
    return weight.reshape([-1] + [1] * (like.dim() - dim - 1))


def reduced(losses: Tensor, reduction: Reduction) -> Tensor:
    """Return the mean or the sum of the losses, or the losses."""
    check_reduction(reduction)
    if reduction == "mean":
        return losses.mean()
    return losses.sum() if reduction == "sum" else losses


def weighted_mean(losses: Tensor, weights: Tensor, reduction: Reduction) -> Tensor:
    """As :func:`reduced`, but the mean is divided by the sum of the weights, which the losses already contain."""
    return losses.sum() / weights.sum() if reduction == "mean" else reduced(losses, reduction)


def check_reduction(reduction: str) -> None:
    """Raise ``ValueError`` for an unknown reduction."""
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction is 'mean', 'sum' or 'none', got {reduction!r}")


def check_tensors(loss: str, *values: Tensor) -> None:
    """Raise ``TypeError`` for a value that is not a tensor, or is complex, for which only ``l1`` is defined."""
    for value in values:
        if not isinstance(value, Tensor):
            raise TypeError(f"{loss} expects tensors, got a {type(value).__name__}; write torch.as_tensor(value)")
        if value.is_complex() and loss != "l1":
            raise TypeError(f"{loss} is for real numbers, got {value.dtype}; apply it to torch.view_as_real(x)")


def check_same_shape(loss: str, prediction: Tensor, target: Tensor) -> None:
    """Raise ``ValueError`` for a prediction and a target of different shapes, which torch would broadcast."""
    check_tensors(loss, prediction, target)
    if prediction.shape != target.shape:
        shapes = f"{tuple(prediction.shape)} and {tuple(target.shape)}"
        hint = ""
        if prediction.dim() == target.dim() + 1 and prediction.shape[:-1] == target.shape:
            hint = "; write prediction.squeeze(-1)" if prediction.shape[-1] == 1 else ""
            one_hot = f"torch.nn.functional.one_hot(target, {prediction.shape[-1]}).float()"
            hint = hint or f"; for class labels write cross_entropy, or {one_hot}"
        raise ValueError(f"{loss} expects prediction and target of one shape, got {shapes}{hint}")


def check_equal_shapes(loss: str, **tensors: Tensor) -> None:
    """Raise ``ValueError`` unless all tensors, given by their names, have one shape."""
    check_tensors(loss, *tensors.values())
    if len({tuple(tensor.shape) for tensor in tensors.values()}) > 1:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(f"{loss} expects tensors of one shape, got {shapes}")


def check_weight(loss: str, weight: Tensor | None, prediction: Tensor) -> None:
    """Raise ``ValueError`` unless the weight of a regression loss has one entry for each prediction."""
    if weight is not None and weight.shape != prediction.shape:
        shapes = f"{tuple(prediction.shape)} and {tuple(weight.shape)}"
        raise ValueError(f"{loss} expects prediction and weight of one shape, got {shapes}")


def check_class_weight(loss: str, weight: Tensor | None, classes: int) -> None:
    """Raise ``ValueError`` unless the weight has one entry for each class."""
    if weight is not None and tuple(weight.shape) != (classes,):
        raise ValueError(f"{loss}: weight needs one entry per class, shape ({classes},), got {tuple(weight.shape)}")
