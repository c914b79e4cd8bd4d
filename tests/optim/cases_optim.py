"""The table of the contract: every optimizer, with rates at which it solves two small problems."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fnn
from fnn import optim
from fnn._numerics import widen


class Case(NamedTuple):
    make: Callable[[Any], fnn.Optimizer]
    """The optimizer of a learning rate."""
    parabola: float
    """A rate that solves the parabola in 200 updates."""
    rosenbrock: tuple[float, int]
    """A rate and a number of updates that bring Rosenbrock's function below ``below``, from more than 50."""
    read: Callable[[Any, Any], Any] = lambda state, params: params
    """The params that predict."""
    meta_steps: int = 3
    below: float = 0.02


def muon(rate: Any) -> fnn.Optimizer:
    return optim.muon(rate, weight_decay=0.0, adam_learning_rate=rate)


CASES = {
    "sgd": Case(optim.sgd, 0.1, (2e-3, 4000)),
    "sgd, momentum": Case(lambda r: optim.sgd(r, momentum=0.9), 0.03, (1e-3, 2000)),
    "sgd, dampening": Case(lambda r: optim.sgd(r, momentum=0.9, dampening=0.5), 0.1, (1e-3, 3000)),
    "sgd, nesterov": Case(lambda r: optim.sgd(r, momentum=0.9, nesterov=True), 0.03, (1e-3, 2000)),
    "adam": Case(optim.adam, 0.1, (0.05, 1500)),
    "adam, amsgrad": Case(lambda r: optim.adam(r, amsgrad=True), 0.1, (0.05, 2500)),
    "adamw": Case(lambda r: optim.adamw(r, weight_decay=1e-5), 0.1, (0.05, 1500)),
    "nadam": Case(optim.nadam, 0.1, (0.05, 1500)),
    "radam": Case(optim.radam, 0.1, (3e-3, 5000)),
    "adamax": Case(optim.adamax, 0.1, (0.05, 2500)),
    "adagrad": Case(lambda r: optim.adagrad(r, lr_decay=1e-4), 0.5, (0.5, 2000)),
    "adadelta": Case(lambda r: optim.adadelta(r, eps=1e-3), 1.0, (0.1, 6000), below=10.0),
    "rmsprop": Case(optim.rmsprop, 0.01, (2e-3, 3000)),
    "rmsprop, all": Case(lambda r: optim.rmsprop(r, momentum=0.5, centered=True), 0.01, (2e-3, 3000)),
    "rprop": Case(optim.rprop, 0.1, (0.01, 800)),
    "asgd": Case(optim.asgd, 0.1, (2e-3, 4000)),
    "adafactor": Case(optim.adafactor, 0.1, (5e-3, 5000)),
    "muon": Case(muon, 0.02, (0.05, 1500), meta_steps=1),
    "lbfgs": Case(lambda r: optim.lbfgs(r, max_iter=2, history_size=4), 0.5, (0.3, 300), meta_steps=2),
    "lion": Case(lambda r: optim.lion(r, betas=(0.9, 0.9), weight_decay=0.0), 0.02, (1e-3, 4000)),
    "lamb": Case(optim.lamb, 0.02, (0.01, 3000)),
    "lars": Case(lambda r: optim.lars(r, trust_coefficient=0.02), 0.1, (0.1, 4000)),
    "adabelief": Case(optim.adabelief, 0.1, (0.05, 1500)),
    "yogi": Case(optim.yogi, 0.1, (0.05, 2000)),
    "adan": Case(optim.adan, 0.1, (0.02, 2000)),
    "ademamix": Case(lambda r: optim.ademamix(r, alpha=1.0, eps=1e-3), 0.03, (0.02, 3000), below=1.0),
    "adopt": Case(lambda r: optim.adopt(r, betas=(0.9, 0.99)), 0.1, (0.05, 2000)),
    "novograd": Case(lambda r: optim.novograd(r, betas=(0.9, 0.9)), 0.003, (1e-3, 8000)),
    "optimistic": Case(optim.optimistic_gradient_descent, 0.1, (5e-4, 6000), below=0.05),
    "optimistic adam": Case(optim.optimistic_adam, 0.1, (0.05, 1500)),
    "polyak": Case(lambda r: optim.polyak_sgd(scaling=r), 1.0, (0.5, 3000)),
    "polyak, positive": Case(lambda r: optim.polyak_sgd(0.5, r, eps=1e-3, variant="sps+"), 1.0, (0.5, 3000)),
    "madgrad": Case(optim.madgrad, 0.1, (0.01, 3000)),
    "dog": Case(lambda r: optim.dog(r, ("distance", 1.0)), 1.0, (0.5, 4000)),
    "dog, first rate": Case(lambda r: optim.dog(r, ("learning_rate", 0.01)), 1.0, (0.5, 4000)),
    "prodigy": Case(lambda r: optim.prodigy(r, estim_lr0=0.1), 1.0, (0.1, 3000)),
    "prodigy, safeguard": Case(
        lambda r: optim.prodigy(r, beta3=0.9, estim_lr0=0.1, safeguard_warmup=True), 1.0, (0.1, 3000)
    ),
    "dadapt adamw": Case(lambda r: optim.dadapt_adamw(r, estim_lr0=0.1), 1.0, (0.1, 3000)),
    "sm3": Case(optim.sm3, 0.5, (0.5, 3000)),
    "sophia": Case(lambda r: optim.sophia(r, gamma=0.1, weight_decay=0.0), 0.02, (0.05, 3000)),
    "schedule-free sgd": Case(optim.schedule_free_sgd, 0.2, (2e-3, 8000), optim.schedule_free_params),
    "schedule-free adamw": Case(optim.schedule_free_adamw, 0.2, (0.05, 4000), optim.schedule_free_params),
    "sam": Case(lambda r: optim.sam(optim.sgd(r), rho=1e-4), 0.1, (2e-3, 4000)),
    "sam, adaptive": Case(lambda r: optim.sam(optim.adam(r), 1e-3, adaptive=True), 0.1, (0.05, 2000)),
    "backtracking": Case(lambda r: optim.backtracking_line_search(optim.sgd(r), 10, 1e-4, 0.5), 1.0, (0.1, 1500)),
    "zoom": Case(lambda r: optim.zoom_line_search(optim.sgd(r), 4, curv_rtol=0.85), 1.0, (0.1, 1000), below=1.0),
    "lookahead": Case(lambda r: optim.lookahead(optim.adam(r), every=3), 0.1, (0.05, 2500)),
    "accumulate": Case(lambda r: optim.accumulate(optim.adam(r), every=2), 0.2, (0.1, 2000), meta_steps=4),
    "apply if finite": Case(lambda r: optim.apply_if_finite(optim.adam(r)), 0.1, (0.05, 1500)),
    "ema of params": Case(
        lambda r: optim.ema_params(optim.adam(r), 0.9), 0.1, (0.05, 1500), lambda state, _: state.average
    ),
    "average of params": Case(
        lambda r: optim.average_params(optim.adam(r), 100, 3), 0.1, (0.05, 1500), lambda state, _: state.average,
        below=0.5,
    ),
    "clipped": Case(lambda r: optim.chain(optim.clip_by_global_norm(0.5), optim.sgd(r, 0.9)), 0.05, (2e-3, 3000)),
    "named": Case(lambda r: optim.named_chain(clip=optim.clip(30.0), step=optim.adam(r)), 0.1, (0.05, 1500)),
    "all transforms": Case(
        lambda r: optim.chain(
            optim.zero_nans(), optim.clip(10.0), optim.clip_by_block(5.0), optim.adaptive_gradient_clip(2.0, 0.1),
            optim.ema(0.5), optim.scale(0.5), optim.scale_by_schedule(lambda count: 1 / (1 + 1e-4 * count)),
            optim.add_decayed_weights(1e-6), optim.add_noise(fnn.random.key(0), 1e-8), optim.scale_by_learning_rate(r),
        ),
        0.3, (8e-3, 3000),
    ),
    "multi_transform": Case(
        lambda r: optim.multi_transform(
            {"a": optim.adam(r), "b": optim.rmsprop(r * 0.1)}, lambda path: "ab"[path == "x"]
        ),
        0.1, (0.05, 2500),
    ),
    "mask": Case(
        lambda r: optim.chain(
            optim.mask(optim.add_decayed_weights(1e-6), lambda path, leaf: leaf.dim() > 1, rest="pass"), optim.adam(r)
        ),
        0.1, (0.05, 1500),
    ),
    "float32 state": Case(lambda r: optim.with_state_dtype(optim.adam(r), torch.float32), 0.1, (0.05, 1500)),
}  # fmt: skip


def start() -> dict[str, Tensor]:
    """A matrix, a vector and a 0-d leaf, float64."""
    return {
        "w": torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.7, -1.0]], dtype=torch.float64),
        "x": torch.tensor([0.9, -0.4], dtype=torch.float64),
        "z": torch.tensor(0.9, dtype=torch.float64),
    }


def parabola(params: Any) -> Tensor:
    return sum(((leaf - 0.4) ** 2).sum() for leaf in fnn.tree.leaves(params)) / 2


def rosenbrock(params: Any) -> Tensor:
    a, b = params["x"], params["y"]
    return ((1 - a) ** 2 + 100 * (b - a**2) ** 2).sum()


def extra(params: Any, loss: Callable = parabola) -> dict:
    """Everything that any optimizer of the table asks for beside gradients and params."""
    value = loss(fnn.tree.map(widen, params))
    return {"loss": loss, "value": value, "hessian_diagonal": fnn.tree.ones_like(params)}


def step(optimizer: fnn.Optimizer, params: Any, state: Any) -> tuple[Any, Any]:
    """One update on the parabola."""
    updates, state = optimizer.update(fnn.grad(parabola)(params), state, params, **extra(params))
    return optim.apply_updates(params, updates), state
