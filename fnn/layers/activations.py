"""Smooth activations and the softmax family: functions of a tensor that have no parameters.

16-bit values are computed in float32 and rounded once, as torch's own kernels do.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fnn import random
from fnn._numerics import under_autocast, widen
from fnn.layers.base import check_axis, check_channels, check_real, check_tensor


def elu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """x where x > 0, alpha (e^x - 1) elsewhere.

    >>> elu(torch.tensor([0.0, 2.0]))
    tensor([0., 2.])
    """
    check_real("elu", x)
    return F.elu(x, alpha)


def selu(x: Tensor) -> Tensor:
    """The self-normalising scaled elu (Klambauer et al., 2017).

    >>> selu(torch.tensor([0.0, 1.0]))
    tensor([0.0000, 1.0507])
    """
    check_real("selu", x)
    return F.selu(x)


def celu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """x where x > 0, alpha (e^(x / alpha) - 1) elsewhere, which has a continuous derivative (Barron, 2017).

    Raises ``ValueError`` for alpha = 0.

    >>> celu(torch.tensor([0.0, 2.0]))
    tensor([0., 2.])
    """
    check_real("celu", x)
    if alpha == 0:
        raise ValueError("celu divides by alpha, got 0")
    return F.celu(x, alpha)


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """x times the standard normal distribution function at x; ``approximate="tanh"`` for the usual approximation.

    >>> gelu(torch.tensor([0.0, 1.0]))
    tensor([0.0000, 0.8413])
    """
    check_real("gelu", x)
    wide = widen(x)
    if approximate == "none":
        return (wide * 0.5 * (1.0 + torch.erf(wide / math.sqrt(2.0)))).to(x.dtype)
    if approximate == "tanh":
        inner = math.sqrt(2.0 / math.pi) * (wide + 0.044715 * wide**3)
        return (0.5 * wide * (1.0 + torch.tanh(inner))).to(x.dtype)
    raise ValueError(f"gelu: approximate is 'none' or 'tanh', got {approximate!r}")


def silu(x: Tensor) -> Tensor:
    """x sigmoid(x), also called swish.

    >>> silu(torch.tensor([0.0]))
    tensor([0.])
    """
    check_tensor("silu", x)
    wide = widen(x)
    return (wide * torch.sigmoid(wide)).to(x.dtype)


def mish(x: Tensor) -> Tensor:
    """x tanh(log(1 + e^x)) (Misra, 2019).

    >>> mish(torch.tensor([0.0]))
    tensor([0.])
    """
    check_real("mish", x)
    wide = widen(x)
    return (wide * torch.tanh(-F.logsigmoid(-wide))).to(x.dtype)


def softplus(x: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """log(1 + e^(beta x)) / beta without overflow, or x where beta x > threshold.

    The function is computed by torch's ``logsigmoid``, because the second derivative of ``logaddexp`` is nan where e^x
    underflows. It does not overflow without the threshold either, which torch has: with ``threshold=math.inf`` all
    derivatives are continuous. Raises ``ValueError`` for beta = 0.

    >>> softplus(torch.tensor([0.0, 100.0]))
    tensor([  0.6931, 100.0000])
    """
    check_real("softplus", x)
    if beta == 0:
        raise ValueError("softplus divides by beta, got 0")
    wide = widen(x)
    y = -F.logsigmoid(-beta * wide) / beta
    return torch.where(beta * wide > threshold, wide, y).to(x.dtype)


def softsign(x: Tensor) -> Tensor:
    """x / (1 + |x|).

    >>> softsign(torch.tensor([-1.0, 3.0]))
    tensor([-0.5000,  0.7500])
    """
    check_tensor("softsign", x)
    wide = widen(x)
    return (wide / (1.0 + wide.abs())).to(x.dtype)


def tanhshrink(x: Tensor) -> Tensor:
    """x - tanh(x).

    >>> tanhshrink(torch.tensor([0.0, 1.0]))
    tensor([0.0000, 0.2384])
    """
    check_tensor("tanhshrink", x)
    wide = widen(x)
    return (wide - torch.tanh(wide)).to(x.dtype)


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^-x).

    >>> sigmoid(torch.tensor([0.0]))
    tensor([0.5000])
    """
    check_tensor("sigmoid", x)
    return torch.sigmoid(x)


def log_sigmoid(x: Tensor) -> Tensor:
    """log sigmoid(x), without underflow.

    >>> log_sigmoid(torch.tensor([0.0, -100.0]))
    tensor([  -0.6931, -100.0000])
    """
    check_real("log_sigmoid", x)
    return F.logsigmoid(x)


def tanh(x: Tensor) -> Tensor:
    """Hyperbolic tangent.

    >>> tanh(torch.tensor([0.0]))
    tensor([0.])
    """
    check_tensor("tanh", x)
    return torch.tanh(x)


def softmax(x: Tensor, dim: int = -1) -> Tensor:
    """e^x / sum(e^x) along ``dim``.

    16-bit values are summed in float32. Under autocast the result is float32, as in torch on CUDA.

    >>> softmax(torch.zeros(2))
    tensor([0.5000, 0.5000])
    """
    check_real("softmax", x)
    check_axis("softmax", x, dim)
    return _in_result_dtype(torch.exp(_log_softmax(x, dim)), x)


def log_softmax(x: Tensor, dim: int = -1) -> Tensor:
    """x - log(sum(e^x)) along ``dim``, without overflow. Dtypes are as in :func:`softmax`.

    It is written out because torch's ``log_softmax`` fails under compiled ``vmap(hessian)``.

    >>> log_softmax(torch.zeros(2))
    tensor([-0.6931, -0.6931])
    """
    check_real("log_softmax", x)
    check_axis("log_softmax", x, dim)
    return _in_result_dtype(_log_softmax(x, dim), x)


def softmin(x: Tensor, dim: int = -1) -> Tensor:
    """softmax(-x) along ``dim``. Dtypes are as in :func:`softmax`.

    >>> softmin(torch.zeros(2))
    tensor([0.5000, 0.5000])
    """
    check_real("softmin", x)
    check_axis("softmin", x, dim)
    return softmax(-x, dim)


def softmax2d(x: Tensor) -> Tensor:
    """:func:`softmax` over the channels of images. x: (batch, channels, height, width) or (channels, height, width).

    >>> softmax2d(torch.zeros(1, 2, 1, 1)).flatten()
    tensor([0.5000, 0.5000])
    """
    check_channels("softmax2d", x, None, ("height", "width"))
    return softmax(x, -3)


def gumbel_softmax(logits: Tensor, tau: float = 1.0, hard: bool = False, dim: int = -1, *, key: Tensor) -> Tensor:
    """softmax((logits + Gumbel noise) / tau) along ``dim`` (Jang et al., 2017; Maddison et al., 2017).

    As tau goes to 0 the result becomes one-hot, drawn with probabilities softmax(logits). With ``hard`` it is one-hot
    for every tau, and its derivatives are those of the soft result. Raises ``ValueError`` unless tau > 0.

    >>> y = gumbel_softmax(torch.zeros(1000, 2), hard=True, key=random.key(0))
    >>> y.unique(), y.sum().item()
    (tensor([0., 1.]), 1000.0)
    """
    check_real("gumbel_softmax", logits)
    check_axis("gumbel_softmax", logits, dim)
    if not tau > 0:
        raise ValueError(f"gumbel_softmax expects tau > 0, got {tau}")
    wide = widen(logits)
    tiny = torch.finfo(wide.dtype).tiny
    noise = -torch.log(-torch.log(random.uniform(key, wide.shape, wide.dtype, tiny, 1.0)))
    soft = softmax((wide + noise) / tau, dim)
    if not hard:
        return _in_result_dtype(soft, logits)
    one_hot = torch.zeros_like(soft).scatter(dim, soft.argmax(dim, keepdim=True), 1.0)
    return _in_result_dtype(one_hot + (soft - soft.detach()), logits)


def _log_softmax(x: Tensor, dim: int) -> Tensor:
    wide = widen(x)
    if wide.numel() == 0:  # amax raises an error for an empty axis
        return wide - wide.sum(dim, keepdim=True)
    shifted = wide - wide.amax(dim, keepdim=True).detach()  # the shift cancels, so it needs no derivative
    return shifted - torch.log(torch.exp(shifted).sum(dim, keepdim=True))


def _in_result_dtype(wide: Tensor, x: Tensor) -> Tensor:
    return wide if under_autocast(x) else wide.to(x.dtype)


def flatten(x: Tensor) -> Tensor:
    """Flatten all axes after the first: (batch, ...) -> (batch, features).

    >>> flatten(torch.ones(3, 28, 28)).shape
    torch.Size([3, 784])
    """
    check_tensor("flatten", x)
    return x.flatten(1)
