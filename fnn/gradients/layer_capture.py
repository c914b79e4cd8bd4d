"""What a matrix is multiplied with, and what its gradient is made of: layer inputs and output gradients by taps.

While a function runs, a ``torch.overrides.TorchFunctionMode`` recognises the leaves of ``params`` in calls of
linear, convolution, embedding and matrix products, keeps the input, and adds a zero, the tap, to the output; the
derivative with respect to the tap is the output gradient G. With the inputs A, both with one row per position
(token, pixel), the gradient with respect to the matrix is G^T A.

Compiled code before torch 2.15 is refused: it does not show ``leaf.T``, ``leaf.mT`` and iteration over a leaf to the
mode, so that a leaf which is also a layer's matrix would wrongly be taken for nothing else.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fnn import _torch
from fnn import tree as _tree
from fnn.gradients.per_sample import as_batch_of_one
from fnn.layers.base import samples_apart


class Use(NamedTuple):
    """One use of a leaf as the matrix of a layer, and of another as the bias that the layer adds."""

    leaf: int
    bias: int | None
    kind: str
    options: tuple
    shape: tuple[int, ...]  # of the layer's output
    dtype: torch.dtype
    device: torch.device


# Recognising a leaf in a call: the matrix, its input, its bias, the kind of layer ("" for none) and its options


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple:
    return weight, input, bias, "linear", ()


def _matmul(input: Tensor, other: Tensor) -> tuple:
    return other, input, None, "matmul", ()


def _conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple:
    return weight, input, bias, "conv", (stride, padding, dilation, groups)


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> tuple:
    plain = max_norm is None and not scale_grad_by_freq
    return weight, input, None, "embedding" if plain else "", (padding_idx,)


def _getitem(input: Tensor, index: Any) -> tuple:
    rows = isinstance(index, Tensor) and index.dtype in (torch.int64, torch.int32)
    return input, index, None, "embedding" if rows else "", (None,)


_READERS = {
    F.linear: _linear,
    F.conv1d: _conv,
    F.conv2d: _conv,
    F.embedding: _embedding,
    torch.Tensor.__getitem__: _getitem,
    torch.Tensor.matmul: _matmul,
    torch.Tensor.__matmul__: _matmul,
    torch.matmul: _matmul,
}

_QUESTIONS = {"shape", "dtype", "device", "ndim", "size", "dim", "numel", "is_floating_point", "is_complex"}


class Recorder(TorchFunctionMode):
    """Notes every use of the leaves; adds the taps to the outputs where they are given.

    ``leaves`` are tensors by place, ``inputs`` those of the ``uses``; ``others`` says of a leaf, by place, how it is
    used otherwise than as a matrix or as a layer's bias.
    """

    def __init__(self, leaves: dict[int, Tensor], taps: list[Tensor] | None = None):
        super().__init__()
        self.leaves = leaves
        self.taps = taps
        self.uses: list[Use] = []
        self.inputs: list[Tensor] = []
        self.others: dict[int, str] = {}
        self.depth = _transforms()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        within = _transforms() == self.depth
        found = self._matrix(func, args, kwargs) if within else None
        known = () if found is None else found[:2]
        for value in (*args, *kwargs.values()):
            for part in value if isinstance(value, (list, tuple)) else (value,):
                place = self._place(part)
                if place is not None and place not in known:
                    self._note_other(place, part, func, within)
        if found is None:
            return out
        leaf, bias, input, kind, options = found
        self.inputs.append(input)
        self.uses.append(Use(leaf, bias, kind, options, tuple(out.shape), out.dtype, out.device))
        return out if self.taps is None else out + self.taps[len(self.uses) - 1]

    def _place(self, value: Any) -> int | None:
        if isinstance(value, Tensor):
            for i, leaf in self.leaves.items():
                if leaf is value:
                    return i
        return None

    def _matrix(self, func: Any, args: Any, kwargs: Any) -> tuple | None:
        reader = _READERS.get(func)
        if reader is None:
            return None
        weight, input, bias, kind, options = reader(*args, **kwargs)
        place = self._place(weight)
        if place is None or not kind or self._place(input) is not None or not isinstance(input, Tensor):
            return None
        wide = weight.dim() == 2 if kind != "conv" else weight.dim() == input.dim() and weight.dim() in (3, 4)
        if not wide or (kind == "matmul" and input.dim() == 0):
            return None
        plain = isinstance(bias, Tensor) and bias.dim() == 1  # anything else that is added is another use
        return place, self._place(bias) if plain else None, input, kind, options

    def _note_other(self, place: int, leaf: Tensor, func: Any, within: bool) -> None:
        name = getattr(func, "__name__", str(func))
        if name == "__get__":  # an attribute: x.shape asks a question, x.T is a use
            name = getattr(getattr(func, "__self__", None), "__name__", name)
        if name in _QUESTIONS:
            return
        if not within:
            self.others[place] = "used inside a vmap or another transform within the function, out of the taps' reach"
        elif leaf.dim() < 2:
            self.others[place] = f"a vector used by {name}"
        else:
            self.others[place] = f"used by {name}, not only as the matrix of a linear, conv, embedding or matmul"


def _transforms() -> int:
    """How many transforms of torch.func run around the call; 0 in compiled code, where they cannot be counted."""
    if torch.compiler.is_compiling():
        return 0
    innermost = _torch.peek_interpreter_stack()
    return 0 if innermost is None else innermost.level()


def record(function: Callable, args: tuple, kwargs: dict, in_dims: tuple, batch_argnums: Any) -> Recorder:
    """The uses of the leaves of the first argument, from one run of the function on the first sample."""
    if torch.compiler.is_compiling() and not _torch.compiled_modes_see_all:
        raise NotImplementedError(
            f"torch {torch.__version__} hides uses such as weight.T from taps in compiled code; take torch 2.15, "
            "run it without fnn.jit, or write method='exact'"
        )
    row = [arg if dim is None else _tree.map(lambda x: x[0], arg) for arg, dim in zip(args, in_dims, strict=True)]
    one = {name: value[0] for name, value in kwargs.items()}
    recorder = Recorder(dict(enumerate(_tree.leaves(args[0]))))
    of_one = as_batch_of_one(function, batch_argnums)
    with samples_apart(), recorder:
        of_one(*row, **one)
    return recorder


def zero_taps(uses: list[Use], samples: tuple[int, ...] = ()) -> list[Tensor]:
    """A zero for the output of each use, with leading axes for samples where the function is not mapped over them."""
    return [torch.zeros((*samples, *use.shape), dtype=use.dtype, device=use.device) for use in uses]


# Rows of positions (samples, groups, positions, width) of linear layers, matrix products and convolutions


def gradient_rows(use: Use, gradient: Tensor) -> Tensor:
    """Output gradients (samples, *use.shape) with one row per position."""
    samples = gradient.shape[0]
    if use.kind != "conv":
        return gradient.reshape(samples, 1, -1, gradient.shape[-1])
    images = gradient.reshape(samples, gradient.shape[1], use.options[3], -1, gradient[0, 0, 0].numel())
    return _images_to_positions(images)


def input_rows(use: Use, input: Tensor, leaf: Tensor) -> Tensor:
    """Layer inputs (samples, ...) with one row per position; for a convolution a row is a window of the image."""
    samples = input.shape[0]
    if use.kind != "conv":
        return input.reshape(samples, 1, -1, input.shape[-1])
    stride, padding, dilation, groups = use.options
    space = leaf.dim() - 2
    images = input.flatten(0, 1)  # samples and the images of each
    if space == 1:  # a signal is an image of one row
        images = images.unsqueeze(-2)
    kernel = (1,) * (2 - space) + tuple(leaf.shape[2:])
    stride, dilation = _two(stride, space, 1), _two(dilation, space, 1)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        margins = [total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2]
    else:
        up, side = (0, 0) if padding == "valid" else _two(padding, space, 0)
        margins = [side, side, up, up]
    windows = F.unfold(F.pad(images, margins), kernel, dilation, 0, stride)  # (images, channels * window, positions)
    return _images_to_positions(windows.reshape(samples, input.shape[1], groups, -1, windows.shape[-1]))


def _images_to_positions(images: Tensor) -> Tensor:
    """(samples, images, groups, width, positions) -> (samples, groups, images * positions, width)."""
    return images.permute(0, 2, 1, 4, 3).flatten(2, 3)


def _two(value: Any, space: int, missing: int) -> tuple[int, int]:
    values = (value,) * space if isinstance(value, int) else tuple(value)
    values = values * space if len(values) < space else values
    return (missing, values[0]) if space == 1 else (values[0], values[1])
