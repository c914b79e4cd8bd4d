"""One train step: fnn's compiled, donated step against torch.nn + torch.optim, torch.compile and JAX.

``--models mlp lenet narrow residual transformer``, ``--batch 64 1024``, ``--optimizers sgd adam``, ``--rounds 20``.
"""

import argparse
import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fnn
from recipes.bench import harness

WIDTHS = {"mlp": (784, 512, 512, 10), "narrow": (32,) + (16,) * 19 + (10,)}
RATES = {"sgd": 1e-3, "adam": 1e-3}


class Residual(nn.Module):
    """Three 3x3 convolutions of 16 channels, two of them residual, mean over space, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.a, self.b = nn.Conv2d(1, 16, 3, padding=1), *(nn.Conv2d(16, 16, 3, padding=1) for _ in "ab")
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        x = x + self.a(x).relu()
        x = x + self.b(x).relu()
        return self.head(x.mean((2, 3)))


class Transformer(nn.Module):
    """Two blocks of 4-head attention and a perceptron on 28 rows of an image, width 64."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(28, 64), nn.Linear(64, 10)
        self.qkv = nn.ModuleList(nn.Linear(64, 192) for _ in "12")
        self.out = nn.ModuleList(nn.Linear(64, 64) for _ in "12")
        self.up = nn.ModuleList(nn.Linear(64, 256) for _ in "12")
        self.down = nn.ModuleList(nn.Linear(256, 64) for _ in "12")

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.squeeze(1))
        for qkv, out, up, down in zip(self.qkv, self.out, self.up, self.down, strict=True):
            q, k, v = qkv(F.layer_norm(x, (64,))).unflatten(-1, (3, 4, 16)).permute(2, 0, 3, 1, 4)
            mixed = torch.softmax(q @ k.mT / 4, -1) @ v
            x = x + out(mixed.transpose(1, 2).flatten(-2))
            x = x + down(up(F.layer_norm(x, (64,))).relu())
        return self.head(x.mean(1))


class LeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 16, 3)
        self.fc1, self.fc2, self.fc3 = nn.Linear(576, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.conv1(x).relu(), 2)
        x = F.max_pool2d(self.conv2(x).relu(), 2)
        return self.fc3(self.fc2(self.fc1(x.flatten(1)).relu()).relu())


def module(name: str) -> nn.Module:
    if name in WIDTHS:
        sizes = WIDTHS[name]
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(itertools.pairwise(sizes)):
            layers += [nn.Linear(a, b), nn.ReLU()] if i < len(sizes) - 2 else [nn.Linear(a, b)]
        return nn.Sequential(*layers)
    return {"lenet": LeNet, "residual": Residual, "transformer": Transformer}[name]()


def forward(name: str, network: nn.Module) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    """The network as a function of a ``state_dict``: fnn's own models, or the module called functionally."""
    if name not in (*WIDTHS, "lenet"):
        return lambda params, x: torch.func.functional_call(network, params, (x,))
    model = fnn.models.lenet() if name == "lenet" else fnn.models.mlp(*WIDTHS[name])
    return lambda params, x: model.apply(fnn.tree.unflatten(params), x)


def rivals(name: str, optimizer: str, x: Tensor, y: Tensor) -> dict[str, Callable[[], object]]:
    torch.manual_seed(0)
    start = module(name).state_dict()
    calls: dict[str, Callable[[], object]] = {}

    def eager(settings: dict, compiled: bool) -> Callable[[], object]:
        network = module(name)
        network.load_state_dict(start)
        maker = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer]
        optim = maker(network.parameters(), lr=RATES[optimizer], **settings)
        loss = lambda x, y: F.cross_entropy(network(x), y)
        loss = torch.compile(loss, fullgraph=True) if compiled else loss

        def step() -> Tensor:
            optim.zero_grad()
            value = loss(x, y)
            value.backward()
            optim.step()
            return value

        return step

    calls["torch.nn + torch.optim"] = eager({}, False)
    calls["torch.nn + foreach"] = eager({"foreach": True}, False)
    calls["torch.nn + fused"] = eager({"fused": True}, False)
    calls["torch.compile + fused"] = eager({"fused": True}, True)

    apply = forward(name, module(name))
    update = {"sgd": fnn.optim.sgd, "adam": fnn.optim.adam}[optimizer](RATES[optimizer])

    def train_step(params: dict, state: tuple, batch: tuple) -> tuple:
        loss = lambda params: fnn.losses.cross_entropy(apply(params, batch[0]), batch[1])
        value, grads = fnn.value_and_grad(loss)(params)
        updates, state = update.update(grads, state, params)
        return fnn.optim.apply_updates(params, updates), state, value

    def ours(**settings: Any) -> Callable[[], object]:
        params = {path: leaf.clone() for path, leaf in start.items()}
        held = [params, update.init(params)]
        step = fnn.jit(train_step, **settings)

        def call() -> Tensor:
            held[0], held[1], value = step(held[0], held[1], (x, y))
            return value

        return call

    calls["fnn.jit"] = ours()
    calls["fnn.jit donated"] = ours(donate_argnums=(0, 1))
    calls["fnn.jit donated, unsafe_keep_donated"] = ours(donate_argnums=(0, 1), unsafe_keep_donated=True)
    if name in WIDTHS or name == "lenet":
        try:
            calls["JAX + Optax, jit, donated"] = jax_step(name, optimizer, start, x, y)
        except ImportError:
            print("JAX or Optax is not installed: left out")
    return calls


def jax_step(name: str, optimizer: str, start: dict[str, Tensor], x: Tensor, y: Tensor) -> Callable[[], object]:
    import jax  # pyright: ignore[reportMissingImports]
    import jax.numpy as jnp  # pyright: ignore[reportMissingImports]
    import optax  # pyright: ignore[reportMissingImports]

    params = [jnp.array(leaf.numpy()) for leaf in start.values()]
    images, labels = jnp.array(x.numpy()), jnp.array(y.numpy())

    def apply(p: list, x: Any) -> Any:
        pairs = list(zip(p[::2], p[1::2], strict=True))
        if name == "lenet":
            for w, b in pairs[:2]:
                x = jax.nn.relu(jax.lax.conv(x, w, (1, 1), "VALID") + b[:, None, None])
                x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
            pairs = pairs[2:]
        x = x.reshape(x.shape[0], -1)
        for w, b in pairs[:-1]:
            x = jax.nn.relu(x @ w.T + b)
        return x @ pairs[-1][0].T + pairs[-1][1]

    update = {"sgd": optax.sgd, "adam": optax.adam}[optimizer](RATES[optimizer])

    def step(params: list, state: Any) -> tuple:
        loss = lambda p: optax.softmax_cross_entropy_with_integer_labels(apply(p, images), labels).mean()
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = update.update(grads, state)
        return optax.apply_updates(params, updates), state, value

    compiled = jax.jit(step, donate_argnums=(0, 1))
    held = [params, update.init(params)]

    def call() -> object:
        held[0], held[1], value = compiled(held[0], held[1])
        return value.block_until_ready()

    return call


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="+", default=["mlp", "lenet", "narrow"])
    parser.add_argument("--batch", nargs="+", type=int, default=[64])
    parser.add_argument("--optimizers", nargs="+", default=["sgd"])
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    columns: dict[str, dict[str, float]] = {}
    for name in options.models:
        for batch in options.batch:
            for optimizer in options.optimizers:
                side = 32 if name == "lenet" else 28
                shape = (WIDTHS[name][0],) if name in WIDTHS else (1, side, side)
                x = fnn.random.normal(fnn.random.key(1), (batch, *shape))
                y = fnn.random.randint(fnn.random.key(2), (batch,), 0, 10)
                torch.compiler.reset()
                seconds = harness.interleave(rivals(name, optimizer, x, y), rounds=options.rounds, inner=10)
                columns[f"{name}, batch {batch}, {optimizer}"] = harness.ratios(seconds, "torch.nn + torch.optim")
    names = list(dict.fromkeys(rival for column in columns.values() for rival in column))
    rows = [[name, *(column.get(name, "-") for column in columns.values())] for name in names]
    body = "Time of one train step over that of torch.nn + torch.optim eager, CPU, float32; smaller is faster.\n\n"
    harness.report("step", "Train step", body + harness.table(["", *columns], rows), ["jax", "optax"])
