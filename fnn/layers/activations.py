"""Activations and other functions of a tensor that have no parameters."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fnn._numerics import under_autocast, widen


def relu(x: Tensor) -> Tensor:
    """max(x, 0), entry by entry. The derivative at 0 is 0.

    >>> relu(torch.tensor([-1.0, 2.0]))
    tensor([0., 2.])
    """
    return F.relu(x)


def relu6(x: Tensor) -> Tensor:
    """min(max(x, 0), 6).

    >>> relu6(torch.tensor([-1.0, 9.0]))
    tensor([0., 6.])
    """
    return F.relu6(x)


def leaky_relu(x: Tensor, negative_slope: float = 0.01) -> Tensor:
    """x where x > 0, negative_slope * x elsewhere.

    >>> leaky_relu(torch.tensor([-1.0, 2.0]))
    tensor([-0.0100,  2.0000])
    """
    return F.leaky_relu(x, negative_slope)


def elu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """x where x > 0, alpha (e^x - 1) elsewhere.

    >>> elu(torch.tensor([0.0, 2.0]))
    tensor([0., 2.])
    """
    return F.elu(x, alpha)


def selu(x: Tensor) -> Tensor:
    """The self-normalising scaled elu (Klambauer et al., 2017).

    >>> selu(torch.tensor([0.0, 1.0]))
    tensor([0.0000, 1.0507])
    """
    return F.selu(x)


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """x times the standard normal distribution function at x; ``approximate="tanh"`` for the usual approximation.

    >>> gelu(torch.tensor([0.0, 1.0]))
    tensor([0.0000, 0.8413])
    """
    if approximate == "none":
        return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))
    if approximate == "tanh":
        return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
    raise ValueError(f"gelu: approximate is 'none' or 'tanh', got {approximate!r}")


def silu(x: Tensor) -> Tensor:
    """x sigmoid(x), also called swish.

    >>> silu(torch.tensor([0.0]))
    tensor([0.])
    """
    return x * torch.sigmoid(x)


def mish(x: Tensor) -> Tensor:
    """x tanh(softplus(x)) (Misra, 2019).

    >>> mish(torch.tensor([0.0]))
    tensor([0.])
    """
    return x * torch.tanh(softplus(x))


def softplus(x: Tensor, beta: float = 1.0, threshold: float = math.inf) -> Tensor:
    """log(1 + e^(beta x)) / beta without overflow, or x where beta x > threshold.

    torch's default threshold is 20, beyond which the two differ by less than 3e-9; here the default is none. The
    function is computed by torch's ``logsigmoid``, because the second derivative of ``logaddexp`` is nan where e^x
    underflows. Raises ``ValueError`` for beta = 0.

    >>> softplus(torch.tensor([0.0, 100.0]))
    tensor([  0.6931, 100.0000])
    """
    if beta == 0:
        raise ValueError("softplus divides by beta, got 0")
    if beta == 1.0 and threshold == math.inf:
        return -F.logsigmoid(-x)
    y = -F.logsigmoid(-beta * x) / beta
    return y if threshold == math.inf else torch.where(beta * x > threshold, x, y)


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^-x).

    >>> sigmoid(torch.tensor([0.0]))
    tensor([0.5000])
    """
    return torch.sigmoid(x)


def log_sigmoid(x: Tensor) -> Tensor:
    """log sigmoid(x), without underflow.

    >>> log_sigmoid(torch.tensor([0.0, -100.0]))
    tensor([  -0.6931, -100.0000])
    """
    return F.logsigmoid(x)


def tanh(x: Tensor) -> Tensor:
    """Hyperbolic tangent.

    >>> tanh(torch.tensor([0.0]))
    tensor([0.])
    """
    return torch.tanh(x)


def softmax(x: Tensor, dim: int = -1) -> Tensor:
    """e^x / sum(e^x) along ``dim``.

    16-bit values are summed in float32. Under autocast the result is float32, as in torch on CUDA.

    >>> softmax(torch.zeros(2))
    tensor([0.5000, 0.5000])
    """
    return _in_result_dtype(torch.exp(_log_softmax(x, dim)), x)


def log_softmax(x: Tensor, dim: int = -1) -> Tensor:
    """x - log(sum(e^x)) along ``dim``, without overflow. Dtypes are as in :func:`softmax`.

    It is written out because torch's ``log_softmax`` fails under compiled ``vmap(hessian)``.

    >>> log_softmax(torch.zeros(2))
    tensor([-0.6931, -0.6931])
    """
    return _in_result_dtype(_log_softmax(x, dim), x)


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
    return x.flatten(1)
