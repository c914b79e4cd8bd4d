"""Every loss of torch with each of its options against torch's own, and where arguments are at the edge."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, jvp

from fnn import losses

INF = math.inf


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


X, Y, Z = numbers(0, 4, 5), numbers(1, 4, 5), numbers(2, 4, 5)
SIGNS, BITS, COUNTS = Y.sign(), (Y > 0).double(), Y.abs().mul(2).floor()
LABELS = torch.tensor([[3, 0, -1, 1, 2], [-1, 4, 4, 4, 4], [1, 2, 3, 4, 0], [2, -1, -1, -1, -1]])
CLASSES, WEIGHT = torch.tensor([0, 4, 2, 4]), torch.tensor([0.5, 2.0, 1.0, 0.1, 3.0], dtype=torch.float64)


class Same(NamedTuple):
    """A loss and torch's, the arguments of both, and options to try."""

    ours: Callable[..., Tensor]
    theirs: Callable[..., Tensor]
    args: tuple[Tensor, ...]
    options: list[dict[str, Any]]


SAME = {
    "kl_div": Same(losses.kl_div, F.kl_div, (X.log_softmax(-1), Y.softmax(-1)), [{}, {"log_target": False}]),
    "kl_div, logarithms": Same(losses.kl_div, F.kl_div, (X.log_softmax(-1), Y.log_softmax(-1)), [{"log_target": True}]),
    "bce": Same(losses.bce, F.binary_cross_entropy, (X.sigmoid(), Y.sigmoid()), [{}, {"weight": WEIGHT}]),
    "gaussian_nll": Same(
        losses.gaussian_nll, F.gaussian_nll_loss, (X, Y, Z.abs()), [{}, {"full": True}, {"eps": 0.5}]
    ),
    "gaussian_nll, rows": Same(losses.gaussian_nll, F.gaussian_nll_loss, (X, Y, Z[:, 0].abs()), [{}]),
    "gaussian_nll, axis of size 1": Same(losses.gaussian_nll, F.gaussian_nll_loss, (X, Y, Z[:, :1].abs()), [{}]),
    "poisson_nll": Same(losses.poisson_nll, F.poisson_nll_loss, (X, COUNTS), [{}, {"full": True}]),
    "poisson_nll, rates": Same(
        losses.poisson_nll, F.poisson_nll_loss, (X.abs(), COUNTS),
        [{"log_input": False}, {"log_input": False, "eps": 0.1}],
    ),
    "margin_ranking": Same(losses.margin_ranking, F.margin_ranking_loss, (X, Z, SIGNS), [{}, {"margin": 0.5}]),
    "hinge_embedding": Same(losses.hinge_embedding, F.hinge_embedding_loss, (X, SIGNS), [{}, {"margin": 0.5}]),
    "hinge_embedding, other targets": Same(losses.hinge_embedding, F.hinge_embedding_loss, (X, BITS), [{}]),
    "soft_margin": Same(losses.soft_margin, F.soft_margin_loss, (X, SIGNS), [{}]),
    "multi_margin": Same(
        losses.multi_margin, F.multi_margin_loss, (X, CLASSES),
        [{}, {"p": 2}, {"margin": 0.3}, {"weight": WEIGHT, "p": 2}],
    ),
    "multi_margin, one": Same(losses.multi_margin, F.multi_margin_loss, (X[0], CLASSES[1]), [{}, {"weight": WEIGHT}]),
    "multilabel_margin": Same(losses.multilabel_margin, F.multilabel_margin_loss, (X, LABELS), [{}]),
    "multilabel_margin, one": Same(losses.multilabel_margin, F.multilabel_margin_loss, (X[0], LABELS[0]), [{}]),
    "multilabel_soft_margin": Same(
        losses.multilabel_soft_margin, F.multilabel_soft_margin_loss, (X, BITS), [{}, {"weight": WEIGHT}]
    ),
    "cosine_embedding": Same(
        losses.cosine_embedding, F.cosine_embedding_loss, (X, Z, SIGNS[:, 0]), [{}, {"margin": 0.3}, {"margin": -0.5}]
    ),
    "cosine_embedding, one": Same(losses.cosine_embedding, F.cosine_embedding_loss, (X[0], Z[0], SIGNS[0, 0]), [{}]),
    "triplet_margin": Same(
        losses.triplet_margin, F.triplet_margin_loss, (X, Y, Z),
        [{}, {"margin": 3.0, "swap": True}, {"p": 1.0}, {"p": INF}, {"p": 3.0, "eps": 0.1}],
    ),
    "triplet_margin, one": Same(losses.triplet_margin, F.triplet_margin_loss, (X[0], Y[0], Z[0]), [{}]),
    "triplet_margin_with_distance": Same(
        losses.triplet_margin_with_distance, F.triplet_margin_with_distance_loss, (X, Y, Z),
        [{}, {"margin": 3.0, "swap": True}, {"distance_function": lambda x, y: (x - y).abs().sum(-1)}],
    ),
    "mse": Same(losses.mse, F.mse_loss, (X, Y), [{"weight": Z.abs()}]),
    "l1": Same(losses.l1, F.l1_loss, (X, Y), [{"weight": Z.abs()}]),
    "huber": Same(losses.huber, F.huber_loss, (X, Y), [{"weight": Z.abs()}]),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:reduction")
@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "batchmean"])
@pytest.mark.parametrize("name", SAME)
def test_every_option_of_torch(name: str, reduction: str) -> None:
    ours, theirs, args, tried = SAME[name]
    if reduction == "batchmean" and "kl_div" not in name:
        return
    for options in tried:
        options = options | {"reduction": reduction}
        value = ours(*args, **options)
        torch.testing.assert_close(value, theirs(*args, **options))
        leaf = args[0].clone().requires_grad_()
        theirs(leaf, *args[1:], **options).sum().backward()
        slope = grad(lambda x, options=options: ours(x, *args[1:], **options).sum())(args[0])
        torch.testing.assert_close(slope, leaf.grad)


@pytest.mark.filterwarnings("ignore:reduction")
@pytest.mark.parametrize("name", [name for name in SAME if ", one" not in name])
def test_an_empty_batch(name: str) -> None:
    ours, theirs, args, _ = SAME[name]
    options: dict[str, Any] = {"log_target": True} if "logarithms" in name else {}
    empty = [value[:0] for value in args]
    for reduction in ("mean", "sum", "none"):
        options["reduction"] = reduction
        if reduction == "mean" and name.startswith("multi") and "soft" not in name:
            assert math.isnan(ours(*empty, **options))  # torch gives whatever stood in its memory
            continue
        torch.testing.assert_close(ours(*empty, **options), theirs(*empty, **options), equal_nan=True)


def slope(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return grad(lambda x: f(x).sum())


KINKS = {
    "margin_ranking": (
        lambda x: losses.margin_ranking(x, 0 * x, torch.ones_like(x), 1.0),
        lambda x: F.margin_ranking_loss(x, 0 * x, torch.ones_like(x), 1.0),
    ),
    "hinge_embedding": (
        lambda x: losses.hinge_embedding(x, -torch.ones_like(x)),
        lambda x: F.hinge_embedding_loss(x, -torch.ones_like(x)),
    ),
    "multi_margin": (
        lambda x: losses.multi_margin(x, torch.tensor(1)), lambda x: F.multi_margin_loss(x, torch.tensor(1))
    ),
    "multilabel_margin": (
        lambda x: losses.multilabel_margin(x, torch.tensor([1, -1, 0])),
        lambda x: F.multilabel_margin_loss(x, torch.tensor([1, -1, 0])),
    ),
    "triplet_margin": (
        lambda x: losses.triplet_margin_with_distance(x, 0 * x, 0 * x - 1, distance_function=lambda x, y: x - y),
        lambda x: F.triplet_margin_with_distance_loss(x, 0 * x, 0 * x - 1, distance_function=lambda x, y: x - y),
    ),
    "cosine_embedding": (
        lambda x: losses.cosine_embedding(x, torch.tensor([0.0, 0.0, 1.0]), torch.tensor(-1.0)),
        lambda x: F.cosine_embedding_loss(x, torch.tensor([0.0, 0.0, 1.0]), torch.tensor(-1.0)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KINKS)
def test_slopes_at_the_margin_are_torchs(name: str) -> None:
    ours, theirs = KINKS[name]
    x = torch.tensor([1.0, 2.0, 0.0])
    leaf = x.clone().requires_grad_()
    theirs(leaf).backward()
    torch.testing.assert_close(slope(ours)(x), leaf.grad)
    assert bool(jvp(slope(ours), (x,), (torch.ones(3),))[1].isfinite().all())


def test_bce_of_certain_probabilities_is_clamped_as_in_torch() -> None:
    p = torch.tensor([0.0, 0.0, 1.0, 1.0, 1e-44, 0.5])
    y = torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0, 1.0])
    loss = lambda p: losses.bce(p, y, reduction="none")
    torch.testing.assert_close(loss(p), F.binary_cross_entropy(p, y, reduction="none"))
    assert slope(loss)(p).tolist() == pytest.approx([1.0, 0.0, 0.0, -1.0, 0.0, -2.0])
    assert bool(jvp(slope(loss), (p,), (torch.ones(6),))[1].isfinite().all())
    assert bool(losses.bce(torch.tensor([-0.1, 1.1]), torch.ones(2), reduction="none").isnan().all())
    # behind a saturated logistic function, where p is 0 or 1 in float32
    logits = torch.tensor([-200.0, 200.0])
    assert bool(slope(lambda z: losses.bce(z.sigmoid(), 1 - y[:2]))(logits).isfinite().all())


def test_kl_div_of_classes_that_do_not_occur() -> None:
    target = torch.tensor([[0.0, 0.25, 0.75]], dtype=torch.float64)
    log_probs = torch.tensor([[-INF, -1.0, -0.5]], dtype=torch.float64)
    expected = float(sum(q * (math.log(q) - float(z)) for q, z in ((0.25, -1.0), (0.75, -0.5))))
    for given, log_target in ((target, False), (target.log(), True)):
        loss = lambda z, given=given, log_target=log_target: losses.kl_div(z, given, "batchmean", log_target)
        assert float(loss(log_probs)) == pytest.approx(expected)
        assert slope(loss)(log_probs)[0].tolist() == pytest.approx([0.0, -0.25, -0.75])
        to_target = lambda q, log_target=log_target: losses.kl_div(log_probs, q, "batchmean", log_target)
        assert bool(slope(to_target)(given).isfinite().all())
    # a class that the prediction rules out and the target does not
    assert float(losses.kl_div(torch.tensor([-INF, 0.0]), torch.tensor([0.5, 0.5]))) == INF


def test_a_small_variance_is_clamped_in_the_value_and_not_in_the_slope() -> None:
    x, y, var = X[0], Y[0], torch.tensor([1e-9, 0.0, 0.1, 1.0, 2.0], dtype=torch.float64)
    leaf = var.clone().requires_grad_()
    F.gaussian_nll_loss(x, y, leaf, eps=1e-3).backward()
    loss = lambda var: losses.gaussian_nll(x, y, var, eps=1e-3)
    torch.testing.assert_close(slope(loss)(var), leaf.grad)
    assert losses.gaussian_nll(x, y, -var, reduction="none").isnan().tolist() == [True, False, True, True, True]
    torch.testing.assert_close(losses.gaussian_nll(x, y, 2.0), losses.gaussian_nll(x, y, torch.full_like(x, 2.0)))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 1.5, 2.0, 3.0])
def test_focal_of_saturated_logits(gamma: float) -> None:
    z = torch.tensor([0.0, 30.0, -30.0, 200.0, -200.0], dtype=torch.float32)
    for target in (0.0, 1.0):
        y = torch.full_like(z, target)
        p = torch.sigmoid(z.double() * (2 * target - 1))
        expected = -((1 - p) ** gamma) * F.logsigmoid(z.double() * (2 * target - 1))
        ours = lambda z, y=y: losses.focal(z, y, -1.0, gamma, "none")
        torch.testing.assert_close(ours(z).double(), expected, rtol=1e-5, atol=1e-10)
        assert bool(slope(ours)(z).isfinite().all())
        assert bool(jvp(slope(ours), (z,), (torch.ones(5),))[1].isfinite().all())


def test_focal_is_weighted_cross_entropy_without_focus() -> None:
    ours = losses.focal(X, BITS, 0.3, 0.0)
    expected = losses.bce_with_logits(X, BITS, weight=torch.where(BITS == 1, 0.3, 0.7).double())
    torch.testing.assert_close(ours, expected)
    torchvision = pytest.importorskip("torchvision")
    for alpha, gamma in ((0.25, 2.0), (-1.0, 1.5)):
        theirs = torchvision.ops.sigmoid_focal_loss(X, Y.sigmoid(), alpha, gamma, "mean")
        torch.testing.assert_close(losses.focal(X, Y.sigmoid(), alpha, gamma), theirs)


def test_embeddings_of_zeros_have_slopes() -> None:
    x = torch.zeros(3, 4, dtype=torch.float64)
    for loss in (
        lambda x: losses.cosine_embedding(x, X[:3, :4], torch.tensor([1.0, -1.0, 1.0])),
        lambda x: losses.info_nce(x, X[:3, :4]),
        lambda x: losses.nt_xent(x, X[:3, :4]),
        lambda x: losses.triplet_margin(x, 0 * x, X[:3, :4], eps=0.0),
    ):
        assert bool(slope(loss)(x).isfinite().all())
        assert bool(jvp(slope(loss), (x,), (torch.ones_like(x),))[1].isfinite().all())


def test_contrastive_losses_of_equal_and_of_other_views() -> None:
    views = torch.eye(3, dtype=torch.float64)
    assert float(losses.info_nce(views, views, 0.01)) == pytest.approx(0.0, abs=1e-9)
    assert float(losses.info_nce(views, views.roll(1, 0), 0.1)) == pytest.approx(10.0, abs=1e-3)
    assert losses.nt_xent(views, views, reduction="none").shape == (6,)
    torch.testing.assert_close(losses.nt_xent(X, Z), losses.nt_xent(Z, X))
    torch.testing.assert_close(losses.nt_xent(X, Z), losses.nt_xent(3.0 * X, Z))


def test_dice_of_empty_and_of_equal_regions() -> None:
    region = torch.zeros(2, 3, 4, 4)
    region[:, 0] = 1.0
    assert float(losses.dice(region, region)) == 0.0
    assert losses.dice(1 - region, region, smooth=0.0, reduction="none")[:, 0].tolist() == [1.0, 1.0]
    assert bool(slope(lambda p: losses.dice(p, region))(region).isfinite().all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_losses_of_several_inputs_in_16_bits(dtype: torch.dtype, autocast: bool) -> None:
    a, b, c = (numbers(seed, 60, 300).to(dtype) for seed in range(3))
    y = a[:, 0].sign()
    for loss in (
        lambda a, b, c: losses.kl_div(a, b.double().softmax(-1).to(a.dtype), "sum"),
        lambda a, b, c: losses.bce(a.double().sigmoid().to(a.dtype), b.double().sigmoid().to(b.dtype), reduction="sum"),
        lambda a, b, c: losses.gaussian_nll(a, b, c.abs(), reduction="sum"),
        lambda a, b, c: losses.margin_ranking(a, b, c.sign(), reduction="sum"),
        lambda a, b, c: losses.cosine_embedding(a, b, y.to(a.dtype)),
        lambda a, b, c: losses.triplet_margin(a, b, c),
        lambda a, b, c: losses.info_nce(a, b),
        lambda a, b, c: losses.nt_xent(a, b),
        lambda a, b, c: losses.focal(a, (b > 0).to(a.dtype), reduction="sum"),
        lambda a, b, c: losses.dice(a.double().sigmoid().to(a.dtype)[None], (b > 0).to(a.dtype)[None]),
    ):  # fmt: skip
        exact = loss(a.double(), b.double(), c.double())
        with torch.autocast("cpu", dtype, enabled=autocast):
            value = loss(a, b, c)
        assert value.dtype == (torch.float32 if autocast else dtype)
        if float(exact) < torch.finfo(dtype).max or autocast:
            assert float(value) == pytest.approx(float(exact), rel=1e-2 if autocast else 2 * torch.finfo(dtype).eps)


MISTAKES: dict[str, tuple[Callable[[], object], str]] = {
    "shapes": (lambda: losses.soft_margin(X, Y[:1]), r"one shape, got \(4, 5\) and \(1, 5\)"),
    "ranking": (lambda: losses.margin_ranking(X, Z, SIGNS[:1]), r"input1 \(4, 5\), input2 \(4, 5\), target \(1, 5\)"),
    "weight": (lambda: losses.mse(X, Y, weight=WEIGHT), r"prediction and weight of one shape, got \(4, 5\) and \(5,\)"),
    "variance": (lambda: losses.gaussian_nll(X, Y, Z[:2]), r"got prediction \(4, 5\) and var \(2, 5\)"),
    "eps": (lambda: losses.gaussian_nll(X, Y, Z, eps=0.0), "eps > 0, got 0.0"),
    "class weight": (lambda: losses.multi_margin(X, CLASSES, weight=WEIGHT[:2]), r"shape \(5,\), got \(2,\)"),
    "classes": (lambda: losses.multi_margin(X, CLASSES.double()), r"integer targets \(batch,\), got .* torch\.float64"),
    "power": (lambda: losses.multi_margin(X, CLASSES, p=3), "p = 1 or 2, got 3"),
    "labels": (lambda: losses.multilabel_margin(X, BITS), "integer targets of that shape"),
    "cosine": (lambda: losses.cosine_embedding(X, Z, SIGNS), r"targets \(batch,\), got \(4, 5\) and \(4, 5\)"),
    "margin": (lambda: losses.triplet_margin(X, Y, Z, margin=0.0), "margin > 0, got 0.0"),
    "triplet": (lambda: losses.triplet_margin(X, Y, Z[:1]), r"anchor \(4, 5\), positive \(4, 5\), negative \(1, 5\)"),
    "temperature": (lambda: losses.info_nce(X, Y, 0.0), "temperature > 0, got 0.0"),
    "views": (lambda: losses.nt_xent(X[0], Y[0]), r"\(batch, features\), got \(5,\)"),
    "gamma": (lambda: losses.focal(X, BITS, gamma=-1.0), "gamma >= 0, got -1.0"),
    "dice": (lambda: losses.dice(BITS, BITS), r"\(batch, classes, \.\.\.\), got \(4, 5\); .*probs\[:, None\]"),
    "reduction": (lambda: losses.kl_div(X, Y, "average"), "'mean', 'sum' or 'none', got 'average'"),  # pyright: ignore[reportArgumentType]
    "list": (lambda: losses.poisson_nll(X, [1.0]), r"a list; write torch\.as_tensor"),  # pyright: ignore[reportArgumentType]
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(mistake: str) -> None:
    call, sentence = MISTAKES[mistake]
    with pytest.raises((ValueError, TypeError), match=sentence):
        call()


ALIKE = (
    "bce", "bce_with_logits", "dice", "focal", "gaussian_nll", "hinge_embedding", "huber", "kl_div", "l1", "mse",
    "multilabel_margin", "multilabel_soft_margin", "poisson_nll", "smooth_l1", "soft_margin",
)  # fmt: skip


@pytest.mark.parametrize("name", ALIKE)
def test_shapes_that_would_broadcast_are_refused(name: str) -> None:
    options = {"var": torch.ones(4, 5)} if name == "gaussian_nll" else {}
    loss, one = getattr(losses, name), torch.ones(4, 5)
    for other in (torch.ones(4, 1), torch.ones(5), torch.ones(()), torch.ones(1, 4, 5)):
        for first, second in ((one, other), (other, one)):
            with pytest.raises((ValueError, TypeError), match=name):
                loss(first, second, **options)
