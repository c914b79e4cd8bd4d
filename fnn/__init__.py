"""fnn: neural networks in PyTorch as pure functions.

>>> import fnn
>>> model = fnn.models.mlp(784, 512, 512, 10)
>>> params = model.init(fnn.random.key(0))
>>> def loss(params, batch):
...     images, labels = batch
...     return fnn.losses.cross_entropy(model.apply(params, images), labels)
>>> batch = fnn.random.normal(fnn.random.key(1), (64, 784)), fnn.random.randint(fnn.random.key(2), (64,), 0, 10)
>>> grads = fnn.grad(loss)(params, batch)
>>> fnn.tree.structure(grads) == fnn.tree.structure(params)
True
"""

from torch.func import grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap

from fnn import init, jacobian, layers, losses, metrics, models, optim, random, tree
from fnn.compile import compile_count, jit
from fnn.grads import value_and_grad
from fnn.layers import (
    Layer,
    ShapeError,
    StatefulLayer,
    conv2d,
    dropout,
    flatten,
    gelu,
    linear,
    relu,
    sequential,
    softmax,
    tanh,
)
from fnn.optim import Optimizer

__version__ = "0.1.0"

__all__ = [
    "Layer",
    "Optimizer",
    "ShapeError",
    "StatefulLayer",
    "compile_count",
    "conv2d",
    "dropout",
    "flatten",
    "gelu",
    "grad",
    "hessian",
    "init",
    "jacfwd",
    "jacobian",
    "jacrev",
    "jit",
    "jvp",
    "layers",
    "linear",
    "linearize",
    "losses",
    "metrics",
    "models",
    "optim",
    "random",
    "relu",
    "sequential",
    "softmax",
    "tanh",
    "tree",
    "value_and_grad",
    "vjp",
    "vmap",
]
