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

from fnn import (
    checkpoint,
    compile,
    curvature,
    data,
    debug,
    distributed,
    gradients,
    init,
    interop,
    jacobian,
    layers,
    linalg,
    losses,
    metrics,
    models,
    optim,
    random,
    training,
    tree,
)
from fnn._transforms import hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap
from fnn.compile.artifacts import load_compiled, save_compiled
from fnn.compile.graph import trace
from fnn.compile.jit import compile_count, disable_jit, jit
from fnn.compile.memory import keep_freed_memory
from fnn.compile.scan import fori_loop, scan
from fnn.devices import device
from fnn.gradients.clipping import clipped_grad
from fnn.gradients.per_sample import per_sample_grad
from fnn.gradients.value_and_grad import grad, value_and_grad
from fnn.layers.base import Layer, StatefulLayer
from fnn.optim.base import Optimizer
from fnn.summary import summary

__version__ = "0.1.0"

__all__ = [
    "Layer",
    "Optimizer",
    "StatefulLayer",
    "checkpoint",
    "clipped_grad",
    "compile",
    "compile_count",
    "curvature",
    "data",
    "debug",
    "device",
    "disable_jit",
    "distributed",
    "fori_loop",
    "grad",
    "gradients",
    "hessian",
    "init",
    "interop",
    "jacfwd",
    "jacobian",
    "jacrev",
    "jit",
    "jvp",
    "keep_freed_memory",
    "layers",
    "linalg",
    "linearize",
    "load_compiled",
    "losses",
    "metrics",
    "models",
    "optim",
    "per_sample_grad",
    "random",
    "save_compiled",
    "scan",
    "summary",
    "trace",
    "training",
    "tree",
    "value_and_grad",
    "vjp",
    "vmap",
]
