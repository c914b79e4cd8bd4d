"""The connectionist temporal classification of unsegmented sequences (Graves et al., 2006)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fnn._numerics import widen
from fnn.compile.scan import scan
from fnn.losses.base import Reduction, check_reduction, check_tensors, reduced, result_dtype


def ctc(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor | Sequence[int] | int,
    target_lengths: Tensor | Sequence[int] | int,
    blank: int = 0,
    reduction: Reduction = "mean",
    zero_infinity: bool = False,
) -> Tensor:
    """Return -log of the probability that the frames spell the target, summed over all alignments.

    An alignment gives each frame a class; repeated classes are merged and then blanks are removed.

    log_probs: (frames, batch, classes), logarithms of probabilities, or (frames, classes) for one sequence. targets:
    integer classes other than ``blank``, (batch, longest), (longest,) for one sequence, or all targets in one row of
    sum(target_lengths). Lengths: integers (batch,), or () for one sequence, in a tensor or in a list. The mean is that
    of the losses divided by the lengths of their targets (at least 1). A target that does not fit into its frames has
    an infinite loss, whose derivative is 0; with ``zero_infinity`` the loss is 0, too. Lengths that are too large
    give nan.

    The derivative with respect to ``log_probs`` is that of the formula. torch's assumes that they come from a
    log-softmax, and adds what would cancel behind one. Raises ``ValueError`` for shapes that do not fit.

    >>> half = torch.full((2, 1, 2), 0.5).log()  # of four alignments, "a-", "-a" and "aa" spell "a"
    >>> ctc(half, torch.tensor([[1]]), [2], [1]).exp()
    tensor(1.3333)
    """
    check_reduction(reduction)
    check_tensors("ctc", log_probs, targets)
    dtype = result_dtype(log_probs)
    one = log_probs.dim() == 2
    if one:
        log_probs, targets = log_probs.unsqueeze(1), targets.reshape(1, -1)
    if log_probs.dim() != 3 or not 0 <= blank < log_probs.shape[-1]:
        raise ValueError(
            "ctc expects log_probs (frames, batch, classes) and 0 <= blank < classes, got "
            f"{tuple(log_probs.shape)} and blank={blank}"
        )
    log_probs = widen(log_probs)
    frames, batch, _ = log_probs.shape
    # lengths in a tensor are not read, because that would stop a graph: then a row may have the size of all targets
    longest = max(target_lengths, default=0) if isinstance(target_lengths, Sequence) else targets.shape[-1]
    input_lengths = _lengths("input_lengths", input_lengths, batch, log_probs)
    target_lengths = _lengths("target_lengths", target_lengths, batch, log_probs)
    if targets.dim() == 1:
        targets = _rows(targets, target_lengths, longest)
    if targets.dim() != 2 or len(targets) != batch:
        raise ValueError(f"ctc expects targets ({batch}, longest) for a batch of {batch}, got {tuple(targets.shape)}")
    probability = _log_probability(log_probs, targets, input_lengths, target_lengths, blank)
    fits = (input_lengths >= 0) & (input_lengths <= frames)
    fits = fits & (target_lengths >= 0) & (target_lengths <= targets.shape[1])
    losses = torch.where(fits, -probability, math.nan)
    if zero_infinity:
        losses = torch.where(losses == math.inf, 0.0, losses)
    if reduction == "mean":
        losses = losses / target_lengths.clamp_min(1)
    return reduced(losses.squeeze(0) if one else losses, reduction).to(dtype)


def _log_probability(
    log_probs: Tensor, targets: Tensor, input_lengths: Tensor, target_lengths: Tensor, blank: int
) -> Tensor:
    """The forward algorithm. Its 2 longest + 1 states are the classes of a target with blanks around each."""
    frames, batch, _ = log_probs.shape
    place = torch.arange(targets.shape[1], device=targets.device)
    targets = torch.where(place < target_lengths.unsqueeze(1), targets.to(torch.int64), blank)
    pairs = torch.stack([torch.full_like(targets, blank), targets], 2).flatten(1)
    states = torch.cat([pairs, targets.new_full((batch, 1), blank)], 1)
    emitted = log_probs.gather(2, states.expand(frames, -1, -1))  # (frames, batch, states)
    running = torch.arange(frames, device=log_probs.device).unsqueeze(1) < input_lengths  # (frames, batch)
    nothing = log_probs.new_full((batch, 2), -math.inf)
    # a blank between two classes may be skipped unless they are equal
    before = torch.cat([torch.full_like(states[:, :2], blank), states[:, :-2]], 1)[:, : states.shape[1]]
    skips = (states != blank) & (states != before)

    def step(alpha: Tensor, frame: tuple[Tensor, Tensor]) -> tuple[Tensor, None]:
        emitted, running = frame
        padded = torch.cat([nothing, alpha], 1)
        skipped = torch.where(skips, padded[:, :-2], -math.inf)
        new = _log_sum_exp(torch.stack([alpha, padded[:, 1:-1], skipped])) + emitted
        return torch.where(running.unsqueeze(1), new, alpha), None

    start = torch.cat([log_probs.new_zeros((batch, 1)), log_probs.new_full((batch, states.shape[1] - 1), -math.inf)], 1)
    alpha, _ = scan(step, start, (emitted, running))
    end = (2 * target_lengths).clamp(0, states.shape[1] - 1).unsqueeze(1)  # the last blank
    on_blank = alpha.gather(1, end)
    on_class = torch.where(end > 0, alpha.gather(1, (end - 1).clamp_min(0)), -math.inf)
    return _log_sum_exp(torch.cat([on_blank, on_class], 1).T)


def _log_sum_exp(x: Tensor) -> Tensor:
    """log(sum(exp(x))) over the first axis, with derivative 0 where all terms are minus infinity."""
    largest = x.amax(0).detach()  # the shift cancels, so it needs no derivative
    largest = torch.where(largest == -math.inf, 0.0, largest)
    total = torch.exp(x - largest).sum(0)
    impossible = total == 0
    return torch.where(impossible, -math.inf, largest + torch.log(torch.where(impossible, 1.0, total)))


def _lengths(name: str, lengths: Tensor | Sequence[int] | int, batch: int, like: Tensor) -> Tensor:
    """Return lengths as integers (batch,) on the device of the inputs."""
    if not isinstance(lengths, Tensor):
        lengths = torch.tensor(lengths, device=like.device)
    if lengths.is_floating_point() or lengths.numel() != batch or lengths.dim() > 1:
        raise ValueError(f"ctc expects {name} as {batch} integers, got {lengths.dtype} of shape {tuple(lengths.shape)}")
    return lengths.reshape(batch).to(like.device, torch.int64)


def _rows(targets: Tensor, target_lengths: Tensor, longest: int) -> Tensor:
    """Cut one row of all targets into (batch, longest)."""
    if not len(targets):
        return targets.new_zeros((len(target_lengths), 0))
    start = target_lengths.cumsum(0) - target_lengths
    index = start.unsqueeze(1) + torch.arange(longest, device=targets.device)
    return targets[index.clamp(0, len(targets) - 1)]
