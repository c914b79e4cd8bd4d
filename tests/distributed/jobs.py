"""What the processes of a group are asked to do. Every function runs in a single process as well."""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fnn
from fnn import distributed

Batch = tuple[Tensor, Tensor]


def network(name: str) -> tuple[Any, Batch]:
    """A small network, and data of 32 rows."""
    key = fnn.random.key(7)
    labels = fnn.random.randint(key, (32,), 0, 4)
    if name == "mlp":
        return fnn.models.mlp(6, 16, 4), (fnn.random.normal(key, (32, 6)), labels)
    if name == "lenet":
        return fnn.models.lenet(), (fnn.random.normal(key, (32, 1, 32, 32)), labels)
    model = fnn.layers.sequential(
        fnn.layers.linear(6, 8),
        fnn.layers.transformer_encoder_layer(8, 2, 16, dropout=0.0),
        lambda x: x.mean(1),
        fnn.layers.linear(8, 4),
    )
    return model, (fnn.random.normal(key, (32, 5, 6)), labels)


def loss_of(model: Any) -> Callable[[Any, Batch], Tensor]:
    return lambda params, batch: fnn.losses.cross_entropy(model.apply(params, batch[0]), batch[1])


def optimizer_of(name: str) -> Any:
    return fnn.optim.sgd(0.1, momentum=0.9) if name == "sgd" else fnn.optim.adam(0.01)


def train_data_parallel(
    name: str, optimizer_name: str, backend: str, steps: int, dtype: torch.dtype
) -> tuple[list, dict]:
    """The losses and the params of a run, whose batches of 8 rows are drawn from a key."""
    model, data = network(name)
    optimizer = optimizer_of(optimizer_name)
    value_and_grads = distributed.data_parallel(fnn.value_and_grad(loss_of(model)))

    def step(params: Any, opt_state: Any, batch: Batch) -> tuple:
        value, grads = value_and_grads(params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return fnn.optim.apply_updates(params, updates), opt_state, value

    run = step if backend == "eager" else fnn.jit(step, donate_argnums=(0, 1), backend=backend)
    params, data = fnn.tree.cast((model.init(fnn.random.key(0)), data), dtype)
    opt_state = optimizer.init(params)
    losses = []
    for number in range(steps):
        batch = next(distributed.local_batches(data, 8, fnn.random.fold_in(fnn.random.key(1), number)))
        params, opt_state, value = run(params, opt_state, batch)
        losses.append(float(value))
    return losses, fnn.tree.to_state_dict(params)


def train_fully_sharded(
    name: str, optimizer_name: str, backend: str, steps: int, dtype: torch.dtype
) -> tuple[list, dict, float]:
    """As :func:`train_data_parallel`, with params in parts; and the share of their memory that this process holds."""
    model, data = network(name)
    optimizer = optimizer_of(optimizer_name)
    params, data = fnn.tree.cast((model.init(fnn.random.key(0)), data), dtype)
    whole = fnn.tree.nbytes((params, optimizer.init(params)))
    params, sharding = distributed.shard(params)
    opt_state = optimizer.init(params)
    share = storage_bytes((params, opt_state)) / whole
    value_and_grads = distributed.fully_sharded(fnn.value_and_grad(loss_of(model)), sharding)

    def step(params: Any, opt_state: Any, batch: Batch) -> tuple:
        value, grads = value_and_grads(params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return fnn.optim.apply_updates(params, updates), opt_state, value

    run = step if backend == "eager" else fnn.jit(step, donate_argnums=(0, 1), backend=backend)
    losses = []
    for number in range(steps):
        batch = next(distributed.local_batches(data, 8, fnn.random.fold_in(fnn.random.key(1), number)))
        params, opt_state, value = run(params, opt_state, batch)
        losses.append(float(value))
    return losses, fnn.tree.to_state_dict(distributed.gather(params, sharding)), share


def hybrid_mesh() -> Any:
    """Processes in two rows, or none for a single process."""
    from torch.distributed.device_mesh import init_device_mesh

    count = distributed.world_size()
    return init_device_mesh("cpu", (2, count // 2)) if count > 1 else None


def train_on_a_mesh(backend: str, folder: str) -> tuple[dict, list[Tensor], dict]:
    """Steps with params split over one axis of a mesh and copied along the other, with rules for some of the leaves.

    Returns the params, the norms of the gradients, and the shapes of the parts. A checkpoint is written and read.
    """
    model, data = network("mlp")
    optimizer = fnn.optim.adam(0.01)
    params, data = fnn.tree.cast((model.init(fnn.random.key(0)), data), torch.float64)
    rules = lambda path: 1 if path == "0.weight" else None if path.endswith("bias") else "auto"
    parts, sharding = distributed.shard(params, hybrid_mesh(), rules)
    opt_state = optimizer.init(parts)
    value_and_grads = distributed.fully_sharded(fnn.value_and_grad(loss_of(model)), sharding)

    def step(parts: Any, opt_state: Any, batch: Batch) -> tuple:
        _, grads = value_and_grads(parts, batch)
        norm = distributed.global_norm(grads, sharding)
        updates, opt_state = optimizer.update(fnn.tree.scale(1 / (1 + norm), grads), opt_state, parts)
        return fnn.optim.apply_updates(parts, updates), opt_state, norm

    run = step if backend == "eager" else fnn.jit(step, donate_argnums=(0, 1), backend=backend)
    norms = []
    for number in range(3):
        batch = next(distributed.local_batches(data, 8, fnn.random.fold_in(fnn.random.key(1), number)))
        parts, opt_state, norm = run(parts, opt_state, batch)
        norms.append(norm)
    distributed.save(folder, parts, sharding)
    parts = distributed.load(folder, fnn.tree.zeros_like(parts), sharding)
    shapes = {path: tuple(leaf.shape) for path, leaf in fnn.tree.to_state_dict(parts).items()}
    return fnn.tree.to_state_dict(distributed.gather(parts, sharding)), norms, shapes


def storage_bytes(tree: Any) -> int:
    """The bytes of all storages that the leaves of a tree keep alive."""
    storages = {leaf.untyped_storage().data_ptr(): leaf.untyped_storage().nbytes() for leaf in fnn.tree.leaves(tree)}
    return sum(storages.values())


def batch_norm_network() -> tuple[Any, Batch]:
    layers = fnn.layers
    model = layers.sequential(
        layers.conv2d(1, 3, 3), layers.batch_norm(3), layers.relu, layers.flatten, layers.linear(12, 4),
        layers.batch_norm(4),
    )  # fmt: skip
    key = fnn.random.key(3)
    return model, (fnn.random.normal(key, (8, 1, 4, 4), torch.float64), fnn.random.randint(key, (8,), 0, 4))


def batch_norm_gradient(backend: str) -> tuple:
    """The loss, the new state and the gradient of a network with BatchNorm over the batches of all processes."""
    model, batch = batch_norm_network()
    params, state = fnn.tree.cast(model.init(fnn.random.key(0)), torch.float64)

    def loss(params: Any, state: Any, batch: Batch) -> tuple:
        logits, state = model.apply(params, state, batch[0], train=True)
        return fnn.losses.cross_entropy(logits, batch[1]), state

    f = fnn.value_and_grad(distributed.sync_batch_norm(loss), has_aux=True)
    step = distributed.data_parallel(f, (("mean", "state"), "mean"))
    step = step if backend == "eager" else fnn.jit(step, backend=backend)
    return step(params, state, distributed.local(batch))


def batch_norm_under_vmap() -> str:
    layer = fnn.layers.batch_norm(2)
    params, state = layer.init(fnn.random.key(0))
    apply = distributed.sync_batch_norm(lambda x: layer.apply(params, state, x, train=True)[0])
    return message(lambda: fnn.vmap(apply)(torch.ones(2, 3, 2)))


def message(f: Callable) -> str:
    """The message of the error that a call raises."""
    try:
        f()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def small_network() -> tuple[Any, Any, Batch]:
    model = fnn.models.mlp(3, 5, 4)
    key = fnn.random.key(3)
    batch = fnn.random.normal(key, (8, 3), torch.float64), fnn.random.randint(key, (8,), 0, 4)
    return model, fnn.tree.cast(model.init(fnn.random.key(0)), torch.float64), batch


def private_gradient(backend: str) -> Any:
    """The sum of clipped gradients of a Poisson sample, with noise from one key."""
    model, params, data = small_network()
    clipped = distributed.data_parallel(fnn.clipped_grad(loss_of(model), 0.1), "sum")

    def step(params: Any, key: Tensor) -> Any:
        drawn = fnn.gradients.poisson_sample(key, 8, 0.4, 6)
        indices, weights = distributed.local((drawn.indices, drawn.weights))
        total = clipped(params, (data[0][indices], data[1][indices]), weights=weights.double())
        return fnn.tree.add(total, fnn.gradients.noise_like(key, total, 0.3))

    return (step if backend == "eager" else fnn.jit(step, backend=backend))(params, fnn.random.key(5))


def curvature() -> tuple:
    """A Hessian product, a Gauss-Newton product, KFAC factors, and a solution of a system with a Hessian."""
    model, params, batch = small_network()
    loss = loss_of(model)
    v = fnn.tree.ones_like(params)
    part = distributed.local(batch)
    hvp = distributed.data_parallel(lambda v: fnn.curvature.hvp(lambda p: loss(p, part), (params,), (v,))[1])

    def ggn(v: Any) -> Any:
        out_loss = lambda logits: fnn.losses.cross_entropy(logits, part[1])
        return fnn.curvature.ggn_product(lambda p: model.apply(p, part[0]), out_loss, (params,), (v,))[1]

    ggn = distributed.data_parallel(ggn)
    damped = fnn.linalg.LinearOperator(lambda v: fnn.tree.lerp(ggn(v), v, 0.1), params, symmetric=True)
    factors = fnn.curvature.kfac(model.apply, params, part[0]).factors
    return hvp(v), ggn(v), distributed.reduce(factors), fnn.linalg.cg(damped, v, tolerance=1e-10)[0]


def ensemble(backend: str) -> Any:
    """Members with their own seeds and learning rates, spread over the processes, after three steps."""
    model, _, batch = small_network()
    loss = loss_of(model)
    rates = torch.linspace(0.1, 0.4, 4, dtype=torch.float64)

    def member(key: Tensor, rate: Tensor) -> Any:
        params = fnn.tree.cast(model.init(key), torch.float64)
        for _ in range(3):
            grads = fnn.grad(loss)(params, batch)
            params = fnn.tree.map(lambda p, g: p - rate * g, params, grads)
        return params

    members = fnn.vmap(member) if backend == "eager" else fnn.jit(fnn.vmap(member))
    keys, rates = distributed.local((fnn.random.split(fnn.random.key(0), 4), rates))
    return distributed.reduce(members(keys, rates), "concat")


def metrics() -> dict:
    """Counts, means and rows of all processes, of several dtypes."""
    x = distributed.local(torch.arange(8.0))
    values = {
        "right": (x > 2.5).sum(), "loss": x.mean(), "rows": x.to(torch.int16)[:, None], "flags": x > 3,
        "half": x.sum().to(torch.bfloat16), "complex": torch.complex(x.sum(), -x.sum()), "batches": torch.tensor(7),
    }  # fmt: skip
    words = {
        "right": "sum", "loss": "mean", "rows": "concat", "flags": "concat", "half": "sum", "complex": "sum",
        "batches": "state",
    }  # fmt: skip
    reduced = distributed.reduce(values, words)
    storages = [leaf.untyped_storage().data_ptr() for leaf in fnn.tree.leaves((reduced, values))]
    assert len(set(storages)) == len(storages)
    return reduced


def accumulated_gradient() -> tuple[Any, int]:
    """The gradient of a batch in two parts, and the number of messages."""
    model, params, batch = small_network()
    f = distributed.data_parallel(fnn.gradients.accumulate_grad(loss_of(model), 2))
    with torch.profiler.profile() as profile:
        grads = f(params, distributed.local(batch))
    return grads, sum(event.count for event in profile.key_averages() if "_c10d_functional::all_reduce" in event.key)


def second_derivative_of_batch_norm() -> Any:
    model, batch = batch_norm_network()
    params, state = fnn.tree.cast(model.init(fnn.random.key(0)), torch.float64)
    part = distributed.local(batch)
    loss = lambda params: fnn.losses.cross_entropy(model.apply(params, state, part[0], train=True)[0], part[1])
    v = fnn.tree.ones_like(params)
    f = lambda v: fnn.curvature.hvp(distributed.sync_batch_norm(loss), (params,), (v,))[1]
    return distributed.data_parallel(f)(v)


def other_trees() -> str:
    width = 3 + distributed.rank()
    return message(lambda: distributed.reduce({"loss": torch.ones(()), "grads": {"w": torch.ones(width)}}))


def other_code() -> str:
    def step(x: Tensor) -> Tensor:
        y = x.relu() if distributed.rank() else x.tanh()
        return distributed.reduce(y)

    return message(lambda: fnn.jit(step)(torch.ones(3)))


def other_numbers() -> list[str]:
    """The messages of steps whose numbers depend on the process: floats, integers, and those in the step of a scan."""
    rank = distributed.rank()
    mean = distributed.reduce
    steps = [
        lambda x: x - (0.1 + rank / 10) * mean(x),
        lambda x: x - (2 + rank) * mean(x),
        lambda x: fnn.scan(lambda w, y: (w * (1.0 - rank) + mean(y), None), x, torch.ones(2, 3))[0],
        lambda x: mean(x) + torch.full((3,), 1.0 + rank),
    ]
    return [message(lambda step=step: fnn.jit(step)(torch.ones(3))) for step in steps]


def other_values() -> list[str]:
    """The messages about trees of the same structure: equal ones, another learning rate, another dtype, no tensor."""
    rank, params = distributed.rank(), {"w": torch.ones(2)}
    trees = [
        (params, fnn.optim.adam(0.1).init(params)),
        (params, {"rate": torch.tensor(0.1 + rank)}),
        {"w": torch.zeros(2, dtype=torch.int32 if rank else torch.float32)},
        {"w": 1.0},
    ]
    return [message(lambda tree=tree: distributed.check_equal(tree)) for tree in trees]


def own_places() -> Tensor:
    """A step in which the processes take rows, a key and a tensor of their own: the only numbers that may differ."""
    rank, data, key = distributed.rank(), torch.arange(12.0).reshape(4, 3), fnn.random.key(0)

    def step(data: Tensor, key: Tensor, rate: Tensor) -> Tensor:
        rows = distributed.local(data)
        noise = fnn.random.normal(fnn.random.fold_in(key, rank), (3,))
        return distributed.reduce(rate * (rows.mean(0) + 0.0 * noise))

    return fnn.jit(step)(data, key, torch.tensor(1.0 + rank))


def one_stays_away(backend: str) -> str:
    """Process 1 leaves out a communication of which both have agreed before."""
    f = distributed.reduce if backend == "eager" else fnn.jit(lambda x: distributed.reduce(x), backend=backend)
    f(torch.ones(3))
    return "" if distributed.rank() else message(lambda: f(torch.ones(3)))


def one_does_not_trace() -> str:
    return "" if distributed.rank() else message(lambda: fnn.jit(lambda x: distributed.reduce(x))(torch.ones(3)))


def one_dies() -> str:
    if distributed.rank():
        os._exit(3)
    return message(lambda: distributed.reduce(torch.ones(3)))


def refusals() -> list[str]:
    """What each process says to calls that it refuses by itself."""
    x, params = torch.ones(4), {"w": torch.ones(4, 3)}
    _, sharding = distributed.shard(params)
    loss = lambda w: distributed.reduce((w * w).sum())
    calls = [
        lambda: distributed.local(torch.ones(5)),
        lambda: distributed.local_batches(torch.ones(8), 3),
        lambda: distributed.local_batches(torch.ones(7), 4),
        lambda: fnn.grad(loss)(x),
        lambda: fnn.jit(fnn.grad(loss))(x),
        lambda: torch.func.grad(loss)(x),
        lambda: fnn.vmap(distributed.reduce)(x),
        lambda: distributed.reduce(x.clone().requires_grad_()),
        lambda: distributed.reduce({"count": torch.tensor(3)}),
        lambda: distributed.reduce({"right": x > 0}, "sum"),
        lambda: distributed.reduce(x.sum(), "concat"),
        lambda: distributed.reduce(x, "average"),
        lambda: distributed.reduce({"x": 1.0}),
        lambda: distributed.shard(params, rules=lambda path: 1),
        lambda: distributed.shard(params, rules=lambda path: 2),
        lambda: distributed.shard({"w": x.to(torch.complex64)}),
        lambda: distributed.gather(params, sharding),
        lambda: distributed.fully_sharded(fnn.grad(lambda p: p["w"].sum()), sharding)(params),
    ]
    return [message(call) for call in calls]


def order_of_a_sharded_step() -> tuple[list[str], int, int]:
    """What a step does in which order, the peak of its memory, and that of a step with whole params."""
    model = fnn.models.mlp(64, 64, 64, 64, 64)
    params, batch = model.init(fnn.random.key(0)), (torch.ones(2, 64), torch.zeros(2, dtype=torch.int64))
    parts, sharding = distributed.shard(params)

    def step(params: Any, f: Callable) -> Any:
        return fnn.tree.map(lambda p, g: p - 0.1 * g, params, f(params, batch))

    gradient = fnn.grad(loss_of(model))
    graph = fnn.trace(lambda params: step(params, distributed.fully_sharded(gradient, sharding)))(parts)
    whole = fnn.trace(lambda params: step(params, distributed.data_parallel(gradient)))(params)
    words = {"all_gather": "gather", "mm": "product", "addmm": "product", "reduce_scatter": "scatter"}
    lines = [line.split("=")[1].split()[0] for line in str(graph).splitlines() if "=" in line]
    found = [next((word for name, word in words.items() if line.startswith(name)), "") for line in lines]
    return [word for word in found if word], graph.peak_memory, whole.peak_memory


def scanned_steps() -> Any:
    """Steps in a scan, each of which communicates."""
    _, _, batch = small_network()
    f = distributed.data_parallel(lambda w, x: (w * x).mean(0))

    def epoch(w: Tensor, xs: Tensor) -> Tensor:
        return fnn.scan(lambda w, x: (w - 0.1 * f(w, x), None), w, xs)[0]

    start, stop = 4 * distributed.rank() // distributed.world_size(), 4 * (distributed.rank() + 1)
    rows = batch[0].reshape(2, 4, 3)[:, start : stop // distributed.world_size()]
    return fnn.jit(epoch)(torch.ones(3, dtype=torch.float64), rows)
