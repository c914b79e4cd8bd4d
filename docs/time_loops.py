"""Time the four ways to a whole Jacobian that chapter 2 of the Jacobian book writes: ``python docs/time_loops.py``.

The functions are those of the page. Processor time of one thread, the best of 20 rounds in turns, over that of
``rows_at_once``.
"""

import contextlib
import io
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the library of this clone, installed or not

import run_pages

import fnn

PAGE = Path(__file__).parent / "jacobians" / "push_and_pull.md"
WAYS = ("columns_in_a_loop", "rows_in_a_loop", "columns_at_once", "rows_at_once")


def best_times(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The processor time of each call, in seconds: the best of several rounds in turns, the first not counted."""
    best = dict.fromkeys(calls, float("inf"))
    for number in range(rounds + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if number:
                best[name] = min(best[name], time.process_time() - start)
    return best


def main() -> None:
    torch.set_num_threads(1)
    names: dict = {}
    with contextlib.redirect_stdout(io.StringIO()):
        for block in run_pages.blocks(PAGE):
            exec(block["code"], names)
    print("| pixels x hidden x outputs | " + " | ".join(f"`{way}`" for way in WAYS) + " |")
    print("|---|" + "---|" * len(WAYS))
    for sizes in ((64, 16, 10), (256, 256, 256)):
        model = fnn.models.mlp(*sizes, activation=fnn.layers.tanh)
        params = model.init(fnn.random.key(0))
        image = fnn.random.normal(fnn.random.key(1), sizes[:1])
        f = lambda image, model=model, params=params: model.apply(params, image)
        calls = {way: lambda way=way, f=f, image=image: names[way](f, image) for way in WAYS}
        times = best_times(calls, rounds=20)
        ratios = " | ".join(f"{times[way] / times['rows_at_once']:.1f}" for way in WAYS)
        print(f"| {' x '.join(map(str, sizes))} | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
