"""CTC against all alignments, written down one by one, and against torch."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, hessian, jvp, vmap

import fnn
from fnn import losses


def log_probs(seed: int, *shape: int) -> Tensor:
    return F.log_softmax(2 * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)), -1)


def spelled(alignment: tuple[int, ...], blank: int) -> list[int]:
    merged = [label for label, _ in itertools.groupby(alignment)]
    return [label for label in merged if label != blank]


def by_alignments(log_probs: Tensor, target: list[int], blank: int = 0) -> float:
    """-log of the sum over every sequence of classes that spells the target."""
    frames, classes = log_probs.shape
    p = log_probs.exp().tolist()
    total = 0.0
    for alignment in itertools.product(range(classes), repeat=frames):
        if spelled(alignment, blank) == target:
            total += math.prod(p[t][label] for t, label in enumerate(alignment))
    return -math.log(total) if total else math.inf


TARGETS = [[], [1], [2, 1], [1, 1], [2, 2, 2], [1, 2, 1, 2, 1], [1, 2, 3]]


@pytest.mark.parametrize("frames", [0, 1, 3, 5])
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_the_sum_over_all_alignments(target: list[int], frames: int) -> None:
    inputs = log_probs(frames, frames, 4)
    ours = losses.ctc(inputs, torch.tensor(target, dtype=torch.int64), frames, len(target), reduction="none")
    assert float(ours) == pytest.approx(by_alignments(inputs, target))


def test_another_blank_and_padding_that_is_anything() -> None:
    inputs = log_probs(1, 4, 2, 3)
    targets = torch.tensor([[0, 2, 99], [2, -7, 1]])
    ours = losses.ctc(inputs, targets, [4, 3], [2, 1], blank=1, reduction="none")
    expected = [by_alignments(inputs[:, 0], [0, 2], 1), by_alignments(inputs[:3, 1], [2], 1)]
    assert ours.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_targets_and_lengths_in_every_form_of_torchs(reduction: losses.Reduction) -> None:
    inputs = log_probs(2, 6, 3, 5)
    padded, flat = torch.tensor([[1, 2, 4], [3, 3, 0], [2, 0, 0]]), torch.tensor([1, 2, 4, 3, 3, 2])
    frames, letters = [6, 5, 4], [3, 2, 1]
    theirs = F.ctc_loss(inputs, padded, torch.tensor(frames), torch.tensor(letters), reduction=reduction)
    for targets in (padded, flat, padded.to(torch.int32)):
        for lengths in ((frames, letters), (torch.tensor(frames), torch.tensor(letters)), (tuple(frames), letters)):
            torch.testing.assert_close(losses.ctc(inputs, targets, *lengths, reduction=reduction), theirs)
    one = losses.ctc(inputs[:, 0], padded[0], torch.tensor(6), torch.tensor(3), reduction=reduction)
    torch.testing.assert_close(
        one, F.ctc_loss(inputs[:, 0], padded[0], torch.tensor(6), torch.tensor(3), reduction=reduction)
    )


def test_no_targets_at_all() -> None:
    inputs = log_probs(3, 3, 2, 4)
    for targets in (torch.zeros(0, dtype=torch.int64), torch.zeros(2, 0, dtype=torch.int64)):
        ours = losses.ctc(inputs, targets, [3, 3], [0, 0], reduction="none")
        torch.testing.assert_close(ours, -inputs[..., 0].sum(0))


def test_a_target_that_does_not_fit_is_infinite_and_moves_nothing() -> None:
    inputs = log_probs(4, 3, 2, 4)
    targets, lengths = torch.tensor([[1, 1, 1], [1, 2, 3]]), ([3, 3], [3, 3])  # the first needs blanks between
    assert losses.ctc(inputs, targets, *lengths, reduction="none").isinf().tolist() == [True, False]
    assert math.isinf(losses.ctc(inputs, targets, *lengths))
    for zero in (False, True):
        loss = lambda x, zero=zero: losses.ctc(
            x.log_softmax(-1), targets, *lengths, reduction="sum", zero_infinity=zero
        )
        slope = grad(loss)(inputs)
        assert not slope[:, 0].any()
        assert bool(slope[:, 1].any(-1).all())
        assert bool(jvp(grad(loss), (inputs,), (inputs,))[1].isfinite().all())
    theirs = F.ctc_loss(inputs, targets, *map(torch.tensor, lengths), zero_infinity=True)
    torch.testing.assert_close(losses.ctc(inputs, targets, *lengths, zero_infinity=True), theirs)


def test_classes_that_are_ruled_out_by_minus_infinity() -> None:
    logits = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    logits[1, 1] = logits[2, 0] = -math.inf
    target = torch.tensor([1, 2])
    loss = lambda x: losses.ctc(x.log_softmax(-1), target, 4, 2)
    assert float(loss(logits)) == pytest.approx(by_alignments(logits.log_softmax(-1), [1, 2]) / 2)
    assert bool(grad(loss)(logits).isfinite().all())


def test_lengths_that_are_too_large_give_nan_because_they_are_not_read() -> None:
    inputs, targets = log_probs(6, 3, 2, 4), torch.tensor([[1], [2]])
    assert losses.ctc(inputs, targets, [3, 4], [1, 1], reduction="none").isnan().tolist() == [False, True]
    assert losses.ctc(
        inputs, targets, torch.tensor([3, 3]), torch.tensor([2, 1]), reduction="none"
    ).isnan().tolist() == [True, False]
    assert losses.ctc(inputs, targets, [-1, 3], [1, 1], reduction="none").isnan().tolist() == [True, False]


def test_derivatives_behind_a_log_softmax_are_torchs_and_the_formulas_elsewhere() -> None:
    logits, targets = log_probs(7, 5, 2, 4) + 1.0, torch.tensor([[1, 2], [3, 3]])
    ours = lambda x: losses.ctc(x.log_softmax(-1), targets, [5, 4], [2, 2])
    leaf = logits.clone().requires_grad_()
    F.ctc_loss(leaf.log_softmax(-1), targets, torch.tensor([5, 4]), torch.tensor([2, 2])).backward()
    torch.testing.assert_close(grad(ours)(logits), leaf.grad)
    direct = lambda x: losses.ctc(x, targets, [5, 4], [2, 2])
    v, step = log_probs(8, 5, 2, 4), 1e-6
    quotient = (direct(logits + step * v) - direct(logits - step * v)) / (2 * step)
    torch.testing.assert_close((grad(direct)(logits) * v).sum(), quotient)
    quotient = (grad(direct)(logits + step * v) - grad(direct)(logits - step * v)) / (2 * step)
    torch.testing.assert_close(jvp(grad(direct), (logits,), (v,))[1], quotient, rtol=1e-6, atol=1e-8)


def test_samples_with_targets_of_their_own_under_vmap_and_jit() -> None:
    logits = log_probs(9, 3, 5, 4)  # (batch, frames, classes)
    targets, frames, letters = torch.tensor([[1, 2], [3, 3], [2, 0]]), torch.tensor([5, 4, 2]), torch.tensor([2, 2, 1])
    loss = lambda x, y, t, n: losses.ctc(x.log_softmax(-1), y, t, n)
    alone = torch.stack([hessian(loss)(*row).sum((0, 1)) for row in zip(logits, targets, frames, letters, strict=True)])
    torch.testing.assert_close(
        vmap(lambda *row: hessian(loss)(*row).sum((0, 1)))(logits, targets, frames, letters), alone
    )
    each = vmap(grad(loss))
    torch.testing.assert_close(fnn.jit(each)(logits, targets, frames, letters), each(logits, targets, frames, letters))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_are_summed_in_32(dtype: torch.dtype) -> None:
    inputs = log_probs(10, 200, 1, 5).to(dtype)
    targets = torch.arange(40).remainder(4)[None] + 1
    exact = losses.ctc(inputs.double(), targets, [200], [40])
    assert losses.ctc(inputs, targets, [200], [40]).dtype == dtype
    assert float(losses.ctc(inputs, targets, [200], [40])) == pytest.approx(float(exact), rel=torch.finfo(dtype).eps)
    with torch.autocast("cpu", dtype):
        assert losses.ctc(inputs, targets, [200], [40]).dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda x, y: losses.ctc(x, y, [3], [1, 1]), r"input_lengths as 2 integers, got torch\.int64 of shape \(1,\)"),
        (lambda x, y: losses.ctc(x, y, [3, 3], torch.ones(2)), "target_lengths as 2 integers, got torch.float32"),
        (lambda x, y: losses.ctc(x, y[:1], [3, 3], [1, 1]), r"targets \(2, longest\) for a batch of 2, got \(1, 1\)"),
        (lambda x, y: losses.ctc(x, y, [3, 3], [1, 1], blank=4), "0 <= blank < classes, got .* and blank=4"),
        (lambda x, y: losses.ctc(x[0, 0], y, [3, 3], [1, 1]), r"log_probs \(frames, batch, classes\)"),
    ],
)
def test_mistakes_are_named(call, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call(log_probs(0, 3, 2, 4), torch.tensor([[1], [2]]))
