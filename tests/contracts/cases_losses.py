"""Losses as cases of the contract."""

# ruff: noqa: E501 (one case a line)

import inspect
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fnn import layers, losses
from tests.contracts.case import Case, function, numbers

CLASSES = torch.tensor([0, 4, 2, 4])
IMAGE_CLASSES = torch.tensor([[0, 4], [2, 2], [1, 3], [4, 0]])
SOFT = torch.softmax(numbers(7, 4, 5), -1)
WEIGHT = torch.tensor([0.5, 2.0, 1.0, 0.1, 3.0], dtype=torch.float64)
TARGET = numbers(8, 4, 5)
BITS = (numbers(9, 4, 5) > 0).double()


def loss(ours: Callable, theirs: Callable, target: Tensor, *shape: int) -> Case:
    """A loss against torch's; both take (x, target, at), where ``at`` puts a constant on x's device."""

    def call(f: Callable, x: Tensor) -> Tensor:
        at = lambda constant: constant.to(x.device) if isinstance(constant, Tensor) else constant
        options = {"at": at} if "at" in inspect.signature(f).parameters else {}
        return f(x, at(target)[: len(x)], **options)

    return function(lambda x: call(ours, x), lambda x: call(theirs, x), *(shape or (4, 5)))


def placed(at: Callable, options: dict) -> dict:
    return {name: at(value) for name, value in options.items()}


WEIGHTS = numbers(4, 4, 5).abs()
COUNTS = numbers(9, 4, 5).abs().mul(2).floor()
SIGNS = torch.where(numbers(9, 4, 5) > 0, 1.0, -1.0).double()
LABEL_LISTS = torch.tensor([[3, 0, -1, 1, 2], [-1, 4, 4, 4, 4], [1, 2, 3, 4, 0], [2, -1, -1, -1, -1]])
SPELLED = torch.tensor([[1, 2, 0], [1, 1, 3], [2, 0, 0], [3, 1, 2]])  # a repeated class needs a blank between
FRAMES, LETTERS = torch.tensor([5, 5, 2, 4]), torch.tensor([2, 3, 1, 3])


def lengths(x: Tensor, at: Callable) -> tuple[Tensor, Tensor]:
    return at(FRAMES)[: len(x)], at(LETTERS)[: len(x)]


def weights(x: Tensor, at: Callable) -> Tensor:
    return at(WEIGHTS)[: len(x)]


def weighted(theirs: Callable, x: Tensor, y: Tensor, weight: Tensor, reduction: str, by_weight: bool) -> Tensor:
    losses = theirs(x, y, reduction="none") * weight
    if reduction == "none":
        return losses
    return losses.sum() / weight.sum() if by_weight else losses.mean()


def focal_reference(x: Tensor, y: Tensor, alpha: float | None = 0.25, gamma: float = 2.0) -> Tensor:
    p = torch.where(y == 1, x.sigmoid(), 1 - x.sigmoid())
    a = 1.0 if alpha is None else torch.where(y == 1, alpha, 1 - alpha)
    return (-a * (1 - p) ** gamma * p.log()).mean()


def kl_reference(x: Tensor, y: Tensor) -> Tensor:
    return y * (y / F.softmax(x, -1)).log()


def multi_margin_reference(x: Tensor, y: Tensor, p: int, margin: float, weight: Tensor) -> Tensor:
    """A loop, because torch's own has no second derivative ("multi_margin_loss_backward is not implemented")."""
    rows = []
    for row, label in zip(x, y.tolist(), strict=True):
        terms = [(margin - row[label] + row[i]).clamp_min(0) ** p for i in range(len(row)) if i != label]
        rows.append(weight[label] * sum(terms) / len(row))
    return torch.stack(rows).mean()


def squares(x: Tensor, y: Tensor) -> Tensor:
    return ((x - y) ** 2).sum(-1)


def info_nce_reference(x: Tensor, y: Tensor) -> Tensor:
    cosines = [[F.cosine_similarity(a, b, 0) / 0.6 for b in y] for a in x]
    return torch.stack([torch.stack(row).logsumexp(0) - row[i] for i, row in enumerate(cosines)]).mean()


def nt_xent_reference(x: Tensor, y: Tensor) -> Tensor:
    views = [*x, *y]
    total = 0.0
    for i, view in enumerate(views):
        others = [F.cosine_similarity(view, other, 0) / 0.6 for j, other in enumerate(views) if j != i]
        partner = (i + len(x)) % len(views)
        total = total + torch.stack(others).logsumexp(0) - others[partner - (partner > i)]
    return torch.as_tensor(total) / len(views)


def dice_reference(x: Tensor, y: Tensor) -> Tensor:
    p = x.sigmoid()
    each = [
        1 - (2 * (a * b).sum() + 0.5) / (a.sum() + b.sum() + 0.5)
        for x, y in zip(p, y, strict=True)
        for a, b in zip(x, y, strict=True)
    ]
    return torch.stack(each).mean()


LOSSES: dict[str, Callable[[], Case]] = {
    "cross_entropy": lambda: loss(losses.cross_entropy, F.cross_entropy, CLASSES),
    "cross_entropy, pixels": lambda: loss(losses.cross_entropy, F.cross_entropy, IMAGE_CLASSES, 4, 5, 2),
    "cross_entropy, probabilities": lambda: loss(losses.cross_entropy, F.cross_entropy, SOFT),
    **{
        f"cross_entropy, {name}, {kind}": (
            lambda options=options, target=target: loss(
                lambda x, y, at: losses.cross_entropy(x, y, **placed(at, options)),
                lambda x, y, at: F.cross_entropy(x, y, **placed(at, options)),
                target,
            )
        )
        for kind, target in (("classes", CLASSES), ("probabilities", SOFT))
        for name, options in {
            "weight": {"weight": WEIGHT},
            "smoothing": {"label_smoothing": 0.3},
            "weight and smoothing": {"weight": WEIGHT, "label_smoothing": 0.3},
            "sum": {"reduction": "sum", "label_smoothing": 0.1},
            "none": {"reduction": "none", "weight": WEIGHT},
        }.items()
    },
    "cross_entropy, ignore_index, weight, smoothing": lambda: loss(
        lambda x, y, at: losses.cross_entropy(x, y, at(WEIGHT), 2, label_smoothing=0.2),
        lambda x, y, at: F.cross_entropy(x, y, at(WEIGHT), ignore_index=2, label_smoothing=0.2),
        CLASSES,
    ),
    "nll": lambda: loss(
        lambda x, y, at: losses.nll(layers.log_softmax(x), y, at(WEIGHT)),
        lambda x, y, at: F.nll_loss(F.log_softmax(x, -1), y, at(WEIGHT)),
        CLASSES,
    ),
    "mse": lambda: loss(losses.mse, F.mse_loss, TARGET),
    "l1": lambda: loss(losses.l1, F.l1_loss, TARGET),
    "huber": lambda: loss(
        lambda x, y: losses.huber(x, y, delta=0.7), lambda x, y: F.huber_loss(x, y, delta=0.7), TARGET
    ),
    "smooth_l1": lambda: loss(
        lambda x, y: losses.smooth_l1(x, y, "sum", 0.7),
        lambda x, y: F.smooth_l1_loss(x, y, reduction="sum", beta=0.7),
        TARGET,
    ),
    "bce_with_logits": lambda: loss(
        lambda x, y, at: losses.bce_with_logits(x, y, at(WEIGHT), pos_weight=2 * at(WEIGHT)),
        lambda x, y, at: F.binary_cross_entropy_with_logits(x, y, at(WEIGHT), pos_weight=2 * at(WEIGHT)),
        BITS,
    ),
    **{
        f"{name}, weight, {reduction}": lambda name=name, reduction=reduction: loss(
            lambda x, y, at: getattr(losses, name)(x, y, reduction, weight=weights(x, at)),
            lambda x, y, at: weighted(getattr(F, f"{name}_loss"), x, y, weights(x, at), reduction, by_weight=name != "huber"),
            TARGET,
        )
        for name in ("mse", "l1", "huber")
        for reduction in ("mean", "none")
    },
    "bce": lambda: loss(
        lambda x, y, at: losses.bce(x.sigmoid(), y, at(WEIGHT)),
        lambda x, y, at: F.binary_cross_entropy(x.sigmoid(), y, at(WEIGHT)),
        BITS,
    ),
    "focal": lambda: loss(losses.focal, focal_reference, BITS),
    "focal, gamma, no alpha": lambda: loss(
        lambda x, y: losses.focal(x, y, -1.0, 0.7), lambda x, y: focal_reference(x, y, None, 0.7), BITS
    ),
    "kl_div": lambda: loss(
        lambda x, y: losses.kl_div(layers.log_softmax(x), y), lambda x, y: kl_reference(x, y).mean(), SOFT
    ),
    "kl_div, batchmean, log_target": lambda: loss(
        lambda x, y: losses.kl_div(layers.log_softmax(x), y.log(), "batchmean", log_target=True),
        lambda x, y: kl_reference(x, y).sum() / len(x),
        SOFT,
    ),
    "gaussian_nll": lambda: loss(
        lambda x, y: losses.gaussian_nll(x, y, x.exp(), full=True),
        lambda x, y: -torch.distributions.Normal(x, (0.5 * x).exp()).log_prob(y).mean(),
        TARGET,
    ),
    "gaussian_nll, one variance a row": lambda: loss(
        lambda x, y: losses.gaussian_nll(x, y, x[:, 0].exp(), reduction="none"),
        lambda x, y: F.gaussian_nll_loss(x, y, x[:, 0].exp(), reduction="none"),
        TARGET,
    ),
    "poisson_nll": lambda: loss(losses.poisson_nll, F.poisson_nll_loss, COUNTS),
    "poisson_nll, rates, full": lambda: loss(
        lambda x, y: losses.poisson_nll(x.exp(), y, False, True, 0.1, "sum"),
        lambda x, y: F.poisson_nll_loss(x.exp(), y, False, True, eps=0.1, reduction="sum"),
        COUNTS,
    ),
    "margin_ranking": lambda: loss(
        lambda x, y: losses.margin_ranking(x, x.flip(1) ** 2, y, 0.3),
        lambda x, y: F.margin_ranking_loss(x, x.flip(1) ** 2, y, 0.3),
        SIGNS,
    ),
    "hinge_embedding": lambda: loss(
        lambda x, y: losses.hinge_embedding(x, y, 0.5), lambda x, y: F.hinge_embedding_loss(x, y, 0.5), SIGNS
    ),
    "soft_margin": lambda: loss(losses.soft_margin, F.soft_margin_loss, SIGNS),
    **{
        f"multi_margin, p={p}": lambda p=p: loss(
            lambda x, y, at: losses.multi_margin(x, y, p, 0.7, at(WEIGHT)),
            lambda x, y, at: multi_margin_reference(x, y, p, 0.7, at(WEIGHT)),
            CLASSES,
        )
        for p in (1, 2)
    },
    "multilabel_margin": lambda: loss(losses.multilabel_margin, F.multilabel_margin_loss, LABEL_LISTS),
    "multilabel_soft_margin": lambda: loss(
        lambda x, y, at: losses.multilabel_soft_margin(x, y, at(WEIGHT)),
        lambda x, y, at: F.multilabel_soft_margin_loss(x, y, at(WEIGHT)),
        BITS,
    ),
    "cosine_embedding": lambda: loss(
        lambda x, y: losses.cosine_embedding(x, x.flip(1) ** 2, y, -0.2),
        lambda x, y: F.cosine_embedding_loss(x, x.flip(1) ** 2, y, -0.2),
        SIGNS[:, 0],
    ),
    **{
        f"triplet_margin, p={p}, swap={swap}": lambda p=p, swap=swap: loss(
            lambda x, y: losses.triplet_margin(x, y, x.flip(1) ** 2, 2.0, p, swap=swap),
            lambda x, y: F.triplet_margin_loss(x, y, x.flip(1) ** 2, 2.0, p, swap=swap),
            TARGET,
        )
        for p, swap in ((2.0, False), (2.0, True), (3.0, False))
    },
    "triplet_margin_with_distance": lambda: loss(
        lambda x, y: losses.triplet_margin_with_distance(x, y, x.flip(1) ** 2, distance_function=squares, swap=True, margin=5.0),
        lambda x, y: F.triplet_margin_with_distance_loss(
            x, y, x.flip(1) ** 2, distance_function=squares, swap=True, margin=5.0
        ),
        TARGET,
    ),
    "info_nce": lambda: loss(lambda x, y: losses.info_nce(x, y, 0.6), info_nce_reference, TARGET),
    "nt_xent": lambda: loss(lambda x, y: losses.nt_xent(x, y, 0.6), nt_xent_reference, TARGET),
    "dice": lambda: loss(
        lambda x, y: losses.dice(x.sigmoid(), y, 0.5), dice_reference, (numbers(9, 4, 2, 2, 2) > 0).double(), 4, 2, 2, 2
    ),
    "ctc": lambda: loss(
        lambda x, y, at: losses.ctc(layers.log_softmax(x).transpose(0, 1), y, *lengths(x, at)),
        lambda x, y, at: F.ctc_loss(F.log_softmax(x, -1).transpose(0, 1), y, *lengths(x, at)),
        SPELLED, 4, 5, 4,
    ),
}  # fmt: skip
