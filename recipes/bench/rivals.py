"""Train steps of one network by fnn and by other libraries.

Each call of a rival takes one step on a batch and returns the loss before the step. All rivals start from the same
parameters and the same batch, and :func:`agree` checks that their losses are the same.
"""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fnn
from recipes.bench import networks

RATES = {"sgd": 1e-2, "adam": 1e-3}
Step = Callable[..., Any]  # takes a batch; the default is that of the problem


class Problem(NamedTuple):
    """A network, an optimizer, the initial parameters under the names of the ``state_dict``, and a batch."""

    name: str
    optimizer: str
    start: dict[str, Tensor]
    x: Tensor
    y: Tensor

    @property
    def batch(self) -> tuple[Tensor, Tensor]:
        return self.x, self.y

    @property
    def device(self) -> torch.device:
        return self.x.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which layers compute; the parameters, their update and the loss are float32."""
        return self.x.dtype


def problem(name: str, optimizer: str, count: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Problem:
    x, y = networks.batch(name, count)
    return Problem(name, optimizer, start(name, device), x.to(device, dtype), y.to(device))


def start(name: str, device: str | torch.device, seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {path: leaf.to(device) for path, leaf in networks.module(name).state_dict().items()}


def torch_loss(given: Problem, network: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(given.device.type, given.dtype, enabled=given.dtype != torch.float32):
            logits = network(x)
        return F.cross_entropy(logits.float(), y)

    return loss


def eager(given: Problem, compiled: bool = False, mode: str | None = None, **settings: Any) -> Step:
    """A step by torch.nn + torch.optim. With ``compiled``, torch.compile compiles the loss and its gradient."""
    network = networks.module(given.name).to(given.device)
    network.load_state_dict(given.start)
    maker = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[given.optimizer]
    optimizer = maker(network.parameters(), lr=RATES[given.optimizer], **settings)
    loss = torch_loss(given, network)
    if compiled:
        loss = torch.compile(loss, fullgraph=True, mode=mode)

    def step(batch: tuple[Tensor, Tensor] = given.batch) -> Tensor:
        optimizer.zero_grad()
        value = loss(*batch)
        value.backward()
        optimizer.step()
        return value.detach()

    return step


def functional_loss(given: Problem) -> Callable[[dict, Tensor, Tensor], Tensor]:
    """The loss of the torch.nn network as a function of its parameters, by ``torch.func.functional_call``."""
    with torch.device("meta"):  # its own parameters are never used
        network = networks.module(given.name)

    def loss(params: dict, x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(given.device.type, given.dtype, enabled=given.dtype != torch.float32):
            logits = torch.func.functional_call(network, params, (x,))
        return F.cross_entropy(logits.float(), y)

    return loss


def by_hand(given: Problem) -> Step:
    """One function from parameters and moments to new ones, written with torch.func and compiled by ``torch.compile``."""
    gradient = torch.func.grad_and_value(functional_loss(given))
    rate, adam = RATES[given.optimizer], given.optimizer == "adam"

    @torch.compile(fullgraph=True)
    def train_step(params: dict, m: dict, v: dict, count: Tensor, x: Tensor, y: Tensor) -> tuple:
        grads, value = gradient(params, x, y)
        if not adam:
            return {k: p - rate * grads[k] for k, p in params.items()}, m, v, count, value
        count = count + 1
        m = {k: 0.9 * m[k] + 0.1 * g for k, g in grads.items()}
        v = {k: 0.999 * v[k] + 0.001 * g * g for k, g in grads.items()}
        first, second = 1 - 0.9**count, 1 - 0.999**count
        params = {k: p - rate * (m[k] / first) / ((v[k] / second).sqrt() + 1e-8) for k, p in params.items()}
        return params, m, v, count, value

    params = {k: p.clone() for k, p in given.start.items()}
    zeros = lambda: {k: torch.zeros_like(p) for k, p in params.items()} if adam else {}
    held = [(params, zeros(), zeros(), torch.zeros((), device=given.device))]

    def step(batch: tuple[Tensor, Tensor] = given.batch) -> Tensor:
        *new, value = train_step(*held[0], *batch)
        held[0] = tuple(new)
        return value

    return step


def torchopt(given: Problem) -> Step:
    import torchopt as library  # pyright: ignore[reportMissingImports]

    gradient = torch.func.grad_and_value(functional_loss(given))
    optimizer = {"sgd": library.sgd, "adam": library.adam}[given.optimizer](lr=RATES[given.optimizer])
    params = {k: p.clone() for k, p in given.start.items()}
    held = [params, optimizer.init(params)]

    def step(batch: tuple[Tensor, Tensor] = given.batch) -> Tensor:
        grads, value = gradient(held[0], *batch)
        updates, held[1] = optimizer.update(grads, held[1], inplace=False)
        held[0] = library.apply_updates(held[0], updates, inplace=False)
        return value

    return step


def fnn_function(given: Problem) -> tuple[Callable, fnn.Optimizer]:
    """Return ``step((params, opt_state), (x, y)) -> ((params, opt_state), loss)``, as for ``fnn.scan``, and the optimizer."""
    model, dtype = networks.layer(given.name), given.dtype
    optimizer = {"sgd": fnn.optim.sgd, "adam": fnn.optim.adam}[given.optimizer](RATES[given.optimizer])

    def loss(params: dict, x: Tensor, y: Tensor) -> Tensor:
        if dtype != torch.float32:
            params = fnn.tree.cast(params, dtype)
        return fnn.losses.cross_entropy(model.apply(params, x).float(), y)

    def step(carry: tuple, batch: tuple[Tensor, Tensor]) -> tuple:
        params, opt_state = carry
        value, grads = fnn.value_and_grad(loss)(params, *batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (fnn.optim.apply_updates(params, updates), opt_state), value

    return step, optimizer


def first_carry(given: Problem, optimizer: fnn.Optimizer) -> tuple:
    params = fnn.tree.from_state_dict({path: leaf.clone() for path, leaf in given.start.items()})
    return params, optimizer.init(params)


def ours(given: Problem, jit: bool = True, donated: bool = True, **settings: Any) -> Step:
    """A step by fnn: eager, or by ``fnn.jit`` of the whole step with these settings."""
    step, optimizer = fnn_function(given)
    if jit:
        step = fnn.jit(step, donate_argnums=0 if donated else (), **settings)
    held = [first_carry(given, optimizer)]

    def call(batch: tuple[Tensor, Tensor] = given.batch) -> Tensor:
        held[0], value = step(held[0], batch)
        return value

    return call


def jax_for(device: torch.device, dtype: torch.dtype = torch.float32) -> Any:
    """JAX, set to the same kind of device and torch's setting of TF32. Raises ``ImportError`` if it lacks the device."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax  # pyright: ignore[reportMissingImports]

    if device.type == "cpu":
        jax.config.update("jax_platforms", "cpu")
    elif dtype == torch.float32:
        precise = torch.get_float32_matmul_precision() == "highest"
        jax.config.update("jax_default_matmul_precision", "float32" if precise else "tensorfloat32")
    if jax.default_backend() != {"cpu": "cpu", "cuda": "gpu"}.get(device.type):
        raise ImportError(f"JAX runs on {jax.default_backend()} here, not on {device.type}")
    return jax


def jax_function(given: Problem) -> tuple[Any, Callable, Callable[[dict[str, Tensor]], tuple], tuple]:
    """Return JAX, ``step(carry, batch)`` as for ``lax.scan``, ``first(parameters) -> carry``, and the batch."""
    jax = jax_for(given.device, given.dtype)
    import jax.numpy as jnp  # pyright: ignore[reportMissingImports]
    import optax  # pyright: ignore[reportMissingImports]

    apply, dtype = networks.jax_function(given.name), str(given.dtype).removeprefix("torch.")
    optimizer = {"sgd": optax.sgd, "adam": optax.adam}[given.optimizer](RATES[given.optimizer])

    def loss(params: dict, x: Any, y: Any) -> Any:
        params = {path: leaf.astype(dtype) for path, leaf in params.items()}
        logits = apply(params, x).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def step(carry: tuple, batch: tuple) -> tuple:
        params, opt_state = carry
        value, grads = jax.value_and_grad(loss)(params, *batch)
        updates, opt_state = optimizer.update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state), value

    def first(start: dict[str, Tensor]) -> tuple:
        params = {path: jnp.array(leaf.cpu().numpy()) for path, leaf in start.items()}
        return params, optimizer.init(params)

    return jax, step, first, jax_arrays(given.batch)


def jax_arrays(batch: tuple[Tensor, Tensor]) -> tuple[Any, Any]:
    import jax.numpy as jnp  # pyright: ignore[reportMissingImports]

    x, y = batch
    dtype = str(x.dtype).removeprefix("torch.")
    return jnp.array(x.float().cpu().numpy()).astype(dtype), jnp.array(y.cpu().numpy())


def with_jax(given: Problem) -> Step:
    jax, step, first, batch = jax_function(given)
    compiled = jax.jit(step, donate_argnums=0)
    held = [first(given.start)]

    def call(batch: tuple = batch) -> Any:
        held[0], value = compiled(held[0], batch)
        return value

    return call


def add(rivals: dict[str, Step], name: str, make: Callable[[], Step]) -> None:
    """Add a rival to the table, unless a library that it needs is not installed."""
    try:
        rivals[name] = make()
    except ImportError as error:
        print(f"{name}: left out, {error}")


def agree(rivals: dict[str, Step], dtype: torch.dtype = torch.float32, launch: int = 1) -> None:
    """Take three steps of each rival; raise ``RuntimeError`` unless the losses of the first and the third agree.

    ``launch`` is the number of steps in a call. If it is above 1, a call returns the losses of its steps along the first
    axis.
    """
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    seen: dict[str, list[Tensor]] = {}
    for name, call in rivals.items():
        losses: list[Tensor] = []
        while len(losses) < 3:
            value = call()
            tensor = (value if isinstance(value, Tensor) else torch.tensor(value.__array__())).float().cpu()
            losses += [tensor.clone()] if launch == 1 else tensor.unbind()
        seen[name] = [losses[0], losses[2]]
    base, wanted = next(iter(seen.items()))
    for name, values in seen.items():
        if not all(torch.allclose(a, b, rtol=tolerance) for a, b in zip(values, wanted, strict=True)):
            raise RuntimeError(f"{name} and {base} compute different things: losses {values} and {wanted}")
