"""Memory for a derivative through training, with and without recomputation, as drawn in the chapter on higher order.

``python docs/drawings/training_memory.py`` measures it again: the largest sum of living allocations that torch's
profiler records in one eager call, in MB.
"""

from typing import Any

import torch
from torch import Tensor

import fnn

STEPS = [5, 10, 20, 50]
MEASURED = {
    "reverse": [1.26, 2.41, 4.72, 11.64],
    "reverse, recomputed": [0.58, 0.60, 0.65, 0.80],
    "forward": [0.86, 0.86, 0.86, 0.86],
}


def live_megabytes(call) -> float:
    """The largest amount of memory that one call had allocated at once."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    results: Any = getattr(profile.profiler, "kineto_results")  # noqa: B009
    events = [event for event in results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most / 1e6


def measure() -> dict[str, list[float]]:
    images, labels = fnn.data.load_dataset("digits").train
    batch = images[:1024].flatten(1), labels[:1024]
    model = fnn.models.mlp(64, 16, 10, activation=fnn.layers.tanh)
    params = model.init(fnn.random.key(0))

    def loss(params: fnn.tree.Tree) -> Tensor:
        return fnn.losses.cross_entropy(model.apply(params, batch[0]), batch[1])

    def final(rate: Tensor, steps: int, remat: bool = False) -> Tensor:
        step = lambda p: fnn.tree.sub(p, fnn.tree.scale(rate, fnn.grad(loss)(p)))
        step = fnn.layers.remat(step) if remat else step
        p = params
        for _ in range(steps):
            p = step(p)
        return loss(p)

    rate = torch.tensor(0.5)
    ways = {
        "reverse": lambda n: fnn.grad(lambda r: final(r, n))(rate),
        "reverse, recomputed": lambda n: fnn.grad(lambda r: final(r, n, True))(rate),
        "forward": lambda n: fnn.jvp(lambda r: final(r, n), (rate,), (torch.ones(()),)),
    }
    for call in ways.values():
        call(2)  # what is made at the first call only
    return {name: [round(live_megabytes(lambda: call(n)), 2) for n in STEPS] for name, call in ways.items()}  # noqa: B023


if __name__ == "__main__":
    for name, megabytes in measure().items():
        print(name, megabytes)
