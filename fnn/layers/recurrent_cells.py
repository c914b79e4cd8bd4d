"""One step of a recurrent layer, and the cells that are one step each."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fnn import init, random
from fnn.layers.base import (
    ArgumentError,
    Layer,
    ShapeError,
    as_size,
    check_dtype,
    check_last_axis,
    check_mapping,
    check_params,
    check_tensor,
    factory,
)
from fnn.layers.piecewise import relu

Step = Callable[[Tensor, tuple[Tensor, ...], Mapping[str, Tensor]], tuple[Tensor, ...]]


class Cell(NamedTuple):
    """The sizes of a step and its function of W_ih x + b_ih, the state (h,) or (h, c), and the weights."""

    name: str
    gates: int
    step: Step
    input_size: int
    hidden_size: int
    bias: bool
    proj_size: int

    @property
    def output_size(self) -> int:
        return self.proj_size or self.hidden_size

    def shapes(self) -> dict[str, tuple[int, ...]]:
        rows = self.gates * self.hidden_size
        shapes: dict = {"weight_ih": (rows, self.input_size), "weight_hh": (rows, self.output_size)}
        shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)} if self.bias else {}
        return shapes | ({"weight_hr": (self.proj_size, self.hidden_size)} if self.proj_size else {})


def cell_of(
    name: str, gates: int, step: Step, input_size: Any, hidden_size: Any, bias: bool, proj_size: int = 0
) -> Cell:
    input_size, hidden_size = as_size(name, "input_size", input_size), as_size(name, "hidden_size", hidden_size)
    if proj_size >= hidden_size:
        raise ValueError(f"{name} expects proj_size < hidden_size={hidden_size}, got {proj_size}")
    return Cell(name, gates, step, input_size, hidden_size, bias, proj_size)


def tanh_or_relu_step(name: str, nonlinearity: str) -> Step:
    """h = tanh(W_ih x + b_ih + W_hh h + b_hh), or with relu."""
    known = {"tanh": torch.tanh, "relu": relu}
    if nonlinearity not in known:
        raise ValueError(f"{name} expects nonlinearity as 'tanh' or 'relu', got {nonlinearity!r}")
    function = known[nonlinearity]
    return lambda inputs, state, weights: (function(inputs + _recur(state[0], weights)),)


def lstm_step(inputs: Tensor, state: tuple[Tensor, ...], weights: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """c = f c + i g; h = o tanh(c), projected if there is a matrix for it."""
    h, c = state
    i, f, g, o = (inputs + _recur(h, weights)).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return F.linear(h, weights["weight_hr"]) if "weight_hr" in weights else h, c


def gru_step(inputs: Tensor, state: tuple[Tensor, ...], weights: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """h = (1 - z) n + z h, with n = tanh(x_n + r h_n)."""
    (h,) = state
    x_r, x_z, x_n = inputs.chunk(3, -1)
    h_r, h_z, h_n = _recur(h, weights).chunk(3, -1)
    z = torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
    return ((1 - z) * n + z * h,)


def _recur(h: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    return F.linear(h, weights["weight_hh"], weights.get("bias_hh"))


@factory
def rnn_cell(
    input_size: int,
    hidden_size: int,
    bias: bool = True,
    nonlinearity: Literal["tanh", "relu"] = "tanh",
    dtype: torch.dtype = torch.float32,
) -> Layer:
    """One step of :func:`fnn.layers.rnn`: h' = tanh(W_ih x + b_ih + W_hh h + b_hh).

    ``apply(params, x, h=None) -> h'``. x: (batch, input_size) or (input_size,), h: (batch, hidden_size), zeros if none
    is given. Params have the names and initial values of ``torch.nn.RNNCell``: ``weight_ih`` (hidden_size, input_size),
    ``weight_hh``, ``bias_ih`` and ``bias_hh``. Raises ``ShapeError`` for inputs that do not fit.

    >>> layer = rnn_cell(3, 4)
    >>> layer.apply(layer.init(random.key(0)), torch.ones(5, 3)).shape
    torch.Size([5, 4])
    """
    return _cell(
        cell_of("rnn_cell", 1, tanh_or_relu_step("rnn_cell", nonlinearity), input_size, hidden_size, bias), dtype
    )


@factory
def lstm_cell(input_size: int, hidden_size: int, bias: bool = True, dtype: torch.dtype = torch.float32) -> Layer:
    """One step of :func:`fnn.layers.lstm`.

    ``apply(params, x, state=None) -> (h, c)``, with the state before, ``(h, c)``, zeros if none is given. Params are
    those of ``torch.nn.LSTMCell``; shapes and errors are as in :func:`rnn_cell`.

    >>> layer = lstm_cell(3, 4)
    >>> h, c = layer.apply(layer.init(random.key(0)), torch.ones(5, 3))
    >>> h.shape
    torch.Size([5, 4])
    """
    return _cell(cell_of("lstm_cell", 4, lstm_step, input_size, hidden_size, bias), dtype)


@factory
def gru_cell(input_size: int, hidden_size: int, bias: bool = True, dtype: torch.dtype = torch.float32) -> Layer:
    """One step of :func:`fnn.layers.gru`.

    ``apply(params, x, h=None) -> h'``. Params are those of ``torch.nn.GRUCell``; shapes and errors are as in
    :func:`rnn_cell`.

    >>> layer = gru_cell(3, 4)
    >>> layer.apply(layer.init(random.key(0)), torch.ones(5, 3)).shape
    torch.Size([5, 4])
    """
    return _cell(cell_of("gru_cell", 3, gru_step, input_size, hidden_size, bias), dtype)


def _cell(cell: Cell, dtype: torch.dtype) -> Layer:
    shapes, count = cell.shapes(), 2 if cell.step is lstm_step else 1

    def init_params(key: Any = None) -> dict[str, Tensor]:
        return init_uniformly(key, shapes, cell.hidden_size, dtype)

    def apply(params: dict[str, Tensor], x: Tensor, state: Any = None, *, key: Tensor | None = None) -> Any:
        check_mapping(cell.name, params)
        check_last_axis(cell.name, x, cell.input_size)
        check_params(cell.name, params, **shapes)
        check_dtype(cell.name, x, params["weight_ih"])
        parts = as_states(cell.name, state, x, [(*x.shape[:-1], cell.hidden_size)] * count)
        new = cell.step(F.linear(x, params["weight_ih"], params.get("bias_ih")), tuple(parts), params)
        return new if count == 2 else new[0]

    return Layer(init_params, apply)


def init_uniformly(key: Any, shapes: Mapping[str, tuple], hidden_size: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Uniform values in +-1 / sqrt(hidden_size), the default of torch's recurrent layers for weights and biases."""
    make, keys = init.uniform(-(hidden_size**-0.5), hidden_size**-0.5), random.split(key, len(shapes))
    return {name: make(keys[i], shape, dtype) for i, (name, shape) in enumerate(shapes.items())}


def as_states(name: str, state: Any, x: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Return the first states as a list of tensors, zeros if none are given."""
    if state is None:
        return [x.new_zeros(shape) for shape in shapes]
    if len(shapes) == 2 and not (isinstance(state, (tuple, list)) and len(state) == 2):
        raise ArgumentError(f"{name} expects its state as (h, c), got {type(state).__name__}")
    parts: list = [state] if len(shapes) == 1 else list(state)
    for part, shape in zip(parts, shapes, strict=True):
        check_tensor(f"{name}'s state", part)
        if tuple(part.shape) != shape:
            raise ShapeError(f"{name} expects a state of shape {shape}, got {tuple(part.shape)}")
        check_dtype(name, part, x)
    return parts
