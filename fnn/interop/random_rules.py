"""torch's random functions with draws from a key. A draw has torch's distribution; its bits are those of fnn.random."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fnn import _torch, random
from fnn.interop.function_mode import RULES, ModuleCalls, Rule, rule

# Dropout. Without a key nothing is dropped, as in fnn.layers.dropout.


def _dropout(axes: Callable[[Tensor], tuple[int, ...]], alpha: bool = False) -> Callable[..., Any]:
    """The rule of a dropout whose mask has the shape ``axes(input)``."""

    def apply(calls: ModuleCalls, func: Any, args: tuple, kwargs: dict) -> Tensor:
        x, p, training, inplace = _dropout_arguments(func, *args, **kwargs)
        if not training or p == 0.0 or calls.key is None:
            return x
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"dropout expects 0 <= p <= 1, got {p}")
        keep = random.bernoulli(calls.draw(), 1.0 - p, axes(x))
        if alpha:
            floor = -1.7580993408473766  # the limit of selu at minus infinity
            scale = 0.0 if p == 1.0 else (1.0 - p) ** -0.5 * (1.0 + p * floor**2) ** -0.5
            y = torch.where(keep, x, floor) * scale - scale * p * floor
        else:
            y = torch.where(keep, x / (1.0 - p), 0.0) if p < 1.0 else torch.zeros_like(x)
        return calls.write(x, y) if inplace else y

    return apply


def _dropout_arguments(
    func: Any, input: Tensor, p: float = 0.5, train: bool = True, inplace: bool = False, training: bool | None = None
) -> tuple[Tensor, float, bool, bool]:
    return input, p, train if training is None else training, inplace or func.__name__.endswith("_")


def _everywhere(x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape)


def _channels(x: Tensor) -> tuple[int, ...]:
    return (*x.shape[:2], *[1] * (x.dim() - 2))


def _channels_of(spatial: int) -> Callable[[Tensor], tuple[int, ...]]:
    """One number for each channel of images with this many spatial axes, with or without a batch."""
    return lambda x: (*x.shape[: x.dim() - spatial], *[1] * spatial)


rule(F.dropout, torch.dropout, torch.dropout_)(_dropout(_everywhere))
rule(F.alpha_dropout, torch.alpha_dropout, torch.alpha_dropout_)(_dropout(_everywhere, alpha=True))
rule(torch.feature_dropout, torch.feature_dropout_)(_dropout(_channels))
rule(F.feature_alpha_dropout, torch.feature_alpha_dropout, torch.feature_alpha_dropout_)(
    _dropout(_channels, alpha=True)
)
rule(F.dropout1d)(_dropout(_channels_of(1)))
rule(F.dropout2d)(_dropout(_channels_of(2)))
rule(F.dropout3d)(_dropout(_channels_of(3)))


@rule(F.rrelu, torch.rrelu, torch.rrelu_)
def _rrelu(calls: ModuleCalls, func: Any, args: tuple, kwargs: dict) -> Tensor:
    def slopes(
        input: Tensor,
        lower: float = 1 / 8,
        upper: float = 1 / 3,
        training: bool = False,
        inplace: bool = False,
        generator: Any = None,
    ) -> tuple[Tensor, Any, bool]:
        if not training or calls.key is None:
            return input, (lower + upper) / 2, inplace
        return input, random.uniform(calls.draw(), tuple(input.shape), input.dtype, lower, upper), inplace

    x, slope, inplace = slopes(*args, **kwargs)
    y = torch.where(x >= 0, x, x * slope)
    return calls.write(x, y) if inplace or func.__name__.endswith("_") else y


# Draws into a tensor


def _unit(key: Tensor, like: Tensor) -> Tensor:
    dtype = like.dtype if like.is_floating_point() else torch.float32
    return random.uniform(key, tuple(like.shape), dtype)


def _bernoulli(key: Tensor, like: Tensor, p: Any = 0.5) -> Tensor:
    return random.bernoulli(key, p, tuple(like.shape))


def _uniform(key: Tensor, like: Tensor, from_: float = 0.0, to: float = 1.0) -> Tensor:
    return random.uniform(key, tuple(like.shape), like.dtype, from_, to)


def _normal(key: Tensor, like: Tensor, mean: Any = 0.0, std: Any = 1.0) -> Tensor:
    return mean + std * random.normal(key, tuple(like.shape), like.dtype)


def _integers(key: Tensor, like: Tensor, from_: int = 0, to: int | None = None) -> Tensor:
    if to is None:
        limit = 1 << 24 if like.is_floating_point() else torch.iinfo(like.dtype).max
        from_, to = (0, from_) if from_ else (0, limit)
    return random.randint(key, tuple(like.shape), from_, to)


def _exponential(key: Tensor, like: Tensor, lambd: float = 1.0) -> Tensor:
    return -torch.log1p(-_unit(key, like)) / lambd


def _into(drawn: Callable[..., Tensor]) -> Rule:
    """The rule of a method that fills its tensor with draws."""

    def apply(calls: ModuleCalls, func: Any, args: tuple, kwargs: dict) -> Tensor:
        if kwargs.pop("generator", None) is not None:
            calls.refuse(func)
        options = {"from_" if name == "from" else name: value for name, value in kwargs.items()}
        tensor: Tensor = args[0]
        return calls.write(tensor, drawn(calls.draw(), *args, **options).to(tensor.device))

    return apply


rule(Tensor.bernoulli_)(_into(_bernoulli))
rule(Tensor.uniform_)(_into(_uniform))
rule(Tensor.normal_)(_into(_normal))
rule(Tensor.random_)(_into(_integers))
rule(Tensor.exponential_)(_into(_exponential))


@rule(torch.nn.init.uniform_, torch.nn.init.normal_)
def _initial(calls: ModuleCalls, func: Any, args: tuple, kwargs: dict) -> Tensor:
    def fill(tensor: Tensor, *bounds: float, generator: Any = None, **named: float) -> Tensor:
        if generator is not None:
            calls.refuse(func)
        draw = _uniform if func is torch.nn.init.uniform_ else _normal
        named = {{"a": "from_", "b": "to"}.get(name, name): value for name, value in named.items()}
        with torch.no_grad():
            return calls.write(tensor, draw(calls.draw(), tensor, *bounds, **named).to(tensor.device))

    return fill(*args, **kwargs)


# Draws that are new tensors


@rule(torch.bernoulli, Tensor.bernoulli)
def _bernoulli_like(calls: ModuleCalls, func: Any, args: tuple, kwargs: dict) -> Tensor:
    _refuse_generator(calls, func, kwargs)

    def draw(input: Tensor, p: float | None = None) -> Tensor:
        return _bernoulli(calls.draw(), input, input if p is None else p).to(input.dtype)

    return draw(*args, **kwargs)


@rule(torch.normal)
def _normal_of(calls: ModuleCalls, func: Any, args: tuple, kwargs: dict) -> Tensor:
    _refuse_generator(calls, func, kwargs)

    def draw(mean: Any = 0.0, std: Any = 1.0, size: Any = None, dtype: Any = None, device: Any = None) -> Tensor:
        shape = (
            torch.broadcast_shapes(*[x.shape for x in (mean, std) if isinstance(x, Tensor)]) if size is None else size
        )
        kinds = [x.dtype for x in (mean, std) if isinstance(x, Tensor)]
        dtype = dtype or (kinds[0] if kinds else torch.get_default_dtype())
        return mean + std * _placed(random.normal(calls.draw(), tuple(shape), dtype), {"device": device}, mean, std)

    return draw(*args, **kwargs)


@rule(torch.rand, torch.randn)
def _shaped(calls: ModuleCalls, func: Any, args: tuple, kwargs: dict) -> Tensor:
    _refuse_generator(calls, func, kwargs)
    shape = kwargs["size"] if "size" in kwargs else args[0] if args and not isinstance(args[0], int) else args
    draw = random.uniform if func is torch.rand else random.normal
    return _placed(draw(calls.draw(), tuple(shape), kwargs.get("dtype") or torch.get_default_dtype()), kwargs)


@rule(torch.rand_like, torch.randn_like)
def _shaped_like(calls: ModuleCalls, func: Any, args: tuple, kwargs: dict) -> Tensor:
    _refuse_generator(calls, func, kwargs)
    like = args[0] if args else kwargs["input"]
    draw = random.uniform if func is torch.rand_like else random.normal
    return _placed(draw(calls.draw(), tuple(like.shape), kwargs.get("dtype") or like.dtype), kwargs, like)


@rule(torch.randint, torch.randint_like)
def _randint(calls: ModuleCalls, func: Any, args: tuple, kwargs: dict) -> Tensor:
    _refuse_generator(calls, func, kwargs)
    if func is torch.randint_like:
        like, *bounds = args
        shape, dtype = like.shape, kwargs.get("dtype") or like.dtype
    else:
        *bounds, shape = args if "size" not in kwargs else (*args, kwargs["size"])
        like, dtype = None, kwargs.get("dtype") or torch.int64
    bounds += [kwargs[name] for name in ("low", "high") if name in kwargs]
    low, high = bounds if len(bounds) == 2 else (0, *bounds)
    return _placed(random.randint(calls.draw(), tuple(shape), low, high).to(dtype), kwargs, like)


@rule(torch.randperm)
def _randperm(calls: ModuleCalls, func: Any, args: tuple, kwargs: dict) -> Tensor:
    _refuse_generator(calls, func, kwargs)
    drawn = random.permutation(calls.draw(), args[0] if args else kwargs["n"])
    return _placed(drawn.to(kwargs.get("dtype") or torch.int64), kwargs)


@rule(torch.multinomial, Tensor.multinomial)
def _multinomial(calls: ModuleCalls, func: Any, args: tuple, kwargs: dict) -> Tensor:
    _refuse_generator(calls, func, kwargs)

    def draw(input: Tensor, num_samples: int, replacement: bool = False) -> Tensor:
        # the largest of the log-probabilities plus Gumbel noise are draws without replacement
        times = (num_samples, 1) if replacement else (1, num_samples)
        noise = random.uniform(calls.draw(), (*input.shape[:-1], times[0], input.shape[-1]))
        scores = input.log().unsqueeze(-2) - torch.log(-torch.log(noise))
        return scores.topk(times[1], -1).indices.flatten(-2)

    return draw(*args, **kwargs)


def _refuse_generator(calls: ModuleCalls, func: Any, kwargs: dict) -> None:
    if kwargs.pop("generator", None) is not None:
        calls.refuse(func)


def _placed(drawn: Tensor, kwargs: dict, *like: Any) -> Tensor:
    """The draw on the device that the call asks for: by name, that of the tensors in ``like``, or the default one."""
    devices = [kwargs.get("device"), *[x.device for x in like if isinstance(x, Tensor)], torch.get_default_device()]
    return drawn.to(next(device for device in devices if device is not None))


# Functions of Python that draw inside


@rule(
    F.multi_head_attention_forward,
    F.gumbel_softmax,
    F.fractional_max_pool2d_with_indices,
    F.fractional_max_pool3d_with_indices,
)
def _seen_inside(calls: ModuleCalls, func: Any, args: tuple, kwargs: dict) -> Any:
    with calls:
        return _torch.without_overrides(func)(*args, **kwargs)


@rule(F.fractional_max_pool2d, F.fractional_max_pool3d)
def _fractional_max_pool(calls: ModuleCalls, func: Any, args: tuple, kwargs: dict) -> Any:
    def call(
        input, kernel_size, output_size=None, output_ratio=None, return_indices=False, _random_samples=None
    ) -> Any:
        spatial = 2 if func is F.fractional_max_pool2d else 3
        found = F.fractional_max_pool2d_with_indices if spatial == 2 else F.fractional_max_pool3d_with_indices
        if _random_samples is None:
            batch = 1 if input.dim() == spatial + 1 else input.shape[0]
            shape = batch, input.shape[-spatial - 1], spatial
            _random_samples = random.uniform(calls.draw(), shape, input.dtype)
        pooled = found(input, kernel_size, output_size, output_ratio, True, _random_samples)
        return pooled if return_indices else pooled[0]

    return call(*args, **kwargs)


# All others are refused


def refused() -> dict[Any, Any]:
    """The rules of functions that draw and have no rule: they raise ``TypeError``."""
    places = torch, torch.Tensor, torch.nn.functional
    found = [getattr(place, name, None) for place in places for name in _REFUSED]
    return {func: lambda calls, func, args, kwargs: calls.refuse(func) for func in found if func and func not in RULES}


_REFUSED = (
    "binomial", "cauchy_", "geometric_", "log_normal_", "native_dropout", "poisson", "rrelu_with_noise",
    "rrelu_with_noise_", "miopen_rnn", "_fused_dropout", "_sample_dirichlet", "_standard_gamma",
)  # fmt: skip
RULES.update(refused())
rule(torch.nn.init.kaiming_uniform_)(lambda calls, func, args, kwargs: calls.refuse(func))
