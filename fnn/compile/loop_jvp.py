"""``jvp`` of a loop: a body for values and tangents."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fnn import _torch
from fnn.compile import loops
from fnn.compile.loop_body import Body, Result, replace, select


def with_tangents(body: Body, flat: list[Tensor], length: int, level: _torch.Level) -> Result:
    """The loop over pairs of values and tangents; only what depends on a tangent gets one."""
    duals = [forward_ad.unpack_dual(value) for value in flat]
    primals = [level.unwrap(dual.primal) for dual in duals]
    tangents = [None if dual.tangent is None else level.unwrap(dual.tangent) for dual in duals]
    active, results_active = body.dependent([tangent is not None for tangent in tangents], differentiable=True)
    if not any(results_active):  # no tangent reaches a result
        return loops.plain(body, [dual.primal for dual in duals], length, level)
    with level.below():
        tangents = [
            torch.zeros_like(primal) if tangent is None or _torch.is_zero(tangent) else tangent
            for primal, tangent in zip(primals, tangents, strict=True)
        ]
        parts = body.split(primals)
        moving = body.split(tangents, active)
        counts = [len(part) for part in parts]
        which = [i for i, each in enumerate(active) if each]

        def step(*inputs: Tensor) -> list[Tensor]:
            values, directions = [], []
            rest = list(inputs)
            for count, part in zip(counts, moving, strict=True):
                values += rest[:count]
                directions += rest[count : count + len(part)]
                rest = rest[count + len(part) :]

            def function(*chosen: Tensor) -> tuple[tuple[Tensor, ...], list[Tensor]]:
                results = loops.run(body.graph, replace(values, which, chosen))
                return tuple(select(results, results_active)), results

            _, derivatives, results = torch.func.jvp(  # pyright: ignore[reportAssignmentType]
                function, tuple(select(values, active)), tuple(directions), has_aux=True
            )
            carries = sum(results_active[: body.carries])
            moving_carry, moving_y = derivatives[:carries], derivatives[carries:]
            return [*results[: body.carries], *moving_carry, *results[body.carries :], *moving_y]

        carry, xs, closed = ([*part, *part_moving] for part, part_moving in zip(parts, moving, strict=True))
        wider, more = loops.make_body(step, carry, xs, closed, body.remat)
        result = loops.loop(wider, carry, xs, [*closed, *more], length)

    def pair(values: list[Tensor], active: Sequence[bool]) -> list[Tensor]:
        """Give each active value its tangent; the tangents come after the values."""
        wrapped = [level.wrap(value) for value in values]
        tangents = iter(wrapped[len(active) :])
        values = wrapped[: len(active)]
        return [forward_ad.make_dual(v, next(tangents)) if a else v for v, a in zip(values, active, strict=True)]

    return Result(pair(result.carry, results_active[: body.carries]), pair(result.ys, results_active[body.carries :]))
