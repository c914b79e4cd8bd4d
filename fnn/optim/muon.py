"""Muon: orthogonalized momentum for matrices."""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from fnn.optim.aliases import adamw
from fnn.optim.base import Optimizer, chain
from fnn.optim.hyperparams import Choice, Number, check_range
from fnn.optim.multi_transform import multi_transform
from fnn.optim.rules import from_rule
from fnn.optim.transforms import add_decayed_weights, scale_by_learning_rate
from fnn.tree import Tree, items

COEFFICIENTS = (3.4445, -4.775, 2.0315)


def orthogonalize(
    x: Tensor, coefficients: tuple[float, float, float] = COEFFICIENTS, steps: int = 5, eps: float = 1e-7
) -> Tensor:
    """Approximate U V' of the singular value decomposition x = U S V' by Newton-Schulz iteration in bfloat16.

    x: (n, m). Each step is X = a X + (b A + c A A) X with A = X X', from X = x / norm(x); the usual coefficients
    bring singular values into about [0.7, 1.2], not to 1.

    >>> orthogonalize(torch.diag(torch.tensor([3.0, 2.0]))).float().diagonal() > 0.6
    tensor([True, True])
    """
    a, b, c = coefficients
    wide = x.shape[0] <= x.shape[1]
    y = (x if wide else x.T).to(torch.bfloat16)
    y = y / y.norm().clamp(min=eps)
    for _ in range(steps):
        gram = y @ y.T
        y = torch.addmm(y, torch.addmm(gram, gram, gram, beta=b, alpha=c), y, beta=a)
    return y if wide else y.T


def scale_by_muon(
    momentum: Number = 0.95,
    nesterov: bool = True,
    ns_coefficients: tuple[float, float, float] = COEFFICIENTS,
    eps: float = 1e-7,
    ns_steps: int = 5,
    adjust_lr_fn: Literal["original", "match_rms_adamw", "spectral_unclamped"] | None = None,
) -> Optimizer:
    """Muon's direction (Jordan, 2024) for leaves that are matrices: :func:`orthogonalize` of the momentum.

    b = momentum b + (1 - momentum) g, and with ``nesterov`` momentum b + (1 - momentum) g of that; times
    sqrt(max(1, n / m)) for an n by m matrix ("original"), 0.2 sqrt(max(n, m)) ("match_rms_adamw": the step has the
    size of AdamW's) or sqrt(n / m). Raises ``ValueError`` for a leaf that is not a matrix.

    >>> opt = scale_by_muon()
    >>> params = {"w": torch.ones(3, 2)}
    >>> opt.update(params, opt.init(params))[0]["w"].shape
    torch.Size([3, 2])
    """
    ratios: dict[Any, Callable[[int, int], float]] = {
        None: lambda n, m: math.sqrt(max(1, n / m)),
        "original": lambda n, m: math.sqrt(max(1, n / m)),
        "match_rms_adamw": lambda n, m: 0.2 * math.sqrt(max(n, m)),
        "spectral_unclamped": lambda n, m: math.sqrt(n / m),
    }
    if adjust_lr_fn not in ratios:
        raise ValueError(f"adjust_lr_fn must be one of {list(ratios)}, got {adjust_lr_fn!r}")
    check_range("momentum", momentum)

    def rule(t: Tensor, momentum: Tensor):
        def leaf(g, p, momentum_buffer):
            b = momentum_buffer + (g - momentum_buffer) * (1 - momentum)
            ahead = g + (b - g) * momentum if nesterov else b
            step = orthogonalize(ahead, ns_coefficients, ns_steps, eps).to(g.dtype)
            return step * ratios[adjust_lr_fn](*g.shape), b

        return leaf

    inner = from_rule(rule, {"momentum": momentum}, {"momentum_buffer": torch.zeros_like}, real_only="scale_by_muon")

    def init(params: Tree) -> Tree:
        for path, leaf in items(params):
            if leaf.dim() != 2:
                raise ValueError(f"scale_by_muon is for matrices, but {path!r} has shape {tuple(leaf.shape)}; use muon")
        return inner.init(params)

    return Optimizer(init, inner.update)


def muon(
    learning_rate: Choice = 1e-3,
    weight_decay: Choice = 0.1,
    momentum: Number = 0.95,
    nesterov: bool = True,
    ns_coefficients: tuple[float, float, float] = COEFFICIENTS,
    eps: float = 1e-7,
    ns_steps: int = 5,
    adjust_lr_fn: Literal["original", "match_rms_adamw", "spectral_unclamped"] | None = None,
    adam_learning_rate: Choice = 1e-3,
    matrices: Callable[[str, Tensor], bool] = lambda path, leaf: leaf.dim() == 2,
) -> Optimizer:
    """Muon (Jordan, 2024) for matrices, ``torch.optim.Muon``, and AdamW for all other leaves.

    ``matrices(path, leaf)`` chooses Muon's leaves; embeddings and the last layer are better left to AdamW:
    ``matrices=lambda path, leaf: leaf.dim() == 2 and "head" not in path``. The weight decay is decoupled and the same
    for both.

    >>> opt = muon()
    >>> params = {"weight": torch.ones(3, 2), "bias": torch.ones(3)}
    >>> sorted(opt.update(params, opt.init(params), params)[0])
    ['bias', 'weight']
    """
    direction = scale_by_muon(momentum, nesterov, ns_coefficients, eps, ns_steps, adjust_lr_fn)
    parts = {
        "muon": chain(direction, add_decayed_weights(weight_decay), scale_by_learning_rate(learning_rate)),
        "adamw": adamw(adam_learning_rate, weight_decay=weight_decay),
    }
    return multi_transform(parts, lambda path, leaf: "muon" if matrices(path, leaf) else "adamw")
