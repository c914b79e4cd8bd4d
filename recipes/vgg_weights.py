"""Save and load the 138,357,544 parameters of VGG-16: ``python -m recipes.vgg_weights``.

Params are saved by ``fnn.checkpoint`` under the names that torchvision gives them, with a checksum, and loaded into a
tree like them; for comparison the same ``state_dict`` is saved and loaded by torch. The network that was loaded gives
the outputs of the one that was saved. The weights are random, so its classes mean nothing; a file of trained weights
for ``torchvision.models.vgg16`` is loaded in the same way, with ``--weights``.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

import fnn
from recipes import command_line, files, plots
from recipes.plots import plt


@dataclass
class Flags(command_line.CommonFlags):
    """Save and load the weights of VGG-16, and show time and size."""

    rounds: command_line.Count = 1
    """Number of times that each file is written and read; the medians are shown."""
    image_size: Annotated[int, command_line.Limit("at least 32", lambda n: n >= 32)] = 224
    """Pixels a side of the random image that is classified before and after."""
    weights: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: random weights)")] = (
        None
    )
    """File of weights for torchvision's vgg16, in the format of torch or of safetensors."""


def measure(model: fnn.Layer, flags: Flags) -> dict[str, Any]:
    """Save and load the params of the model, write the files, and return what is written to metrics.json."""
    device = command_line.begin(flags)
    params = None if flags.weights is None else read(flags.weights, model, device)
    output = files.open_output(flags, "vgg_weights")
    weight_key, image_key = fnn.random.split(fnn.random.key(flags.seed, device=device))
    if params is None:
        print("making random weights ...", file=sys.stderr, flush=True)
        params = model.init(weight_key)
    size, tensors = fnn.tree.size(params), len(fnn.tree.leaves(params))
    print(f"{size:,} parameters in {tensors} tensors", flush=True)
    image = fnn.random.normal(image_key, (1, 3, flags.image_size, flags.image_size))
    before = model.apply(params, image)

    places = {"fnn.checkpoint": output / "vgg16.safetensors", "torch.save": output / "vgg16.pth"}
    state_dict = fnn.tree.to_state_dict(params)
    rivals: dict[str, tuple[Callable[[Path], object], Callable[[Path], fnn.tree.Tree]]] = {
        "fnn.checkpoint": (
            lambda path: fnn.checkpoint.save(path, params),
            lambda path: fnn.checkpoint.load(path, like=params, device=device),
        ),
        "torch.save": (
            lambda path: torch.save(state_dict, path),
            lambda path: fnn.tree.from_state_dict(torch.load(path, map_location=device, weights_only=True), params),
        ),
    }
    rows: dict[str, dict[str, Any]] = {name: {"save_seconds": [], "load_seconds": []} for name in rivals}
    outputs = {}
    for number in command_line.progress(range(flags.rounds), "saving and loading", flags.rounds):
        for name, (save, load) in rivals.items():
            rows[name]["save_seconds"].append(timed(save, places[name])[0])
            seconds, loaded = timed(load, places[name])
            rows[name]["load_seconds"].append(seconds)
            if number == 0:
                outputs[name] = model.apply(loaded, image)
            del loaded
    for name, row in rows.items():
        row |= {key: statistics.median(seconds) for key, seconds in row.items()}
        row["bytes"] = places[name].stat().st_size
        row["same_outputs"] = torch.equal(outputs[name], before)
        print(
            f"{name:15s} {row['bytes']:13,d} bytes   saved in {row['save_seconds']:6.2f} s   loaded in "
            f"{row['load_seconds']:6.2f} s   same outputs: {'yes' if row['same_outputs'] else 'no'}"
        )
    places["torch.save"].unlink()
    result = {"parameters": size, "tensors": tensors, "logits": before[0, :5].tolist(), "files": rows}
    files.write_metrics(output, result)
    draw(output / "vgg.png", params, rows)
    print(f"wrote {output}")
    return result


def read(path: Path, model: fnn.Layer, device: torch.device) -> fnn.tree.Tree:
    """The params in a file, of torch or of safetensors. Raises ``SystemExit`` if they do not fit the model."""
    try:
        like = model.init(fnn.random.key(0, device="meta"))
        return fnn.checkpoint.load(path, like=like, device=device)
    except (ValueError, OSError) as error:
        raise SystemExit(f"--weights {path}: {error}") from error


def timed(call: Callable[[Path], Any], path: Path) -> tuple[float, Any]:
    """Seconds that the call takes, and its result."""
    start = time.perf_counter()
    result = call(path)
    return time.perf_counter() - start, result


def draw(path: Path, params: fnn.tree.Tree, rows: dict[str, dict[str, Any]]) -> None:
    """How many parameters each tensor of weights has, and how long saving and loading took."""
    weights = [(name, leaf.numel() / 1e6) for name, leaf in fnn.tree.items(params) if leaf.dim() > 1]
    weights.sort(key=lambda item: [int(part) if part.isdigit() else part != "features" for part in item[0].split(".")])
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", width_ratios=(1.4, 1))
    left.barh([name for name, _ in weights], [size for _, size in weights])
    for place, (_, size) in enumerate(weights):
        left.text(size, place, f" {size:.3g}", va="center", fontsize=8)
    left.set(xlabel="million parameters")
    left.margins(x=0.15)
    left.tick_params(axis="y", labelsize=8)
    left.invert_yaxis()
    for number, row in enumerate(rows.values()):
        bars = right.bar([number - 0.2, number + 0.2], [row["save_seconds"], row["load_seconds"]], 0.36)
        right.bar_label(bars, labels=[f"save\n{row['save_seconds']:.2f} s", f"load\n{row['load_seconds']:.2f} s"])
    right.set_xticks(range(len(rows)), [f"{name}\n{row['bytes'] / 1e6:.1f} MB" for name, row in rows.items()])
    right.set(ylabel="seconds")
    right.margins(y=0.2)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    plots.save(figure, path)


if __name__ == "__main__":
    command_line.main(lambda flags: measure(fnn.models.vgg16(), flags), Flags())
