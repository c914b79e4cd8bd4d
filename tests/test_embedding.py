"""Embeddings and embedding bags beyond the contract tables: every option against torch, renormalised rows, errors."""

# ruff: noqa: E501 (one case a line)

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, jvp

import fnn
from fnn import layers, tree
from tests.contracts.case import numbers

KEY = fnn.random.key(0)
WEIGHT = numbers(1, 7, 3)
FLAT = torch.tensor([1, 2, 2, 5, 5, 0, 2])
BAGS: dict[str, tuple[Tensor, ...]] = {
    "matrix": (torch.tensor([[0, 2, 2], [2, 2, 2], [5, 6, 5]]),),
    "offsets": (FLAT, torch.tensor([0, 2, 2, 3, 6])),  # the second bag is empty
    "last offset": (FLAT, torch.tensor([0, 2, 2, 3, 7, 7])),
}


@pytest.mark.parametrize("padding_idx", [None, 2, -2])
@pytest.mark.parametrize("form", BAGS)
@pytest.mark.parametrize(
    ("mode", "by_frequency", "weighted"),
    [
        ("sum", False, False),
        ("sum", False, True),
        ("sum", True, False),
        ("mean", False, False),
        ("mean", True, False),
        ("max", False, False),
    ],
)
def test_bags_are_torchs(mode: Any, by_frequency: bool, weighted: bool, form: str, padding_idx: int | None) -> None:
    options: dict = {
        "mode": mode,
        "scale_grad_by_freq": by_frequency,
        "include_last_offset": form == "last offset",
        "padding_idx": padding_idx,
    }
    layer = layers.embedding_bag(7, 3, **options)
    unscaled: dict = options | {"scale_grad_by_freq": False}
    net = nn.EmbeddingBag(7, 3, **unscaled).double()
    assert tree.spec(layer.init(KEY)) == tree.spec({"weight": net.weight.detach().float()})
    net.load_state_dict({"weight": WEIGHT})
    x, offsets = BAGS[form] if len(BAGS[form]) == 2 else (*BAGS[form], None)
    weights = numbers(3, *x.shape) if weighted else None
    theirs = net(x, offsets, weights)
    ours = lambda p: layer.apply(p, x, offsets, weights)
    torch.testing.assert_close(ours({"weight": WEIGHT}), theirs.detach())
    (theirs * numbers(2, *theirs.shape)).sum().backward()
    slope = grad(lambda p: (ours(p) * numbers(2, *theirs.shape)).sum())({"weight": WEIGHT})
    counts = x.flatten().bincount(minlength=7).clamp(min=1)[:, None]  # torch 2.13 divides by them wrongly for a mean
    assert net.weight.grad is not None
    torch.testing.assert_close(slope["weight"], net.weight.grad / counts if by_frequency else net.weight.grad)


@pytest.mark.parametrize("bag", [False, True])
@pytest.mark.parametrize(("max_norm", "norm_type"), [(0.8, 2.0), (1.0, 1.0), (0.5, torch.inf), (1.0, 3.0)])
def test_rows_that_are_too_large(max_norm: float, norm_type: float, bag: bool) -> None:
    make, make_net = (layers.embedding_bag, nn.EmbeddingBag) if bag else (layers.embedding, nn.Embedding)
    layer = make(7, 3, max_norm=max_norm, norm_type=norm_type)
    net = make_net(7, 3, max_norm=max_norm, norm_type=norm_type).double()
    net.load_state_dict({"weight": WEIGHT})
    x, given = torch.tensor([[0, 1, 2], [5, 5, 5]]), WEIGHT.clone()
    theirs = net(x)
    loss = lambda p: (layer.apply(p, x) * numbers(2, *theirs.shape)).sum()
    torch.testing.assert_close(layer.apply({"weight": WEIGHT}, x), theirs.detach())
    assert torch.equal(WEIGHT, given)  # nothing is renormalised in place
    # the derivative is that of the function
    step, direction = 1e-6, numbers(4, 7, 3)
    slope = jvp(loss, ({"weight": WEIGHT},), ({"weight": direction},))[1]
    difference = (loss({"weight": WEIGHT + step * direction}) - loss({"weight": WEIGHT - step * direction})) / (
        2 * step
    )
    torch.testing.assert_close(slope, difference, rtol=1e-6, atol=1e-8)
    # at renormalised rows it is torch's
    (theirs * numbers(2, *theirs.shape)).sum().backward()
    renormalised = torch.renorm(WEIGHT, norm_type, 0, max_norm)
    torch.testing.assert_close(grad(loss)({"weight": renormalised})["weight"], net.weight.grad)
    zeros = {"weight": torch.zeros(7, 3)}
    for leaf in tree.leaves((grad(loss)(zeros), jvp(grad(loss), (zeros,), (zeros,))[1])):
        assert leaf.isfinite().all()


def test_derivatives_by_frequency_are_torchs_in_both_modes() -> None:
    layer, net = (
        layers.embedding(7, 3, -1, scale_grad_by_freq=True),
        nn.Embedding(7, 3, -1, scale_grad_by_freq=True).double(),
    )
    net.load_state_dict({"weight": WEIGHT})
    x = torch.tensor([[0, 6, 6], [1, 5, 5], [5, 5, 2]])
    cotangent, direction = numbers(2, 3, 3, 3), numbers(3, 7, 3)
    assert torch.equal(layer.apply({"weight": WEIGHT}, x), WEIGHT[x])
    (net(x) * cotangent).sum().backward()
    loss = lambda w: (layer.apply({"weight": w}, x) * cotangent).sum()
    torch.testing.assert_close(grad(loss)(WEIGHT), net.weight.grad)
    torch.testing.assert_close(jvp(loss, (WEIGHT,), (direction,))[1], (grad(loss)(WEIGHT) * direction).sum())


def test_the_padding_row_has_no_derivative_in_forward_mode_either() -> None:
    layer, x = layers.embedding(7, 3, 2), torch.tensor([[0, 2, 2], [6, 2, 0]])
    direction = numbers(3, 7, 3)
    tangent = jvp(lambda w: layer.apply({"weight": w}, x), (WEIGHT,), (direction,))[1]
    assert not tangent[x == 2].any()
    torch.testing.assert_close(tangent[x != 2], direction[x[x != 2]])


def test_ghost_norms_of_a_bag_and_of_a_padded_embedding() -> None:
    model = layers.sequential(layers.embedding(7, 3, 0), lambda x: x.mean(1), layers.linear(3, 2))
    bags = layers.sequential(layers.embedding_bag(7, 3, padding_idx=0), layers.linear(3, 2))
    batch = torch.tensor([[0, 1, 1], [2, 0, 4], [5, 6, 5], [0, 0, 0]]), torch.tensor([0, 1, 1, 0])
    for network in (model, bags):
        params = tree.cast(network.init(KEY), torch.float64)
        loss = lambda p, batch, network=network: fnn.losses.cross_entropy(network.apply(p, batch[0]), batch[1])
        each = fnn.per_sample_grad(loss)(params, batch)
        norms = torch.stack([tree.global_norm(one) for one in tree.unstack(each)])
        torch.testing.assert_close(fnn.gradients.per_sample_norms(loss)(params, batch), norms)


def call(layer: fnn.Layer, *args: Any) -> Callable[[], Any]:
    return lambda: layer.apply(layer.init(KEY), *args)


BAG = layers.embedding_bag(7, 3)
ERRORS: dict[str, tuple[Callable[[], Any], str]] = {
    "floats": (call(BAG, torch.ones(2, 3)), r"embedding_bag expects int64 or int32 numbers, got torch.float32"),
    "one axis": (call(BAG, FLAT), r"\(bags, size\) without offsets, and \(total,\) with offsets, got \(7,\) with no offsets"),
    "offsets of a matrix": (call(BAG, FLAT[None], FLAT), r"got \(1, 7\) with offsets"),
    "offsets": (call(BAG, FLAT, FLAT[None]), r"offsets of shape \(bags,\), got \(1, 7\)"),
    "weights of a mean": (call(BAG, FLAT[None], None, torch.ones(1, 7)), "per_sample_weights with mode='sum' only, and its mode is 'mean'"),
    "weights": (
        call(layers.embedding_bag(7, 3, mode="sum"), FLAT[None], None, torch.ones(7)), r"per_sample_weights of shape \(1, 7\), got \(7,\)"
    ),
    "mode": (lambda: layers.embedding_bag(7, 3, mode="median"), "mode as 'sum', 'mean' or 'max', got 'median'"),  # type: ignore[arg-type]
    "norm": (lambda: layers.embedding(7, 3, max_norm=-1.0), "max_norm > 0 and norm_type > 0, got -1.0 and 2.0"),
    "padding": (lambda: layers.embedding_bag(7, 3, padding_idx=7), "padding_idx=7 is not one of the 7 rows"),
    "padding, below": (lambda: layers.embedding(7, 3, -8), "padding_idx >= -7, got -8"),
    "params": (lambda: BAG.apply({"weight": torch.ones(6, 3)}, FLAT[None]), r"a weight of shape \(7, 3\), got \(6, 3\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    provoke, message = ERRORS[name]
    with pytest.raises((ValueError, TypeError), match=message):
        provoke()
