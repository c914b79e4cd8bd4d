"""Jacobian and curvature products and matrices by fnn, torch.func, torch.autograd.functional, curvlinops and JAX.

The flags are ``--rows hvp ggn fisher kfac jacobian hessian ntk`` (all by default) and ``--rounds 10``. Peak memory is
measured on Linux only.
"""

import argparse
import gc
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fnn
from fnn.curvature import dense_hessian, ekfac, empirical_fisher_product, fisher_product, ggn_product, hvp, kfac
from fnn.jacobian import dense_jacobian, ntk
from recipes.bench import harness

SIZES = (784, 512, 512, 10)
HAND = "torch.func by hand"
Rivals = dict[str, Callable[[], object]]


def network(name: str) -> tuple[fnn.Layer, dict, Tensor, Tensor]:
    model = fnn.models.lenet() if name == "lenet" else fnn.models.mlp(*SIZES, activation=fnn.layers.tanh)
    shape = (64, 1, 32, 32) if name == "lenet" else (64, 784)
    x = fnn.random.normal(fnn.random.key(1), shape)
    return model, model.init(fnn.random.key(0)), x, fnn.random.randint(fnn.random.key(2), (64,), 0, 10)


def ours(function: Callable, *args: Any) -> Rivals:
    replayed, compiled = fnn.jit(function), fnn.jit(function, backend="inductor")
    return {
        "fnn": lambda: function(*args),
        "fnn.jit": lambda: replayed(*args),
        "fnn.jit, inductor": lambda: compiled(*args),
    }


def hvp_rows() -> dict[str, Rivals]:
    model, params, x, y = network("mlp")
    v = fnn.random.like(fnn.random.key(3), params)
    loss = lambda p, x: fnn.losses.cross_entropy(model.apply(p, x), y)
    leaves, tangents = tuple(fnn.tree.leaves(params)), tuple(fnn.tree.leaves(v))
    flat_loss = lambda *p: loss(fnn.tree.structure(params).unflatten(p), x)
    hand = lambda p, v: torch.func.jvp(torch.func.grad(lambda p: loss(p, x)), (p,), (v,))[1]
    peers: Rivals = {
        HAND: lambda: hand(params, v),
        "torch.autograd.functional": lambda: torch.autograd.functional.hvp(flat_loss, leaves, tangents)[1],
    }
    peers |= curvlinops("HessianLinearOperator", params, x, y, v)
    peers |= jax_rival("hvp", params, x, y, v)
    rows, modes = {}, ("auto", "forward-over-reverse", "reverse-over-forward", "reverse-over-reverse")
    mode: Any
    for mode in modes:
        product = lambda p, v, x, mode=mode: hvp(lambda p: loss(p, x), (p,), (v,), mode)[1]
        rows[f"hvp, {mode}"] = peers | ours(product, params, v, x)
    return rows


def curvature_rows(name: str) -> dict[str, Rivals]:
    model, params, x, y = network("mlp")
    v = fnn.random.like(fnn.random.key(3), params)
    apply, key = model.apply, fnn.random.key(4)
    compare = lambda out: fnn.losses.cross_entropy(out, y)
    losses = lambda p, x: fnn.losses.cross_entropy(apply(p, x), y, reduction="none")

    def hand(middle: Callable) -> Callable:
        def product() -> Any:
            output, tangent, *_ = torch.func.jvp(lambda p: apply(p, x), (params,), (v,))
            return torch.func.vjp(lambda p: apply(p, x), params)[1](middle(output, tangent))[0]

        return product

    def softmax_fisher(output: Tensor, u: Tensor) -> Tensor:
        p = torch.softmax(output, 1)
        return p * (u - (p * u).sum(1, keepdim=True)) / len(x)

    if name == "ggn":
        hessian_of_loss = lambda out, u: torch.func.jvp(torch.func.grad(compare), (out,), (u,))[1]
        rivals: Rivals = {HAND: hand(hessian_of_loss)} | curvlinops("GGNLinearOperator", params, x, y, v)
        rivals |= jax_rival("ggn", params, x, y, v)
        product = lambda p, v, x: ggn_product(lambda p: apply(p, x), compare, (p,), (v,))[1]
        return {"Gauss-Newton product": rivals | ours(product, params, v, x)}
    exact: Rivals = {HAND: hand(softmax_fisher)} | jax_rival("fisher", params, x, y, v)
    drawn: Rivals = {HAND: hand(softmax_fisher)} | curvlinops("FisherMCLinearOperator", params, x, y, v)
    per_sample = torch.func.vmap(
        torch.func.grad(lambda p, x, y: fnn.losses.cross_entropy(apply(p, x[None]), y[None])), (None, 0, 0)
    )

    def by_gradients() -> Any:
        grads = per_sample(params, x, y)
        along = sum(fnn.tree.leaves(fnn.tree.map(lambda g, t: (g * t).flatten(1).sum(1), grads, v)))
        return fnn.tree.map(lambda g: torch.tensordot(along, g, 1) / len(x), grads)

    empirical: Rivals = {HAND: by_gradients} | curvlinops("EFLinearOperator", params, x, y, v)
    empirical |= jax_rival("empirical", params, x, y, v)
    model_of = lambda x: lambda p: apply(p, x)
    return {
        "Fisher product": exact | ours(lambda p, v, x: fisher_product(model_of(x), (p,), (v,))[1], params, v, x),
        "Fisher product, drawn (by hand: exact)": drawn
        | ours(lambda p, v, x: fisher_product(model_of(x), (p,), (v,), key=key)[1], params, v, x),
        "empirical Fisher product": empirical
        | ours(lambda p, v, x: empirical_fisher_product(lambda p: losses(p, x), (p,), (v,))[1], params, v, x),
    }


def kronecker_rows() -> dict[str, Rivals]:
    model, params, x, y = network("mlp")
    layers = [params["0"], params["2"], params["4"]]

    def by_hand() -> list[tuple[Tensor, Tensor]]:
        def tapped(taps: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
            h, inputs = x, []
            for layer, tap in zip(layers, taps, strict=True):
                inputs.append(h.tanh() if inputs else h)
                h = torch.nn.functional.linear(inputs[-1], layer["weight"], layer["bias"]) + tap
            return h, inputs

        taps = [x.new_zeros(len(x), size) for size in SIZES[1:]]
        output, pullback, *aux = torch.func.vjp(tapped, taps, has_aux=True)
        p = output.softmax(1)
        root = torch.diag_embed(p.sqrt()) - p[:, :, None] * p.sqrt()[:, None]  # (samples, classes, columns)
        (gradients,) = torch.func.vmap(pullback)(root.movedim(2, 0))
        joint = [torch.nn.functional.pad(a, (0, 1), value=1.0) for a in aux[0]]
        rows = [g.flatten(0, 1) for g in gradients]
        return [(a.T @ a / len(x), g.T @ g / len(x)) for a, g in zip(joint, rows, strict=True)]

    rows, key = {}, fnn.random.key(4)
    for title, make, options, peer in (
        ("KFAC factors", kfac, {}, ("KFACLinearOperator", "type-2")),
        ("KFAC factors, drawn (by hand: exact)", kfac, {"key": key}, ("KFACLinearOperator", "mc")),
        ("EKFAC (by hand: KFAC factors)", ekfac, {}, ("EKFACLinearOperator", "type-2")),
    ):
        function = lambda p, x, make=make, options=options: make(model.apply, p, x, **options).factors
        rows[title] = {HAND: by_hand} | kronecker_peer(*peer, params, x, y) | ours(function, params, x)
    return rows


def jacobian_rows() -> dict[str, Rivals]:
    rows = {}
    for name, title in (("mlp", "input Jacobian 10x784, MLP"), ("lenet", "input Jacobian 10x1024, LeNet")):
        model, params, x, _ = network(name)
        image, apply = x[0], model.apply
        f = lambda image, apply=apply, params=params: apply(params, image[None])[0]
        rivals: Rivals = {
            HAND: lambda f=f, image=image: torch.func.jacrev(f)(image),
            "torch.autograd.functional": lambda f=f, image=image: torch.autograd.functional.jacobian(
                f, image, vectorize=True
            ),
        }
        rivals |= jax_rival("jacobian", params, image, None, None)
        function = lambda params, image, apply=apply: dense_jacobian(lambda image: apply(params, image[None])[0])(image)
        rows[title] = rivals | ours(function, params, image)
    return rows


def hessian_rows() -> dict[str, Rivals]:
    model, params, x, y = network("mlp")
    loss = lambda image: fnn.losses.cross_entropy(model.apply(params, image[None]), y[:1])
    rivals: Rivals = {
        HAND: lambda: torch.func.hessian(loss)(x[0]),
        "torch.autograd.functional": lambda: torch.autograd.functional.hessian(
            loss, x[0], vectorize=True, outer_jacobian_strategy="forward-mode"
        ),
    }
    rivals |= jax_rival("hessian", params, x[0], y[0], None)
    rows = {}
    mode: Any
    for mode in ("auto", "forward-over-reverse"):
        function = lambda params, image, mode=mode: dense_hessian(
            lambda image: fnn.losses.cross_entropy(model.apply(params, image[None]), y[:1]), mode=mode
        )(image)
        rows[f"input Hessian 784x784, {mode}"] = rivals | ours(function, params, x[0])
    return rows


def ntk_rows() -> dict[str, Rivals]:
    model, params, pictures, _ = network("lenet")
    narrow = fnn.models.mlp(784, 64, 10, activation=fnn.layers.tanh)
    narrow_params = narrow.init(fnn.random.key(0))
    rows = {}
    for title, apply, p, x in (
        ("NTK of 64 images, LeNet", model.apply, params, pictures),
        ("NTK of 64 images, MLP 784-64-10", narrow.apply, narrow_params, pictures[:, 0, :28, :28].flatten(1)),
    ):

        def by_hand(apply: Callable = apply, p: dict = p, x: Tensor = x) -> Any:
            jac = torch.func.vmap(torch.func.jacrev(lambda p, s: apply(p, s[None])[0]), (None, 0))(p, x)
            leaves = [leaf.flatten(2) for leaf in fnn.tree.leaves(jac)]
            return sum(torch.einsum("nap,mbp->nmab", leaf, leaf) for leaf in leaves)

        rivals: Rivals = {HAND: by_hand} | jax_rival("ntk", p, x, None, None)
        method: Any
        for method in ("contraction", "product"):
            function = lambda p, x, apply=apply, m=method: ntk(apply, p, x, method=m, chunk_size=64)
            rows[f"{title}, {method}"] = rivals | ours(function, p, x)
    return rows


ROWS: dict[str, Callable[[], dict[str, Rivals]]] = {
    "hvp": hvp_rows,
    "ggn": lambda: curvature_rows("ggn"),
    "fisher": lambda: curvature_rows("fisher"),
    "kfac": kronecker_rows,
    "jacobian": jacobian_rows,
    "hessian": hessian_rows,
    "ntk": ntk_rows,
}


def curvlinops(operator: str, params: dict, x: Tensor, y: Tensor, v: dict, **options: Any) -> Rivals:
    linear_operator, names = curvlinops_operator(operator, params, x, y, **options)
    if linear_operator is None:
        return {}
    vectors = [fnn.tree.to_state_dict(v)[name] for name in names]
    return {"curvlinops": lambda: linear_operator @ vectors}


def kronecker_peer(operator: str, fisher_type: str, params: dict, x: Tensor, y: Tensor) -> Rivals:
    """The computation of the factors by curvlinops, which otherwise happens at its first product."""
    options = {"fisher_type": fisher_type, "separate_weight_and_bias": False, "num_data": len(x)}

    def factors() -> None:
        linear_operator, _ = curvlinops_operator(operator, params, x, y, num_per_example_loss_terms=1, **options)
        linear_operator.compute_kronecker_factors()
        if operator.startswith("E"):
            linear_operator.compute_eigenvalue_correction()

    return {} if curvlinops_operator(operator, params, x, y, **options)[0] is None else {"curvlinops": factors}


def curvlinops_operator(operator: str, params: dict, x: Tensor, y: Tensor, **options: Any) -> tuple[Any, list[str]]:
    try:
        import curvlinops as library  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None, []
    layers: list[torch.nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(SIZES):
        layers += [torch.nn.Linear(fan_in, fan_out), torch.nn.Tanh()]
    net = torch.nn.Sequential(*layers[:-1])
    net.load_state_dict(fnn.tree.to_state_dict(params))
    named = dict(net.named_parameters())
    linear_operator = getattr(library, operator)(
        net, torch.nn.CrossEntropyLoss(), list(named.values()), [(x, y)], check_deterministic=False, **options
    )
    return linear_operator, list(named)


def jax_rival(task: str, params: dict, x: Tensor, y: Tensor | None, v: dict | None) -> Rivals:
    try:
        import jax  # pyright: ignore[reportMissingImports]
        import jax.numpy as jnp  # pyright: ignore[reportMissingImports]
    except ImportError:
        return {}
    to_jax = lambda tree: [jnp.array(leaf.numpy()) for leaf in fnn.tree.to_state_dict(tree).values()]
    p, images = to_jax(params), jnp.array(x.numpy())  # bias before weight, layer by layer
    labels: Any = None if y is None else jnp.array(y.numpy())
    tangent = None if v is None else to_jax(v)

    def apply(p: list, x: Any) -> Any:
        pairs = list(zip(p[::2], p[1::2], strict=True))
        lenet = pairs[0][1].ndim == 4
        if lenet:
            x = x.reshape(-1, *x.shape[-3:])
            for bias, weight in pairs[:2]:
                x = jax.nn.relu(jax.lax.conv(x, weight, (1, 1), "VALID") + bias[:, None, None])
                x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
            pairs, x = pairs[2:], x.reshape(len(x), -1)
        for i, (bias, weight) in enumerate(pairs):
            x = ((jax.nn.relu if lenet else jnp.tanh)(x) if i else x) @ weight.T + bias
        return x[0] if lenet and len(x) == 1 else x

    def losses(p: list, x: Any) -> Any:
        return -jnp.take_along_axis(jax.nn.log_softmax(apply(p, x)), labels[..., None], -1)[..., 0]

    def sandwich(model: Callable, middle: Callable) -> Callable:
        def product(p: list, v: list, x: Any) -> Any:
            output, tangent = jax.jvp(lambda p: model(p, x), (p,), (v,))
            return jax.vjp(lambda p: model(p, x), p)[1](middle(output, tangent))[0]

        return product

    def fisher(output: Any, u: Any) -> Any:
        q = jax.nn.softmax(output)
        return q * (u - (q * u).sum(1, keepdims=True)) / len(images)

    def mean_loss(out: Any) -> Any:
        return -jnp.take_along_axis(jax.nn.log_softmax(out), labels[:, None], 1).mean()

    def kernel(p: list, x: Any) -> Any:
        jac = jax.vmap(jax.jacrev(apply), (None, 0))(p, x)
        leaves = [leaf.reshape(*leaf.shape[:2], -1) for leaf in jac]
        return sum(jnp.einsum("nap,mbp->nmab", leaf, leaf) for leaf in leaves)

    tasks = {
        "hvp": lambda p, v, x: jax.jvp(jax.grad(lambda p: losses(p, x).mean()), (p,), (v,))[1],
        "ggn": sandwich(apply, lambda out, u: jax.jvp(jax.grad(mean_loss), (out,), (u,))[1]),
        "fisher": sandwich(apply, fisher),
        "empirical": sandwich(losses, lambda out, u: u / len(images)),
        "jacobian": lambda p, v, x: jax.jacrev(lambda x: apply(p, x))(x),
        "hessian": lambda p, v, x: jax.hessian(lambda x: losses(p, x))(x),
        "ntk": lambda p, v, x: kernel(p, x),
    }
    compiled = jax.jit(tasks[task])
    return {"JAX jit": lambda: jax.block_until_ready(compiled(p, tangent, images))}


def peak_increase(call: Callable[[], object]) -> float:
    """The most bytes by which the process grows during a call; nan if the system does not report it."""
    gc.collect()
    try:
        harness.reset_peak()
    except OSError:
        return float("nan")
    before = harness.resident("VmRSS")
    call()
    return max(float(harness.resident("VmHWM") - before), 4096.0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    time, memory = [], []
    names = [HAND, "torch.autograd.functional", "curvlinops", "JAX jit", "fnn", "fnn.jit", "fnn.jit, inductor"]
    for group in options.rows:
        for title, rivals in ROWS[group]().items():
            seconds = harness.interleave(rivals, rounds=options.rounds)
            peaks = {name: peak_increase(call) for name, call in rivals.items()}
            for rows, numbers in ((time, seconds), (memory, peaks)):
                ratios = harness.ratios(numbers, HAND)
                rows.append([title, *(ratios.get(name, "-") for name in names)])
    body = (
        "CPU, float32. MLP 784-512-512-10 with tanh, batch 64, unless the row says otherwise. Time of one call over "
        f"that of {HAND}, eager; smaller is faster.\n\n{harness.table(['', *names], time)}\n\n"
        "Peak memory of the call, results included, beyond what the process held before it, over that of "
        f"{HAND}.\n\n{harness.table(['', *names], memory)}"
    )
    harness.report("jacobian", "Jacobian products and matrices", body, ["jax", "curvlinops-for-pytorch"])


if __name__ == "__main__":
    main()
