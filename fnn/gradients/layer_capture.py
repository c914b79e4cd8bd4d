"""The layers that a function calls: which matrix each multiplies with, its input and the gradient at its output.

While a function runs, a ``torch.overrides.TorchFunctionMode`` recognises leaves of ``params`` in calls of linear,
convolution, embedding and matrix products. :func:`record` runs the function once, on one sample, to find these calls;
:class:`Taps` runs it again, keeps the input A of each, and adds a zero, the tap, to its output: the derivative with
respect to the tap is the output gradient G. With A and G as one row per position (token, pixel), the gradient with
respect to the matrix is G^T A.

This is the whole gradient only if the leaf is used in no other way, and a mode cannot see every use: not iteration over
a leaf, nor what happens inside a ``vmap`` or ``grad`` of the function's own. So :func:`record` does not rely on it. It
reads the graph that autograd records of the same run, where no use that has a derivative can be missing: each path from
the output to the leaf must lead through one of the calls that were recognised.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fnn import _torch
from fnn import tree as _tree
from fnn.gradients.per_sample import as_batch_of_one, over_samples


class Use(NamedTuple):
    """One use of a leaf as the matrix of a layer, and of another as the bias that the layer adds."""

    leaf: int
    bias: int | None
    kind: str  # "linear", "matmul", "conv" or "embedding"
    options: tuple
    shape: tuple[int, ...]  # of the layer's output
    dtype: torch.dtype
    device: torch.device


class Record(NamedTuple):
    """The uses of leaves as matrices, in the order of the calls, and how leaves are used otherwise, by their number."""

    uses: list[Use]
    others: dict[int, str]


# Recognising a leaf in a call: the matrix, its input, its bias, the kind of layer ("" for none) and its options


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple:
    return weight, input, bias, "linear", ()


def _matmul(input: Tensor, other: Tensor) -> tuple:
    return other, input, None, "matmul", ()


def _mm(input: Tensor, mat2: Tensor) -> tuple:
    return mat2, input, None, "matmul", ()


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
    torch.Tensor.mm: _mm,
    torch.mm: _mm,
}


class _Listener(TorchFunctionMode):
    """Hands the calls that use one of the leaves as the matrix of a layer to ``layer``; the others run as they are.

    ``leaves`` are tensors by their number in params. They are recognised by identity, so each must be an object that
    occurs nowhere else. Calls inside a transform that the function itself uses are left alone: they do not see the
    whole input.
    """

    def __init__(self, leaves: dict[int, Tensor]):
        super().__init__()
        self.leaves = leaves
        self.places = {id(leaf): place for place, leaf in leaves.items()}
        self.depth = _depth()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = self._matrix(func, args, kwargs)
        return func(*args, **kwargs) if found is None else self.layer(found, func, args, kwargs)

    def layer(self, found: tuple, func: Callable, args: tuple, kwargs: dict) -> Any:
        raise NotImplementedError

    def place(self, value: Any) -> int | None:
        return self.places.get(id(value))

    def _matrix(self, func: Any, args: Any, kwargs: Any) -> tuple | None:
        """The places of the matrix and of the bias, the input, the kind of layer and its options."""
        reader = _READERS.get(func)
        if reader is None or _depth() != self.depth:
            return None
        weight, input, bias, kind, options = reader(*args, **kwargs)
        place = self.place(weight)
        if place is None or not kind or self.place(input) is not None or not isinstance(input, Tensor):
            return None
        is_matrix = weight.dim() == 2 if kind != "conv" else weight.dim() == input.dim() and weight.dim() in (3, 4)
        if not is_matrix or (kind == "matmul" and input.dim() == 0):
            return None
        vector = isinstance(bias, Tensor) and bias.shape == weight.shape[:1]  # what is added otherwise is another use
        return place, self.place(bias) if vector else None, input, kind, options


def _depth() -> int:
    """The number of transforms of torch.func that run around the call."""
    innermost = _torch.peek_interpreter_stack()
    return 0 if innermost is None else innermost.level()


def _use(found: tuple, out: Tensor) -> Use:
    leaf, bias, _, kind, options = found
    return Use(leaf, bias, kind, options, tuple(out.shape), out.dtype, out.device)


def _without_bias(use: Use) -> Use:
    """The use as it is compared with a later one, in which the bias need not be among the leaves."""
    return use._replace(bias=None)


_IMPURE = "the function calls other layers when it is called again, so it is not a pure function of its arguments"


class Taps(_Listener):
    """Adds a tap to the output of each use and keeps its input.

    Raises ``ValueError`` where the calls are not those of ``uses``.
    """

    def __init__(self, leaves: dict[int, Tensor], uses: list[Use], taps: list[Tensor]):
        super().__init__(leaves)
        self.uses = uses
        self.taps = taps
        self.inputs: list[Tensor] = []

    def layer(self, found: tuple, func: Callable, args: tuple, kwargs: dict) -> Any:
        out = func(*args, **kwargs)
        number = len(self.inputs)
        if number == len(self.uses) or _without_bias(self.uses[number]) != _without_bias(_use(found, out)):
            raise ValueError(_IMPURE)
        self.inputs.append(found[2])
        return out + self.taps[number]

    def __exit__(self, kind: Any, value: Any, traceback: Any) -> None:
        super().__exit__(kind, value, traceback)
        if kind is None and len(self.inputs) != len(self.uses):
            raise ValueError(_IMPURE)


class _Recorder(_Listener):
    """Records the uses, and the nodes of autograd's graph that belong to each.

    Each use of a leaf as matrix or bias is given a view of its own, whose node in the graph marks the use.
    """

    def __init__(self, leaves: dict[int, Tensor]):
        super().__init__(leaves)
        self.uses: list[Use] = []
        self.marks: list[tuple[int, Any, Any]] = []  # the leaf, the node of its view, the node of the layer's output
        self.inputs: list[tuple[int, Tensor, int]] = []  # the leaf, the layer's input, its version
        self.differentiated: set[int] = set()  # leaves for which the function itself asks torch.autograd.grad

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.autograd.grad:
            inputs = args[1] if len(args) > 1 else (kwargs or {}).get("inputs", ())
            places = map(self.place, inputs if isinstance(inputs, (list, tuple)) else [inputs])
            self.differentiated.update(place for place in places if place is not None)
        return super().__torch_function__(func, types, args, kwargs)

    def layer(self, found: tuple, func: Callable, args: tuple, kwargs: dict) -> Any:
        leaf, bias, input, *_ = found
        views = {place: self.leaves[place].view_as(self.leaves[place]) for place in (leaf, bias) if place is not None}

        def marked(value: Any) -> Any:
            return views.get(self.place(value), value)

        out = func(*map(marked, args), **{name: marked(value) for name, value in kwargs.items()})
        self.marks += [(place, view.grad_fn, out.grad_fn) for place, view in views.items()]
        self.inputs.append((leaf, input, _torch.version(input)))
        self.uses.append(_use(found, out))
        return out

    def others(self, output: Any) -> dict[int, str]:
        """For each leaf that the output also depends on in another way than through the uses, what that way is."""
        consumers = _consumers([x for x in _tree.leaves(output) if isinstance(x, Tensor)])
        uses = {node for _, node, _ in self.marks}
        others = {}
        for place, leaf in self.leaves.items():
            view: Any = leaf.view_as(leaf).grad_fn
            root = view.next_functions[0][0]
            names = {_name(node) for node in consumers.get(root, []) if node not in uses}
            if names:
                others[place] = " and ".join(sorted(names))
        for place, node, end in self.marks:
            while node in consumers and node is not end and place not in others:
                if len(consumers[node]) == 1:  # the single step from the matrix towards the layer's output
                    node = consumers[node][0]
                else:
                    others[place] = "a derivative inside the function"
        for place in self.differentiated:
            others[place] = "a derivative inside the function"
        for place, input, version in self.inputs:
            if _torch.version(input) != version:
                others[place] = "a layer whose input is changed in place afterwards"
        return others


def _consumers(outputs: list[Tensor]) -> dict[Any, list[Any]]:
    """For each node of the graph of autograd that leads to the outputs, the nodes that take it as an input."""
    todo = list({x.grad_fn for x in outputs if x.grad_fn is not None})
    consumers: dict[Any, list[Any]] = {node: [] for node in todo}
    while todo:
        node = todo.pop()
        for source, _ in node.next_functions:
            if source is None:
                continue
            if source not in consumers:
                consumers[source] = []
                todo.append(source)
            consumers[source].append(node)
    return consumers


def _name(node: Any) -> str:
    """The operation of a node of the graph: "sum" of "SumBackward0"."""
    words = re.sub(r"Backward\d*", "", node.name().split("::")[-1])
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", words).lower()


def record(function: Callable, args: tuple, kwargs: dict, in_dims: tuple, batch_argnums: tuple[int, ...]) -> Record:
    """The uses of the leaves of the first argument, from one run of the function on the first sample.

    It runs inside ``vmap`` and ``vjp``, as it will when taps are added, so that it takes the same path.
    """
    leaves, treedef = _tree.flatten(args[0])
    of_one = as_batch_of_one(function, batch_argnums)
    result: Record | None = None

    def of_sample(*rest: Any, **kwargs: Any) -> Tensor:
        def of_leaves(*leaves: Tensor) -> Tensor:
            nonlocal result
            recorder = _Recorder(dict(enumerate(leaves)))
            with recorder:
                output = of_one(treedef.unflatten(leaves), *rest, **kwargs)
            result = Record(recorder.uses, {})
            others = recorder.others(output)
            for place, name in others.items():
                result.others[place] = (
                    f"a vector used by {name}"
                    if leaves[place].dim() < 2
                    else f"used by {name}, not only as the matrix of a linear, conv, embedding or matmul"
                )
            return leaves[0].new_zeros(())

        return torch.func.vjp(of_leaves, *leaves)[0]

    row = [arg if dim is None else _tree.map(lambda x: x[:1], arg) for arg, dim in zip(args, in_dims, strict=True)]
    one = {name: value[:1] for name, value in kwargs.items()}
    over_samples(of_sample, in_dims[1:])(*row[1:], **one)
    assert result is not None
    return result


def zero_taps(uses: list[Use], samples: tuple[int, ...] = ()) -> list[Tensor]:
    """A zero for the output of each use, with leading axes for samples where the function is not mapped over them."""
    return [torch.zeros((*samples, *use.shape), dtype=use.dtype, device=use.device) for use in uses]
