"""The networks of the benchmarks, each in torch.nn, in fnn and as a function for JAX, with the same parameter names."""

import itertools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

import fnn

WIDTHS = {
    "tiny": (16, 8, 10),
    "small": (784, 64, 10),
    "mlp": (784, 512, 512, 10),
    "narrow": (32,) + (16,) * 19 + (10,),
    "deep": (784,) + (512,) * 19 + (10,),
    "large": (8192,) * 5,
    "100m": (784, 8192, 8192, 3072, 10),
}
NAMES = (*WIDTHS, "lenet", "residual", "transformer")
BLOCKS = 2
WIDTH, HEADS = 64, 4  # of the transformer
CHANNELS = 16  # of the residual network


def describe(name: str) -> str:
    if name in WIDTHS:
        sizes = WIDTHS[name]
        shown = f"{sizes[0]}-{len(sizes) - 2}x{sizes[1]}-{sizes[-1]}" if len(sizes) > 5 else "-".join(map(str, sizes))
        return f"perceptron {shown}"
    return {
        "lenet": "LeNet, images 32x32",
        "residual": f"residual network: {BLOCKS} blocks of two 3x3 convolutions, {CHANNELS} channels of 14x14",
        "transformer": f"transformer: {BLOCKS} blocks, width {WIDTH}, {HEADS} heads, 28 positions",
    }[name]


def batch(name: str, count: int) -> tuple[Tensor, Tensor]:
    """Images of normally distributed numbers, and random labels."""
    side = 32 if name == "lenet" else 28
    shape = (WIDTHS[name][0],) if name in WIDTHS else (1, side, side)
    classes = WIDTHS[name][-1] if name in WIDTHS else 10
    x = fnn.random.normal(fnn.random.key(1), (count, *shape))
    return x, fnn.random.randint(fnn.random.key(2), (count,), 0, classes)


class Residual(nn.Sequential):
    def forward(self, input: Tensor) -> Tensor:
        return input + super().forward(input)


class Attention(nn.MultiheadAttention):
    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(x, x, x, need_weights=False)[0]


class Rows(nn.Module):
    """Turns an image into the sequence of its rows."""

    def forward(self, x: Tensor) -> Tensor:
        return x.squeeze(1)


class Mean(nn.Module):
    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.dims)


def module(name: str) -> nn.Module:
    """The network as a user of torch.nn writes it."""
    if name in WIDTHS:
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(WIDTHS[name]):
            layers += [nn.Linear(a, b), nn.ReLU()]
        return nn.Sequential(*layers[:-1])
    if name == "lenet":
        return nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(1, 6, 3),
                relu1=nn.ReLU(),
                pool1=nn.MaxPool2d(2),
                conv2=nn.Conv2d(6, 16, 3),
                relu2=nn.ReLU(),
                pool2=nn.MaxPool2d(2),
                flatten=nn.Flatten(),
                fc1=nn.Linear(576, 120),
                relu3=nn.ReLU(),
                fc2=nn.Linear(120, 84),
                relu4=nn.ReLU(),
                fc3=nn.Linear(84, 10),
            )
        )
    if name == "residual":
        conv = lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        first = nn.Conv2d(1, CHANNELS, 3, stride=2, padding=1)
        blocks = [part for _ in range(BLOCKS) for part in (Residual(conv(), nn.ReLU(), conv()), nn.ReLU())]
        return nn.Sequential(first, nn.ReLU(), *blocks, Mean(2, 3), nn.Linear(CHANNELS, 10))
    attention = lambda: Residual(nn.LayerNorm(WIDTH), Attention(WIDTH, HEADS, batch_first=True))
    perceptron = lambda: Residual(
        nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.ReLU(), nn.Linear(4 * WIDTH, WIDTH)
    )
    blocks = [part for _ in range(BLOCKS) for part in (attention(), perceptron())]
    return nn.Sequential(Rows(), nn.Linear(28, WIDTH), *blocks, Mean(1), nn.Linear(WIDTH, 10))


def layer(name: str) -> fnn.Layer:
    """The network as a user of fnn writes it."""
    if name in WIDTHS:
        return fnn.models.mlp(*WIDTHS[name])
    if name == "lenet":
        return fnn.models.lenet()
    residual, norm = fnn.layers.residual, fnn.layers.layer_norm(WIDTH)
    if name == "residual":
        conv = fnn.layers.conv2d(CHANNELS, CHANNELS, 3, padding=1)
        block = (residual(fnn.layers.sequential(conv, fnn.layers.relu, conv)), fnn.layers.relu)
        first = fnn.layers.conv2d(1, CHANNELS, 3, stride=2, padding=1)
        return fnn.layers.sequential(
            first, fnn.layers.relu, *block * BLOCKS, lambda x: x.mean((2, 3)), fnn.layers.linear(CHANNELS, 10)
        )
    attention = residual(fnn.layers.sequential(norm, fnn.layers.multi_head_attention(WIDTH, HEADS)))
    up, down = fnn.layers.linear(WIDTH, 4 * WIDTH), fnn.layers.linear(4 * WIDTH, WIDTH)
    perceptron = residual(fnn.layers.sequential(norm, up, fnn.layers.relu, down))
    blocks = (attention, perceptron) * BLOCKS
    rows, mean = lambda x: x.squeeze(1), lambda x: x.mean(1)
    return fnn.layers.sequential(rows, fnn.layers.linear(28, WIDTH), *blocks, mean, fnn.layers.linear(WIDTH, 10))


def jax_function(name: str) -> Callable[[dict, Any], Any]:
    """The network as a function of JAX arrays, whose names are those of the ``state_dict``."""
    import jax  # pyright: ignore[reportMissingImports]
    import jax.numpy as jnp  # pyright: ignore[reportMissingImports]

    relu = jax.nn.relu

    def linear(p: dict, at: str, x: Any) -> Any:
        return x @ p[f"{at}.weight"].T + p[f"{at}.bias"]

    def conv(p: dict, at: str, x: Any, stride: int = 1, padding: int = 1) -> Any:
        window = (stride, stride), [(padding, padding)] * 2
        return jax.lax.conv_general_dilated(x, p[f"{at}.weight"], *window) + p[f"{at}.bias"][:, None, None]

    def norm(p: dict, at: str, x: Any) -> Any:
        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(-1, keepdims=True)
        scaled = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5)
        return scaled.astype(x.dtype) * p[f"{at}.weight"] + p[f"{at}.bias"]

    def attend(p: dict, at: str, x: Any) -> Any:
        projected = x @ p[f"{at}.in_proj_weight"].T + p[f"{at}.in_proj_bias"]
        heads = projected.reshape(*x.shape[:-1], 3, HEADS, WIDTH // HEADS)
        q, k, v = (heads[..., i, :, :] for i in range(3))
        mixed = jax.nn.dot_product_attention(q, k, v)
        return linear(p, f"{at}.out_proj", mixed.reshape(x.shape))

    def mlp(p: dict, x: Any) -> Any:
        last = 2 * (len(WIDTHS[name]) - 2)
        for i in range(0, last, 2):
            x = relu(linear(p, str(i), x))
        return linear(p, str(last), x)

    def lenet(p: dict, x: Any) -> Any:
        for at in ("conv1", "conv2"):
            x = relu(conv(p, at, x, padding=0))
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
        x = relu(linear(p, "fc1", x.reshape(x.shape[0], -1)))
        return linear(p, "fc3", relu(linear(p, "fc2", x)))

    def residual(p: dict, x: Any) -> Any:
        x = relu(conv(p, "0", x, stride=2))
        for i in range(2, 2 + 2 * BLOCKS, 2):
            x = relu(x + conv(p, f"{i}.2", relu(conv(p, f"{i}.0", x))))
        return linear(p, str(3 + 2 * BLOCKS), x.mean((2, 3)))

    def transformer(p: dict, x: Any) -> Any:
        x = linear(p, "1", x[:, 0])
        for i in range(2, 2 + 2 * BLOCKS, 2):
            x = x + attend(p, f"{i}.1", norm(p, f"{i}.0", x))
            x = x + linear(p, f"{i + 1}.3", relu(linear(p, f"{i + 1}.1", norm(p, f"{i + 1}.0", x))))
        return linear(p, str(3 + 2 * BLOCKS), x.mean(1))

    return {"lenet": lenet, "residual": residual, "transformer": transformer}.get(name, mlp)
