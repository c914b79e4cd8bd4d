"""The limits of arguments: what lies on a limit that belongs to the range is taken, and its neighbour outside is not."""

# ruff: noqa: E501 (one argument a line)

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import fnn
from fnn import curvature, gradients, init, jacobian, layers, linalg, losses, metrics, optim, random, training
from fnn.data import transforms
from fnn.optim import schedules
from tests.test_odd_values import is_sentence

KEY = random.key(0)
ONES = torch.ones
DIAGONAL = linalg.matrix_operator(torch.diag(torch.arange(1.0, 7.0)))
SMALLEST = 5e-324  # the smallest positive float64


BETAS = {
    name: inspect.signature(getattr(optim, name)).parameters["betas"].default
    for name in optim.__all__
    if callable(getattr(optim, name)) and "betas" in inspect.signature(getattr(optim, name)).parameters
}


def apply(layer: Any, x: torch.Tensor, *more: Any) -> Any:
    return layer.apply(layer.init(KEY), x, *more)


def square(params: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
    return ((params * batch) ** 2).sum()


# the call, values that it takes, values that it refuses
LIMITS: dict[str, tuple[Callable[[Any], Any], list, list]] = {
    # random numbers
    "key": (random.key, [-(1 << 63), (1 << 64) - 1], [-(1 << 63) - 1, 1 << 64]),
    "uniform, maxval": (lambda v: random.uniform(KEY, (2,), minval=1.0, maxval=v), [1.0, 2.0], [0.99]),
    "uniform, the largest number": (
        lambda v: random.uniform(KEY, (2,), torch.float16, *v),
        [(-65504.0, 0.0), (0.0, 65504.0)],
        [(-65536.0, 0.0), (0.0, 65536.0), (-65504.0, 1.0), (math.nan, 1.0)],
    ),
    "truncated_normal": (lambda v: random.truncated_normal(KEY, *v), [(-1.0, -0.9)], [(1.0, 1.0), (2.0, 1.0), (1e9, 2e9), (-2e9, -1e9)]),
    "bernoulli": (lambda v: random.bernoulli(KEY, v), [0.0, 1.0], [-1e-9, 1.0 + 1e-9]),
    "randint, the dtype": (
        lambda v: random.randint(KEY, (3,), *v, torch.int8), [(-128, 128), (127, 128), (-128, -127)], [(-129, 0), (0, 129), (3, 3)],
    ),
    "permutation": (lambda v: random.permutation(KEY, v), [0, 1], [-1]),
    "categorical, dim": (lambda v: random.categorical(KEY, ONES(2, 3), v), [-2, 1], [-3, 2]),
    "categorical, classes": (lambda v: random.categorical(KEY, ONES(2, v)), [1], [0]),
    "split": (lambda v: random.split(KEY, v), [0, 1], [-1]),
    # initial values
    "init.truncated_normal, std": (lambda v: init.truncated_normal(std=v)(KEY, (2, 2)), [1e-3], [0.0, -1.0]),
    "init.truncated_normal, bounds": (lambda v: init.truncated_normal(a=v)(KEY, (2, 2)), [1.9], [2.0, 2.1]),
    **{
        f"init.{name}, axes": (lambda v, name=name: getattr(init, name)()(KEY, v), [(2, 3), (2, 3, 1)], [(3,), ()])
        for name in ("orthogonal", "xavier_uniform", "kaiming_normal", "lecun_uniform", "torch_default")
    },
    "init.fans": (init.fans, [(2, 3), (0, 3)], [(3,), ()]),
    # losses and metrics
    "cross_entropy": (lambda v: losses.cross_entropy(ONES(2, 3), torch.tensor([0, 1]), label_smoothing=v), [0.0, 1.0], [-1e-9, 1.0 + 1e-9]),
    "focal": (lambda v: losses.focal(ONES(2), ONES(2), gamma=v), [0.0], [-1e-9]),
    "huber": (lambda v: losses.huber(ONES(2), ONES(2), delta=v), [1e-9], [0.0, -1.0]),
    "smooth_l1": (lambda v: losses.smooth_l1(ONES(2), ONES(2), beta=v), [0.0, 0.5], [-1e-9]),
    "gaussian_nll": (lambda v: losses.gaussian_nll(ONES(2), ONES(2), ONES(2), eps=v), [1e-9], [0.0, -1e-9]),
    "triplet_margin": (lambda v: losses.triplet_margin(ONES(2, 3), ONES(2, 3), ONES(2, 3), margin=v), [1e-9], [0.0, -1.0]),
    "info_nce": (lambda v: losses.info_nce(torch.eye(3), torch.eye(3), temperature=v), [1e-3], [0.0, -0.1]),
    "nt_xent": (lambda v: losses.nt_xent(torch.eye(4), torch.eye(4), temperature=v), [1e-3], [0.0, -0.1]),
    "ctc, blank": (
        lambda v: losses.ctc(ONES(4, 1, 3).log_softmax(-1), torch.tensor([[1]]), torch.tensor([4]), torch.tensor([1]), blank=v),
        [0, 2], [-1, 3],
    ),
    "ctc, axes": (lambda v: losses.ctc(ONES(v).log_softmax(-1), torch.tensor([[1]]), torch.tensor([4]), torch.tensor([1])), [(4, 1, 3), (4, 3)], [(3,), (4, 1, 3, 1)]),
    "dice": (lambda v: losses.dice(ONES(v), ONES(v)), [(2, 3, 4)], [(2, 3)]),
    "top_k_accuracy": (lambda v: metrics.top_k_accuracy(ONES(2, 3), torch.tensor([0, 1]), v), [1, 3], [0, 4]),
    # layers
    **{
        f"{name}, p": (lambda v, name=name: apply(getattr(layers, name)(v), ONES(2, 3, 4, 4)), [0.0, 1.0], [-1e-9, 1.0 + 1e-9])
        for name in ("dropout", "dropout2d", "alpha_dropout", "feature_alpha_dropout")
    },
    "feature_alpha_dropout, axes": (
        lambda v: layers.feature_alpha_dropout().apply({}, ONES(v), key=KEY), [(2, 3), (2, 3, 1)], [(3,)],
    ),
    **{f"{name}, dim": (lambda v, name=name: getattr(layers, name)(ONES(2, 4), v), [0, 1, -2, -1], [2, -3]) for name in ("softmax", "log_softmax", "softmin", "glu", "swiglu", "geglu")},
    "softmax of a number, dim": (lambda v: layers.softmax(ONES(()), v), [0, -1], [1, -2]),
    "gumbel_softmax, dim": (lambda v: layers.gumbel_softmax(ONES(2, 4), dim=v, key=KEY), [0, 1, -2, -1], [2, -3]),
    "cosine_similarity, dim": (lambda v: layers.cosine_similarity(ONES(2, 4), ONES(4), v), [0, 1, -2, -1], [2, -3]),
    "gumbel_softmax": (lambda v: layers.gumbel_softmax(ONES(3), v, key=KEY), [1e-3], [0.0, -1.0]),
    "global_avg_pool": (lambda v: layers.global_avg_pool(ONES(v)), [(2, 3, 1), (0, 3, 1)], [(2, 3), (2, 3, 0)]),
    "adaptive_avg_pool1d": (lambda v: apply(layers.adaptive_avg_pool1d(2), ONES(v)), [(2, 3, 1), (3, 1)], [(2, 3, 0), (1,), (1, 2, 3, 4)]),
    "adaptive_log_softmax": (lambda v: apply(layers.adaptive_log_softmax(4, 5, v), ONES(2, 4)), [[1], [4], [1, 2]], [[0], [5], [2, 2], [3, 2], []]),
    "batch_norm in training": (lambda v: layers.batch_norm(3).apply(*layers.batch_norm(3).init(KEY), ONES(v), train=True), [(2, 3), (1, 3, 2)], [(1, 3), (1, 3, 1)]),
    "map_over_time": (lambda v: apply(layers.map_over_time(layers.linear(3, 2)), ONES(v)), [(2, 3, 3)], [(3,)]),
    "conv2d, input": (lambda v: apply(layers.conv2d(1, 1, 3, padding=1, dilation=2), ONES(1, v, 5)), [3], [2]),
    "conv1d, stride": (lambda v: apply(layers.conv1d(1, 1, 2, v), ONES(1, 4)), [1], [0]),
    "conv1d, dilation": (lambda v: apply(layers.conv1d(1, 1, 2, dilation=v), ONES(1, 4)), [1, 3], [0, 4]),
    "conv1d, padding": (lambda v: apply(layers.conv1d(1, 1, 2, padding=v), ONES(1, 4)), [0], [-1]),
    "conv_transpose1d, output_padding": (lambda v: apply(layers.conv_transpose1d(1, 1, 2, 2, dilation=3, output_padding=v), ONES(1, 4)), [0, 2], [-1, 3]),
    "conv_transpose1d, padding": (lambda v: apply(layers.conv_transpose1d(1, 1, 2, padding=v), ONES(1, 3)), [1], [2]),
    "pairwise_distance": (lambda v: layers.pairwise_distance(ONES(2, 3), ONES(2, 3) * 2, v), [0.0, 1.0], [-1e-9]),
    "attention, axes": (lambda v: layers.scaled_dot_product_attention(ONES(v), ONES(v), ONES(v)), [(1, 1)], [(1,)]),
    "attention, groups of heads": (lambda v: layers.scaled_dot_product_attention(ONES(v, 1, 2), ONES(2, 1, 2), ONES(2, 1, 2), enable_gqa=True), [2, 4], [3]),
    "embedding, padding_idx": (lambda v: apply(layers.embedding(3, 2, v), torch.tensor([0])), [-3, 2], [-4, 3]),
    "embedding, max_norm": (lambda v: apply(layers.embedding(3, 2, max_norm=v), torch.tensor([0])), [1e-3], [0.0, -1.0]),
    "embedding, norm_type": (lambda v: apply(layers.embedding(3, 2, max_norm=1.0, norm_type=v), torch.tensor([0])), [1.0], [0.0]),
    "embedding, features": (lambda v: apply(layers.embedding(3, v), torch.tensor([0])), [0, 1], [-1]),
    "fold": (lambda v: layers.fold(v, 2), [2, 3], [1]),
    "unfold": (lambda v: apply(layers.unfold(2), ONES(1, v, v)), [2], [1]),
    "fractional_max_pool2d, ratio": (lambda v: apply(layers.fractional_max_pool2d(1, output_ratio=v), ONES(1, 4, 4)), [0.25, 0.99], [0.0, 1.0, 0.24]),
    "fractional_max_pool2d, size": (lambda v: apply(layers.fractional_max_pool2d(2, v), ONES(1, 4, 4)), [1, 3], [0, 4]),
    "local_response_norm": (lambda v: apply(layers.local_response_norm(2), ONES(v)), [(1, 2, 3)], [(2, 3)]),
    "max_unpool1d": (lambda v: layers.max_unpool1d(2).apply({}, ONES(1, 2), torch.tensor([[0, 2]]), [v]), [3, 5], [2, 6]),
    "layer_norm": (lambda v: layers.layer_norm(v).init(KEY), [1, (1, 2)], [0, (), (2, 0)]),
    "reflection_pad1d": (lambda v: apply(layers.reflection_pad1d(v), ONES(1, 3)), [2, -1, (-2, 0)], [3, (-3, 0), (-2, -1)]),
    "circular_pad1d": (lambda v: apply(layers.circular_pad1d(v), ONES(1, 3)), [3], [4]),
    "zero_pad1d": (lambda v: apply(layers.zero_pad1d(v), ONES(1, 3)), [9, (-2, 0), (0, -2), (-1, -1)], [(-3, 0), (-3, 3), (3, -3), (-2, -1)]),
    "weight_norm": (lambda v: apply(layers.weight_norm(layers.linear(4, 3), dim=v), ONES(4)), [0, 1], [-1, 2]),
    "spectral_norm": (lambda v: layers.spectral_norm(layers.linear(4, 3), dim=v).init(KEY), [0, 1], [-1, 2]),
    "spectral_norm, steps": (lambda v: layers.spectral_norm(layers.linear(4, 3), n_power_iterations=v).init(KEY), [1], [0]),
    "rrelu": (lambda v: apply(layers.rrelu(v, 0.5), ONES(2)), [0.5, 0.1], [0.51]),
    "hardtanh": (lambda v: layers.hardtanh(ONES(2), v, 1.0), [1.0], [1.01]),
    "softshrink": (lambda v: layers.softshrink(ONES(2), v), [0.0], [-1e-9]),
    "lp_pool1d": (lambda v: apply(layers.lp_pool1d(v, 2), ONES(1, 4)), [1e-3, math.inf], [0.0, -1.0, math.nan]),
    "max_pool1d, padding": (lambda v: apply(layers.max_pool1d(3, padding=v), ONES(1, 4)), [1], [2, -1]),
    "max_pool1d, even window": (lambda v: apply(layers.max_pool1d(4, padding=v), ONES(1, 4)), [2], [3]),
    "max_pool1d, input": (lambda v: apply(layers.max_pool1d(3, padding=1, dilation=2), ONES(1, v)), [3], [2]),
    "avg_pool1d, input": (lambda v: apply(layers.avg_pool1d(3), ONES(1, v)), [3], [2]),
    "avg_pool2d, divisor": (lambda v: apply(layers.avg_pool2d(2, divisor_override=v), ONES(1, 4, 4)), [1], [0, -1]),
    "rotary_positions": (lambda v: layers.rotary_positions(ONES(v)), [(1, 2), (1, 0)], [(2,), (1, 3)]),
    "learned_positions": (lambda v: apply(layers.learned_positions(3, 2), ONES(v, 2)), [3, 0], [4]),
    "sinusoidal_positions": (lambda v: apply(layers.sinusoidal_positions(2), ONES(v)), [(1, 2)], [(2,)]),
    "pixel_shuffle": (lambda v: apply(layers.pixel_shuffle(2), ONES(v)), [(4, 1, 1)], [(4, 1), (2, 2, 2), (6, 2, 2)]),
    "pixel_unshuffle": (lambda v: apply(layers.pixel_unshuffle(2), ONES(v)), [(1, 2, 2)], [(2, 2), (1, 3, 2), (1, 2, 3)]),
    "channel_shuffle": (lambda v: apply(layers.channel_shuffle(2), ONES(v)), [(1, 2), (1, 4, 3)], [(2,), (1, 3)]),
    "lstm, proj_size": (lambda v: layers.lstm(2, 3, proj_size=v).init(KEY), [0, 2], [-1, 3]),
    "interpolate, scale": (lambda v: layers.interpolate(ONES(1, 1, 4), scale_factor=v), [0.25, 2.0], [0.0, -1.0, 0.24]),
    "interpolate, size": (lambda v: layers.interpolate(ONES(1, 1, 4), v), [1], [0]),
    "transformer_encoder": (lambda v: layers.transformer_encoder(layers.transformer_encoder_layer(4, 2, 8), v).init(KEY), [0, 1], [-1]),
    "linear": (lambda v: apply(layers.linear(v, 2), ONES(3, max(v, 0))), [0, 1], [-1]),
    "attention_cache": (lambda v: layers.attention_cache(v, 3, 4, 2), [0], [-1]),
    "mlp": (lambda v: fnn.models.mlp(*v), [(3, 2)], [(3,), ()]),
    # gradients
    "chunk_size, per-sample": (lambda v: fnn.per_sample_grad(square, chunk_size=v)(ONES(2), ONES(3, 2)), [1, 3, 4], [0, -1]),
    "accumulate_grad": (lambda v: gradients.accumulate_grad(square, v)(ONES(2), ONES(3, 2)), [1, 3], [0, 4, 1.0]),
    "per_sample_moments": (lambda v: gradients.per_sample_moments(square)(ONES(2), ONES(v, 2)), [2], [1]),
    "gradient_noise_scale": (lambda v: gradients.gradient_noise_scale(square)(ONES(2), ONES(v, 2)), [2], [1]),
    "clipped_grad": (lambda v: fnn.clipped_grad(square, v)(ONES(2), ONES(3, 2)), [SMALLEST, 1], [0.0, -1.0, math.nan]),
    "poisson_sample, rate": (lambda v: gradients.poisson_sample(KEY, 10, v, 5), [1e-9, 1.0], [0.0, 1.0 + 1e-9]),
    "poisson_sample, max_batch": (lambda v: gradients.poisson_sample(KEY, 10, 0.5, v), [1, 10], [0, 11]),
    "argnums": (lambda v: fnn.grad(square, v)(ONES(2), ONES(2)), [-2, 1, (0, 1)], [-3, 2, (0, 0), (0, -2)]),
    # axes
    "vmap, in_dims": (lambda v: fnn.vmap(torch.sum, in_dims=v)(ONES(2, 3)), [-2, 1], [-3, 2]),
    "vmap, in_dims of one": (lambda v: fnn.vmap(torch.mul, in_dims=(None, v))(ONES(2, 3), ONES(2)), [-1, 0], [-2, 1]),
    "vmap, in_dims of a dict": (lambda v: fnn.vmap(lambda d: d["a"], in_dims=({"a": v},))({"a": ONES(2, 3)}), [-2, 1], [-3, 2]),
    **{
        f"{name}, argnums": (lambda v, of=of: of(torch.dot, v)(ONES(2), ONES(2)), [-2, 1, (0, 1)], [-3, 2])
        for name, of in {"jacrev": fnn.jacrev, "jacfwd": fnn.jacfwd, "hessian": fnn.hessian, "value_and_grad": fnn.value_and_grad}.items()
    },
    **{
        f"{name}, batch_argnums": (lambda v, of=of: of(square, batch_argnums=v)(ONES(3, 2), ONES(3, 2)), [-1, 1], [-3, 2])
        for name, of in {
            "per_sample_grad": fnn.per_sample_grad, "per_sample_norms": gradients.per_sample_norms, "per_sample_moments": gradients.per_sample_moments,
            "ghost_plan": gradients.ghost_plan, "gradient_noise_scale": gradients.gradient_noise_scale, "accumulate_grad": lambda f, batch_argnums: gradients.accumulate_grad(f, 3, batch_argnums),
        }.items()
    },
    # jacobian, curvature, linear algebra
    "check_grads": (lambda v: jacobian.check_grads(torch.sin, (ONES(2).double(),), order=v), [1, 2], [0]),
    "directional_derivatives": (lambda v: jacobian.directional_derivatives(torch.sin, (ONES(2),), (ONES(2),), order=v), [1, 3], [0]),
    "chunk_size, dense": (lambda v: jacobian.dense_jacobian(torch.sin, chunk_size=v)(ONES(3)), [1, 4], [0, -1]),
    "draws": (lambda v: curvature.fisher_product(lambda p: p, (ONES(2, 3),), (ONES(2, 3),), key=KEY, draws=v), [1, 2], [0]),
    "logits": (lambda v: curvature.fisher_product(lambda p: p, (ONES(v),), (ONES(v),)), [(2, 3)], [(3,), ()]),
    "estimate_trace, probes": (
        lambda v: linalg.estimate_trace(DIAGONAL, KEY, *v), [(2, "hutchinson"), (6, "hutch++"), (4, "xtrace")],
        [(1, "hutchinson"), (5, "hutch++"), (3, "xtrace")],
    ),
    "estimate_trace, vectors": (
        lambda v: linalg.estimate_trace(DIAGONAL, KEY, *v), [(17, "hutch++"), (11, "xtrace")], [(18, "hutch++"), (12, "xtrace")],
    ),
    "estimate_diagonal": (lambda v: linalg.estimate_diagonal(DIAGONAL, KEY, v), [2], [1]),
    "estimate_diagonal, xdiag": (lambda v: linalg.estimate_diagonal(DIAGONAL, KEY, v, "xdiag"), [4, 11], [3, 12]),
    "lobpcg": (lambda v: linalg.lobpcg(DIAGONAL, v, KEY), [1, 2], [0, 3]),
    "gmres, restart": (lambda v: linalg.gmres(DIAGONAL, ONES(6), restart=v), [1, 7], [0]),
    "estimate_frobenius_norm": (lambda v: linalg.estimate_frobenius_norm(DIAGONAL, KEY, v), [2], [1]),
    "cg, max_iterations": (lambda v: linalg.cg(DIAGONAL, ONES(6), max_iterations=v), [1], [0]),
    "cg, tolerance": (lambda v: linalg.cg(DIAGONAL, ONES(6), tolerance=v), [1e-9], [0.0, -1.0]),
    "eigenpairs": (lambda v: linalg.eigenpairs(DIAGONAL, v, KEY), [1, 6], [0, 7]),
    "eigenpairs, max_restarts": (lambda v: linalg.eigenpairs(DIAGONAL, 1, KEY, max_restarts=v), [1], [0]),
    "eigenpairs, subspace": (lambda v: linalg.eigenpairs(DIAGONAL, 2, KEY, subspace=v), [3], [2]),
    "spectral_density, probes": (lambda v: linalg.spectral_density(DIAGONAL, KEY, v, 3), [1], [0]),
    "spectral_density, steps": (lambda v: linalg.spectral_density(DIAGONAL, KEY, 2, v), [1], [0]),
    "log_determinant": (lambda v: linalg.log_determinant(DIAGONAL, KEY, v, 3), [2], [1]),
    # optimizers
    "learning_rate": (lambda v: optim.sgd(v), [0.0], [-1e-9]),
    **{
        f"{name}, beta {i + 1}": (
            lambda v, name=name, usual=usual, i=i: getattr(optim, name)(betas=(*usual[:i], v, *usual[i + 1 :])),
            [0.001, 0.999], [-1e-9, 1.0],
        )
        for name, usual in BETAS.items() for i in range(len(usual))
    },
    "lbfgs, max_iter": (lambda v: optim.lbfgs(max_iter=v), [1], [0]),
    "lbfgs, history_size": (lambda v: optim.lbfgs(history_size=v), [1], [0]),
    "lookahead": (lambda v: optim.lookahead(optim.sgd(), every=v), [1], [0]),
    "accumulate": (lambda v: optim.accumulate(optim.sgd(), v), [1], [0]),
    "polynomial": (lambda v: schedules.polynomial(1.0, 0.0, v), [1], [0]),
    "reduce_on_plateau": (lambda v: schedules.reduce_on_plateau(1.0, factor=v), [1e-9, 0.999], [0.0, 1.0]),
    # loops
    "scan, unroll": (lambda v: fnn.scan(lambda c, x: (c + x, x), ONES(()), ONES(3), unroll=v), [1, 4], [0, True, 1.0]),
    "scan, length": (lambda v: fnn.scan(lambda c, x: (c, c), ONES(()), {}, length=v), [0, 1], [-1, True, 1.0]),
    "epoch": (lambda v: fnn.compile.epoch(lambda c, b: (c, b.sum()), ONES(()), ONES(4), KEY, v), [1, 4], [0, 5]),
    # data and training
    "batches": (lambda v: list(fnn.data.batches(ONES(4), v)), [1, 9], [0, -1]),
    "batches, drop_last": (lambda v: list(fnn.data.batches(ONES(4), v, drop_last=True)), [4], [5]),
    "normalize": (lambda v: transforms.normalize(0.5, v), [1e-9], [0.0, -1.0, (0.5, 0.0)]),
    "random_rotation": (transforms.random_rotation, [0, 180], [-1e-9, 181]),
    "random_flip": (transforms.random_flip, [0.0, 1.0], [-1e-9, 1.0 + 1e-9]),
    "mixup": (transforms.mixup, [1e-3], [0.0, -1.0, math.nan]),
    "random_crop": (lambda v: transforms.random_crop(v)(ONES(1, 1, 4, 4), key=KEY), [1, 4], [0, 5]),
    "pad": (lambda v: transforms.pad(v)(ONES(1, 1, 4, 4)), [0], [-1]),
    "predict": (lambda v: training.predict(lambda p, x: x, {}, ONES(2, 3), top=v), [1, 3], [0, 4]),
    "evaluate": (lambda v: training.evaluate(lambda p, b: {"sum": b.sum()}, {}, ONES(3), batch_size=v), [1], [0]),
    **{
        f"fit, {name}": (
            lambda v, name=name: list(training.fit(lambda p, b: (p, b.sum()), ({},), lambda epoch: [ONES(2)], **({"epochs": 1, name: v} | ({"score": lambda row: 0.0} if name == "patience" else {})))),
            [1], [0],
        )
        for name in ("epochs", "keep", "patience")
    },
}  # fmt: skip


@pytest.mark.parametrize("name", LIMITS)
def test_limits(name: str) -> None:
    call, taken, refused = LIMITS[name]
    for value in taken:
        call(value)
    for value in refused:
        with pytest.raises((ValueError, TypeError)) as found:
            call(value)
        assert is_sentence(found.value), repr(found.value)
