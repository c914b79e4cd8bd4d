"""Per-sample gradients, norms and clipped sums in float64 against a loop, Opacus and BackPACK, on four networks."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fnn
from fnn import layers, tree

BATCH, CLASSES = 7, 5


class Case(NamedTuple):
    apply: Callable[[Any, Tensor], Tensor]
    net: nn.Module
    x: Tensor


class TorchResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.head = nn.GroupNorm(2, 8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        x = x + self.norm(self.inner(x)).relu()
        return self.head(x.mean((2, 3)))


def residual(params: Any, x: Tensor) -> Tensor:
    x = fnn.layers.relu(layers.conv2d(1, 8, 3, padding=1).apply(params["first"], x))
    inner = layers.conv2d(8, 8, 3, padding=1).apply(params["inner"], x)
    x = x + fnn.layers.relu(layers.group_norm(2, 8).apply(params["norm"], inner))
    return fnn.layers.linear(8, CLASSES).apply(params["head"], x.mean((2, 3)))


class TorchAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv = nn.Embedding(11, 8), nn.Linear(8, 24)
        self.out, self.norm, self.head = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, CLASSES)

    def forward(self, words: Tensor) -> Tensor:
        x = self.embed(words)
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        mixed = torch.softmax(q @ k.mT / 2, -1) @ v
        x = self.norm(x + self.out(mixed.transpose(1, 2).flatten(-2)))
        return self.head(x.mean(1))


def attention(params: Any, words: Tensor) -> Tensor:
    x = layers.embedding(11, 8).apply(params["embed"], words)
    q, k, v = fnn.layers.linear(8, 24).apply(params["qkv"], x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    mixed = fnn.layers.softmax(q @ k.mT / 2) @ v
    out = fnn.layers.linear(8, 8).apply(params["out"], mixed.transpose(1, 2).flatten(-2))
    return fnn.layers.linear(8, CLASSES).apply(
        params["head"], layers.layer_norm(8).apply(params["norm"], x + out).mean(1)
    )


def cases() -> dict[str, Case]:
    draw = lambda *shape: torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mlp = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, CLASSES))
    lenet = nn.Sequential(
        nn.Conv2d(1, 6, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(576, 120),
        nn.ReLU(),
        nn.Linear(120, CLASSES),
    )
    ours = fnn.layers.sequential(
        fnn.layers.conv2d(1, 6, 3),
        fnn.layers.relu,
        layers.max_pool2d(2),
        fnn.layers.conv2d(6, 16, 3),
        fnn.layers.relu,
        layers.max_pool2d(2),
        fnn.layers.flatten,
        fnn.layers.linear(576, 120),
        fnn.layers.relu,
        fnn.layers.linear(120, CLASSES),
    )
    words = torch.randint(0, 11, (BATCH, 6), generator=torch.Generator().manual_seed(0))
    return {
        "MLP": Case(fnn.models.mlp(20, 16, CLASSES).apply, mlp, draw(BATCH, 20)),
        "LeNet": Case(ours.apply, lenet, draw(BATCH, 1, 32, 32)),
        "residual, GroupNorm": Case(residual, TorchResidual(), draw(BATCH, 1, 10, 10)),
        "attention, embedding": Case(attention, TorchAttention(), words),
    }


LABELS = torch.tensor([0, 1, 2, 3, 4, 0, 1])
NAMES = ("MLP", "LeNet", "residual, GroupNorm", "attention, embedding")
TABLE = pytest.mark.parametrize("name", NAMES)


def problem(name: str) -> tuple[Case, Any, Callable, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    case = cases()[name]
    case.net.double()
    params = tree.from_state_dict({path: leaf.detach().clone() for path, leaf in case.net.named_parameters()})
    loss = lambda p, batch: fnn.losses.cross_entropy(case.apply(p, batch[0]), batch[1])
    return case, params, loss, (case.x, LABELS)


def by_loop(net: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    rows = []
    for x, y in zip(*batch, strict=True):
        net.zero_grad()
        F.cross_entropy(net(x[None]), y[None]).backward()
        rows.append({path: leaf.grad.clone() for path, leaf in net.named_parameters()})
    return {path: torch.stack([row[path] for row in rows]) for path in rows[0]}


def norms_of(each: dict[str, Tensor]) -> Tensor:
    return sum(leaf.flatten(1).square().sum(1) for leaf in each.values()).sqrt()


def clipped_of(each: dict[str, Tensor], limit: float) -> dict[str, Tensor]:
    factor = (limit / norms_of(each)).clamp(max=1.0)
    return {path: torch.einsum("b,b...->...", factor, leaf) for path, leaf in each.items()}


def furthest(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((ours[path] - theirs[path]).abs().max()) for path in ours)


def check(record_property: Callable, name: str, difference: float) -> None:
    record_property(name, difference)
    assert difference < 1e-12


@TABLE
def test_against_a_loop(name: str, record_property: Callable) -> None:
    case, params, loss, batch = problem(name)
    expected = by_loop(case.net, batch)
    norms = norms_of(expected)
    limit = float(norms.median())
    for chunk in (1, 7, None):
        each = tree.to_state_dict(fnn.per_sample_grad(loss, chunk_size=chunk)(params, batch))
        check(record_property, f"gradients, chunk {chunk}", furthest(each, expected))
        for method in ("exact", "ghost"):
            ours = fnn.gradients.per_sample_norms(loss, chunk_size=chunk, method=method)(params, batch)
            check(record_property, f"norms, {method}, chunk {chunk}", float((ours - norms).abs().max()))
            total = tree.to_state_dict(fnn.clipped_grad(loss, limit, chunk_size=chunk, method=method)(params, batch))
            check(record_property, f"clipped, {method}, chunk {chunk}", furthest(total, clipped_of(expected, limit)))
    mean = {path: leaf.mean(0) for path, leaf in each.items()}
    check(record_property, "mean and batch gradient", furthest(mean, tree.to_state_dict(fnn.grad(loss)(params, batch))))


@TABLE
@pytest.mark.parametrize("mode", ["hooks", "ghost"])
def test_against_opacus(name: str, mode: str, record_property: Callable) -> None:
    opacus = pytest.importorskip("opacus.grad_sample", reason="the comparison needs Opacus")
    case, params, loss, batch = problem(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if mode == "hooks":
            net = opacus.GradSampleModule(case.net, loss_reduction="mean")
            F.cross_entropy(net(batch[0]), batch[1]).backward()
            theirs = {path.removeprefix("_module."): leaf.grad_sample for path, leaf in net.named_parameters()}
            each = tree.to_state_dict(fnn.per_sample_grad(loss)(params, batch))
            check(record_property, "gradients", furthest(each, theirs))
        else:
            fast = pytest.importorskip("opacus.grad_sample.grad_sample_module_fast_gradient_clipping")
            net = fast.GradSampleModuleFastGradientClipping(case.net, max_grad_norm=1.0, loss_reduction="mean")
            F.cross_entropy(net(batch[0]), batch[1]).backward()
            norms = net.get_norm_sample()
            ours = fnn.gradients.per_sample_norms(loss, method="ghost")(params, batch)
            check(record_property, "norms", float((ours - norms).abs().max()))
            limit = float(norms.median())
            net.zero_grad()
            net.disable_hooks()  # the second backward pass of fast gradient clipping takes weighted losses
            losses = F.cross_entropy(net(batch[0]), batch[1], reduction="none")
            ((limit / norms).clamp(max=1.0).detach() * losses).sum().backward()
            theirs = {path.removeprefix("_module."): leaf.grad for path, leaf in net.named_parameters()}
            total = tree.to_state_dict(fnn.clipped_grad(loss, limit, method="ghost")(params, batch))
            check(record_property, "clipped", furthest(total, theirs))


@pytest.mark.parametrize("name", ["MLP", "LeNet"])  # BackPACK extends Sequential networks
def test_against_backpack(name: str, record_property: Callable) -> None:
    backpack = pytest.importorskip("backpack", reason="the comparison needs BackPACK")
    extensions = pytest.importorskip("backpack.extensions")
    case, params, loss, batch = problem(name)
    net, criterion = backpack.extend(case.net), backpack.extend(nn.CrossEntropyLoss())
    with warnings.catch_warnings(), backpack.backpack(extensions.BatchGrad(), extensions.BatchL2Grad()):
        warnings.simplefilter("ignore")
        criterion(net(batch[0]), batch[1]).backward()
    theirs = {path: leaf.grad_batch * BATCH for path, leaf in net.named_parameters()}
    check(record_property, "gradients", furthest(tree.to_state_dict(fnn.per_sample_grad(loss)(params, batch)), theirs))
    norms = sum(leaf.batch_l2 for leaf in net.parameters()).sqrt() * BATCH
    ours = fnn.gradients.per_sample_norms(loss, method="ghost")(params, batch)
    check(record_property, "norms", float((ours - norms).abs().max()))
