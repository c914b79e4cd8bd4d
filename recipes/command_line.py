"""What all recipes share: flags and their limits, the choice of the device, loading of data, and progress bars."""

import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_type_hints

import torch
import tyro
from tqdm import tqdm

import fnn
from recipes import stopping_cleanly

Item = TypeVar("Item")


class Limit(NamedTuple):
    """The values that a flag may have: a description in words, and a predicate."""

    words: str
    holds: Callable[[Any], bool]


Count = Annotated[int, Limit("at least 1", lambda n: n >= 1)]
CountOrZero = Annotated[int, Limit("at least 0", lambda n: n >= 0)]
Positive = Annotated[float, Limit("a finite number above 0", lambda x: 0 < x < math.inf)]
Share = Annotated[float, Limit("above 0 and below 1", lambda x: 0 < x < 1)]
Momentum = Annotated[float, Limit("at least 0 and below 1", lambda x: 0 <= x < 1)]
Seed = Annotated[int, Limit("at least 0 and below 2**64", lambda n: 0 <= n < 1 << 64)]


@dataclass
class CommonFlags:
    """The flags of every recipe."""

    seed: Seed = 0
    """Seed of all random numbers. On a CPU the same seed gives the same results."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto uses an accelerator if there is one, else the CPU."""
    output: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(default: runs/RECIPE)")] = None
    """Folder for metrics, pictures and checkpoints."""
    overwrite: bool = False
    """Replace the files of an earlier run in the output folder."""


@dataclass
class RunFlags(CommonFlags):
    """The flags of recipes that take steps."""

    compile: bool = False
    """Compile with Inductor: it takes seconds to minutes at the start and makes the steps of long runs faster."""


@dataclass
class ImageFlags(RunFlags):
    """The flags of recipes that train on a data set of images."""

    dataset: Literal["digits", "mnist", "fashion_mnist"] = "digits"
    """The digits are part of the package; the others are downloaded if they are not in the data root."""
    data_root: Annotated[
        Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(default: $FNN_DATA, else ~/.cache/fnn)")
    ] = None
    """Folder of the data sets."""


def main(run: Callable[[Any], object], defaults: Any) -> None:
    """Read the flags from the command line, with these ``defaults``, and call ``run`` with them.

    Invalid flags and errors of the system, such as a full disk, end the recipe with a message and status 1. Ctrl-C ends
    it with one line and status 130.
    """
    with stopping_cleanly():
        name = f"python -m recipes.{Path(sys.argv[0]).stem}"
        flags = tyro.cli(type(defaults), default=defaults, prog=name, config=(tyro.conf.FlagCreatePairsOff,))
        try:
            run(flags)
        except OSError as error:
            place = "" if error.filename else f", while writing to {flags.output or 'the folder runs'}"
            raise SystemExit(f"stopped: {error}{place}") from error


def begin(flags: CommonFlags, many: bool = False) -> torch.device:
    """Check the flags, prepare the process, and return the chosen device. Raises ``SystemExit`` for an invalid flag.

    A recipe that ``torchrun`` has started in several processes is connected to the others if ``many`` says that it can
    use them, and is ended otherwise. Only the first process prints.
    """
    hints = get_type_hints(type(flags), include_extras=True)
    for field in fields(flags):
        value = getattr(flags, field.name)
        for limit in getattr(hints[field.name], "__metadata__", ()):
            if isinstance(limit, Limit) and not limit.holds(value):
                raise SystemExit(f"--{field.name.replace('_', '-')} {value}: give a value that is {limit.words}")
    fnn.keep_freed_memory()
    if not many and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SystemExit("this recipe runs in one process; torchrun serves mlp, lenet, resnet and transformer")
    try:
        rank, _, device = fnn.distributed.init(flags.device)
    except ValueError as error:
        raise SystemExit(f"--device {flags.device}: {error}") from error
    if rank > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    return device


def load_images(flags: ImageFlags, device: torch.device, size: int | None = None) -> fnn.data.Images:
    """The chosen data set, on the device. Raises ``SystemExit`` if it cannot be read."""
    try:
        data = fnn.data.load_dataset(flags.dataset, flags.data_root, size=size)
    except (ImportError, OSError, ValueError) as error:
        raise SystemExit(f"--dataset {flags.dataset}: {error}") from error
    return data._replace(train=fnn.tree.to(data.train, device), test=fnn.tree.to(data.test, device))


def check_batch_size(batch_size: int, samples: int) -> None:
    """Raise ``SystemExit`` if the data set has fewer samples than one batch."""
    if batch_size > samples:
        raise SystemExit(f"--batch-size {batch_size}: the data set has {samples} samples")


def progress(items: Iterable[Item], label: str, total: int) -> Iterator[Item]:
    """Yield the items, and show a progress bar on a terminal or print a line every ten seconds elsewhere."""
    if sys.stderr.isatty():
        yield from tqdm(items, label, total, leave=False)
        return
    shown = time.monotonic()
    for number, item in enumerate(items):
        if time.monotonic() - shown > 10:
            shown = time.monotonic()
            print(f"{label}: {number} of {total}", file=sys.stderr, flush=True)
        yield item


def jit(function: Callable, flags: RunFlags, **settings: Any) -> Callable:
    """``fnn.jit`` of the function. With ``--compile`` it uses Inductor, and the first call prints how long it took."""
    if not flags.compile:
        return fnn.jit(function, **settings)
    compiled = fnn.jit(function, backend="inductor", **settings)
    called = False

    def call(*arguments: Any) -> Any:
        nonlocal called
        if called:
            return compiled(*arguments)
        start = time.monotonic()
        print(f"compiling {function.__name__} ...", end=" ", file=sys.stderr, flush=True)
        result = compiled(*arguments)
        print(f"{time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)
        called = True
        return result

    return call
