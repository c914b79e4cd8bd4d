"""Recurrent networks of torch, written out as a loop over time where torch's kernels do not serve.

They have no second derivative and no rule for ``vmap``, and they draw the dropout between layers themselves.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fnn import random
from fnn._tracing import derivatives_of_derivatives, inside_vmap
from fnn.interop.function_mode import ModuleCalls, rule

Weights = list[Tensor]  # (gates * hidden, inputs), (gates * hidden, hidden), and the two biases where there are any


def _products(x: Tensor, h: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    biases = weights[2:4] if len(weights) >= 4 else (None, None)
    return F.linear(x, weights[0], biases[0]), F.linear(h, weights[1], biases[1])


def _lstm(x: Tensor, states: list[Tensor], weights: Weights) -> list[Tensor]:
    from_x, from_h = _products(x, states[0], weights)
    i, f, g, o = (from_x + from_h).chunk(4, -1)
    c = torch.sigmoid(f) * states[1] + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return [F.linear(h, weights[-1]) if len(weights) % 2 else h, c]  # an odd number: with a projection


def _gru(x: Tensor, states: list[Tensor], weights: Weights) -> list[Tensor]:
    from_x, from_h = _products(x, states[0], weights)
    reset_x, update_x, new_x = from_x.chunk(3, -1)
    reset_h, update_h, new_h = from_h.chunk(3, -1)
    update = torch.sigmoid(update_x + update_h)
    new = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
    return [new + update * (states[0] - new)]


def _rnn(activation: Callable[[Tensor], Tensor]) -> Callable[..., list[Tensor]]:
    return lambda x, states, weights: [activation(sum(_products(x, states[0], weights), start=torch.zeros(())))]


_CELLS = {torch.lstm: _lstm, torch.gru: _gru, torch.rnn_tanh: _rnn(torch.tanh), torch.rnn_relu: _rnn(torch.relu)}


@rule(*_CELLS)
def _recurrent(calls: ModuleCalls, func: Any, args: tuple, kwargs: dict) -> Any:
    packed = isinstance(args[3], (list, tuple))
    dropout, train = (args[6], args[7]) if packed else (args[5], args[6])
    dropout = dropout if train and calls.key is not None else 0.0
    if not (dropout or inside_vmap() or derivatives_of_derivatives()):
        at = 6 if packed else 5
        return func(*args[:at], 0.0, *args[at + 1 :])
    if packed:
        raise TypeError(
            f"{calls.name} runs a recurrent layer on a packed sequence, which works neither with dropout from a key "
            "nor under vmap nor in second derivatives; pad the sequences and mask the outputs in place of packing them"
        )
    x, hx, weights, _has_biases, num_layers, _, _, bidirectional, batch_first = args
    first = list(hx) if isinstance(hx, (list, tuple)) else [hx]
    outputs, last = _layers(
        _CELLS[func], x.transpose(0, 1) if batch_first else x, first, _grouped(weights, num_layers, bidirectional),
        lambda y: torch.where(random.bernoulli(calls.draw(), 1.0 - dropout, tuple(y.shape)), y / (1.0 - dropout), 0.0)
        if dropout else y,
    )  # fmt: skip
    return (outputs.transpose(0, 1) if batch_first else outputs, *last)


def _grouped(weights: Weights, num_layers: int, bidirectional: bool) -> list[list[Weights]]:
    """The weights by layer and direction."""
    directions = 2 if bidirectional else 1
    each = len(weights) // (num_layers * directions)
    parts = [list(weights[i : i + each]) for i in range(0, len(weights), each)]
    return [parts[i : i + directions] for i in range(0, len(parts), directions)]


def _layers(
    cell: Callable, x: Tensor, first: list[Tensor], weights: list[list[Weights]], drop: Callable[[Tensor], Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """x: (time, batch, inputs). The outputs (time, batch, directions * hidden), and each last state of all layers."""
    last = []
    for number, layer in enumerate(weights):
        outputs = []
        for direction, each in enumerate(layer):
            states = [state[len(last)] for state in first]
            hidden = []
            for step in x.flip(0).unbind() if direction else x.unbind():
                states = cell(step, states, each)
                hidden.append(states[0])
            outputs.append(torch.stack(hidden[::-1] if direction else hidden))
            last.append(states)
        x = torch.cat(outputs, -1)
        x = drop(x) if number + 1 < len(weights) else x
    return x, [torch.stack(states) for states in zip(*last, strict=True)]
