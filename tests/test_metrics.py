"""Metrics against counting in Python: absent classes, averages, sums over batches, equal scores, transforms."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fnn
from fnn import metrics


def data(seed: int, samples: int, classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(samples, classes, generator=generator)
    logits[:, -1] -= 100.0  # never predicted
    return logits, torch.randint(0, max(1, classes - 2), (samples,), generator=generator)  # two never a target


def counted(logits: Tensor, targets: Tensor) -> list[tuple[int, int, int]]:
    """(right, predicted, targets) of each class."""
    guesses = [max(range(len(row)), key=row.__getitem__) for row in logits.tolist()]
    labels = targets.tolist()
    return [
        (sum(g == c == t for g, t in zip(guesses, labels, strict=True)), guesses.count(c), labels.count(c))
        for c in range(logits.shape[-1])
    ]


def ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


OF_COUNTS: dict[str, Callable[[int, int, int], float]] = {
    "precision": lambda right, predicted, true: ratio(right, predicted),
    "recall": lambda right, predicted, true: ratio(right, true),
    "f1": lambda right, predicted, true: ratio(
        2 * ratio(right, predicted) * ratio(right, true), ratio(right, predicted) + ratio(right, true)
    ),
}


def expected(name: str, logits: Tensor, targets: Tensor, average: str) -> list[float]:
    counts = counted(logits, targets)
    if average == "micro":
        return [OF_COUNTS[name](*[sum(column) for column in zip(*counts, strict=True)])]
    each = [OF_COUNTS[name](*row) for row in counts]
    if average == "none":
        return each
    weights = [row[2] if average == "weighted" else int(row[1] + row[2] > 0) for row in counts]
    return [ratio(sum(a * w for a, w in zip(each, weights, strict=True)), sum(weights))]


@pytest.mark.parametrize("average", ["none", "macro", "micro", "weighted"])
@pytest.mark.parametrize("name", OF_COUNTS)
@pytest.mark.parametrize("samples", [0, 1, 40])
def test_scores_are_those_of_counting(name: str, average: metrics.Average, samples: int) -> None:
    logits, targets = data(samples, samples, 6)
    ours = getattr(metrics, name)(logits, targets, average)
    torch.testing.assert_close(ours.reshape(-1), torch.tensor(expected(name, logits, targets, average)))


def test_confusion_matrices_of_batches_add_up() -> None:
    logits, targets = data(0, 40, 6)
    parts = [metrics.confusion_matrix(logits[i : i + 7], targets[i : i + 7]) for i in range(0, 40, 7)]
    scores = metrics.scores(torch.stack(parts).sum(0))
    assert float(scores.f1) == pytest.approx(expected("f1", logits, targets, "macro")[0])
    assert scores.support.tolist() == [row[2] for row in counted(logits, targets)]


def area(scores: list[float], targets: list[int]) -> float:
    pairs = [
        (p, n) for p, t in zip(scores, targets, strict=True) if t for n, s in zip(scores, targets, strict=True) if not s
    ]
    return sum(1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs) / len(pairs) if pairs else math.nan


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), max_size=12))
def test_roc_auc_counts_pairs_and_halves_of_equal_ones(rows: list[tuple[int, bool]]) -> None:
    scores, targets = [float(score) for score, _ in rows], [int(target) for _, target in rows]
    ours = metrics.roc_auc(torch.tensor(scores), torch.tensor(targets, dtype=torch.int64))
    assert float(ours) == pytest.approx(area(scores, targets), nan_ok=True)


def test_roc_auc_of_infinities_nan_and_bools() -> None:
    inf = math.inf
    scores, targets = torch.tensor([-inf, -inf, 0.0, inf]), torch.tensor([False, True, False, True])
    assert float(metrics.roc_auc(scores, targets)) == pytest.approx((0.5 + 0 + 1 + 1) / 4)
    assert math.isnan(metrics.roc_auc(torch.tensor([0.0, math.nan]), torch.tensor([0, 1])))


def test_roc_auc_of_each_class_against_the_rest() -> None:
    logits, targets = data(3, 30, 3)
    targets = (targets + torch.arange(30)) % 3
    one_hot = torch.nn.functional.one_hot(targets, 3)
    ours = fnn.vmap(metrics.roc_auc, (1, 1))(logits, one_hot)
    assert ours.tolist() == pytest.approx([area(logits[:, c].tolist(), one_hot[:, c].tolist()) for c in range(3)])


CALLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "accuracy": metrics.accuracy,
    "top_k_accuracy": lambda logits, targets: metrics.top_k_accuracy(logits, targets, 2),
    "confusion_matrix": metrics.confusion_matrix,
    "scores": lambda logits, targets: metrics.scores(metrics.confusion_matrix(logits, targets), "none").precision,
    "precision": metrics.precision,
    "recall": lambda logits, targets: metrics.recall(logits, targets, "weighted"),
    "f1": lambda logits, targets: metrics.f1(logits, targets, "micro"),
    "roc_auc": lambda logits, targets: metrics.roc_auc(logits[:, 0], targets > 0),
}


@pytest.mark.parametrize("name", CALLS)
def test_under_vmap_and_in_a_graph(name: str) -> None:
    pairs = [data(seed, 9, 4) for seed in range(3)]
    logits, targets = (torch.stack(list(part)) for part in zip(*pairs, strict=True))
    alone = torch.stack([CALLS[name](*pair) for pair in pairs])
    torch.testing.assert_close(fnn.vmap(CALLS[name])(logits, targets), alone)
    torch.testing.assert_close(fnn.jit(fnn.vmap(CALLS[name]))(logits, targets), alone)


MISTAKES: dict[str, tuple[Callable[[], object], str]] = {
    "average": (lambda: metrics.f1(*data(0, 4, 3), "mean"), "'macro', 'micro', 'weighted' or 'none', got 'mean'"),  # pyright: ignore[reportArgumentType]
    "logits for counts": (lambda: metrics.scores(torch.ones(4, 3)), r"scores\(confusion_matrix\(logits, targets\)\)"),
    "several scores": (lambda: metrics.roc_auc(*data(0, 4, 3)), r"scores \(n,\) and targets \(n,\), got \(4, 3\)"),
    "list": (lambda: metrics.roc_auc([0.5], torch.ones(1)), r"a list; write torch\.as_tensor"),  # pyright: ignore[reportArgumentType]
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(mistake: str) -> None:
    call, sentence = MISTAKES[mistake]
    with pytest.raises((ValueError, TypeError), match=sentence):
        call()
