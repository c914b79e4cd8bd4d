"""Default arguments: torch's own where torch has the function, and otherwise those of a table.

A default that changes is an incompatible change for users, so the table is changed together with the changelog.
"""

# ruff: noqa: E501 (one function a line)

import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import fnn
from fnn.jacobian.operator import NO_BATCH

NOTHING = inspect.Parameter.empty
OTHER_NAMES = {"learning_rate": "lr"}
TORCH = {
    "layers": [vars(nn), vars(nn.functional)],
    "losses": [{name.removesuffix("Loss"): value for name, value in vars(nn).items()}],
    "optim": [vars(torch.optim)],
    "init": [{name.removesuffix("_"): value for name, value in vars(nn.init).items() if name.endswith("_")}],
}


def public(module: types.ModuleType, name: str = "") -> Iterator[tuple[str, Callable]]:
    """Every public function and class, with its name in the library."""
    for each in module.__all__:
        value = getattr(module, each)
        if isinstance(value, types.ModuleType):
            yield from public(value, f"{name}{each}.")
        elif callable(value):
            yield f"{name}{each}", value


def defaults(function: Callable) -> dict[str, Any]:
    try:
        given = inspect.signature(function).parameters
    except (ValueError, TypeError):  # torch's functions in C++ have no signature
        return {}
    return {name: parameter.default for name, parameter in given.items() if parameter.default is not NOTHING}


def counterpart(name: str) -> Callable | None:
    room, _, last = name.partition(".")
    for names in TORCH.get(room, []):
        plain = {other.replace("_", "").lower(): value for other, value in names.items() if not other.startswith("_")}
        found = plain.get(last.replace("_", ""))
        if callable(found):
            return found
    return None


def shown(value: Any) -> str:
    return value.__name__ if isinstance(value, types.FunctionType) else repr(value)


def own(name: str, function: Callable) -> dict[str, Any]:
    """The defaults that torch does not give. None stands for an option that is not used, and is left out."""
    other = counterpart(name)
    theirs = defaults(other.__init__ if isinstance(other, type) else other) if other is not None else {}
    return {
        argument: value
        for argument, value in defaults(function).items()
        if value is not None
        and value is not NO_BATCH
        and (theirs.get(OTHER_NAMES.get(argument, argument)) is None or callable(value))
    }


FUNCTIONS = {name: value for name, value in public(fnn) if value.__module__.startswith("fnn")}
COUNTERPARTS = [name for name in FUNCTIONS if counterpart(name) is not None]


OWN = """
checkpoint.load | device='cpu'
clipped_grad | method='auto', reduction='sum', per_leaf=False, batch_argnums=1, return_norms=False
compile.epoch | unroll=1
curvature.dense_hessian | argnums=0, mode='auto', has_aux=False
curvature.ekfac | likelihood='categorical', draws=1, weight_sharing='expand'
curvature.empirical_fisher_product | has_aux=False
curvature.fisher_operator | likelihood='categorical', draws=1
curvature.fisher_product | likelihood='categorical', draws=1, has_aux=False
curvature.ggn_product | has_aux=False
curvature.hessian_diagonal | argnums=0, mode='auto'
curvature.hvp | mode='auto', has_aux=False
curvature.hvp_mode | has_aux=False
curvature.kfac | likelihood='categorical', draws=1, weight_sharing='expand'
curvature.per_sample_fisher_diagonal | likelihood='categorical', draws=1
curvature.sparse_hessian | mode='auto', check=True
curvature.vhp | has_aux=False
data.Stream | workers=4
data.batches | drop_last=False, part=(0, 1)
data.from_csv | columns=(0, 1), stream=False
data.from_dataset | progress=False
data.from_folder | stream=False
data.load_dataset | download=True
data.transforms.cutout | value=0.0
data.transforms.mixup | alpha=0.2
data.transforms.pad | mode='constant', value=0.0
data.transforms.random_crop | padding=0
data.transforms.random_flip | probability=0.5, vertical=False
data.transforms.resize | mode='bilinear', antialias=True
device | name='auto'
distributed.Sharding | copies=1, copies_group=''
distributed.data_parallel | reduction='mean'
distributed.fully_sharded | reduction='mean'
distributed.init | device='auto', timeout=600.0
distributed.local_batches | drop_last=False
distributed.reduce | reduction='mean'
fori_loop | unroll=1
grad | argnums=0, has_aux=False
gradients.accumulate_grad | batch_argnums=1
gradients.adapt_max_norm | quantile=0.5, rate=0.2, count_std=0.0
gradients.check_per_sample | batch_argnums=1, rtol=0.001, atol=1e-06
gradients.ghost_plan | batch_argnums=1
gradients.gradient_noise_scale | method='auto', batch_argnums=1
gradients.per_sample_moments | batch_argnums=1
gradients.per_sample_norms | method='auto', per_leaf=False, batch_argnums=1
gradients.per_sample_value_and_grad | argnums=0, has_aux=False, batch_argnums=1
hessian | argnums=0
init.gain | slope=0.01
init.glorot_normal | gain=1.0
init.glorot_uniform | gain=1.0
init.he_normal | a=0.0, mode='fan_in', nonlinearity='leaky_relu'
init.he_uniform | a=0.0, mode='fan_in', nonlinearity='leaky_relu'
init.truncated_normal | mean=0.0, std=1.0, a=-2.0, b=2.0
init.uniform | low=0.0, high=1.0
init.variance_scaling | scale=1.0, mode='fan_in', distribution='uniform'
interop.load_state_dict | strict=True
interop.read_state_dict | device='cpu'
interop.torchvision_weights | progress=False
jacfwd | argnums=0, has_aux=False, randomness='error'
jacobian.check_grads | order=2, modes=('fwd', 'rev')
jacobian.custom_jvp | check=True
jacobian.custom_vjp | check=True
jacobian.dense_jacobian | argnums=0, mode='auto', has_aux=False, holomorphic=False
jacobian.directional_derivatives | order=2
jacobian.fixed_point | symmetric=False, max_iterations=1000
jacobian.jmp | has_aux=False
jacobian.laplacian | argnums=0
jacobian.linear_solve | symmetric=False
jacobian.mjp | has_aux=False
jacobian.ntk | mode='full', method='contraction'
jacobian.root | symmetric=False, max_iterations=20
jacobian.sparse_jacobian | check=True
jacobian.straight_through | surrogate=<lambda>
jacrev | argnums=0, has_aux=False
jit | donate_argnums=(), static_argnums=(), backend='replay', background=False
jvp | strict=False, has_aux=False
layers.ShapeError | path=()
layers.adaptive_log_softmax | div_value=4.0, head_bias=False, dtype=torch.float32
layers.attention_cache | dtype=torch.float32
layers.batch_norm | affine=True, track_running_stats=True, bias=True, dtype=torch.float32
layers.bilinear | dtype=torch.float32
layers.conv1d | dtype=torch.float32
layers.conv2d | dtype=torch.float32
layers.conv3d | dtype=torch.float32
layers.conv_transpose1d | dtype=torch.float32
layers.conv_transpose2d | dtype=torch.float32
layers.conv_transpose3d | dtype=torch.float32
layers.embedding | dtype=torch.float32
layers.embedding_bag | dtype=torch.float32
layers.geglu | dim=-1
layers.group_norm | dtype=torch.float32
layers.gru | num_layers=1, bias=True, dropout=0.0, bidirectional=False, return_state=True, dtype=torch.float32
layers.gru_cell | dtype=torch.float32
layers.instance_norm | affine=False, track_running_stats=False, bias=True, dtype=torch.float32
layers.layer_norm | dtype=torch.float32
layers.learned_positions | dtype=torch.float32
layers.linear | dtype=torch.float32
layers.log_softmax | dim=-1
layers.lstm | num_layers=1, bias=True, dropout=0.0, bidirectional=False, proj_size=0, return_state=True, dtype=torch.float32
layers.lstm_cell | dtype=torch.float32
layers.mixed_precision | params=torch.float32, compute=torch.bfloat16, output=torch.float32
layers.multi_head_attention | causal=False, fused=False, dtype=torch.float32
layers.parallel | combine='sum', dim=1
layers.prelu | dtype=torch.float32
layers.repeat | unroll=1, remat=False
layers.rms_norm | dtype=torch.float32
layers.rnn | num_layers=1, nonlinearity='tanh', bias=True, dropout=0.0, bidirectional=False, return_state=True, dtype=torch.float32
layers.rnn_cell | dtype=torch.float32
layers.rotary_positions | base=10000.0, interleaved=False
layers.scaled_dot_product_attention | dropout_p=0.0, is_causal=False, enable_gqa=False, fused=False
layers.sinusoidal_positions | base=10000.0
layers.softmax | dim=-1
layers.softmin | dim=-1
layers.spectral_norm | name='weight', n_power_iterations=1, eps=1e-12
layers.swiglu | dim=-1
layers.transformer | activation=relu, fused=False, dtype=torch.float32
layers.transformer_decoder_layer | activation=relu, fused=False, dtype=torch.float32
layers.transformer_encoder_layer | activation=relu, causal=False, fused=False, dtype=torch.float32
layers.weight_norm | name='weight', dim=0
linalg.LinearOperator | symmetric=False
linalg.cg | tolerance=1e-06, early_stop=True
linalg.eigenpairs | which='largest', tolerance=1e-06, max_restarts=50
linalg.estimate_diagonal | probes=100, method='hutchinson'
linalg.estimate_frobenius_norm | probes=30
linalg.estimate_trace | probes=30, method='xtrace'
linalg.gmres | restart=20, tolerance=1e-06, early_stop=True
linalg.lobpcg | which='largest', tolerance=1e-06, max_iterations=100, early_stop=True
linalg.log_determinant | probes=10, steps=40
linalg.lsmr | damping=0.0, tolerance=1e-06, early_stop=True
linalg.minres | tolerance=1e-06, early_stop=True
linalg.neumann | scale=1.0, tolerance=1e-06, early_stop=True
linalg.spectral_density | probes=10, steps=40
losses.dice | smooth=1.0, reduction='mean'
losses.focal | alpha=0.25, gamma=2.0, reduction='mean'
losses.info_nce | temperature=0.1, reduction='mean'
losses.nt_xent | temperature=0.5, reduction='mean'
metrics.f1 | average='macro'
metrics.precision | average='macro'
metrics.recall | average='macro'
metrics.scores | average='macro'
metrics.top_k_accuracy | k=5
models.alexnet | num_classes=1000, in_channels=3, p=0.5
models.efficientnet_b0 | num_classes=1000, in_channels=3, p=0.2, stochastic_depth=0.2
models.gpt | max_length=1024, embed_dim=768, num_heads=12, num_layers=12, p=0.0, positions='learned', tied=True, stacked=False, recompute=False
models.gpt_cache | embed_dim=768, num_heads=12, num_layers=12, dtype=torch.float32
models.lenet | num_classes=10
models.mlp | activation=relu
models.mobilenet_v2 | num_classes=1000, in_channels=3, p=0.2
models.resnet101 | num_classes=1000, in_channels=3
models.resnet152 | num_classes=1000, in_channels=3
models.resnet18 | num_classes=1000, in_channels=3
models.resnet34 | num_classes=1000, in_channels=3
models.resnet50 | num_classes=1000, in_channels=3
models.vgg11 | num_classes=1000, in_channels=3, p=0.5
models.vgg11_bn | num_classes=1000, in_channels=3, p=0.5
models.vgg13 | num_classes=1000, in_channels=3, p=0.5
models.vgg13_bn | num_classes=1000, in_channels=3, p=0.5
models.vgg16 | num_classes=1000, in_channels=3, p=0.5
models.vgg16_bn | num_classes=1000, in_channels=3, p=0.5
models.vgg19 | num_classes=1000, in_channels=3, p=0.5
models.vgg19_bn | num_classes=1000, in_channels=3, p=0.5
models.vit | p=0.0, attention_dropout=0.0, num_classes=1000, in_channels=3
models.vit_b_16 | num_classes=1000, image_size=224, p=0.0, attention_dropout=0.0
models.wide_resnet101_2 | num_classes=1000, in_channels=3
models.wide_resnet50_2 | num_classes=1000, in_channels=3
optim.adabelief | learning_rate=0.001, betas=(0.9, 0.999), eps=1e-16, weight_decay=0.0, maximize=False
optim.adan | learning_rate=0.001, betas=(0.98, 0.92, 0.99), eps=1e-08, weight_decay=0.0, maximize=False
optim.adaptive_gradient_clip | clipping=0.01, eps=0.001
optim.add_noise | gamma=0.55
optim.ademamix | learning_rate=0.001, betas=(0.9, 0.999, 0.9999), alpha=5.0, eps=1e-08, weight_decay=0.0, maximize=False
optim.adopt | learning_rate=0.001, betas=(0.9, 0.9999), eps=1e-06, weight_decay=0.0, use_clipping=True, nesterov=False, maximize=False
optim.apply_if_finite | max_in_a_row=5
optim.average_params | start=0, every=1
optim.backtracking_line_search | max_backtracking_steps=15, slope_rtol=0.0001, decrease_factor=0.8, increase_factor=1.5, max_learning_rate=1.0, atol=0.0, rtol=0.0
optim.dadapt_adamw | learning_rate=1.0, betas=(0.9, 0.999), eps=1e-08, estim_lr0=1e-06, weight_decay=0.0, maximize=False
optim.dog | learning_rate=1.0, init_step=('heuristic', 1e-06), eps=1e-08, weight_decay=0.0, maximize=False
optim.ema | decay=0.9, debias=True
optim.ema_params | decay=0.999
optim.from_rule | extra=(), real_only=''
optim.lamb | learning_rate=0.001, betas=(0.9, 0.999), eps=1e-06, weight_decay=0.0, maximize=False
optim.lars | learning_rate=0.1, momentum=0.9, nesterov=False, weight_decay=0.0, trust_coefficient=0.001, eps=0.0, maximize=False
optim.lion | learning_rate=0.0001, betas=(0.9, 0.99), weight_decay=0.001, maximize=False
optim.lookahead | every=5, slow_rate=0.5
optim.madgrad | learning_rate=0.01, momentum=0.9, weight_decay=0.0, eps=1e-06, maximize=False
optim.momentum | momentum=0.9, dampening=0.0, nesterov=False
optim.muon | adam_learning_rate=0.001, matrices=<lambda>
optim.novograd | learning_rate=0.01, betas=(0.9, 0.25), eps=1e-06, weight_decay=0.0, maximize=False
optim.optimistic_adam | learning_rate=0.001, betas=(0.9, 0.999), eps=1e-08, alpha=1.0, beta=1.0, weight_decay=0.0, maximize=False
optim.optimistic_gradient_descent | learning_rate=0.001, alpha=1.0, beta=1.0, maximize=False
optim.orthogonalize | coefficients=(3.4445, -4.775, 2.0315), steps=5, eps=1e-07
optim.polyak_sgd | max_learning_rate=1.0, scaling=1.0, f_min=0.0, eps=0.0, variant='sps'
optim.prodigy | learning_rate=1.0, betas=(0.9, 0.999), eps=1e-08, estim_lr0=1e-06, estim_lr_coef=1.0, weight_decay=0.0, safeguard_warmup=False, maximize=False
optim.projections.l1_ball | scale=1.0
optim.projections.l2_ball | scale=1.0
optim.projections.linf_ball | scale=1.0
optim.projections.simplex | scale=1.0
optim.sam | rho=0.05, adaptive=False
optim.scale_by_adadelta | rho=0.9, eps=1e-06
optim.scale_by_adam | beta1=0.9, beta2=0.999, eps=1e-08, amsgrad=False
optim.scale_by_adamax | beta1=0.9, beta2=0.999, eps=1e-08
optim.scale_by_adan | beta1=0.98, beta2=0.92, beta3=0.99, eps=1e-08, eps_root=1e-08
optim.scale_by_ademamix | beta1=0.9, beta2=0.999, beta3=0.9999, alpha=5.0, eps=1e-08
optim.scale_by_adopt | beta1=0.9, beta2=0.9999, eps=1e-06, use_clipping=True, nesterov=False
optim.scale_by_belief | beta1=0.9, beta2=0.999, eps=1e-16, eps_root=1e-16
optim.scale_by_dog | init_step=('heuristic', 1e-06), eps=1e-08
optim.scale_by_lion | beta1=0.9, beta2=0.99
optim.scale_by_muon | momentum=0.95, nesterov=True, ns_coefficients=(3.4445, -4.775, 2.0315), eps=1e-07, ns_steps=5
optim.scale_by_nadam | beta1=0.9, beta2=0.999, eps=1e-08, momentum_decay=0.004
optim.scale_by_novograd | beta1=0.9, beta2=0.25, eps=1e-06, weight_decay=0.0
optim.scale_by_optimistic_gradient | alpha=1.0, beta=1.0
optim.scale_by_polyak | f_min=0.0, max_learning_rate=1.0, eps=0.0, variant='sps'
optim.scale_by_radam | beta1=0.9, beta2=0.999, eps=1e-08
optim.scale_by_rms | decay=0.99, eps=1e-08, centered=False, debias=False
optim.scale_by_rss | initial_accumulator_value=0.0, eps=1e-10
optim.scale_by_sm3 | momentum=0.9, eps=1e-08
optim.scale_by_sophia | beta1=0.965, beta2=0.99, gamma=0.01, eps=1e-08, limit=1.0
optim.scale_by_trust_ratio | coefficient=1.0, eps=0.0
optim.scale_by_yogi | beta1=0.9, beta2=0.999, eps=0.001, initial_accumulator_value=1e-06
optim.schedule_free | beta1=0.9, weight_power=2.0
optim.schedule_free_adamw | learning_rate=0.0025, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.0, weight_power=2.0
optim.schedule_free_sgd | learning_rate=1.0, beta1=0.9, weight_decay=0.0, weight_power=2.0
optim.schedules.cosine | end=0.0
optim.schedules.cosine_restarts | multiply=1, end=0.0
optim.schedules.cyclic | mode='triangular', gamma=1.0
optim.schedules.exponential | every=1, staircase=False
optim.schedules.multistep | gamma=0.1
optim.schedules.one_cycle | rise=0.3, start_factor=25.0, end_factor=10000.0, shape='cosine', three_phase=False
optim.schedules.polynomial | power=1.0
optim.schedules.reduce_on_plateau | factor=0.1, patience=10, threshold=0.0001, threshold_mode='rel', cooldown=0, min_lr=0.0, eps=1e-08, mode='min'
optim.schedules.step | gamma=0.1
optim.schedules.warmup | start_factor=0.0
optim.schedules.warmup_stable_decay | end=0.0
optim.sm3 | learning_rate=0.001, momentum=0.9, eps=1e-08, weight_decay=0.0, maximize=False
optim.sophia | learning_rate=0.0001, betas=(0.965, 0.99), gamma=0.01, eps=1e-08, weight_decay=0.0001, limit=1.0, maximize=False
optim.yogi | learning_rate=0.01, betas=(0.9, 0.999), eps=0.001, weight_decay=0.0, maximize=False
optim.zoom_line_search | max_linesearch_steps=15, tol=0.0, increase_factor=2.0, slope_rtol=0.0001, curv_rtol=0.9, approx_dec_rtol=1e-06, stepsize_precision=1e-05, initial_guess_strategy='keep'
per_sample_grad | argnums=0, has_aux=False, batch_argnums=1
random.bernoulli | p=0.5
random.bits | shape=()
random.categorical | dim=-1
random.like | sampler=normal
random.normal | shape=(), dtype=torch.float32
random.randint | dtype=torch.int64
random.split | num=2
random.truncated_normal | dtype=torch.float32
random.uniform | shape=(), dtype=torch.float32, minval=0.0, maxval=1.0
scan | unroll=1, remat=False
training.evaluate | batch_size=1000
training.fit | resume=False, keep=1, check_finite=True, progress=True, tensorboard=False
training.predict | batch_size=1000
tree.check_same_structure | names=('first tree', 'second tree')
tree.concat | dim=0
tree.leading_length | name='batch', what='samples'
tree.leaf_values | name='choice'
value_and_grad | argnums=0, has_aux=False
vjp | has_aux=False
vmap | in_dims=0, out_dims=0, randomness='error'
""".strip().splitlines()


@pytest.mark.parametrize("name", COUNTERPARTS)
def test_defaults_are_torchs(name: str) -> None:
    other = counterpart(name)
    assert other is not None
    theirs = defaults(other.__init__ if isinstance(other, type) else other)
    for argument, value in defaults(FUNCTIONS[name]).items():
        expected = theirs.get(OTHER_NAMES.get(argument, argument))
        if expected is not None and not callable(value):
            assert value == expected, f"{name}({argument}={value!r}), and torch's is {expected!r}"


def test_defaults_that_torch_does_not_give() -> None:
    found = {name: ", ".join(f"{a}={shown(v)}" for a, v in own(name, f).items()) for name, f in FUNCTIONS.items()}
    expected = dict(line.split(" | ") for line in OWN)
    if "maximize" not in defaults(torch.optim.LBFGS.__init__):  # as in torch 2.13
        expected["optim.lbfgs"] = "maximize=False"
    assert {name: text for name, text in found.items() if text} == expected
