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

from fnn import checkpoint, data, grads, init, jacobian, layers, losses, metrics, models, optim, random, tree
from fnn.checkpoint import load, save
from fnn.compile import compile_count, epoch, fori, jit, load_compiled, save_compiled, scan
from fnn.grads import (
    accumulate_grad,
    check_per_sample,
    clipped_grad,
    ghost_plan,
    gradient_noise_scale,
    noise_like,
    per_sample_grad,
    per_sample_moments,
    per_sample_norms,
    per_sample_value_and_grad,
    poisson_sample,
    value_and_grad,
)
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
from fnn.summary import summary

__version__ = "0.1.0"

__all__ = [
    "Layer",
    "Optimizer",
    "ShapeError",
    "StatefulLayer",
    "accumulate_grad",
    "check_per_sample",
    "checkpoint",
    "clipped_grad",
    "compile_count",
    "conv2d",
    "data",
    "dropout",
    "epoch",
    "flatten",
    "fori",
    "gelu",
    "ghost_plan",
    "grad",
    "gradient_noise_scale",
    "grads",
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
    "load",
    "load_compiled",
    "losses",
    "metrics",
    "models",
    "noise_like",
    "optim",
    "per_sample_grad",
    "per_sample_moments",
    "per_sample_norms",
    "per_sample_value_and_grad",
    "poisson_sample",
    "random",
    "relu",
    "save",
    "save_compiled",
    "scan",
    "sequential",
    "softmax",
    "summary",
    "tanh",
    "tree",
    "value_and_grad",
    "vjp",
    "vmap",
]
