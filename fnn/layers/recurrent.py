"""Recurrent layers, each a scan over the sequence: RNN, LSTM and GRU."""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fnn import random
from fnn._numerics import under_autocast
from fnn._tracing import is_differentiated_at_most_once
from fnn.compile.scan import scan
from fnn.layers.base import (
    ArgumentError,
    Layer,
    ShapeError,
    as_size,
    check_dtype,
    check_mapping,
    check_params,
    check_tensor,
    factory,
)
from fnn.layers.dropout import dropout as dropout_layer
from fnn.layers.recurrent_cells import (
    Cell,
    as_states,
    cell_of,
    gru_step,
    init_uniformly,
    lstm_step,
    tanh_or_relu_step,
)

State = Tensor | tuple[Tensor, ...]


@factory
def rnn(
    input_size: int,
    hidden_size: int,
    num_layers: int = 1,
    nonlinearity: Literal["tanh", "relu"] = "tanh",
    bias: bool = True,
    *,
    dropout: float = 0.0,
    bidirectional: bool = False,
    return_state: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Layer:
    """h_t = tanh(W_ih x_t + b_ih + W_hh h_(t-1) + b_hh), the network of Elman (1990).

    ``apply(params, x, state=None, *, lengths=None) -> (output, state)``, as in torch with ``batch_first=True``:

    - x: (batch, sequence, input_size) or (sequence, input_size) -> output (batch, sequence, directions * hidden_size),
      the h of the last layer, with the two directions side by side if ``bidirectional``.
    - ``state``: (num_layers * directions, batch, hidden_size), the last h of each layer and direction, in the place of
      the first; zeros if none is given. In ``sequential`` write ``return_state=False``: then the output is all.
    - ``lengths``: (batch,), integers, for samples that are padded at their end, in place of torch's packed sequences:
      the output is zero from there on, the state is that at the end of the sample, and the backward direction starts
      there. Lengths are not read, so one that is larger than the sequence is not refused in every case.
    - ``key`` turns on ``dropout`` of the outputs of all layers but the last.

    The loop is a :func:`fnn.scan`, one loop in the graph of ``jit``. Params have the names and initial values of
    ``torch.nn.RNN``: ``weight_ih_l0`` (hidden_size, input_size), ``weight_hh_l0``, ``bias_ih_l0``, ``bias_hh_l0``, the
    same with ``_reverse`` at the end, and for further layers ``l1``, ``l2``, ... Raises ``ValueError`` for another
    nonlinearity, and ``ShapeError`` or ``ArgumentError`` for inputs, states and lengths that do not fit.

    >>> layer = rnn(3, 4, num_layers=2, bidirectional=True)
    >>> output, state = layer.apply(layer.init(random.key(0)), torch.ones(5, 7, 3))
    >>> output.shape, state.shape
    (torch.Size([5, 7, 8]), torch.Size([4, 5, 4]))
    """
    cell = cell_of("rnn", 1, tanh_or_relu_step("rnn", nonlinearity), input_size, hidden_size, bias)
    return _recurrent(cell, num_layers, dropout, bidirectional, return_state, dtype)


@factory
def lstm(
    input_size: int,
    hidden_size: int,
    num_layers: int = 1,
    bias: bool = True,
    *,
    dropout: float = 0.0,
    bidirectional: bool = False,
    proj_size: int = 0,
    return_state: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Layer:
    """c_t = f c_(t-1) + i g; h_t = o tanh(c_t), with gates i, f, g, o of x_t and h_(t-1) (Hochreiter et al., 1997).

    As :func:`rnn`, with the state ``(h, c)``, both (num_layers * directions, batch, hidden_size). With ``proj_size``
    h_t is multiplied by a matrix ``weight_hr_l0`` (proj_size, hidden_size), and outputs and h have that size (Sak et
    al., 2014). Params have the names and initial values of ``torch.nn.LSTM``; the four gates stand below one another.
    On a CPU and in float32, eager code and replayed graphs call torch's kernel for all steps in the place of the loop,
    unless they are inside a transform other than :func:`fnn.grad`, or there are ``lengths`` or a ``proj_size``.

    >>> layer = lstm(3, 4)
    >>> output, (h, c) = layer.apply(layer.init(random.key(0)), torch.ones(5, 7, 3))
    >>> output.shape, h.shape
    (torch.Size([5, 7, 4]), torch.Size([1, 5, 4]))
    """
    cell = cell_of("lstm", 4, lstm_step, input_size, hidden_size, bias, as_size("lstm", "proj_size", proj_size, 0))
    return _recurrent(cell, num_layers, dropout, bidirectional, return_state, dtype)


@factory
def gru(
    input_size: int,
    hidden_size: int,
    num_layers: int = 1,
    bias: bool = True,
    *,
    dropout: float = 0.0,
    bidirectional: bool = False,
    return_state: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Layer:
    """h_t = (1 - z) n + z h_(t-1), with n = tanh(W_in x_t + b_in + r (W_hn h_(t-1) + b_hn)) (Cho et al., 2014).

    As :func:`rnn`, with the gates r and z of x_t and h_(t-1). Params have the names and initial values of
    ``torch.nn.GRU``; the parts r, z, n stand below one another.

    >>> layer = gru(3, 4)
    >>> output, h = layer.apply(layer.init(random.key(0)), torch.ones(5, 7, 3), lengths=torch.tensor([7, 1, 2, 3, 7]))
    >>> bool((output[1, 1:] == 0).all())
    True
    """
    cell = cell_of("gru", 3, gru_step, input_size, hidden_size, bias)
    return _recurrent(cell, num_layers, dropout, bidirectional, return_state, dtype)


def _recurrent(
    cell: Cell, num_layers: Any, dropout: float, bidirectional: bool, return_state: bool, dtype: torch.dtype
) -> Layer:
    name, drop = cell.name, dropout_layer(dropout)
    num_layers = as_size(name, "num_layers", num_layers)
    directions = ("", "_reverse") if bidirectional else ("",)
    # the path of each layer and direction, in the order of the state, and its cell
    cells = {
        f"_l{i}{direction}": cell if i == 0 else cell._replace(input_size=len(directions) * cell.output_size)
        for i in range(num_layers)
        for direction in directions
    }
    shapes = {leaf + suffix: shape for suffix, one in cells.items() for leaf, shape in one.shapes().items()}
    count = 2 if name == "lstm" else 1

    def init_params(key: Any = None) -> dict[str, Tensor]:
        return init_uniformly(key, shapes, cell.hidden_size, dtype)

    def apply(
        params: dict[str, Tensor],
        x: Tensor,
        state: State | None = None,
        *,
        lengths: Tensor | None = None,
        key: Tensor | None = None,
    ) -> Any:
        check_mapping(name, params)
        check_tensor(name, x)
        if x.dim() not in (2, 3) or x.shape[-1] != cell.input_size:
            raise ShapeError(
                f"{name} expects inputs of shape (batch, sequence, {cell.input_size}), got {tuple(x.shape)}"
            )
        check_params(name, params, **shapes)
        check_dtype(name, x, params["weight_ih_l0"])
        batched = x.dim() == 3
        sizes = [cell.output_size, cell.hidden_size][:count]
        states = as_states(name, state, x, [(len(cells), *x.shape[:-2], size) for size in sizes])
        if not batched:
            x, states = x[None], [part.unsqueeze(1) for part in states]
        order = _order(name, lengths, x, batched)
        if order[0] is not None:
            x = torch.where(order[0][..., None], x, 0.0)  # whatever the padding holds, its derivative is zero
        keys = [None] * num_layers if key is None else random.split(key, num_layers)
        finals = []
        for i in range(num_layers):
            x = x if i == 0 else drop.apply({}, x, key=keys[i])
            outputs = []
            for direction in directions:
                suffix, first = f"_l{i}{direction}", tuple(part[len(finals)] for part in states)
                weights = {leaf: params[leaf + suffix] for leaf in cells[suffix].shapes()}
                output, final = _one_direction(cell, weights, x, first, order, direction == "_reverse")
                outputs.append(output)
                finals.append(final)
            x = torch.cat(outputs, -1)
        last = tuple(torch.stack(parts) for parts in zip(*finals, strict=True))
        if not batched:
            x, last = x[0], tuple(part[:, 0] for part in last)
        if not return_state:
            return x
        return x, last if name == "lstm" else last[0]

    return Layer(init_params, apply)


def _one_direction(
    cell: Cell, weights: dict[str, Tensor], x: Tensor, state: tuple[Tensor, ...], order: Any, backward: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run one layer in one direction over x (batch, sequence, features); the products with x are one product."""
    valid, reverse = order
    x = reverse(x) if backward else x
    if _kernel_serves(cell, x) and valid is None:
        first = [part[None] for part in state]
        output, *last = torch.lstm(x, first, [*weights.values()], cell.bias, 1, 0.0, True, False, batch_first=True)
        return reverse(output) if backward else output, tuple(part[0] for part in last)
    inputs = F.linear(x, weights["weight_ih"], weights.get("bias_ih"))

    def step(state: tuple[Tensor, ...], now: tuple) -> tuple[tuple[Tensor, ...], Tensor]:
        inputs, valid = now
        new = cell.step(inputs, state, weights)
        new = tuple(part.to(old.dtype) for part, old in zip(new, state, strict=True))  # autocast changes dtypes
        if valid is None:
            return new, new[0]
        kept = tuple(torch.where(valid[:, None], part, old) for part, old in zip(new, state, strict=True))
        return kept, torch.where(valid[:, None], new[0], 0.0)

    final, output = scan(step, state, (inputs.transpose(0, 1), None if valid is None else valid.T))
    output = output.transpose(0, 1)
    return reverse(output) if backward else output, final


def _kernel_serves(cell: Cell, x: Tensor) -> bool:
    """Whether torch has one kernel for all steps here.

    It has no rule for ``vmap``, and where its derivative may be differentiated again, torch runs step after step.
    """
    return (
        cell.name == "lstm"
        and not cell.proj_size
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.numel() > 0
        and torch.backends.mkldnn.is_available()
        and not under_autocast(x)
        and is_differentiated_at_most_once()
    )


def _order(name: str, lengths: Tensor | None, x: Tensor, batched: bool) -> tuple[Tensor | None, Callable]:
    """Return which steps are within the lengths (batch, sequence), or None, and a function that reverses a sequence."""
    if lengths is None:
        return None, lambda x: x.flip(1)
    if not isinstance(lengths, Tensor) or lengths.dtype not in (torch.int64, torch.int32):
        raise ArgumentError(f"{name} expects lengths as an int64 or int32 tensor, got {lengths!r}")
    if tuple(lengths.shape) != ((x.shape[0],) if batched else ()):
        wanted = (x.shape[0],) if batched else ()
        raise ShapeError(f"{name} expects lengths of shape {wanted}, got {tuple(lengths.shape)}")
    lengths = lengths.long() if batched else lengths.long()[None]
    places = torch.arange(x.shape[1], device=x.device)
    valid = places < lengths[:, None]
    index = torch.where(valid, lengths[:, None] - 1 - places, places)  # reverses what is valid, and keeps the rest
    return valid, lambda x: x.gather(1, index[..., None].expand(x.shape))
