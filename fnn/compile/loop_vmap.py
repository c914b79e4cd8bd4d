"""``vmap`` of a loop: a body for all samples at once.

The carries that depend on a sample get a batch dimension; the others are computed once for all samples.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fnn import _torch
from fnn.compile import loops
from fnn.compile.loop_body import Body, Result


def batched(body: Body, flat: list[Tensor], length: int, level: _torch.Level) -> Result:
    """The loop over all samples; only what depends on a sample gets a batch dimension."""
    pairs = [level.unwrap_batched(value) for value in flat]
    active, results_active = body.dependent([position is not None for _, position in pairs])
    values = []
    for i, (value, position) in enumerate(pairs):
        if position is not None:
            value = value.movedim(position, 1 if body.is_x(i) else 0)
        elif active[i]:  # a carry that depends on the sample after a step
            value = value.unsqueeze(0).expand(level.batch_size, *value.shape)
        values.append(value)
    step = torch.func.vmap(
        lambda *inputs: tuple(loops.run(body.graph, inputs)),  # pyright: ignore[reportArgumentType]
        in_dims=tuple(0 if each else None for each in active),
        out_dims=tuple(0 if each else None for each in results_active),  # pyright: ignore[reportArgumentType]
        randomness=level.randomness,
    )
    with level.below():
        more: list[Tensor] = []
        if any(active):
            body, more = loops.make_body(step, *body.split(values), body.remat)
        result = loops.loop(body, *body.split([*values, *more]), length)

    def wrap(values: list[Tensor], active: Sequence[bool], position: int) -> list[Tensor]:
        return [level.wrap_batched(v, position) if a else v for v, a in zip(values, active, strict=True)]

    return Result(
        wrap(result.carry, results_active[: body.carries], 0), wrap(result.ys, results_active[body.carries :], 1)
    )
