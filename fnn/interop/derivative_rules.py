"""Functions whose derivatives torch lacks or has wrong, written out where these derivatives may be taken.

Where at most one reverse-mode derivative is taken, torch's own kernels run. Inside a second derivative or a forward
one, norms, attention and some losses are their formulas: torch's fused attention has no such derivatives, and those of
its norms are wrong. Attention is also written out under ``vmap``, for which its kernel has no rule.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fnn import layers, losses, random
from fnn._numerics import widen
from fnn._samples import refuse_samples_apart
from fnn._tracing import derivatives_of_derivatives, inside_vmap
from fnn.interop.function_mode import ModuleCalls, rule


def _instead(ours: Callable[..., Tensor]) -> Callable[..., Any]:
    """The rule that calls ``ours`` where derivatives of derivatives may be taken."""

    def apply(calls: ModuleCalls, func: Any, args: tuple, kwargs: dict) -> Tensor:
        return (ours if derivatives_of_derivatives() else func)(*args, **kwargs)

    return apply


def _scales(weight: Tensor | None, bias: Tensor | None) -> dict[str, Tensor]:
    return {name: leaf for name, leaf in (("weight", weight), ("bias", bias)) if leaf is not None}


def _layer_norm(
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    layer = layers.layer_norm(tuple(normalized_shape), eps, weight is not None, bias is not None)
    return layer.apply(_scales(weight, bias), input)


def _rms_norm(input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    return layers.rms_norm(tuple(normalized_shape), eps, weight is not None).apply(_scales(weight, None), input)


def _group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    layer = layers.group_norm(num_groups, input.shape[1], eps, weight is not None, bias is not None)
    return layer.apply(_scales(weight, bias), input)


def _averaged(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A loss of fnn with the arguments of torch's, of which the deprecated ones have their defaults."""

    def call(input: Tensor, target: Tensor, *, reduction: str = "mean", **options: Any) -> Tensor:
        given = {name: value for name, value in options.items() if value is not None}
        return loss(input, target, reduction=reduction, **given)

    return call


def _cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: Any = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    return losses.cross_entropy(input, target, weight, ignore_index, reduction, label_smoothing)


rule(F.layer_norm, torch.layer_norm)(_instead(_layer_norm))
rule(F.rms_norm, torch.rms_norm)(_instead(_rms_norm))
rule(F.group_norm, torch.group_norm)(_instead(_group_norm))
rule(F.mse_loss)(_instead(_averaged(losses.mse)))
rule(F.huber_loss)(_instead(_averaged(losses.huber)))
rule(F.smooth_l1_loss)(_instead(_averaged(losses.smooth_l1)))
rule(F.cross_entropy)(_instead(_cross_entropy))
rule(F.hardsigmoid)(_instead(lambda input, inplace=False: layers.hardsigmoid(input)))


# Norms with running statistics, which are written into the buffers


@rule(F.batch_norm)
def _batch_norm(
    calls: ModuleCalls,
    func: Any,
    args: tuple,
    kwargs: dict,
) -> Tensor:
    def call(
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        statistics = running_mean, running_var
        return _with_statistics(calls, input, statistics, weight, bias, training, momentum, eps, each=False)

    return call(*args, **kwargs)


@rule(F.instance_norm)
def _instance_norm(calls: ModuleCalls, func: Any, args: tuple, kwargs: dict) -> Tensor:
    def call(
        input: Tensor,
        running_mean: Tensor | None = None,
        running_var: Tensor | None = None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        use_input_stats: bool = True,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        statistics = running_mean, running_var
        return _with_statistics(calls, input, statistics, weight, bias, use_input_stats, momentum, eps, each=True)

    return call(*args, **kwargs)


@rule(torch.batch_norm, torch.instance_norm)
def _norm_in_c(calls: ModuleCalls, func: Any, args: tuple, kwargs: dict) -> Tensor:
    def call(
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        training: bool,
        momentum: float,
        eps: float,
        cudnn_enabled: bool,
    ) -> Tensor:
        statistics, each = (running_mean, running_var), func is torch.instance_norm
        return _with_statistics(calls, input, statistics, weight, bias, training, momentum, eps, each)

    return call(*args, **kwargs)


def _with_statistics(
    calls: ModuleCalls,
    x: Tensor,
    statistics: tuple[Tensor | None, Tensor | None],
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    each: bool,
) -> Tensor:
    """Batch norm, or with ``each`` instance norm, whose statistics are those of each sample."""
    running_mean, running_var = statistics
    training = training or running_mean is None
    if training and not each:
        refuse_samples_apart("batch_norm")
    kept = [leaf for leaf in (running_mean, running_var) if leaf is not None] if training else []
    written_out = derivatives_of_derivatives() or (inside_vmap() and bool(kept))
    if not written_out:
        for leaf in kept:
            if (owner := calls.owner(leaf)) is not None:
                calls.copy(owner, F.batch_norm)
        norm = F.instance_norm if each else F.batch_norm
        return norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    along = (1, x.shape[1], *[1] * (x.dim() - 2))
    if training:
        dims = [dim for dim in range(x.dim()) if dim != 1 and not (each and dim == 0)]
        count = math.prod(x.shape[dim] for dim in dims)
        if count < 2:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}")
        wide = widen(x)
        mean = wide.mean(dims, keepdim=True)
        var = (wide - mean).square().mean(dims, keepdim=True)
        if running_mean is not None and running_var is not None:
            for old, new in ((running_mean, mean), (running_var, var * (count / (count - 1)))):
                new = new.detach().mean(0).flatten().to(old.dtype)
                calls.write(old, old + momentum * (new - old))
    else:
        assert running_mean is not None
        assert running_var is not None
        wide, mean, var = x, running_mean.view(along), running_var.view(along)
    y = (wide - mean) * torch.rsqrt(var + eps)
    for name, leaf in _scales(weight, bias).items():
        y = y * leaf.view(along) if name == "weight" else y + leaf.view(along)
    return y.to(x.dtype)


# Embeddings


@rule(F.embedding, F.embedding_bag)
def _embedding(calls: ModuleCalls, func: Any, args: tuple, kwargs: dict) -> Tensor:
    def scaled_in_place(
        input: Tensor,
        weight: Tensor,
        padding_or_offsets: Any = None,
        max_norm: float | None = None,
        *rest: Any,
        **_: Any,
    ) -> str | None:
        return None if max_norm is None else calls.owner(weight)

    if (owner := scaled_in_place(*args, **kwargs)) is not None:
        calls.copy(owner, func)
    return func(*args, **kwargs)


# Attention


@rule(F.scaled_dot_product_attention)
def _attention(calls: ModuleCalls, func: Any, args: tuple, kwargs: dict) -> Tensor:
    def attend(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        dropped = dropout_p > 0.0 and calls.key is not None
        if not (dropped or derivatives_of_derivatives() or inside_vmap()):
            return func(query, key, value, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa)
        if enable_gqa:
            key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
        weights = attention_weights(query, key, attn_mask, is_causal, scale)
        if dropped:
            keep = random.bernoulli(calls.draw(), 1.0 - dropout_p, tuple(weights.shape))
            weights = torch.where(keep, weights / (1.0 - dropout_p), 0.0)
        return weights @ value

    return attend(*args, **kwargs)


def attention_weights(
    query: Tensor, key: Tensor, mask: Tensor | None = None, causal: bool = False, scale: float | None = None
) -> Tensor:
    """softmax(query keyᵀ scale + mask): (..., targets, sources). A row without any source is zero, as in torch."""
    scores = widen(query @ key.transpose(-2, -1)) * (1.0 / math.sqrt(query.shape[-1]) if scale is None else scale)
    allowed = None
    if causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None and mask.dtype != torch.bool:
        finite = mask != -math.inf
        scores = scores + torch.where(finite, mask, 0.0)
        mask = finite
    if mask is not None:
        allowed = mask if allowed is None else allowed & mask
    if allowed is None:
        return torch.softmax(scores, -1).to(query.dtype)
    some = allowed.any(-1, keepdim=True)
    weights = torch.softmax(scores.masked_fill(~allowed & some, -math.inf), -1)
    return torch.where(some, weights, 0.0).to(query.dtype)
