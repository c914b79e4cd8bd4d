"""Time of a gradient and of an Adam step of ResNet-18, a vision transformer and GPT-2, by fnn and by torch.nn.

fnn runs the same ``nn.Module`` through ``fnn.interop.from_module``, in training mode without dropout, and, where it has
the model itself, ``fnn.models`` with the same weights. The flags are ``--models resnet18 vit gpt2``, ``--batch 8``, and
``--size small``: small networks and inputs for a CPU, or ``full`` for the published ones. The timing of one column
takes ``--seconds 20``. Compilation takes minutes for each model; ``--without-inductor`` omits what Inductor compiles.
GPT-2 needs transformers, the others torchvision.
"""

import argparse
import copy
import gc
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fnn
from recipes.bench import harness, rivals

RATE = 1e-4
BASE = "torch.nn, eager"
REPLAY = "fnn.jit, replay"
NAMES = ("resnet18", "vit", "gpt2")
PARTS = ("gradient", "Adam step")


class Problem(NamedTuple):
    """A module in training mode, its inputs and keywords, the targets, and the logits in its outputs."""

    module: nn.Module
    x: Tensor
    keywords: dict[str, Any]
    targets: Tensor
    logits: Callable[[Any], Tensor]
    shown: str


def problem(name: str, batch: int, size: str) -> Problem:
    """One of the networks, with weights and inputs from seed 0. ``size`` is "tiny", "small" or "full"."""
    torch.manual_seed(0)
    if name == "gpt2":
        return _gpt2(batch, size)
    import torchvision

    side = {"tiny": 64, "small": 64, "full": 224}[size]
    if name == "resnet18":
        module, shown = torchvision.models.resnet18(num_classes=10), "ResNet-18"
    else:
        layers, width = {"tiny": (1, 16), "small": (6, 192), "full": (12, 768)}[size]
        module = torchvision.models.VisionTransformer(
            side,
            16,
            num_layers=layers,
            num_heads=max(width // 64, 2),
            hidden_dim=width,
            mlp_dim=4 * width,
            num_classes=10,
        )
        head: Any = module.heads[0]
        nn.init.normal_(head.weight, std=0.02)  # zeros would give the other layers no gradients
        shown = f"vision transformer of {layers} layers, width {width}"
    x, targets = torch.randn(batch, 3, side, side), torch.randint(0, 10, (batch,))
    return Problem(module.train(), x, {}, targets, lambda out: out, f"{shown}, images {side}x{side}, batch {batch}")


def _gpt2(batch: int, size: str) -> Problem:
    import transformers  # pyright: ignore[reportMissingImports]

    layers, width, length, words = {
        "tiny": (1, 16, 8, 50), "small": (4, 256, 64, 5000), "full": (12, 768, 256, 50257)
    }[size]  # fmt: skip
    config = transformers.GPT2Config(
        n_layer=layers, n_embd=width, n_head=max(width // 64, 2), n_positions=length, vocab_size=words,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    module = transformers.GPT2LMHeadModel(config)
    x = torch.randint(0, words, (batch, length))
    shown = f"GPT-2 of {layers} layers, width {width}, {words:,} words, {length} positions, batch {batch}"
    logits = lambda out: out.logits[:, :-1].flatten(0, 1)
    return Problem(module.train(), x, {"use_cache": False}, x[:, 1:].flatten(), logits, shown)


def by_torch(given: Problem, part: str, compiled: bool = False, fused: bool = False) -> rivals.Step:
    module = copy.deepcopy(given.module)
    optimizer = torch.optim.Adam(module.parameters(), lr=RATE, fused=fused)

    def loss(x: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(given.logits(module(x, **given.keywords)), targets)

    run = torch.compile(loss) if compiled else loss

    def call() -> Tensor:
        optimizer.zero_grad()
        value = run(given.x, given.targets)
        value.backward()
        if part == "Adam step":
            optimizer.step()
        return value.detach()

    return call


def by_fnn(given: Problem, part: str, model: Any = None, jit: bool = True, **settings: Any) -> rivals.Step:
    """``model`` is the layer with its params and state; by default it is converted from the module."""
    layer, params, state = model or fnn.interop.from_module(given.module)
    optimizer = fnn.optim.adam(RATE)

    def loss(params: Any, state: Any, x: Tensor, targets: Tensor) -> tuple[Tensor, Any]:
        if isinstance(layer, fnn.StatefulLayer):
            out, state = layer.apply(params, state, x, train=True, **given.keywords)
        else:
            out = layer.apply(params, x, **given.keywords)
        return fnn.losses.cross_entropy(given.logits(out), targets), state

    def gradient(params: Any, state: Any, x: Tensor, targets: Tensor) -> tuple:
        return fnn.value_and_grad(loss, has_aux=True)(params, state, x, targets)

    def step(params: Any, state: Any, opt_state: Any, x: Tensor, targets: Tensor) -> tuple:
        (value, state), grads = gradient(params, state, x, targets)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return fnn.optim.apply_updates(params, updates), state, opt_state, value

    if part == "gradient":
        function = fnn.jit(gradient, **settings) if jit else gradient
        return lambda: function(params, state, given.x, given.targets)[0][0]
    function = fnn.jit(step, donate_argnums=(0, 1, 2), **settings) if jit else step
    params, state = fnn.tree.map(torch.clone, (params, state))  # the step donates them
    held = [(params, state, optimizer.init(params))]

    def call() -> Tensor:
        *trees, value = function(*held[0], given.x, given.targets)
        held[0] = (trees[0], trees[1], trees[2])
        return value

    return call


def own_model(name: str, given: Problem) -> Any:
    """fnn's own model with the weights of the module; None if there is none."""
    make = getattr(fnn.models, name, None)
    if make is None or name != "resnet18":
        return None
    model = make(num_classes=10)
    params, state = model.init(fnn.random.key(0))
    loaded = fnn.interop.load_state_dict(params, state, given.module.state_dict())
    return model, loaded.params, loaded.state


def calls(name: str, given: Problem, part: str, inductor: bool = True) -> dict[str, rivals.Step]:
    """The rivals by their rows in the table."""
    step = part == "Adam step"
    found = {BASE: by_torch(given, part)}
    if step:
        found["torch.nn, eager, fused Adam"] = by_torch(given, part, fused=True)
    found["fnn, eager"] = by_fnn(given, part, jit=False)
    found[REPLAY] = by_fnn(given, part)
    own = own_model(name, given)
    if own is not None:
        found[f"{REPLAY}, fnn.models"] = by_fnn(given, part, own)
    if inductor:
        found["torch.nn, torch.compile" + (", fused Adam" if step else "")] = by_torch(given, part, True, step)
        found["fnn.jit, inductor"] = by_fnn(given, part, backend="inductor")
        if own is not None:
            found["fnn.jit, inductor, fnn.models"] = by_fnn(given, part, own, backend="inductor")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=NAMES, metavar="MODEL", default=list(NAMES))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", choices=["tiny", "small", "full"], default="small")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--without-inductor", action="store_true", help="omit the rivals that Inductor compiles")
    options = parser.parse_args()
    columns: dict[str, dict[str, object]] = {}
    shown = []
    for name in options.models:
        for part in PARTS:
            torch.compiler.reset()
            try:
                given = problem(name, options.batch, options.size)
            except ImportError as error:
                print(f"{name}: left out, {error}")
                break
            found = calls(name, given, part, not options.without_inductor)
            rivals.agree(found)
            seconds = harness.interleave(found, **harness.plan(found, options.seconds))
            columns[f"{name}, {part}"] = dict(harness.ratios(seconds, BASE))
            print(f"{name}, {part}: {columns[f'{name}, {part}']}", flush=True)
            shown += [given.shown] if part == PARTS[0] else []
            del given, found
            gc.collect()
    body = (
        f"Time over that of {BASE}; smaller is faster. The Adam steps of fnn.jit are donated, and torch.optim uses its "
        f"multi-tensor Adam where the row does not say fused. {'; '.join(shown)}. The losses of the first and the "
        "third call of all rivals agree.\n\n"
    )
    name = "models" if options.size == "small" else f"models {options.size}"
    harness.report(
        name, "Models of torch.nn as functions", body + harness.columns_table(columns), ["torchvision", "transformers"]
    )
